"""However a batch is cut, padded or shaped, the update is that of its real tokens: all of them, once each."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as L
import torch
from tiny import PROMPTS, REWARD, STORIES, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lightning_rlhf import ppo_networks
from lightning_rlhf.data import ComparisonBatch, DataError, PreferenceData, PromptBatch, PromptData, SFTBatch, SFTData
from lightning_rlhf.generation import Drawn
from lightning_rlhf.models import load_lm, position_problems
from lightning_rlhf.ppo import PPOModule, Rollout
from lightning_rlhf.reward import RewardModule
from lightning_rlhf.scalar import ScalarModel, save_reward
from lightning_rlhf.scoring import LearnedReward
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.stage import StageCheckpoint
from lightning_rlhf.tasks import Task, UsageError

FIXED = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=" a", truncate_after=1)
EOS = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=None, truncate_after=0)
TEXTS = [" and ran away", " sat on it", " is", " was very happy to see the big bird that sang"]


class Gradients(L.Callback):
    """The whole gradient of each optimizer step, in float64."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in pl_module.parameters() if p.requires_grad]
        self.steps.append(torch.cat([g.detach().double().flatten() for g in found]))


def fit(module: Any, data: Any, accumulated: int = 1, **options: Any) -> list[Tensor]:
    """The gradients of a run with SGD."""
    gradients = Gradients()
    L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[gradients], accumulate_grad_batches=accumulated, **options,
    ).fit(module, data)  # fmt: skip
    return gradients.steps


def same(one: list[Tensor], two: list[Tensor], bound: float = 1e-5) -> None:
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert b.norm() > 1e-3
        assert (a - b).norm() < bound * b.norm(), ((a - b).norm() / b.norm()).item()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


# -------------------------------------------------------------------------------------------- micro-batches, accumulation


def ppo(folder: Path, batch_size: int = 16, prompts: list[str] | None = None, **options: Any) -> tuple[PPOModule, PromptData]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    given: dict[str, Any] = dict(policy=STORIES, reward=f"{folder / 'rewards.py'}:spaces", num_ppo_epochs=2, optimizer=sgd)
    given |= dict(output=str(folder / "policy"), task=EOS if options.get("mode") == "eos" else FIXED)
    module = PPOModule(**{**given, **options})
    records = [{"prompt": p} for p in prompts or PROMPTS]
    data = PromptData(write(folder / "prompts.jsonl", records), given["policy"], given["task"], batch_size, batch_size)
    return module, data


