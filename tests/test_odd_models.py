"""Models as others made them: adapters on embeddings, odd generation configs and pad tokens, directories with a part gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_models import saved
from test_variants import made, run
from tiny import STORIES, trainer_of
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Lfm2Config,
    MambaConfig,
    MiniMaxConfig,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from lightning_rlhf.cli import main
from lightning_rlhf.lora import LoRA, add_lora, lora_layers
from lightning_rlhf.models import find_lm, load_lm, position_problems, save_policy, table_of
from lightning_rlhf.scalar import ScalarModel, save_reward
from lightning_rlhf.scoring import find_reward
from lightning_rlhf.tasks import Task, UsageError

IDS = torch.tensor([[5, 9, 3, 7, 2]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits[..., :256].float()  # type: ignore[no-any-return]


def with_adapter(folder: Path, family: str, **options: Any) -> tuple[str, torch.Tensor]:
    """An adapter directory on a tied model, every weight of it random; and what peft makes of the two."""
    base = saved(folder / "base", family)
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, **options))
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3 if "lora" in name or "modules_to_save" in name else 0.0)
    model.save_pretrained(folder / "start")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "start")
    return str(folder / "start"), logits(model.eval())


@pytest.mark.filterwarnings("ignore:.*tie.*", "ignore:.*embedding layers.*", "ignore:.*Setting `save_embedding_layers`.*")
@pytest.mark.parametrize("case", ["both whole", "head whole", "embedding whole", "embedding", "attention"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_start_adapter_is_in_the_export_whatever_it_changed(tmp_path: Path, family: str, case: str) -> None:
    attention, embedding = (["c_attn"], "wte") if family == "gpt2" else (["q_proj"], "embed_tokens")
    options = {
        "both whole": dict(target_modules=attention, modules_to_save=["lm_head", embedding]),
        "head whole": dict(target_modules=attention, modules_to_save=["lm_head"]),
        "embedding whole": dict(target_modules=attention, modules_to_save=[embedding]),
        "embedding": dict(target_modules=[embedding]),
        "attention": dict(target_modules=attention),
    }[case]
    start, expected = with_adapter(tmp_path, family, fan_in_fan_out=family == "gpt2", **options)
    lm = load_lm(start)
    torch.testing.assert_close(logits(lm.model), expected, rtol=1e-4, atol=1e-4)
    save_policy(tmp_path / "export", lm.model, lm.tokenizer)
    for model in (load_lm(str(tmp_path / "export")).model, AutoModelForCausalLM.from_pretrained(tmp_path / "export")):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_a_start_that_was_one_is_merged_alone(tmp_path: Path) -> None:
    """peft could put it on no model by itself: its base is another adapter, which is merged in the export."""
    start, _ = with_adapter(tmp_path, "llama", target_modules=["q_proj"])
    lm = load_lm(start)
    add_lora(lm.model, LoRA(r=2), 1)
    for _, layer in lora_layers(lm.model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    expected = logits(lm.model)
    save_policy(tmp_path / "export", lm.model, lm.tokenizer, base=start)
    assert not (tmp_path / "export/adapter").exists()
    torch.testing.assert_close(logits(load_lm(str(tmp_path / "export")).model), expected, rtol=1e-4, atol=1e-4)


def test_generation_configs_of_other_models(tmp_path: Path) -> None:
    start = saved(tmp_path / "start", "gpt2")
    odd = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "suppress_tokens": [7], "max_new_tokens": 11}
    (tmp_path / "start/generation_config.json").write_text(json.dumps(odd))
    folder = start
    for name in ("first", "second"):
        lm = load_lm(folder)
        save_policy(tmp_path / name, lm.model, lm.tokenizer)
        folder = str(tmp_path / name)
        found = AutoModelForCausalLM.from_pretrained(folder)
        pad = AutoTokenizer.from_pretrained(folder).pad_token_id
        assert found.generation_config.suppress_tokens == [7, pad]
        assert found.generation_config.pad_token_id == found.config.pad_token_id == pad != found.config.eos_token_id
        assert found.generation_config.max_new_tokens == 11 and not found.generation_config.do_sample
        found.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS))


@pytest.mark.parametrize("pad", ["unk_token", "bos_token", "eos_token", None])
def test_a_pad_token_that_texts_may_have_is_replaced_in_an_exported_reward(tmp_path: Path, pad: str | None) -> None:
    lm = load_lm(STORIES)
    tokenizer = lm.tokenizer
    tokenizer.pad_token = getattr(tokenizer, pad) if pad else None
    torch.manual_seed(0)
    scalar = ScalarModel(lm.model.base_model, 64, 0.3)
    save_reward(tmp_path / "reward", scalar, tokenizer, {"task": "toy"})
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    saved_pad = AutoTokenizer.from_pretrained(tmp_path / "reward").pad_token_id
    special = [tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert saved_pad not in special
    for row in ([300, 301, *special], [special[1]], [300, special[0]]):
        tokens = torch.tensor([row])
        padded = torch.tensor([row + [saved_pad] * 3])
        with torch.no_grad():
            expected = scalar(tokens, torch.ones_like(tokens, dtype=torch.bool)).item()
            found = classifier(input_ids=padded, attention_mask=(padded != saved_pad).long()).logits.item()
        bias = json.loads((tmp_path / "reward/reward.json").read_text())
        assert bias["gain"] * found + bias["bias"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model.safetensors", r"found no weights \(\*.safetensors\)"), ("config.json", r"found no config \(config.json\)"),
        ("tokenizer", r"found no tokenizer \(tokenizer\*\)"), ("gain", "field 'gain': found 'x', expected a finite number"),
        ("role", "found .*, a value network, expected a reward model"),
    ],
)  # fmt: skip
def test_a_reward_directory_with_a_part_gone(tiny_run: Path, tmp_path: Path, gone: str, message: str) -> None:
    reward = tmp_path / "reward"
    shutil.copytree(tiny_run / "reward", reward)
    info = json.loads((reward / "reward.json").read_text())
    if gone in ("gain", "role"):
        (reward / "reward.json").write_text(json.dumps({**info, gone: {"gain": "x", "role": "value"}[gone]}))
    for file in list(reward.glob(f"{gone}*")):
        file.unlink()
    with pytest.raises(UsageError, match=message):
        find_reward(str(reward), info["task"])


def test_a_reward_that_puts_no_bos_reads_texts(tiny_run: Path, tmp_path: Path) -> None:
    reward = tmp_path / "reward"
    shutil.copytree(tiny_run / "reward", reward)
    for folder, shares in ((tiny_run / "reward", True), (reward, False)):
        if not shares:
            tokenizer = json.loads((reward / "tokenizer.json").read_text(encoding="utf-8"))
            (reward / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}), encoding="utf-8")
            (reward / "tokenizer_config.json").write_text(
                json.dumps({**json.loads((reward / "tokenizer_config.json").read_text()), "add_bos_token": False})
            )
        module, _ = made(tmp_path / str(shares), reward=str(folder), allow_unguarded=True)
        module.configure_model()
        assert module.scorers[0].same_tokens == shares


def test_statistics_are_those_of_tokens_however_they_are_put_into_minibatches(tmp_path: Path) -> None:
    """Without a step (lr 0) the figures are of the same tokens: ragged responses, one minibatch or four."""
    options: dict[str, Any] = dict(mode="eos", stop_token=" the", num_ppo_epochs=1)
    options["optimizer"] = lambda p: torch.optim.SGD(p, lr=0.0)
    found = [
        run(tmp_path / str(n), iterations=1, batch_size=32, num_mini_batches=n, whiten_rewards=False, **options)[1][0]
        for n in (1, 4)
    ]
    for name in ("ppo/policy/entropy", "ppo/val/error", "ppo/val/vpred", "ppo/val/var_explained", "ppo/loss/value"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name


def test_a_shared_value_head_goes_on_from_an_earlier_ppo(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "first", iterations=1)
    out = str(tmp_path / "first/policy")
    module, _ = made(tmp_path / "second", policy=out, value_init=out)
    module.configure_model()
    torch.testing.assert_close(module.value_head.weight, first.value_head.weight)
    assert torch.equal(module.value_head.weight, load_file(f"{out}/value_head.safetensors")["weight"])
    assert float(module.value_head.weight.abs().sum()) > 0
    run(tmp_path / "apart", iterations=1, value="separate")  # whose head belongs on the trunk of its own
    module, data = made(tmp_path / "third", value_init=str(tmp_path / "apart/policy"))
    (problem,) = module.check(data, trainer_of(), False)
    assert "for a shared value function, expected a directory of an earlier PPO with a shared one" in problem


@pytest.mark.parametrize("case", ["tokens", "experts"])
def test_adapters_within_wrappers_are_merged(tmp_path: Path, case: str) -> None:
    """peft wraps an embedding of which some rows train, and each of several parameters of one module."""
    options: dict[str, Any] = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7, 9]}
    if case == "experts":
        options = {"target_modules": ["up_proj"], "target_parameters": ["q_proj.weight", "v_proj.weight"]}
    start, expected = with_adapter(tmp_path, "llama", **options)
    torch.testing.assert_close(logits(load_lm(start).model), expected, rtol=1e-4, atol=1e-4)


def test_new_adapters_are_for_linear_layers_alone() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"is 'model.layers.0.mlp.*', no linear layer, expected linear layers between"):
        add_lora(MixtralForCausalLM(config), LoRA(), 1)


def opt(folder: Path) -> str:
    """An OPT of 32 positions with the embedded model's tokenizer."""
    config = OPTConfig(
        vocab_size=600, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32,
        word_embed_proj_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_lm(STORIES)).save_pretrained(folder)
    return str(folder)


