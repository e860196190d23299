"""Frozen weights are in memory once, in bf16 where asked for, and blocks run again in the backward pass: the same numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as L
import torch
from tiny import PROMPTS, STORIES, TASK, Rows, trainer_of, write
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_rlhf import ppo_setup
from lightning_rlhf.blocks import blocks_of, checkpointed, compiled
from lightning_rlhf.data import PreferenceData, PromptBatch, PromptData, SFTData
from lightning_rlhf.lora import LoRA, MergedLinear, add_lora, lora_layers
from lightning_rlhf.memory import SharedWeights, to_dtype
from lightning_rlhf.meter import storage_bytes
from lightning_rlhf.models import load_lm, load_tokenizer
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule, Rollout
from lightning_rlhf.reward import RewardModule
from lightning_rlhf.scalar import ScalarModel, save_reward
from lightning_rlhf.scoring import LearnedReward
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.tasks import UsageError
from lightning_rlhf.tokens import pad_batch
from lightning_rlhf.trunks import SplitTrunk, hidden_states

TEXTS = [" and ran away", " sat on it", " is big", " was very happy to see"]
ROWS = [[1, 300, 301, 302], [1, 290], [1, 310, 311, 312, 313, 314, 315]]


def start_of(family: str, folder: Path) -> str:
    """A model's name: the embedded Llama, or a GPT-2 with the same tokenizer."""
    if family == "llama":
        return STORIES
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    load_tokenizer(STORIES).save_pretrained(folder / "gpt2")
    return str(folder / "gpt2")


def reward_on(start: str, folder: Path, change: Callable[[Any], None]) -> str:
    """A reward directory made from a model by a change to its weights."""
    lm = load_lm(start)
    width = lm.model.get_input_embeddings().weight.shape[1]
    torch.manual_seed(5)
    scalar = ScalarModel(lm.model.base_model, width, 0.3)
    change(lm.model)
    save_reward(folder, scalar, lm.tokenizer, {"task": "toy", "base": start})
    return str(folder)


def with_adapters(model: Any, seed: int = 7) -> None:
    add_lora(model, LoRA(r=2), seed)
    torch.manual_seed(seed)
    moved(model)


def moved(model: Any) -> None:
    """Give every B values, as training would."""
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B["default"].weight, std=0.1)


def with_other_tops(model: Any) -> None:
    """The last two blocks, as `trainable_layers: 2` would have it."""
    SplitTrunk(model, 2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))


def made(folder: Path, iterations: int = 2, **options: Any) -> tuple[PPOModule, PromptData]:
    given: dict[str, Any] = dict(policy=STORIES, num_ppo_epochs=2, optimizer=lambda p: AdamTF(p, lr=1e-3), task=TASK)
    given |= dict(output=str(folder / "policy"), allow_unguarded=True, allow_other_task=True, reward="known:sentiment")
    module = PPOModule(**{**given, **options})
    data = PromptData(write(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS]), given["policy"], TASK, 8, 8 * iterations)
    assert module.check(data, trainer_of(), False) == []
    return module, data


def run(folder: Path, **options: Any) -> tuple[PPOModule, list[Rollout], list[dict[str, float]]]:
    module, data = made(folder, **options)
    kept: list[Rollout] = []
    plain = module.rollout

    def rollout(batch: PromptBatch, seed: int | None = None) -> Rollout:
        kept.append(plain(batch, seed))
        return kept[-1]

    module.rollout = rollout  # type: ignore[method-assign]
    rows = Rows()
    trainer_of(rows).fit(module, data)
    return module, kept, rows.rows


def size(parameters: Any) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def bytes_of(models: list[nn.Module]) -> int:
    """Of all their parameters, each storage once."""
    return storage_bytes(p for model in models for p in model.parameters())


def networks(module: PPOModule) -> list[nn.Module]:
    return [n for n in (module.policy, module.value_trunk, module.reference, module.reward, module.held_out) if n is not None]


# ------------------------------------------------------------------------------------------------------------ one trunk


