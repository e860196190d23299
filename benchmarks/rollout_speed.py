"""Rollouts alone: `generation.sample` beside transformers' `generate`, the same weights, precision and prompts.

    python benchmarks/rollout_speed.py --threads 2 --rounds 5 [--compile] --output FILE.md
    python benchmarks/rollout_speed.py --device cuda --precision bf16 --settings gpt2-512 llama1b-64 --rounds 3 --compile

Settings: stories260k, batch 64, one token of prompt + 24; smollm2, batch 32, 64 + 24; smollm2 best-of-4 as labels are drawn
(8 prompts, four responses each: here a prompt is read once, `generate` reads it four times); and for a GPU, random weights of
GPT-2's shape, batch 512, 64 + 24, and of a Llama of a billion parameters, batch 64, 512 + 128. All sides draw exactly as many
tokens from the whole vocabulary at temperature 0.7, one after the other in the same process, several times in turn; under
autocast where bf16 is asked for, and `generate` with weights of bf16 besides.

The floor is what a step must move through a GPU's memory at the rate of a plain copy: the weights in the precision asked for,
and the keys and values of all tokens so far.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import bandwidth, head, make_lm, now, random_ids, save, spread
from transformers import GenerationConfig

from lightning_rlhf.estimate import cache_bytes
from lightning_rlhf.generation import sample_with
from lightning_rlhf.models import load_lm, run_context


class Setting(NamedTuple):
    """What is sampled."""

    shape: str
    prompts: int
    width: int  # tokens of a prompt
    samples: int  # responses a prompt
    length: int  # tokens of a response


SETTINGS = {
    "stories260k": Setting("stories260k", 64, 1, 1, 24),
    "smollm2": Setting("smollm2", 32, 64, 1, 24),
    "smollm2-best-of-4": Setting("smollm2", 8, 64, 4, 24),
    "tiny": Setting("tiny", 8, 16, 1, 24),
    "gpt2-512": Setting("gpt2", 512, 64, 1, 24),
    "llama1b-64": Setting("llama1b", 64, 512, 1, 128),
}
CPU = ("stories260k", "smollm2", "smollm2-best-of-4")


def sides(model: Any, pad_id: int, of: Setting, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The calls."""
    tokens = torch.tensor(random_ids(of.prompts, of.width), device=args.device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    config = GenerationConfig(
        max_new_tokens=of.length, min_new_tokens=of.length, do_sample=True, temperature=0.7, top_k=0, top_p=1.0,
        num_return_sequences=of.samples, pad_token_id=pad_id, eos_token_id=None,
    )  # fmt: skip

    def theirs() -> Any:
        found = model.generate(input_ids=tokens, attention_mask=mask.long(), generation_config=config)
        assert found.shape == (of.prompts * of.samples, of.width + of.length)

    def ours(compiled: bool) -> Any:
        found = sample_with(model, tokens, mask, of.length, 0.7, seed=1, num_samples=of.samples, compiled=compiled)
        assert found.tokens.shape == (of.prompts * of.samples, of.length)

    calls = {"ours": lambda: ours(False), "generate": theirs}
    return {**calls, "ours, compiled": lambda: ours(True)} if args.compile else calls


def took(calls: dict[str, Callable[[], Any]], model: Any, precision: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round, by side."""
    found: dict[str, list[float]] = {side: [] for side in calls}
    for number in range(args.rounds + 1):
        for side, call in calls.items():
            with run_context(precision, model):
                began = now(args.device)
                call()
                seconds = now(args.device) - began
            if number:  # the first call of a process is not timed
                found[side].append(seconds)
            else:
                print(f"{side}: first call {seconds:.1f} s", flush=True)
    return found


def floor(model: Any, of: Setting, args: argparse.Namespace) -> float:
    """Seconds that memory alone takes; see above."""
    element = 2 if args.precision == "bf16" else 4
    read = sum(p.numel() for p in model.parameters()) * element
    places = sum(of.width + i for i in range(1, of.length))
    kept = cache_bytes(model.config, element) * of.prompts * of.samples * places
    return (read * (of.length - 1) + kept) / bandwidth(args.device)


def rows_of(name: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """The table's rows of a setting."""
    of = SETTINGS[name]
    lm = load_lm(make_lm(of.shape, folder / of.shape))
    model = lm.model.to(args.device)
    least = floor(model, of, args) if args.device == "cuda" else None
    found = took(sides(model, lm.pad_id, of, args), model, args.precision, args)
    if args.device == "cuda" and args.precision == "bf16":
        half = model.bfloat16()
        calls = sides(half, lm.pad_id, of, args)
        found["generate, bf16 weights"] = took({"generate": calls["generate"]}, half, "32", args)["generate"]
    lines = []
    for side, seconds in found.items():
        rows = of.prompts * of.samples
        rate = [rows * of.length / s for s in seconds]
        ratios = [t / s for s, t in zip(seconds, found["generate"], strict=True)]
        share = spread([least / s for s in seconds]) if least else ""
        setting = f"{name}, {of.width} + {of.length}"
        lines.append(f"| {setting} | {rows} | {side} | {spread(seconds, 3)} | {spread(rate, 0)} | {spread(ratios)} | {share} |")
    return lines


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(CPU), choices=SETTINGS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="our step under torch.compile besides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default=None, help="Markdown file of the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [
        head(f"Rollouts, {args.precision}; median (range) of {args.rounds} rounds", args.threads),
        "| setting | rows | side | seconds | tokens/s | times `generate`'s speed | floor / seconds |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for setting in args.settings:
            lines += rows_of(setting, args, Path(folder))
            print(lines[-1], flush=True)
    save("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