def test_a_family_without_steps_or_a_list_of_blocks_of_its_own(tmp_path: Path) -> None:
    """OPT: its table of positions is seen, compiling what is not run here is warned of, running blocks again refused at once."""
    policy = opt(tmp_path / "opt")
    task = Task(query_length=24, response_length=9, start_text=None, end_text=None, truncate_text=None)
    (problem,) = position_problems(policy, task)
    assert "has 32 positions" in problem
    assert table_of(AutoModelForCausalLM.from_pretrained(policy).config) == 32
    module, _ = made(tmp_path, policy=policy, compile_sampler=True)
    with pytest.warns(UserWarning, match="model.compile_sampler: found true, and a OPTForCausalLM is sampled by its own forward"):
        module.configure_model()
    module, _ = made(tmp_path, policy=policy, gradient_checkpointing=True)
    with pytest.raises(UsageError, match="gradient_checkpointing.*not supported for OPTModel"):
        module.configure_model()


@pytest.mark.parametrize("family", ["mamba", "lfm2", "minimax", "gemma2"])
def test_models_that_cannot_be_sampled_as_others_are_refused(tmp_path: Path, family: str) -> None:
    """A state in place of keys and values; logits that are capped, which small ones hardly show."""
    sizes: dict[str, Any] = dict(vocab_size=600, hidden_size=16, num_hidden_layers=2)
    heads: dict[str, Any] = dict(intermediate_size=16, num_attention_heads=2, num_key_value_heads=1)
    config = {
        "mamba": lambda: MambaConfig(**sizes),
        "lfm2": lambda: Lfm2Config(**sizes, **heads, layer_types=["conv", "full_attention"]),
        "minimax": lambda: MiniMaxConfig(**sizes, **heads, num_local_experts=2, layer_types=["linear_attention"] * 2),
        "gemma2": lambda: Gemma2Config(**sizes, **heads, head_dim=8),
    }[family]()  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(find_lm(STORIES)).save_pretrained(tmp_path / "m")
    message = "logits are not lm_head" if family == "gemma2" else "which keeps a state, expected keys and values"
    with pytest.raises(UsageError, match=message):
        load_lm(str(tmp_path / "m"))


def test_an_estimate_tells_what_fit_would_refuse(
    tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["estimate", *command("ppo", tiny_run)[1:]]
    main([*words, "--model.micro_batch_size", "3"])
    printed = capsys.readouterr()
    assert "fit would refuse this: model.micro_batch_size: minibatches of 8 cannot be split" in printed.err
    assert "MB" in printed.out
    main([*words, "--run_dir", str(tmp_path / "deep/er"), "--model.reward", str(tiny_run / "reward")])
    assert not list(tmp_path.iterdir())
    capsys.readouterr()
    for option in ("task.response_length", "model.num_mini_batches"):
        with pytest.raises(SystemExit):
            main([*words, f"--{option}", "0"])
        assert f"{option}: found 0, expected at least 1" in capsys.readouterr().err
