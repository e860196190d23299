"""Memory of a PPO run by model size, from `lightning-rlhf estimate`: no weights, shapes alone. For docs/scaling.md.

    python benchmarks/scaling.py [SHAPE …] [--output FILE]        (default: all; a Markdown table)

The setting is Stiennon et al. 2020's: 512 tokens of query and 48 of response, a value network and a reward model of their
own, 64 episodes an iteration, 4 a pass, bf16-mixed, gradient checkpointing. `whole` trains all weights, `lora` adapters of
rank 16 over frozen weights in bf16, of the reward model too, so that all networks of one device stand on one copy of the
weights. One of several devices under FSDP2 is arithmetic on the estimator's roles: weights, gradients, optimizer and cache by
the number of devices (each samples its share of the 64 episodes), the policy gathered whole for sampling, the activations of
a pass of 4 episodes as on one. Sharded networks share no weights: value network and reward model count as copies of the
policy's there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from common import head, save
from estimate import child
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from lightning_rlhf.lora import CONFIG_FILE, WEIGHTS_FILE
from lightning_rlhf.models import load_tokenizer

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SHAPES: dict[str, tuple[int, ...]] = {  # hidden, inner, layers, heads, key heads, vocabulary: Llama 3's
    "1B": (2048, 8192, 16, 32, 8, 128_256),
    "3B": (3072, 8192, 28, 24, 8, 128_256),
    "8B": (4096, 14_336, 32, 32, 8, 128_256),
    "70B": (8192, 28_672, 80, 64, 8, 128_256),
}
OPTIONS = [
    "--task.query_length", "512", "--task.response_length", "48", "--data.batch_size", "64", "--model.micro_batch_size", "4",
    "--model.value", "separate", "--model.gradient_checkpointing", "true", "--trainer.precision", "bf16-mixed",
    "--trainer.accelerator", "cpu", "--model.guard_comparisons", "null", "--model.allow_unguarded", "true",
]  # fmt: skip
WAYS = {"whole": [], "lora": ["-c", str(CONFIGS / "memory/lora.yaml"), "-c", str(CONFIGS / "memory/frozen_bf16.yaml")]}
GB = 1e9
WEIGHTS, TRAINED, WORK = ("policy", "value", "reference", "reward"), ("gradients", "optimizer"), ("activations", "cache")
PHASES = ("rollout", "scoring", "update")  # what a device does; loading, checkpoint and export are their machine's


def shape(name: str) -> PretrainedConfig:
    """A model's config."""
    if name == "124M":
        return GPT2Config()
    hidden, inner, layers, heads, key_heads, vocabulary = SHAPES[name]
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, max_position_embeddings=8192,
        tie_word_embeddings=name in ("1B", "3B"),
    )  # fmt: skip


def write_adapter(config: PretrainedConfig, folder: Path) -> None:
    """Adapters of rank 16 on every linear layer of a trunk, all 0, as a reward's directory has them."""
    with torch.device("meta"):
        trunk = AutoModelForCausalLM.from_config(config).base_model
    weights = {}
    for name, layer in trunk.named_modules():
        if isinstance(layer, (torch.nn.Linear, Conv1D)):
            out, into = layer.weight.shape if isinstance(layer, torch.nn.Linear) else layer.weight.shape[::-1]
            place = f"base_model.model.{trunk.base_model_prefix}.{name}"
            weights |= {f"{place}.lora_A.weight": torch.zeros(16, into), f"{place}.lora_B.weight": torch.zeros(out, 16)}
    folder.mkdir()
    save_file(weights, folder / WEIGHTS_FILE)
    options = {"r": 16, "lora_alpha": 32, "fan_in_fan_out": isinstance(config, GPT2Config)}
    (folder / CONFIG_FILE).write_text(json.dumps(options), encoding="utf-8")


def prepare(name: str, folder: Path, adapters: bool) -> list[str]:
    """Configs, tokenizers and prompts of ids; the options."""
    tokenizer = load_tokenizer("stories260k")
    config = shape(name)
    config.architectures = ["GPT2LMHeadModel" if name == "124M" else "LlamaForCausalLM"]
    config.save_pretrained(folder / "lm")
    config.num_labels = 1
    config.save_pretrained(folder / "reward")
    for part in ("lm", "reward"):
        tokenizer.save_pretrained(folder / part)
    (folder / "reward" / "model.safetensors").touch()  # nothing of it is read
    if adapters:
        write_adapter(config, folder / "reward" / "adapter")
    (folder / "reward" / "reward.json").write_text(json.dumps({"task": "tldr", "gain": 1.0, "bias": 0.0}), encoding="utf-8")
    (folder / "prompts").mkdir()
    row = json.dumps({"prompt": [10 + i % 400 for i in range(512)]}) + "\n"
    (folder / "prompts" / "train.jsonl").write_text(row * 64, encoding="utf-8")
    return ["-c", str(CONFIGS / "tldr/ppo.yaml"), "--run_dir", str(folder), "--lm", str(folder / "lm"), *OPTIONS]


def size(roles: dict[str, int], names: tuple[str, ...]) -> float:
    """GB of some roles."""
    return sum(roles.get(name, 0) for name in names) / GB


def device(roles: dict[str, int], phase: str, devices: int = 1, shared: bool = False) -> float:
    """GB on one of so many devices in a phase; `shared`: value network and reward stand on the policy's weights on one device."""
    policy = roles.get("policy", 0) / GB
    gathered = policy if phase == "rollout" and devices > 1 else 0.0
    copies = 2 * policy if shared and devices > 1 else 0.0
    split = (size(roles, (*WEIGHTS, *TRAINED, "cache")) + copies) / devices
    return split + gathered + size(roles, ("activations", "buffers"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["124M", *SHAPES])
    parser.add_argument("--output", default=None, help="Markdown file of the table")
    args = parser.parse_args()
    lines = [
        head("PPO's memory by model size, GB (10⁹ bytes)", 1),
        "| model | trained | highest in | weights | gradients, optimizer | activations, cache | one device | of 8 | of 64 |\n"
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in args.shapes:
        for way, more in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                options = [*prepare(name, Path(folder), way == "lora"), *more, "--allow_out_of_memory", "true", "--json", "true"]
                printed, _ = child("estimate", options)
            found = json.loads(printed[printed.index("{") :])
            phases = {phase: found["phases"][phase] for phase in PHASES}
            peak = max(phases, key=lambda phase: device(phases[phase], phase))
            parts = [size(phases[peak], names) for names in (WEIGHTS, TRAINED, WORK)]
            parts += [max(device(roles, phase, n, way == "lora") for phase, roles in phases.items()) for n in (1, 8, 64)]
            lines.append(f"| {name} | {way} | {peak} | " + " | ".join(f"{part:,.1f}" for part in parts) + " |")
            print(lines[-1], flush=True)
    save("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