def test_blocks_that_do_not_train_are_in_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy, value network, reference and reward with the two top blocks trained: embedding and lower blocks once."""
    options: dict[str, Any] = dict(reward=reward_on(STORIES, tmp_path / "reward", with_other_tops), trainable_layers=2)
    options |= dict(value="separate", kl_coef=0.05)
    together, one, _ = run(tmp_path / "together", **options)
    whole = load_lm(STORIES).model
    trunk, tops = size(whole.parameters()), size([*whole.model.layers[3:].parameters(), *whole.model.norm.parameters()])
    scalars = size([*together.reward.scalar.head.parameters(), together.reward.scalar.gain, together.reward.scalar.bias])  # type: ignore[union-attr]
    # the reference has its own top blocks: the policy's train
    assert bytes_of(networks(together)) == trunk + 3 * tops + scalars
    monkeypatch.setattr(SharedWeights, "add", lambda self, model, adapter=None: None)
    apart, two, _ = run(tmp_path / "apart", **options)
    assert bytes_of(networks(apart)) == 4 * trunk + scalars
    for a, b in zip(one, two, strict=True):
        for name, value in vars(a).items():
            assert value is None or torch.equal(value, getattr(b, name)), name
    for (name, p), q in zip(together.policy.named_parameters(), apart.policy.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_every_role_on_one_trunk_with_adapters(tmp_path: Path) -> None:
    """Policy, value network, reference, reward and held-out reward: one copy of the weights, and adapters."""
    reward = reward_on(STORIES, tmp_path / "reward", with_adapters)
    held_out = reward_on(STORIES, tmp_path / "held_out", lambda model: with_adapters(model, 8))
    start = size(load_lm(STORIES).model.parameters())
    module, data = made(tmp_path, lora=LoRA(r=2), value="separate", reward=reward)
    module.held_out_reward = held_out
    module.configure_model()
    adapters = size(p for n, p in module.policy.named_parameters() if ".lora_" in n)
    scalars = 4 * (64 + 1 + 2)
    assert bytes_of(networks(module)) == start + 4 * adapters + 2 * scalars
    assert bytes_of([*networks(module), LearnedReward(reward)]) > 1.9 * start  # what a separate copy takes
    # the modules keep sharing where they are moved
    module.double().float()
    assert bytes_of(networks(module)) == start + 4 * adapters + 2 * scalars
    trainer_of().fit(module, data)
    assert bytes_of(networks(module)) == start + 4 * adapters + 2 * scalars


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_reward_on_the_policy_s_trunk_scores_as_its_own_copy(tmp_path: Path, family: str, precision: torch.dtype) -> None:
    """Bit for bit, after the policy's adapters have moved too; and in the rollout."""
    start = start_of(family, tmp_path)
    directory = reward_on(start, tmp_path / "reward", with_adapters)
    module, _ = made(tmp_path, policy=start, reward=directory, lora=LoRA(r=2))
    module.configure_model()
    moved(module.policy)
    shared, copy = module.reward, LearnedReward(directory)
    assert isinstance(shared, LearnedReward)
    merged = [m for m in shared.modules() if isinstance(m, MergedLinear)]
    assert len(merged) == len(lora_layers(module.policy))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        assert torch.equal(shared.score_tokens(ROWS), copy.score_tokens(ROWS))
    assert not torch.equal(copy.score_tokens(ROWS), torch.zeros(3))
    assert not any(p.requires_grad for p in shared.parameters())


def test_a_reward_on_another_base_keeps_its_copy(tmp_path: Path) -> None:
    def other_base(model: Any) -> None:
        with torch.no_grad():
            model.base_model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3
        with_adapters(model)

    directory = reward_on(STORIES, tmp_path / "reward", other_base)
    module, _ = made(tmp_path, reward=directory, lora=LoRA(r=2))
    module.configure_model()
    assert isinstance(module.reward, LearnedReward)
    own = [n for n, m in module.reward.scalar.trunk.named_modules() if isinstance(m, nn.Linear) and "plain" not in n]
    assert own == ["layers.0.mlp.up_proj"]  # that layer alone
    assert torch.equal(module.reward.score_tokens(ROWS), LearnedReward(directory).score_tokens(ROWS))


def test_what_trains_is_never_shared(tmp_path: Path) -> None:
    """All parameters train: the reference is a copy, and the reward may share with it alone."""
    module, data = made(tmp_path, reward=reward_on(STORIES, tmp_path / "reward", with_other_tops))
    module.configure_model()
    policy = {p.data_ptr() for p in module.policy.parameters()}
    assert not policy & {p.data_ptr() for n in (module.reference, module.reward) for p in n.parameters()}  # type: ignore[union-attr]
    before = {n: p.detach().clone() for n, p in module.reference.named_parameters()}
    trainer_of().fit(module, data)
    assert all(torch.equal(p, before[n]) for n, p in module.reference.named_parameters())
    shared = {p.data_ptr() for p in module.reference.parameters()} & {p.data_ptr() for p in module.reward.parameters()}  # type: ignore[union-attr]
    assert len(shared) == 1 + 3 * 9  # the embedding, and nine tensors of each of the three lower blocks


