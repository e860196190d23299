"""Rollouts alone: `generation.sample` beside transformers' `generate`, the same weights, precision and prompts, on a CPU.

    python benchmarks/rollout_speed.py --threads 2 --rounds 5 [--compile] --output FILE.md

Settings: stories260k, batch 64, one token of prompt + 24; smollm2, batch 32, 64 + 24; and smollm2 best-of-4 as labels are drawn
(8 prompts, four responses each: here a prompt is read once, `generate` reads it four times). Both sides draw exactly 24 tokens
from the whole vocabulary at temperature 0.7, one after the other in the same process, several times in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import head, random_ids, save, spread
from transformers import GenerationConfig

from lightning_rlhf.generation import sample_with
from lightning_rlhf.models import load_lm, run_context

SETTINGS = {  # model, prompts, their tokens, responses a prompt
    "stories260k": ("stories260k", 64, 1, 1),
    "smollm2": ("smollm2", 32, 64, 1),
    "smollm2-best-of-4": ("smollm2", 8, 64, 4),
}


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def sides(name: str, batch: int, prompt: int, samples: int, length: int, compiled: bool) -> dict[str, Callable[[], Any]]:
    """The two calls."""
    lm = load_lm(name)
    tokens = torch.tensor(random_ids(batch, prompt))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    config = GenerationConfig(
        max_new_tokens=length, min_new_tokens=length, do_sample=True, temperature=0.7, top_k=0, top_p=1.0,
        num_return_sequences=samples,
        pad_token_id=lm.pad_id, eos_token_id=None,
    )  # fmt: skip

    def theirs() -> Any:
        found = lm.model.generate(input_ids=tokens, attention_mask=mask.long(), generation_config=config)
        assert found.shape == (batch * samples, prompt + length)

    def ours() -> Any:
        found = sample_with(lm.model, tokens, mask, length, 0.7, seed=1, num_samples=samples, compiled=compiled)
        assert found.tokens.shape == (batch * samples, length)

    return {"ours": ours, "generate": theirs}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--response", type=int, default=24, help="tokens")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="our step under torch.compile; its first call is not timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default=None, help="Markdown file of the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [
        head(f"Rollouts of {args.response} tokens, {args.precision}; median (range) of {args.rounds} rounds", args.threads),
        "| setting | rows | ours, s | `generate`, s | ours, tokens/s | times `generate`'s speed |\n|---|--:|--:|--:|--:|--:|",
    ]
    for setting in args.settings:
        name, batch, prompt, samples = SETTINGS[setting]
        calls = sides(name, batch, prompt, samples, args.response, args.compile)
        took: dict[str, list[float]] = {side: [] for side in calls}
        with run_context(args.precision):
            for call in calls.values():
                call()  # the first call of a process is not timed
            for _ in range(args.rounds):
                for side, call in calls.items():
                    took[side].append(seconds(call))
        rows = batch * samples
        ratios = [t / o for o, t in zip(took["ours"], took["generate"], strict=True)]
        rate = [rows * args.response / s for s in took["ours"]]
        lines.append(
            f"| {setting}, {prompt} + {args.response} | {rows} | {spread(took['ours'], 3)} | {spread(took['generate'], 3)} | "
            f"{spread(rate, 0)} | {spread(ratios)} |"
        )
    save("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
