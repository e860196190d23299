"""`lightning-rlhf estimate` beside the peak memory of the same `fit`, each in a process of its own: resident memory on a CPU;
on a GPU what the allocator reserved at most (and the estimate without the process's own).

    python benchmarks/estimate.py [SETTING …] [--device cuda] [--output FILE]        (default: those of a CPU; a Markdown table)

Settings: stories260k-ppo (the demo's), gpt2-ppo (GPT-2's shape of 124 million parameters, random weights, micro-batches),
gpt2-ppo-bf16, smollm2-ppo, smollm2-reward, smollm2-sft (the overlays); gpu-… for a GPU. Prompts and responses are random ids of
full length; a run is two iterations or batches. Wanted: within 25 % of the peak, on a GPU within 15 %.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import make_lm, make_reward

from lightning_rlhf.cli import main as main_of_package
from lightning_rlhf.machine import peak_resident

PEAK = "peak_bytes"
CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "sentiment"
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
GPT2 = ["--data.batch_size", "16", "--data.total_episodes", "32", "--model.micro_batch_size", "4"]
LARGE = ["--data.batch_size", "512", "--data.total_episodes", "1024", "--model.micro_batch_size", "256"]
SETTINGS: dict[str, tuple[str, str, list[str]]] = {  # stage, model, options
    "stories260k-ppo": ("ppo", "stories260k", ["--data.total_episodes", "512"]),
    "gpt2-ppo": ("ppo", "gpt2", GPT2),
    "gpt2-ppo-bf16": ("ppo", "gpt2", [*GPT2, "--trainer.precision", "bf16-mixed"]),
    "gpu-ppo": ("ppo", "gpt2", ["--data.batch_size", "256", "--data.total_episodes", "512", "--model.micro_batch_size", "64"]),
    "gpu-ppo-bf16": ("ppo", "gpt2", [*LARGE, "--trainer.precision", "bf16-mixed"]),
    "gpu-ppo-separate-bf16": ("ppo", "gpt2", [*LARGE, "--trainer.precision", "bf16-mixed", "--model.value", "separate"]),
    "gpu-sft-bf16": ("sft", "gpt2", ["--data.batch_size", "128", "--trainer.precision", "bf16-mixed"]),
    "gpu-reward": ("reward", "gpt2", ["--data.batch_size", "32"]),
    "smollm2-ppo": ("ppo", "smollm2", ["--data.total_episodes", "64"]),
    "smollm2-reward": ("reward", "smollm2", []),
    "smollm2-sft": ("sft", "smollm2", []),
}


def prepare(stage: str, model: str, folder: Path) -> list[str]:
    """Write what the stage reads; returns its options."""
    lm = make_lm(model, folder / "lm") if model == "gpt2" else model
    query = {"stories260k": 24, "gpt2": 64, "smollm2": 24}[model]
    rng = random.Random(0)
    ids = lambda n: [rng.randrange(3, 500) for _ in range(n)]  # noqa: E731
    if stage == "ppo":
        make_reward(lm, folder / "reward")
        rows: list[dict[str, Any]] = [{"prompt": ids(query)} for _ in range(512)]
        name, more = "prompts/train.jsonl", ["--model.guard_comparisons", "null", "--model.allow_unguarded", "true"]
    elif stage == "reward":
        rows = [{"prompt": ids(query), "responses": [ids(24) for _ in range(4)], "best": 0} for _ in range(128)]
        name, more = "labels/train.jsonl", ["--data.val", "null"]
    else:
        rows = [{"prompt": ids(query), "completion": ids(24)} for _ in range(256)]
        name, more = "labels/demonstrations.train.jsonl", ["--data.val", "null"]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    overlay = [] if model == "gpt2" else ["-c", str(CONFIGS / model / f"{stage}.yaml")]
    return ["-c", str(CONFIGS / f"{stage}.yaml"), *overlay, "--run_dir", str(folder), "--lm", lm, *more, *QUIET]


def child(command: str, options: list[str]) -> tuple[str, float]:
    """Run a command of the package in a process of its own: what it printed, and its peak bytes."""
    words = [sys.executable, __file__, "--child", command, *options]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} ended with status {done.returncode}: {' '.join(options)}")
    printed, _, peak = done.stdout.rpartition(PEAK)
    return printed, float(peak)


def in_child(words: list[str]) -> None:
    """A command of the package; then its peak, the GPU's where it ran on one."""
    main_of_package(words)
    peak = peak_resident()
    if words[0] == "fit" and torch.cuda.is_initialized():
        print(f"{words[1:]}: at most {torch.cuda.max_memory_allocated() / 2**20:,.0f} MB allocated", file=sys.stderr)
        peak = torch.cuda.max_memory_reserved()
    print(f"{PEAK} {peak}")


def main(settings: list[str], device: str, output: str | None) -> None:
    """Print the table, and keep it where asked."""
    lines = ["| setting | estimate, MB | peak phase | measured, MB | estimate / measured |", "|---|--:|---|--:|--:|"]
    for name in settings or [name for name in SETTINGS if name.startswith("gpu-") == (device == "cuda")]:
        stage, model, more = SETTINGS[name]
        with tempfile.TemporaryDirectory() as folder:
            options = [*prepare(stage, model, Path(folder)), *more, "--trainer.accelerator", "gpu" if device == "cuda" else "cpu"]
            printed, _ = child("estimate", [*options, "--json", "true"])
            found = json.loads(printed[printed.index("{") :])
            _, peak = child("fit", options)
        expected = found["peak"] - (found["phases"][found["peak_phase"]]["process"] if device == "cuda" else 0)
        ratio = expected / peak
        lines.append(f"| {name} | {expected / 2**20:,.0f} | {found['peak_phase']} | {peak / 2**20:,.0f} | {ratio:.2f} |")
        print("\n".join(lines[-1:] if len(lines) > 3 else lines), flush=True)
    if output:
        Path(output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        in_child(sys.argv[2:])
        raise SystemExit
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", choices=[[], *SETTINGS], metavar="SETTING")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output")
    arguments = parser.parse_args()
    main(arguments.settings, arguments.device, arguments.output)