# ------------------------------------------------------------------------------------------------------ frozen, in bf16


def test_frozen_networks_in_bf16(tmp_path: Path) -> None:
    """The KL at iteration 0 is the rounding's: within 0.1 nats a response of six tokens. The ratio is the policy's, exact."""
    options: dict[str, Any] = dict(reward=reward_on(STORIES, tmp_path / "reward", with_other_tops), micro_batch_size=4)
    full, one, rows = run(tmp_path / "full", **options)
    half, two, rounded = run(tmp_path / "half", frozen_dtype="bfloat16", **options)
    assert rows[0]["objective/kl"] == 0.0
    assert 0.0 < abs(rounded[0]["objective/kl"]) < 0.1
    assert all(r["ppo/ratio_error"] < 1e-5 for r in rounded)
    assert torch.equal(one[0].tokens, two[0].tokens) and torch.equal(one[0].logprobs, two[0].logprobs)
    torch.testing.assert_close(two[0].ref_logprobs, one[0].ref_logprobs, rtol=0, atol=0.3)
    torch.testing.assert_close(two[0].scores, one[0].scores, rtol=0.05, atol=0.05)
    scalar: Any = half.reward.scalar  # type: ignore[union-attr]
    assert {p.dtype for p in (*half.reference.parameters(), *scalar.trunk.parameters())} == {torch.bfloat16}
    assert {p.dtype for p in (*half.policy.parameters(), *scalar.head.parameters())} == {torch.float32}
    assert half.reference.model.rotary_emb.inv_freq.dtype == torch.float32
    assert bytes_of([half.reference]) * 2 == bytes_of([full.reference])