@pytest.mark.parametrize(
    "options",
    [{"mode": "fixed"}, {"mode": "eos", "stop_token": " the"}, {"value": "separate", "max_grad_norm": 0.5},
     {"mode": "truncated", "kl_loss": 1.0, "trainable_layers": 2}],
)  # fmt: skip
def test_one_times_sixteen_is_sixteen_times_one_in_ppo(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = fit(*ppo(tmp_path / "whole", **options))
    assert len(whole) == 2  # one optimizer step an inner epoch, however many micro-batches
    same(fit(*ppo(tmp_path / "parts", micro_batch_size=1, **options)), whole)


def test_micro_batches_hold_prompts_of_like_lengths_without_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest prompts come first; no pass of the update has a column that is padding in all of its rows."""
    masks: list[Tensor] = []
    plain = ppo_networks.hidden_states
    seen = lambda model, tokens, mask: masks.append(mask) or plain(model, tokens, mask)  # noqa: E731
    monkeypatch.setattr(ppo_networks, "hidden_states", seen)
    fit(*ppo(tmp_path, micro_batch_size=4))
    assert len(masks) == 4 * (2 + 2)  # policy and reference, then two inner epochs
    assert all(bool(mask[:, 0].any()) for mask in masks)
    widths = [mask.shape[1] for mask in masks]
    assert widths[:8] == sorted(widths[:8], reverse=True) and len(set(widths)) > 2


@pytest.mark.parametrize(("precision", "bound"), [("32-true", 1e-5), ("bf16-mixed", 1e-3)])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_first_ratio_is_one_in_ragged_micro_batches(tmp_path: Path, precision: str, bound: float, minibatches: int) -> None:
    module, data = ppo(tmp_path, micro_batch_size=2, num_mini_batches=minibatches, kl_loss=1.0)
    logged: list[float] = []
    plain = module.log_dict
    module.log_dict = lambda found, **more: logged.append(found.get("ppo/ratio_error", 0.0)) or plain(found, **more)  # type: ignore[method-assign]
    fit(module, data, precision=precision)
    assert logged and max(logged) < bound
    assert minibatches > 1 or max(logged) == 0.0


def sft(folder: Path, batch_size: int) -> tuple[SFTModule, SFTData]:
    records = [{"prompt": PROMPTS[i % 8], "completion": TEXTS[i * 5 % 4]} for i in range(14)]
    module = SFTModule(STORIES, str(folder / "sft"), FIXED, sgd)
    return module, SFTData(write(folder / "sft.jsonl", records), STORIES, FIXED, batch_size=batch_size)


def reward(folder: Path, batch_size: int) -> tuple[RewardModule, PreferenceData]:
    records = [{"prompt": PROMPTS[i % 8], "responses": TEXTS[: 2 + i % 3], "best": i % 2} for i in range(14)]
    module = RewardModule(STORIES, str(folder / "reward"), FIXED, sgd, normalise_samples=8, rollout_batch_size=8)
    return module, PreferenceData(write(folder / "labels.jsonl", records), STORIES, FIXED, batch_size=batch_size)


@pytest.mark.parametrize("stage", [sft, reward])
def test_accumulated_batches_are_one_batch(tmp_path: Path, stage: Any) -> None:
    """Fourteen records of different lengths, eight a step: 2 × 8 is 4 × 4 is 14 × 1, the last step of six too."""
    whole = fit(*stage(tmp_path / "whole", 8))
    assert len(whole) == 2
    same(fit(*stage(tmp_path / "four", 4), accumulated=2), whole)
    same(fit(*stage(tmp_path / "one", 1), accumulated=8), whole)


def test_an_epoch_that_is_cut_short_ends_in_a_step_of_what_came(tmp_path: Path) -> None:
    whole = fit(*sft(tmp_path / "whole", 4), limit_train_batches=1)
    same(fit(*sft(tmp_path / "one", 1), accumulated=8, limit_train_batches=4), whole)


class Batches:
    """As much of a Trainer as the callback touches."""

    num_training_batches, is_global_zero, accumulate_grad_batches, ckpt_path = 11, True, 4, None

    def __init__(self) -> None:
        self.strategy = self
        self.saved = 0

    def barrier(self) -> None: ...

    def save_checkpoint(self, path: Path) -> None:
        self.saved += 1
        path.write_bytes(b"new")


def test_a_checkpoint_falls_between_optimizer_steps(tmp_path: Path) -> None:
    """Due every three batches, four a step: saved after the steps in which one was due, and at the end."""
    trainer, callback, counts = Batches(), StageCheckpoint(str(tmp_path / "last.ckpt"), every=3), []
    for batch in range(11):
        callback.on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
        counts.append(trainer.saved)
    assert counts == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]


def test_a_run_that_max_steps_ended_can_export_after_a_kill(tmp_path: Path) -> None:
    """No checkpoint is of the last step, from which Lightning would neither train nor export."""

    def made() -> tuple[Any, Any, L.Trainer]:
        module, data = sft(tmp_path, 4)
        trainer = L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, max_steps=2, max_epochs=None, num_sanity_val_steps=0,
            callbacks=[StageCheckpoint(str(tmp_path / "last.ckpt"), every=1)],
        )  # fmt: skip
        return module, data, trainer

    module, data, trainer = made()
    trainer.fit(module, data)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1
    before = {k: v.clone() for k, v in module.policy.state_dict().items()}
    shutil.rmtree(tmp_path / "sft")
    module, data, trainer = made()
    trainer.fit(module, data, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert (tmp_path / "sft/model.safetensors").is_file()
    assert all(torch.equal(v, module.policy.state_dict()[k]) for k, v in before.items())


# ---------------------------------------------------------------------------------------------------------------- padding


def wider(tensor: Tensor, value: int, left: int = 0, right: int = 0) -> Tensor:
    return torch.nn.functional.pad(tensor, (left, right), value=value)


@pytest.mark.parametrize("options", [{}, {"mode": "eos", "stop_token": " the"}, {"trainable_layers": 2}])
def test_wider_prompts_change_nothing_in_ppo(tmp_path: Path, options: dict[str, Any]) -> None:
    """Five more places of padding, of any id, before each prompt: the same tokens, scores, values and gradients."""
    kept: list[list[Rollout]] = []
    found = []
    for name in ("tight", "wide"):
        module, data = ppo(tmp_path / name, **options)
        plain, rollouts = module.rollout, []

        def rollout(wide: bool, plain: Any, rollouts: Any, batch: PromptBatch, seed: int | None = None) -> Rollout:
            if wide:
                batch = batch._replace(tokens=wider(batch.tokens, 7, left=5), mask=wider(batch.mask, 0, left=5))
            rollouts.append(plain(batch, seed))
            return rollouts[-1]  # type: ignore[no-any-return]

        module.rollout = partial(rollout, name == "wide", plain, rollouts)  # type: ignore[method-assign]
        found.append(fit(module, data))
        kept.append(rollouts)
    same(*found)
    for a, b in zip(*kept, strict=True):
        assert torch.equal(a.tokens[:, -6:], b.tokens[:, -6:]) and b.tokens.shape[1] == a.tokens.shape[1] + 5
        assert torch.equal(a.real, b.real) and torch.equal(a.found, b.found)
        for name in ("logprobs", "ref_logprobs", "values", "scores"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5)


def gradient(module: Any, loss: Tensor) -> Tensor:
    module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.double().flatten() for p in module.parameters() if p.grad is not None])


def test_wider_rows_change_nothing_in_sft_and_reward(tmp_path: Path) -> None:
    from lightning_rlhf.reward import labels_loss

    module, data = sft(tmp_path, 8)
    module.configure_model()
    data.setup()
    batch = data.collate(data.items["train"][:6])
    wide = SFTBatch(wider(batch.tokens, 7, right=4), wider(batch.mask, 0, right=4), wider(batch.response, 0, right=4))
    same([gradient(module, module.loss(wide)[0])], [gradient(module, module.loss(batch)[0])])
    assert module.loss(wide)[1] == module.loss(batch)[1]
    scorer, labels = reward(tmp_path, 8)
    scorer.configure_model()
    labels.setup()
    rows: ComparisonBatch = labels.collate(labels.items["train"][:6])
    padded = rows._replace(tokens=wider(rows.tokens, 7, right=4), mask=wider(rows.mask, 0, right=4))
    torch.testing.assert_close(scorer.scores(padded), scorer.scores(rows), rtol=1e-4, atol=1e-5)
    one, two = (gradient(scorer, labels_loss(scorer.scores(b), b)) for b in (padded, rows))
    same([one], [two])


# ------------------------------------------------------------------------------------------------------------------- edges


def bare(folder: Path) -> str:
    """A GPT-2 whose tokenizer has an end-of-text token and nothing else: no BOS before a text, no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    shape: dict[str, Any] = dict(vocab_size=260, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(["the cat"], trainers.BpeTrainer(initial_alphabet=alphabet, **shape))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = dict(n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3)
    GPT2LMHeadModel(GPT2Config(vocab_size=260, bos_token_id=0, eos_token_id=0, **shape)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("prompts", [["L"], ["L", "a", "Once upon"]])
def test_prompts_of_one_token_and_responses_that_stop_at_once(tmp_path: Path, prompts: list[str]) -> None:
    """A batch of one or ragged, the first token EOS, which also pads: length 1, the score of no text, a whole update."""
    policy, n = bare(tmp_path / "model"), len(prompts)
    module, data = ppo(tmp_path, n, prompts, policy=policy, mode="eos", missing_eos_penalty=-5.0)
    data.tokenizer_name = policy
    module.configure_model()
    assert module.pad_id == 0 and module.stop == (0,)
    torch.nn.init.constant_(module.value_head.bias, 0.5)  # or there were nothing to learn: the score and the KL are 0
    plain, kept = module.rollout, []

    def rollout(batch: PromptBatch, seed: int | None = None) -> Rollout:
        certain = torch.zeros(260).index_fill(0, torch.tensor(0), 50.0)
        with module.policy.lm_head.register_forward_hook(lambda layer, inputs, logits: certain.expand_as(logits)):
            kept.append(plain(batch, seed))
        return kept[-1]

    module.rollout = rollout  # type: ignore[method-assign]
    steps = fit(module, data)
    (found,) = kept
    assert sorted(found.mask[:, :-6].sum(1).tolist()) == sorted(len(module.tokenizer.encode(p)) for p in prompts)
    assert found.mask[:, :-6].sum(1).min() == 1
    assert found.real.tolist() == [[True] + [False] * 5] * n and bool(found.found.all())
    assert found.tokens[:, -6:].tolist() == [[0] * 6] * n
    assert not found.kept.any() and found.scores.tolist() == [0.0] * n  # of the text before EOS
    assert len(steps) == 2 and all(bool(torch.isfinite(g).all()) and bool(g.any()) for g in steps)
    figures = json.loads((tmp_path / "policy/run.json").read_text())["figures"]
    assert (figures["objective/length"], figures["ppo/skipped"]) == (0.0, 0.0)


def test_the_score_stands_on_the_last_real_token(tmp_path: Path) -> None:
    """Responses of 1 to 6 tokens in one batch: each row's rewards are −β KL, and its score once, at its own end."""
    lengths = [1, 2, 3, 4, 5, 6]
    prompts = ["Li", "T", "She", "A c", "On", "They"]
    module, data = ppo(tmp_path, 6, prompts, mode="eos", kl_coef=0.5, whiten_rewards=False, policy=bare(tmp_path / "model"))
    data.tokenizer_name = module.policy_name
    module.configure_model()
    drawn = torch.arange(10, 46).view(6, 6)
    for row, n in zip(drawn, lengths, strict=True):
        row[n:] = 0
        if n < 6:
            row[n - 1] = 0
    seen: list[tuple[Tensor, Tensor]] = []

    def advantages(rewards: Tensor, values: Tensor, real: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen.append((rewards.clone(), real.clone()))
        return PPOModule.advantages(module, rewards, values, real, own)

    module.advantages = advantages  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_rlhf.ppo.sample_with", lambda *_, **__: Drawn(drawn, torch.zeros(drawn.shape), None))
        fit(module, data)
    ((rewards, real),) = seen
    assert real.sum(1).tolist() == lengths
    for row, n in zip(rewards, lengths, strict=True):  # iteration 0: the KL is 0
        assert not row[: n - 1].any() and not row[n:].any()
    ends = rewards[torch.arange(6), real.sum(1) - 1]
    assert ends[5] == -1.0  # it did not stop: the penalty
    texts = [module.tokenizer.decode(row[: n - 1]) for row, n in zip(drawn, lengths[:5], strict=False)]
    assert ends[:5].tolist() == pytest.approx([t.count(" ") - 0.1 * len(t) for t in texts])


def test_a_prompt_with_its_affixes_fits_the_table_of_positions(tmp_path: Path) -> None:
    """32 positions: 24 and 8 fit as they are, and not with a suffix between them."""
    policy = bare(tmp_path / "model")
    task = Task(query_length=24, response_length=8, start_text=None, end_text=None, truncate_text=None)
    assert position_problems(policy, task) == []
    (problem,) = position_problems(policy, replace(task, query_suffix=" TL;DR:"))
    assert "found 24 and 8, beside 7 tokens of task.query_prefix and task.query_suffix" in problem
    assert "has 32 positions" in problem


def test_a_completion_fits_the_table_of_positions(tmp_path: Path) -> None:
    """A text of 33 tokens where there are 32 positions: told with its line before training, and by the reward."""
    policy, long = bare(tmp_path / "model"), "b" * 29
    task = Task(query_length=24, response_length=8, start_text=None, end_text=None, truncate_text=None)
    shown = [{"prompt": "aaa", "completion": long}, {"prompt": "aaaa", "completion": long}]
    data: SFTData | PreferenceData = SFTData(write(tmp_path / "sft.jsonl", shown), tokenizer=policy, task=task)
    told = r":2: field 'completion': found 29 tokens after 4 of its prompt, expected at most 32 together"
    with pytest.raises(DataError, match=told):
        data.setup()
    judged = [{"prompt": "aaaa", "responses": ["b", long], "best": 0}]
    data = PreferenceData(write(tmp_path / "labels.jsonl", judged), tokenizer=policy, task=task)
    with pytest.raises(DataError, match=r":1: field 'responses\[1\]': found 29 tokens after 4"):
        data.setup()
    lm = load_lm(policy)
    save_reward(tmp_path / "reward", ScalarModel(lm.model.base_model, 16, std=1.0), lm.tokenizer, {"task": "toy"})
    reward = LearnedReward(str(tmp_path / "reward"))
    assert len(reward(["aaa"], [long])) == 1
    with pytest.raises(UsageError, match="found a text of 33 tokens, expected at most its 32 positions"):
        reward(["aaaa"], [long])
