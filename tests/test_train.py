"""The three training stages in process, on the embedded stories260k: what every iteration must show."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as L
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from tiny import PROMPTS, TASK
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lightning_rlhf.data import PreferenceData, PromptBatch, PromptData, SFTData
from lightning_rlhf.models import ASSETS, load_lm
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule, Rollout
from lightning_rlhf.ppo_networks import Outputs
from lightning_rlhf.reward import RewardModule
from lightning_rlhf.scalar import load_scalar
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.tasks import Task, UsageError
from lightning_rlhf.tokens import pad_batch
from lightning_rlhf.trunks import SplitTrunk

REWARD = '''
def length(prompts, completions, **columns):
    """Short words are good, and what the prompt was counts too."""
    return [c.count(" ") - 0.1 * len(c) + 0.01 * len(p) for p, c in zip(prompts, completions, strict=True)]


def better(prompts, completions, **columns):
    return [float(len(c)) for c in completions]
'''


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


class Watch(L.Callback):
    """The figures of each step, and which gradients reached the optimizer."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.without_gradient: set[str] = set()
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps += 1
        for name, p in pl_module.named_parameters():
            if p.requires_grad and (p.grad is None or not bool(p.grad.any())):
                self.without_gradient.add(name)


def trainer_of(precision: Any = "32-true", callbacks: list[L.Callback] | None = None) -> L.Trainer:
    return L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=callbacks,
    )  # fmt: skip