def test_adapters_on_weights_in_bf16(tmp_path: Path) -> None:
    module, _, rows = run(tmp_path, frozen_dtype="bfloat16", lora=LoRA(r=4), iterations=3)
    assert rows[0]["objective/kl"] == 0.0  # the reference is the same rounded weights
    assert all(r["ppo/ratio_error"] < 1e-5 for r in rows)
    types = {".lora_" in n: p.dtype for n, p in module.policy.named_parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    # the export is W + B A of the rounded W, in float32
    merged, start = load_lm(module.output).model, load_lm(STORIES).model
    layer = module.policy.model.layers[0].mlp.up_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 8.0
    expected = start.model.layers[0].mlp.up_proj.weight.bfloat16().float() + product
    torch.testing.assert_close(merged.model.layers[0].mlp.up_proj.weight, expected)


def test_a_reward_of_adapters_shares_weights_in_bf16_too(tmp_path: Path) -> None:
    """It is told from the policy's weights before those are rounded: one copy, in two bytes a number."""
    options: dict[str, Any] = dict(lora=LoRA(r=2), reward=reward_on(STORIES, tmp_path / "reward", with_adapters))
    full, half = made(tmp_path, **options)[0], made(tmp_path, frozen_dtype="bfloat16", **options)[0]
    for module in (full, half):
        module.configure_model()
    counts = [sum(isinstance(m, MergedLinear) for m in module.reward.modules()) for module in (full, half)]  # type: ignore[union-attr]
    assert counts[0] == counts[1] == len(lora_layers(half.policy))
    assert bytes_of(networks(half)) < 0.6 * bytes_of(networks(full))
    apart = LearnedReward(options["reward"])
    to_dtype(apart.scalar.trunk, torch.bfloat16)
    scores = [reward.score_tokens(ROWS) for reward in (full.reward, half.reward, apart)]  # type: ignore[union-attr]
    assert (scores[1] - scores[0]).abs().max() < 1.5 * (scores[2] - scores[0]).abs().max()  # what rounding does


def test_bf16_does_not_go_with_shared_blocks(tmp_path: Path) -> None:
    module, data = made(tmp_path)
    module.trainable_layers, module.frozen_dtype = 2, "bfloat16"
    (problem,) = module.check(data, trainer_of(), False)
    assert problem.startswith("model.frozen_dtype: found bfloat16 with model.trainable_layers")


# ------------------------------------------------------------------------------------------------ gradient checkpointing


def made_sft(folder: Path, **options: Any) -> tuple[SFTModule, SFTData]:
    records = [{"prompt": PROMPTS[i], "completion": TEXTS[i % 4]} for i in range(8)]
    module = SFTModule(STORIES, str(folder / "sft"), TASK, lambda p: AdamTF(p, lr=1e-3), **options)
    return module, SFTData(write(folder / "sft.jsonl", records), STORIES, TASK, batch_size=4)


def made_reward(folder: Path, **options: Any) -> tuple[RewardModule, PreferenceData]:
    records = [{"prompt": PROMPTS[i], "responses": TEXTS, "best": i % 4} for i in range(8)]
    more: dict[str, Any] = dict(normalise_samples=8, rollout_batch_size=8, optimizer=lambda p: AdamTF(p, lr=1e-3))
    module = RewardModule(STORIES, str(folder / "reward"), TASK, **more, **options)
    return module, PreferenceData(write(folder / "labels.jsonl", records), STORIES, TASK, batch_size=4)


MAKE: dict[str, Callable[..., tuple[Any, Any]]] = {"sft": made_sft, "reward": made_reward, "ppo": made}


class Saved:
    """Bytes that autograd keeps for the backward pass, at most at one time; parameters not counted."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def __call__(self, module: L.LightningModule) -> Any:
        own = {p.untyped_storage().data_ptr() for p in module.parameters()}

        class Held:
            def __init__(held, tensor: Tensor) -> None:
                held.tensor = tensor
                held.bytes = 0 if tensor.untyped_storage().data_ptr() in own else tensor.numel() * tensor.element_size()
                self.now += held.bytes
                self.peak = max(self.peak, self.now)

            def __del__(held) -> None:
                self.now -= held.bytes

        return torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("sft", {}),
        ("reward", {}),
        ("reward", {"lora": LoRA(r=2)}),
        ("ppo", {}),
        ("ppo", {"value": "separate", "lora": LoRA(r=2)}),
        ("ppo", {"trainable_layers": 3, "micro_batch_size": 4}),
    ],
)
def test_blocks_that_run_again_give_the_same_gradients(tmp_path: Path, stage: str, options: dict[str, Any]) -> None:
    """The same weights after the run, bit for bit; less is kept for the backward pass."""
    runs, peaks = [], []
    for on in (False, True):
        module, data = MAKE[stage](tmp_path / str(on), gradient_checkpointing=on, **options)
        module.configure_model()
        saved = Saved()
        with saved(module):
            trainer_of().fit(module, data)
        runs.append([p for p in module.parameters() if p.requires_grad])
        peaks.append(saved.peak)
        assert not any("forward" in vars(block) for block in module.modules())
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))
    assert peaks[1] < 0.6 * peaks[0], peaks


def test_nothing_runs_again_where_there_is_no_gradient() -> None:
    model = load_lm(STORIES).model
    tokens, mask = pad_batch(ROWS, 0)
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    model.model.layers[0].self_attn.register_forward_hook(count)
    with torch.no_grad(), checkpointed(model, on=True):
        hidden_states(model, tokens, mask)
    assert runs == 1
    with checkpointed(model, on=True):
        hidden = hidden_states(model, tokens, mask)
    assert runs == 2
    hidden.sum().backward()
    assert runs == 3
    with checkpointed(model, on=False):
        hidden_states(model, tokens, mask).sum().backward()
    assert runs == 4


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and there is no c++ here")
def test_compiled_blocks_are_one_function_that_computes_the_same() -> None:
    """Hidden states and gradients, with the blocks run again in the backward pass or not."""
    model = load_lm(STORIES).model
    tokens, mask = pad_batch(ROWS, 0)
    found = []
    counters.clear()
    for on, again in ((False, False), (True, False), (True, True)):
        with compiled(model, on), checkpointed(model, again):
            hidden = hidden_states(model, tokens, mask)
        (hidden[mask] ** 2).sum().backward()
        found.append([hidden[mask].detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
    assert counters["stats"]["unique_graphs"] == 1
    assert not any("forward" in vars(block) for block in model.modules())
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_blocks_are_found_or_refused() -> None:
    model = load_lm(STORIES).model
    assert blocks_of(model) == blocks_of(model.model) == list(model.model.layers)
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(UsageError, match="gradient_checkpointing, compile_blocks, .*: not supported for LlamaModel"):
        blocks_of(model)


def test_a_resume_may_change_it(tmp_path: Path) -> None:
    module, _ = made(tmp_path)
    assert "model.gradient_checkpointing" in module.may_change
    assert "model.frozen_dtype" not in module.may_change
    assert ppo_setup.PPOSetup.may_change >= {"model.micro_batch_size", "model.gradient_checkpointing"}
