"""Low-rank adapters: off they are not there; what trains, what is saved, what a start directory's adapter becomes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as L
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import PROMPTS, REWARD, STORIES, TASK, Rows, trainer_of, write
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from lightning_rlhf.cli import main
from lightning_rlhf.data import PreferenceData, PromptBatch, PromptData, SFTData
from lightning_rlhf.logprobs import head_logprobs, logits_of
from lightning_rlhf.lora import LoRA, adapters_off, add_lora, lora_layers, plain_copy
from lightning_rlhf.models import ASSETS, fingerprint, load_lm, load_tokenizer
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule, Rollout
from lightning_rlhf.reward import RewardModule
from lightning_rlhf.scalar import load_scalar
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.stage import StageCheckpoint, StageModule
from lightning_rlhf.tasks import UsageError
from lightning_rlhf.trunks import hidden_states

TEXTS = [" and ran away", " sat on it", " is big", " was very happy to see"]
FAMILIES = ["gpt2", "llama"]


def made_ppo(folder: Path, iterations: int = 2, **options: Any) -> tuple[PPOModule, PromptData]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    given: dict[str, Any] = dict(policy=STORIES, reward=f"{folder / 'rewards.py'}:spaces", num_ppo_epochs=2, lora=LoRA(r=4))
    given |= dict(optimizer=lambda p: AdamTF(p, lr=3e-3), output=str(folder / "policy"), task=TASK)
    module = PPOModule(**{**given, **options})
    prompts = write(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    data = PromptData(prompts, STORIES, TASK, batch_size=8, total_episodes=8 * iterations)
    assert module.check(data, trainer_of(), False) == []
    return module, data


def made_sft(folder: Path, **options: Any) -> tuple[SFTModule, SFTData]:
    records = [{"prompt": PROMPTS[i % 8], "completion": TEXTS[i % 4]} for i in range(8)]
    given: dict[str, Any] = dict(policy=STORIES, lora=LoRA(r=4), optimizer=lambda p: AdamTF(p, lr=3e-3))
    module = SFTModule(output=str(folder / "sft"), task=TASK, **{**given, **options})
    return module, SFTData(write(folder / "sft.jsonl", records), STORIES, TASK, batch_size=4)


def made_reward(folder: Path, **options: Any) -> tuple[RewardModule, PreferenceData]:
    records = [{"prompt": PROMPTS[i], "responses": TEXTS, "best": i % 4} for i in range(8)]
    given: dict[str, Any] = dict(policy=STORIES, lora=LoRA(r=4), optimizer=lambda p: AdamTF(p, lr=3e-3))
    given |= dict(normalise_samples=16, rollout_batch_size=16)
    module = RewardModule(output=str(folder / "reward"), task=TASK, **{**given, **options})
    return module, PreferenceData(write(folder / "labels.jsonl", records), STORIES, TASK, batch_size=4)


def tokens_of(vocabulary: int = 500) -> tuple[Tensor, Tensor]:
    """Left-padded rows."""
    tokens = torch.randint(3, vocabulary, (4, 9), generator=torch.Generator().manual_seed(1))
    return tokens, torch.arange(9) >= torch.tensor([[0], [2], [5], [8]])


@torch.no_grad()
def logits(model: Any, vocabulary: int = 500) -> Tensor:
    """Of the real places alone."""
    tokens, mask = tokens_of(vocabulary)
    return logits_of(model, hidden_states(model, tokens, mask))[mask]


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    config = LlamaConfig(vocab_size=512, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(config).eval()


def stir(model: Any, scale: float = 0.3) -> None:
    """Give every B values, as training would."""
    torch.manual_seed(3)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=scale)


# ------------------------------------------------------------------------------------------------------- on, off, merged


@pytest.mark.parametrize("family", FAMILIES)
def test_off_is_the_model_from_before(family: str) -> None:
    model = tiny(family)
    before = logits(model)
    add_lora(model, LoRA(r=3, alpha=6.0), seed=1)
    assert torch.equal(logits(model), before)  # B = 0
    stir(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name for name, trains in flags.items() if trains} == {n for n in flags if "lora_A" in n or "lora_B" in n}
    assert not any(module.training for module in model.modules())
    moved = logits(model)
    assert (moved - before).abs().max() > 0.01
    with adapters_off(model):
        assert torch.equal(logits(model), before)
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert torch.equal(logits(model), moved)
    with pytest.raises(RuntimeError, match="inside"), adapters_off(model):
        raise RuntimeError("inside")
    assert torch.equal(logits(model), moved)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_copy_by_hand(family: str) -> None:
    model = tiny(family)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    add_lora(model, LoRA(r=3, alpha=6.0), seed=1)
    stir(model)
    merged = dict(plain_copy(model).named_parameters())
    assert merged.keys() == start.keys()
    layers = dict(lora_layers(model))
    assert len(layers) == (8 if family == "gpt2" else 14)  # 4 or 7 linear layers a block, not the output embedding
    for name, before in start.items():
        layer = layers.get(name.removesuffix(".weight"))
        if layer is None:
            assert torch.equal(merged[name], before), name
            continue
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (6.0 / 3)
        torch.testing.assert_close(merged[name].data, before + (product.T if family == "gpt2" else product).data)
    torch.testing.assert_close(logits(plain_copy(model)), logits(model), rtol=1e-4, atol=1e-5)


def test_a_seed_gives_the_same_adapters() -> None:
    first, same, other = ({n: p.detach() for n, p in added(seed).named_parameters() if "lora_A" in n} for seed in (1, 1, 2))
    assert first.keys() == same.keys() and all(torch.equal(first[n], same[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)


def added(seed: int) -> Any:
    model = tiny("llama")
    add_lora(model, LoRA(), seed)
    return model


# ------------------------------------------------------------------------------------------------------------ the stages


def spied(module: PPOModule) -> list[tuple[PromptBatch, Rollout]]:
    """Keeps the rollouts of a run."""
    kept: list[tuple[PromptBatch, Rollout]] = []
    plain = module.rollout

    def rollout(batch: PromptBatch, seed: int | None = None) -> Rollout:
        kept.append((batch, plain(batch, seed)))
        return kept[-1][1]

    module.rollout = rollout  # type: ignore[method-assign]
    return kept


def test_the_reference_is_the_policy_with_its_adapters_off(tmp_path: Path) -> None:
    """Its log-probs are those of a separate copy, bit for bit, in every iteration; and the base never moves."""
    module, data = made_ppo(tmp_path, iterations=3)
    kept, rows = spied(module), Rows()
    trainer_of(rows).fit(module, data)
    assert module.reference is None
    copy = load_lm(STORIES).model
    for _, rollout in kept:
        with torch.no_grad():
            hidden = hidden_states(copy, rollout.tokens, rollout.mask)[:, -7:-1]
            expected, _ = head_logprobs(copy, hidden, rollout.tokens[:, -6:], TASK.temperature)
        assert torch.equal(rollout.ref_logprobs, expected)
    assert [r["ppo/ratio_error"] < 1e-5 for r in rows.rows] == [True] * 3
    assert rows.rows[0]["objective/kl"] == 0.0
    assert all(abs(r["objective/kl"]) > 1e-3 for r in rows.rows[1:])
    start = dict(copy.named_parameters())
    for name, p in module.policy.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(p, start[name.replace(".base_layer", "")]), name
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert {n.partition(".")[0] for n in trained} == {"policy", "value_head"}
    assert all(".lora_" in n or n.startswith("value_head.") for n in trained)
    assert all(bool(p.any()) for n, p in module.policy.named_parameters() if "lora_B" in n)


def test_a_separate_copy_as_the_reference_changes_nothing(tmp_path: Path) -> None:
    """The same weights under another name are loaded, and the run ends alike, bit for bit."""
    runs = []
    shutil.copytree(ASSETS / STORIES, tmp_path / "copy")
    for name, reference in (("off", None), ("copy", str(tmp_path / "copy"))):
        module, data = made_ppo(tmp_path / name, reference=reference)
        trainer_of().fit(module, data)
        runs.append(module)
    off, copied = runs
    assert off.reference is None and copied.reference is not None
    for (name, one), (_, two) in zip(off.policy.named_parameters(), copied.policy.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_export_is_a_plain_directory_with_the_adapter_beside_it(tmp_path: Path) -> None:
    module, data = made_ppo(tmp_path)
    trainer_of().fit(module, data)
    out = tmp_path / "policy"
    assert not (out / "adapter_config.json").exists()
    # merged weights, read by transformers and by the next stage
    merged, mine = load_lm(str(out)).model, plain_copy(module.policy)
    for (name, one), (_, two) in zip(merged.named_parameters(), mine.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    torch.testing.assert_close(logits(merged), logits(module.policy), rtol=1e-4, atol=1e-4)
    assert (logits(merged) - logits(load_lm(STORIES).model)).abs().max() > 0.1
    assert AutoModelForCausalLM.from_pretrained(out).config.pad_token_id is not None
    # the adapter alone, on the model that training started from: the policy as it trained, bit for bit
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, STORIES)
    assert fingerprint(STORIES) in fingerprint(str(out / "adapter"))  # another base is another model
    again = PeftModel.from_pretrained(load_lm(STORIES).model, str(out / "adapter")).base_model.model
    assert torch.equal(logits(again), logits(module.policy))
    # which is a model's name too
    torch.testing.assert_close(logits(load_lm(str(out / "adapter")).model), logits(merged), rtol=1e-5, atol=5e-5)
    next_stage, more = made_sft(tmp_path / "next", policy=str(out))
    trainer_of().fit(next_stage, more)
    assert (tmp_path / "next/sft/model.safetensors").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_supervised(tmp_path: Path, family: str) -> None:
    start = tmp_path / "start"
    tiny(family).save_pretrained(start)
    load_tokenizer(STORIES).save_pretrained(start)
    module, data = made_sft(tmp_path, policy=str(start), lora=LoRA(r=2, target_modules=None))
    trainer_of().fit(module, data)
    names = {name.rpartition(".")[2] for name, _ in lora_layers(module.policy)}
    assert names == ({"c_attn"} if family == "gpt2" else {"q_proj", "v_proj"})
    torch.testing.assert_close(logits(load_lm(module.output).model), logits(module.policy), rtol=1e-4, atol=1e-5)
    again = PeftModel.from_pretrained(load_lm(str(start)).model, f"{module.output}/adapter").base_model.model
    assert torch.equal(logits(again), logits(module.policy))


def test_reward_model(tmp_path: Path) -> None:
    module, data = made_reward(tmp_path)
    trainer_of().fit(module, data)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert {n for n in trained if ".lora_" not in n} == {"scalar.gain", "scalar.bias", "scalar.head.weight", "scalar.head.bias"}
    scalar, _, info = load_scalar(tmp_path / "reward")
    tokens, mask = tokens_of()
    with torch.no_grad():
        torch.testing.assert_close(scalar(tokens, mask), module.scalar(tokens, mask), rtol=1e-4, atol=1e-4)
    assert info["base"] == STORIES
    assert not (tmp_path / "reward/adapter_config.json").exists()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1
    assert len(load_file(tmp_path / "reward/adapter/adapter_model.safetensors")) == 2 * len(lora_layers(module.scalar))


def test_a_separate_value_network_has_adapters_of_its_own(tmp_path: Path) -> None:
    module, data = made_ppo(tmp_path, value="separate", iterations=3)
    rows = Rows()
    trainer_of(rows).fit(module, data)
    assert all(r["ppo/ratio_error"] < 1e-5 for r in rows.rows)
    assert all(bool(layer.lora_B["default"].weight.any()) for _, layer in lora_layers(module.value_trunk))
    scalar, _, info = load_scalar(tmp_path / "policy/value")
    assert info["role"] == "value"
    tokens, mask = tokens_of()
    with torch.no_grad():
        values = module.value_head(hidden_states(module.value_trunk, tokens, mask))[:, -1]
        torch.testing.assert_close(scalar(tokens, mask), values, rtol=1e-4, atol=1e-4)


MAKE: dict[str, Callable[..., tuple[StageModule, Any]]] = {"sft": made_sft, "reward": made_reward, "ppo": made_ppo}


@pytest.mark.parametrize("stage", MAKE)
def test_a_resumed_run_ends_as_the_whole_one(tmp_path: Path, stage: str) -> None:
    """The checkpoint holds what trains alone; bit-equal adapters at the end."""

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                raise KeyboardInterrupt

    whole, data = MAKE[stage](tmp_path / "whole")
    trainer_of().fit(whole, data)
    killed, data = MAKE[stage](tmp_path / "killed")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer_of(StageCheckpoint(str(tmp_path / "last.ckpt"), every=1), Stop()).fit(killed, data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved and not any("base_layer" in name or "embed" in name for name in saved)
    resumed, data = MAKE[stage](tmp_path / "killed")
    resumed.options = killed.options
    trainer_of().fit(resumed, data, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    for (name, one), (_, two) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_resume_with_another_rank_is_refused() -> None:
    modules = [SFTModule(STORIES, "x", TASK, lora=lora) for lora in (LoRA(r=4), LoRA(r=8), None)]
    saved = {"name": "sft", "options": modules[0].options}
    assert modules[0].differences(saved) == []
    (told,) = modules[1].differences(saved)
    assert told.startswith("--ckpt_path: model.lora.r: found 8, the checkpoint was made with 4 (--allow_changed ")
    assert any("model.lora.r: found None, the checkpoint was made with 4" in text for text in modules[2].differences(saved))


# ------------------------------------------------------------------------------------------------ a start with an adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A directory that peft wrote, on stories260k, and the logits of the model with it."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    torch.manual_seed(0)
    model = get_peft_model(load_lm(STORIES).model, LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"]))
    stir(model)
    model.save_pretrained(str(folder))
    return folder, logits(model.base_model.model)


def renamed(source: Path, target: Path, base: str | None) -> str:
    """A copy whose config names another base."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "adapter_model.safetensors", target)
    config = json.loads((source / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    return str(target)


def test_a_stage_starts_from_an_adapter_alone(
    adapter: tuple[Path, Tensor],
    tiny_run: Path,
    tmp_path: Path,
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Estimated, as large as the model that it is merged into, and trained."""
    words = command("sft", tiny_run, "--model.policy", str(adapter[0]), "--model.output", str(tmp_path / "out"))
    main(["estimate", *words[1:]])
    assert "peak: " in capsys.readouterr().out
    main([*words, "--trainer.limit_train_batches", "1"])
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_directory_with_an_adapter_alone(adapter: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder, expected = adapter
    for name in (str(folder), renamed(folder, tmp_path / "named", STORIES)):  # peft wrote the base's path
        lm = load_lm(name)
        torch.testing.assert_close(logits(lm.model), expected, rtol=1e-4, atol=1e-4)
        assert not lora_layers(lm.model) and all(p.requires_grad for p in lm.model.parameters())
        assert lm.tokenizer.encode("Lily") == load_tokenizer(STORIES).encode("Lily")
    # an adapter on an adapter
    chained = load_lm(renamed(folder, tmp_path / "chained", str(folder))).model
    start, once = load_lm(STORIES).model, load_lm(str(folder)).model
    for (name, zero), one, two in zip(start.named_parameters(), once.parameters(), chained.parameters(), strict=True):
        torch.testing.assert_close(two - one, one - zero, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("whole", [True, False])
def test_an_export_has_the_adapter_of_its_start(adapter: tuple[Path, Tensor], tmp_path: Path, whole: bool) -> None:
    """A whole model with an adapter on it is what transformers reads: the directory's own weights, and the adapter on them."""
    folder, expected = adapter
    if whole:
        shutil.copytree(ASSETS / STORIES, tmp_path / "start")
    name = renamed(folder, tmp_path / "start", "some/other-model" if whole else STORIES)
    if whole:
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(name)), expected, rtol=1e-4, atol=1e-4)
    lm = load_lm(name)
    torch.testing.assert_close(logits(lm.model), expected, rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in lm.model.parameters())
    module, data = made_sft(tmp_path, policy=name, lora=None, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer_of().fit(module, data)
    torch.testing.assert_close(logits(load_lm(module.output).model), expected, rtol=1e-4, atol=1e-4)


def test_new_adapters_on_a_start_that_carries_one(adapter: tuple[Path, Tensor], tmp_path: Path) -> None:
    """The start's is merged, below the new ones: the reference has it."""
    folder, expected = adapter
    module, data = made_ppo(tmp_path, policy=str(folder))
    trainer_of().fit(module, data)
    with adapters_off(module.policy):
        torch.testing.assert_close(logits(module.policy), expected, rtol=1e-4, atol=1e-4)
    assert not (tmp_path / "policy/adapter").exists()  # peft could put it on no model by itself
    again = load_lm(str(tmp_path / "policy"))
    torch.testing.assert_close(logits(again.model), logits(module.policy), rtol=1e-4, atol=1e-4)


def test_adapters_that_would_be_lost_are_refused(adapter: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder, _ = adapter
    with pytest.raises(UsageError, match="base_model_name_or_path None, expected a model's name"):
        load_lm(renamed(folder, tmp_path / "none", None))
    with pytest.raises(UsageError, match=r"it is an adapter on './gone': model './gone': no such directory or file"):
        load_lm(renamed(folder, tmp_path / "gone", "./gone"))
    name = renamed(folder, tmp_path / "more", STORIES)
    weights = load_file(folder / "adapter_model.safetensors")
    strange = {k.replace("layers.0", "layers.9"): v for k, v in weights.items()}
    save_file({**weights, **{k: v.clone() for k, v in strange.items()}}, tmp_path / "more/adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"4 weights of its adapter have no place in the model, such as model\.layers\.9"):
        load_lm(name)
    config = json.loads((tmp_path / "more/adapter_config.json").read_text())
    (tmp_path / "more/adapter_config.json").write_text(json.dumps({**config, "target_modules": ["c_attn"]}))
    with pytest.raises(UsageError, match="its adapter cannot be merged into the model"):
        load_lm(name)


# ---------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": LoRA(r=0)}, "model.lora.r: found 0, expected at least 1"),
        ({"lora": LoRA(alpha=0.0)}, "model.lora.alpha: found 0.0, expected above 0"),
        ({"lora": LoRA(target_modules=[])}, "model.lora.target_modules: found an empty list"),
        ({"lora": LoRA(top_blocks=0)}, "model.lora.top_blocks: found 0"),
        ({"lora": LoRA(target_modules=None, top_blocks=2)}, "model.lora.top_blocks: found 2 with model.lora.target_modules None"),
        ({"lora": LoRA(), "trainable_layers": 2}, "model.lora, model.trainable_layers: found both"),
    ],
)
@pytest.mark.parametrize("stage", MAKE)
def test_options_are_checked(tmp_path: Path, stage: str, options: dict[str, Any], message: str) -> None:
    module, data = MAKE[stage](tmp_path)
    for name, value in options.items():
        setattr(module, name, value)
    (problem,) = module.check(data, trainer_of(), False)
    assert problem.startswith(message)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("target", ["all-linear", None, r".*(_proj|c_attn)"])
def test_adapters_on_the_top_blocks_alone(family: str, target: str | None) -> None:
    """Of the layers that would have them, those of the last block; a trunk without a head too."""
    names = ["q_proj", "c_attn"][family == "gpt2" :][:1] if target is None else target
    for network in (tiny(family), tiny(family).base_model):
        every = copy.deepcopy(network)
        add_lora(every, LoRA(target_modules=names), 1)
        add_lora(network, LoRA(target_modules=names, top_blocks=1), 1)
        last = f"{'h' if family == 'gpt2' else 'layers'}.{network.config.num_hidden_layers - 1}."
        expected = [name for name, _ in lora_layers(every) if f".{last}" in f".{name}"]
        assert [name for name, _ in lora_layers(network)] == expected != []


def test_layers_that_cannot_have_adapters() -> None:
    with pytest.raises(UsageError, match=r"model\.lora\.target_modules: .*nowhere"):
        add_lora(tiny("llama"), LoRA(target_modules=["nowhere"]), 1)
    with pytest.raises(UsageError, match=r"target_modules: found \['v_porj'\], which no layer is called"):
        add_lora(tiny("llama"), LoRA(target_modules=["q_proj", "v_porj"]), 1)
    with pytest.raises(UsageError, match="model.lora.top_blocks: found 9, expected at most the"):
        add_lora(tiny("llama"), LoRA(top_blocks=9), 1)
    with pytest.raises(UsageError, match="is the embedding 'lm_head', expected linear layers between the embeddings"):
        add_lora(tiny("llama"), LoRA(target_modules=["lm_head", "q_proj"]), 1)