def fit(module: L.LightningModule, data: L.LightningDataModule, precision: Any = "32-true") -> Watch:
    watch = Watch()
    trainer_of(precision, [watch]).fit(module, data)
    return watch


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def ppo(
    folder: Path,
    iterations: int = 2,
    batch_size: int = 8,
    precision: Any = "32-true",
    before: Callable[[PPOModule], None] | None = None,
    **options: Any,
) -> tuple[PPOModule, Watch]:
    """A run from stories260k with the reward `length`; `before` is handed the module before it starts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    prompts = write(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    given: dict[str, Any] = dict(policy="stories260k", reward=f"{folder / 'rewards.py'}:length", num_ppo_epochs=2)
    given["optimizer"] = lambda p: AdamTF(p, lr=1e-3)
    module = PPOModule(output=str(folder / "policy"), **{"task": TASK, **given, **options})
    data = PromptData(prompts, "stories260k", TASK, batch_size=batch_size, total_episodes=iterations * batch_size)
    assert module.check(data, trainer_of(), False) == []
    if before:
        before(module)
    return module, fit(module, data, precision)


class Spy:
    """Keeps the batches and rollouts of a run."""

    def __init__(self) -> None:
        self.kept: list[tuple[PromptBatch, Rollout]] = []

    def __call__(self, module: PPOModule) -> None:
        plain = module.rollout

        def rollout(batch: PromptBatch) -> Rollout:
            self.kept.append((batch, plain(batch)))
            return self.kept[-1][1]

        module.rollout = rollout  # type: ignore[method-assign]


def weights(module: PPOModule) -> Tensor:
    """Everything that the optimizer may move, in one vector."""
    return torch.cat([p.detach().double().flatten() for p in (*module.policy.parameters(), *module.value_head.parameters())])


# ----------------------------------------------------------------------------------------------------------------- PPO

SHAPES = [
    pytest.param({}, id="plain"),
    pytest.param({"num_mini_batches": 2}, id="two minibatches"),
    pytest.param({"num_mini_batches": 2, "micro_batch_size": 1}, id="micro-batches"),
    pytest.param({"trainable_layers": 2}, id="top layers"),
    pytest.param({"trainable_layers": 2, "num_mini_batches": 2, "micro_batch_size": 2}, id="all three"),
]


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize(("precision", "bound"), [("32-true", 1e-5), ("bf16-mixed", 1e-3)])
def test_ppo(tmp_path: Path, options: dict, precision: str, bound: float) -> None:
    iterations = 3 if precision == "32-true" else 2
    module, watch = ppo(tmp_path, iterations, precision=precision, kl_target=0.5, kl_horizon=50.0, kl_coef=0.15, **options)
    assert len(watch.rows) == iterations
    # the first minibatch of each iteration sees the policy that sampled
    assert [r["ppo/ratio_error"] < bound for r in watch.rows] == [True] * iterations
    if "num_mini_batches" not in options:  # it is the rollout's own batch
        assert [r["ppo/ratio_error"] for r in watch.rows] == [0.0] * iterations
    # later ones do not: the weights moved, the second inner epoch saw it, and the policy left the reference
    assert all(r["ppo/policy/approxkl"] > 1e-8 for r in watch.rows)
    assert watch.rows[0]["objective/kl"] == 0.0
    assert all(abs(r["objective/kl"]) > 1e-4 for r in watch.rows[1:])
    # β from the logged KLs
    beta = 0.15
    for row in watch.rows:
        assert row["objective/kl_coef"] == pytest.approx(beta, rel=1e-6)
        total = row["objective/score"] - beta * row["objective/kl"]
        assert row["objective/score_total"] == pytest.approx(total, rel=1e-5, abs=1e-6)
        beta *= 1 + min(0.2, max(-0.2, row["objective/kl"] / 0.5 - 1)) * 8 / 50
    assert module.kl.coef == pytest.approx(beta, rel=1e-6)
    # steps: iterations × inner epochs × minibatches; the schedule by iteration
    steps = iterations * 2 * options.get("num_mini_batches", 1)
    assert watch.steps == module.trainer.global_step == steps
    assert {int(s["step"]) for s in module.trainer.optimizers[0].state.values()} == {steps}
    assert [r["ppo/lr"] for r in watch.rows] == pytest.approx([1e-3 * (1 - u / iterations) for u in range(iterations)])
    assert watch.without_gradient == set()
    assert (module.updates, module.episodes) == (iterations, 8 * iterations)
    assert not any(p.requires_grad for p in module.reference.parameters())
    figures = json.loads((tmp_path / "policy/run.json").read_text())["figures"]
    assert figures["objective/kl"] == watch.rows[-1]["objective/kl"]


def test_the_lr_of_an_update_is_the_one_from_before_the_schedule_moves(tmp_path: Path) -> None:
    seen: list[float] = []

    class Rates(AdamTF):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    ppo(tmp_path, 4, num_mini_batches=2, optimizer=lambda p: Rates(p, lr=1.0e-3))
    assert seen == pytest.approx([1e-3] * 4 + [0.75e-3] * 4 + [0.5e-3] * 4 + [0.25e-3] * 4)


@pytest.mark.parametrize("num_mini_batches", [1, 2])
def test_micro_batches_change_nothing(tmp_path: Path, num_mini_batches: int) -> None:
    start = weights_of_start()
    moved = {}
    for micro in (1, 4, None):
        options: dict[str, Any] = dict(micro_batch_size=micro, num_mini_batches=num_mini_batches, num_ppo_epochs=1)
        module, _ = ppo(tmp_path / str(micro), 1, 16, optimizer=lambda p: torch.optim.SGD(p, lr=1e-2), **options)
        moved[micro] = weights(module) - start
    assert moved[None].norm() > 1e-4
    for micro in (1, 4):
        assert (moved[micro] - moved[None]).norm() < 1e-5 * moved[None].norm() + 1e-7


def weights_of_start() -> Tensor:
    lm = load_lm("stories260k")
    flat = torch.cat([p.detach().double().flatten() for p in lm.model.parameters()])
    return torch.cat([flat, torch.zeros(65, dtype=torch.float64)])  # the value head starts at 0


def test_one_sgd_step_by_hand(tmp_path: Path) -> None:
    """The first update against the gradient of the objective, written down once more on unpadded rows."""
    spy = Spy()
    beta, lr = 0.3, 0.1
    module, watch = ppo(
        tmp_path, 1, 8, before=spy, num_ppo_epochs=1, kl_coef=beta, kl_target=None, optimizer=lambda p: torch.optim.SGD(p, lr=lr)
    )
    _, rollout = spy.kept[0]
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "stories260k")
    # iteration 0: the KL is 0, the values are 0, so a response's rewards are 0 … 0, score
    scores = rollout.scores.double().tolist()
    rewards = [[0.0] * 5 + [s] for s in scores]
    entries = [x for r in rewards for x in r]
    mean = sum(entries) / 48
    scale = 1 / math.sqrt(sum((x - mean) ** 2 for x in entries) / 48 + 1e-8)
    rewards = [[(x - mean) * scale + mean for x in r] for r in rewards]
    advantages = [[sum(0.95 ** (k - t) * r[k] for k in range(t, 6)) for t in range(6)] for r in rewards]
    entries = [x for r in advantages for x in r]
    centre = sum(entries) / 48
    spread = math.sqrt(sum((x - centre) ** 2 for x in entries) / 48 + 1e-8)
    loss = torch.zeros(())
    for tokens, mask, a in zip(rollout.tokens, rollout.mask, advantages, strict=True):
        row = tokens[mask]
        logp = torch.log_softmax(model(input_ids=row[None]).logits[0, :-1] / 0.7, -1)
        chosen = logp[torch.arange(len(row) - 1), row[1:]][-6:]
        loss = loss - (chosen * torch.tensor([(x - centre) / spread for x in a])).sum() / 48  # ρ = 1: the gradient of −Aρ
    loss.backward()
    expected = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    start = weights_of_start()
    moved = (start - weights(module))[:-65] / lr
    assert (moved - expected).norm() < 1e-3 * expected.norm()
    # the value head: d ½ mean (v − R)² / d bias = −mean R, times vf_coef
    assert module.value_head.bias.item() == pytest.approx(lr * 0.1 * centre, rel=1e-4)
    assert watch.rows[0]["ppo/returns/mean"] == pytest.approx(centre, rel=1e-4)
    assert watch.rows[0]["ppo/val/error"] == pytest.approx(sum(x * x for x in entries) / 48, rel=1e-4)


def test_scores_are_of_the_truncated_text_and_the_penalty_of_the_rest(tmp_path: Path) -> None:
    spy = Spy()
    module, watch = ppo(tmp_path, 2, 16, before=spy)
    found = 0
    for batch, rollout in spy.kept:
        for text, row, score in zip(batch.texts, rollout.tokens.tolist(), rollout.scores.tolist(), strict=True):
            response = row[-6:]
            pieces = module.tokenizer.convert_ids_to_tokens(response)
            ends = [i for i, piece in enumerate(pieces) if piece == " a" and i >= 1]
            if not ends:
                assert score == -1.0
                continue
            found += 1
            head = module.tokenizer(text, add_special_tokens=False).input_ids
            whole = module.tokenizer.decode(head + response[: ends[0] + 1], skip_special_tokens=True)
            assert whole.startswith(text)
            completion = whole[len(text) :]
            assert score == pytest.approx(completion.count(" ") - 0.1 * len(completion) + 0.01 * len(text), rel=1e-5, abs=1e-6)
    assert 4 < found < 28
    assert sum(r["objective/found"] for r in watch.rows) == pytest.approx(found / 16)


def test_without_a_penalty_each_response_has_its_own_score(tmp_path: Path) -> None:
    """Not 0, which would be a reward like another; and no alarm says that most are penalised."""
    known = Spy()
    module, watch = ppo(tmp_path, 2, 16, before=known, task=Task(**{**vars(TASK), "penalty": None}))
    scores = torch.cat([rollout.scores for _, rollout in known.kept])
    assert sum(r["objective/found"] for r in watch.rows) / 2 < 1  # some have no end
    assert len(scores.unique()) > 16 and bool((scores > 0).all())
    assert module.alarms.start is not None and module.alarms.start["penalised"] == 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_shared_trunk_gives_what_separate_ones_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    shared, one = ppo(tmp_path / "shared", 2, trainable_layers=2, precision=precision)
    assert shared.ref_split is not None
    monkeypatch.setattr(SplitTrunk, "shares_below", lambda self, other: False)
    apart, two = ppo(tmp_path / "apart", 2, trainable_layers=2, precision=precision)
    assert apart.ref_split is None
    start = weights_of_start()
    difference = (weights(shared) - weights(apart)).norm() / (weights(apart) - start).norm()
    assert difference < (1e-5 if precision == "32-true" else 2e-2)
    for a, b in zip(one.rows, two.rows, strict=True):
        assert a["objective/score"] == pytest.approx(b["objective/score"], abs=1e-6)
        assert a["objective/kl"] == pytest.approx(b["objective/kl"], abs=1e-5 if precision == "32-true" else 2e-2)
    frozen = [n for n, p in shared.policy.named_parameters() if not p.requires_grad]
    original = dict(load_lm("stories260k").model.named_parameters())
    assert frozen
    assert all(torch.equal(dict(shared.policy.named_parameters())[n], original[n]) for n in frozen)


def test_a_reward_from_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "importable"
    folder.mkdir()
    (folder / "toy_rewards_for_ppo.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    pairs = [{"prompt": "Lily", "better": " went away", "worse": " ran"}]
    module, _ = ppo(tmp_path, 2, reward="toy_rewards_for_ppo:better", guard_pairs=pairs)
    assert module.guard_result == {"kind": "pairs", "n": 1}
    assert (weights(module) - weights_of_start()).norm() > 0
    # the export holds what was trained, and nothing else samples differently
    again = load_lm(str(tmp_path / "policy"))
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), module.policy.parameters(), strict=True))


def test_every_forward_uses_the_weights_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast may keep bf16 copies of weights (Lightning forbids it, others do not): none outlives an optimizer step or
    the rollout, whose copies have no graph."""
    monkeypatch.setattr(MixedPrecision, "autocast_context_manager", lambda self: torch.autocast("cpu", torch.bfloat16))
    same: list[bool] = []

    def before(module: PPOModule) -> None:
        plain = module.policy_outputs

        def outputs(*given: Any) -> Outputs:
            found = plain(*given)
            assert torch.is_autocast_cache_enabled()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                same.append(torch.equal(found[0], plain(*given)[0]))
            return found

        module.policy_outputs = outputs  # type: ignore[method-assign]

    _, watch = ppo(tmp_path, 2, precision="bf16-mixed", before=before)
    assert same == [True] * 4  # an iteration: the rollout's, which the first inner epoch takes, and the second's
    assert watch.without_gradient == set()
    assert all(r["ppo/ratio_error"] < 1e-3 for r in watch.rows)


def test_dropout_is_off(tmp_path: Path) -> None:
    """A model whose config asks for dropout has the ratio 1 and the KL 0 all the same."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.5, embd_pdrop=0.5,
                        attn_pdrop=0.5, bos_token_id=2, eos_token_id=2)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    load_lm("stories260k").tokenizer.save_pretrained(tmp_path / "gpt2")
    for layers in (None, 1):
        _, watch = ppo(tmp_path / str(layers), 2, policy=str(tmp_path / "gpt2"), trainable_layers=layers)
        assert all(r["ppo/ratio_error"] < 1e-5 for r in watch.rows)
        assert watch.rows[0]["objective/kl"] == 0.0
        assert watch.without_gradient == set()


def module_of(folder: Path, **options: Any) -> tuple[PPOModule, PromptData]:
    """A module that is not started."""
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    prompts = write(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    given: dict[str, Any] = {"reward": f"{folder / 'rewards.py'}:length", "output": str(folder / "policy"), **options}
    return PPOModule("stories260k", task=TASK, **given), PromptData(prompts, "stories260k", TASK, batch_size=8, total_episodes=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coef": -0.1}, "model.kl_coef: found -0.1; a negative one pays for leaving the reference"),
        ({"kl_target": 0.0}, "model.kl_target, model.kl_horizon: found 0.0 and 10000.0, expected both above 0"),
        ({"kl_horizon": -1.0}, "model.kl_target, model.kl_horizon: found 6.0 and -1.0, expected both above 0"),
        ({"num_ppo_epochs": 0}, "model.num_ppo_epochs: found 0, expected at least 1"),
        ({"num_mini_batches": 0}, "model.num_mini_batches: found 0, expected at least 1"),
        ({"num_mini_batches": 3}, "data.batch_size: 8 cannot be split into model.num_mini_batches = 3 on 1 device(s)"),
        ({"micro_batch_size": 3}, "model.micro_batch_size: minibatches of 8 cannot be split into micro-batches of 3"),
        ({"num_mini_batches": 2, "micro_batch_size": 8}, "minibatches of 4 cannot be split into micro-batches of 8"),
        ({"micro_batch_size": 0}, "minibatches of 8 cannot be split into micro-batches of 0"),
    ],
)
def test_ppo_checks_its_options(tmp_path: Path, options: dict, message: str) -> None:
    module, data = module_of(tmp_path, **options)
    problems = module.check(data, trainer_of(), False)
    assert len(problems) == 1
    assert message in problems[0]


def test_ppo_checks_say_everything_at_once(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    module, data = module_of(tmp_path, kl_coef=-1.0, num_ppo_epochs=0)
    trainer = SimpleNamespace(precision="16-mixed", world_size=2)
    problems = module.check(data, trainer, False)
    assert [p.split(":")[0] for p in problems] == ["model.output", "trainer.precision", "model.kl_coef", "model.num_ppo_epochs"]
    assert len(module.check(data, trainer, True)) == 3  # a resume finds its output there
    allowed, data = module_of(tmp_path, kl_coef=-1.0, allow_negative_kl=True, overwrite=True)
    assert allowed.check(data, trainer_of(), False) == []


def test_a_learned_reward_needs_comparisons(tmp_path: Path) -> None:
    (tmp_path / "reward").mkdir()
    record = {"task": "toy", "gain": 1.0, "bias": 0.0}
    (tmp_path / "reward/reward.json").write_text(json.dumps(record))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "reward" / name).touch()
    module, data = module_of(tmp_path, reward=str(tmp_path / "reward"))
    (problem,) = module.check(data, trainer_of(), False)
    assert problem.startswith("model.guard_comparisons: not given; a learned reward needs held-out comparisons")
    (tmp_path / "reward/reward.json").write_text(json.dumps({**record, "task": "tldr"}))
    other_task, _ = module.check(data, trainer_of(), False)  # both problems are told
    assert "was made for task 'tldr', this run's task is 'toy'" in other_task


def test_a_reward_that_orders_a_pair_wrongly_starts_nothing(tmp_path: Path) -> None:
    pairs = [{"prompt": "Lily", "better": " a b c", "worse": " abc"}, {"prompt": "Lily", "better": "long", "worse": " a"}]
    module, data = module_of(tmp_path, guard_pairs=pairs)
    with pytest.raises(UsageError, match=r"guard_pairs: 'long' scores -0.3600, not above ' a' with 0.8400"):
        fit(module, data)
    assert not (tmp_path / "policy").exists()
    module, data = module_of(tmp_path, guard_pairs=pairs, allow_unguarded=True)
    with pytest.warns(UserWarning, match="PPO starts ALTHOUGH the reward was refused"):
        fit(module, data)
    assert module.guard_result["kind"] == "overridden"


def test_a_negative_kl_stops_the_run(tmp_path: Path) -> None:
    module, _ = module_of(tmp_path)
    # mean −1, deviations ±0.1: noise 3 · 0.1155 / 2 = 0.173; −1 is below −(0.1 + 0.173), −0.2 is not
    low = torch.tensor([-0.9, -1.1, -0.9, -1.1])
    module._alarm(low + 0.8)
    module._alarm(torch.tensor([-5.0]))  # one response tells nothing
    with pytest.raises(UsageError, match=r"mean KL to the reference is -1.000 nats at iteration 0, below -0.1 - 0.173 \(noise\)"):
        module._alarm(low)
    module.allow_negative_kl = True
    with pytest.warns(UserWarning, match="mean KL to the reference is -1.000"):
        module._alarm(low)


# -------------------------------------------------------------------------------------------------------------- reward


def comparisons(n: int) -> list[dict]:
    texts = [" and ran away", " sat on it", " is big", " was very happy to see"]
    return [{"prompt": PROMPTS[i % 8], "responses": texts[: 4 - i % 2], "best": (i * 5) % (4 - i % 2)} for i in range(n)]


@pytest.mark.parametrize("options", [{}, {"trainable_layers": 2}])
def test_reward(tmp_path: Path, options: dict) -> None:
    train, val = (write(tmp_path / f"{k}.jsonl", comparisons(n)) for k, n in (("train", 12), ("val", 6)))
    options = {**options, "normalise_samples": 40, "rollout_batch_size": 16}
    module = RewardModule("stories260k", str(tmp_path / "reward"), TASK, lambda p: AdamTF(p, lr=1e-3), **options)
    start = load_lm("stories260k").model.state_dict()
    data = PreferenceData(train, "stories260k", TASK, val, batch_size=4)
    watch = fit(module, data)
    assert watch.steps == 3
    # the last bias moves no choice: softmax does not see it, so its gradient is rounding alone
    assert watch.without_gradient <= {"scalar.bias", "scalar.head.bias"}
    moved = [n for n, p in module.scalar.trunk.named_parameters() if not torch.equal(p, start["model." + n])]
    frozen = [n for n, p in module.scalar.trunk.named_parameters() if not p.requires_grad]
    assert not set(moved) & set(frozen)
    assert any("layers.4" in n for n in moved)
    assert bool(frozen) == ("trainable_layers" in options)
    # the exported directory scores the reference samples with mean 0, std 1
    assert module.reference_samples is not None
    tokens, mask = module.reference_samples
    assert len(tokens) == 48  # 40 asked, whole batches of 16
    scalar, _, info = load_scalar(tmp_path / "reward")
    with torch.no_grad():
        rewards = scalar(tokens, mask).double()
    assert rewards.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert rewards.std(correction=0).item() == pytest.approx(1.0, rel=1e-5)
    assert [n["when"] for n in info["normalisations"]] == ["before training", "after training"]
    assert info["task"] == "toy"
    assert info["labels"] == 12
    assert info["held_out"] == 6
    assert info["chance"] == pytest.approx((3 * 1 / 4 + 3 * 1 / 3) / 6)
    # accuracy and loss of the held-out comparisons, one response at a time
    loss = correct = 0.0
    for record in comparisons(6):
        head = module.tokenizer(record["prompt"]).input_ids
        rows = [module.tokenizer(record["prompt"] + r).input_ids for r in record["responses"]]
        assert all(r[: len(head)] == head for r in rows)
        with torch.no_grad():
            scores = [float(module.scalar(*pad_batch([r], 0))) for r in rows]
        correct += scores.index(max(scores)) == record["best"]
        loss += math.log(sum(math.exp(s) for s in scores)) - scores[record["best"]]
    assert info["accuracy"] == pytest.approx(correct / 6)
    assert info["accuracy_low"] < info["accuracy"] < info["accuracy_high"] or correct in (0, 6)


def test_a_reward_is_normalised_before_the_first_step(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", comparisons(4))
    options: dict[str, Any] = dict(normalise_samples=32, rollout_batch_size=32)
    module = RewardModule("stories260k", str(tmp_path / "r"), TASK, lambda p: torch.optim.SGD(p, lr=0.0), **options)
    fit(module, PreferenceData(train, "stories260k", TASK, batch_size=4))
    first, second = module.normalisations
    assert second["mean"] == pytest.approx(0.0, abs=1e-5)  # nothing was trained: it was normalised already
    assert second["std"] == pytest.approx(1.0, rel=1e-5)
    assert first["n"] == second["n"] == 32
    # the samples are responses of the reference to training queries, untruncated
    assert module.reference_samples is not None
    prompts = [module.tokenizer(p).input_ids for p in PROMPTS[:4]]
    for tokens, mask in zip(*module.reference_samples, strict=True):
        assert tokens[mask].tolist()[:-6] in prompts


def test_ppo_from_a_learned_reward_and_a_shared_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write(tmp_path / "train.jsonl", comparisons(8))
    options: dict[str, Any] = dict(trainable_layers=2, normalise_samples=16, rollout_batch_size=16)
    module = RewardModule("stories260k", str(tmp_path / "reward"), TASK, lambda p: AdamTF(p, lr=1e-3), **options)
    fit(module, PreferenceData(train, "stories260k", TASK, batch_size=4))
    spy = Spy()
    options = dict(reward=str(tmp_path / "reward"), allow_unguarded=True, trainable_layers=2, before=spy)
    shared, _ = ppo(tmp_path / "shared", 1, **options)
    assert shared.reward_split is not None
    monkeypatch.setattr(SplitTrunk, "shares_below", lambda self, other: False)
    apart, _ = ppo(tmp_path / "apart", 1, **options)
    assert apart.reward_split is None
    first, second = (rollout for _, rollout in spy.kept)
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in shared.reward.parameters())  # type: ignore[attr-defined,union-attr]
    assert first.found.sum() > 1
    assert first.scores.unique().numel() > 2


# ----------------------------------------------------------------------------------------------------------------- SFT


def demonstrations(n: int) -> list[dict]:
    return [{"prompt": PROMPTS[i % 8], "completion": [" ran.", " sat on the mat and", " was happy"][i % 3]} for i in range(n)]


def test_sft_loss_is_that_of_transformers(tmp_path: Path) -> None:
    train, val = (write(tmp_path / f"{k}.jsonl", demonstrations(n)) for k, n in (("train", 6), ("val", 5)))
    data = SFTData(train, "stories260k", TASK, val, batch_size=3)
    module = SFTModule("stories260k", str(tmp_path / "sft"), TASK, lambda p: AdamTF(p, lr=1e-3))
    module.configure_model()
    data.setup()
    batch = data.collate(data.items["val"])
    labels = torch.where(batch.response, batch.tokens, -100)
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "stories260k")
    expected = model(input_ids=batch.tokens, attention_mask=batch.mask.long(), labels=labels).loss
    found, tokens = module.loss(batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert int(tokens) == int(batch.response.sum())
    found.backward()
    expected.backward()
    for a, b in zip(module.policy.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    # the labels are the completions, exactly
    texts = [module.tokenizer.decode(t[r]) for t, r in zip(batch.tokens, batch.response, strict=True)]
    assert texts == [d["completion"].lstrip() for d in demonstrations(5)]


def test_sft_learns_its_demonstrations(tmp_path: Path) -> None:
    records = demonstrations(6) * 6
    path = write(tmp_path / "train.jsonl", records)
    before = SFTModule("stories260k", str(tmp_path / "x"), TASK)
    before.configure_model()
    data = SFTData(path, "stories260k", TASK, path, batch_size=4)
    module = SFTModule("stories260k", str(tmp_path / "sft"), TASK, lambda p: AdamTF(p, lr=3e-3), trainable_layers=3)
    watch = fit(module, data)
    assert watch.steps == 9
    assert watch.without_gradient == set()
    assert not module.policy.training  # no dropout
    with torch.no_grad():
        batch = data.collate(data.items["val"])
        after = module.loss(batch)[0]
        assert after < before.loss(batch)[0] - 1
        # the export is what was trained
        exported = SFTModule(str(tmp_path / "sft"), str(tmp_path / "y"), TASK)
        exported.configure_model()
        assert torch.equal(exported.loss(batch)[0], after)
