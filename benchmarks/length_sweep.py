"""Time per sampled token of a PPO iteration, over response length and batch: it should be flat, or fall.

    pip install matplotlib
    python benchmarks/length_sweep.py --threads 2 --output FILE.md --plot FILE.png

One PPO iteration (rollout, scoring, an inner epoch) on a small model with a prompt of 24 tokens, for lengths 24 to 512 and
batches 8 to 256; cells of more than --most sampled tokens are left out. Micro-batches of at most 4,096 tokens keep the update
in the cache and in memory. Attention grows with the square of the length: on a tiny model that is a part one sees.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import SHAPES, head, make_lm, make_reward, random_ids, save

from lightning_rlhf.data import PromptBatch
from lightning_rlhf.objective import kl_estimate, penalised
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.tasks import Task

LENGTHS = (24, 48, 96, 192, 384, 512)
BATCHES = (8, 16, 32, 64, 128, 256)
PROMPT = 24


def build(lm: str, reward: str, length: int, batch: int, output: str) -> Any:
    """A PPO module with as much of a Trainer as an iteration's parts touch."""
    task = Task(name="sentiment", query_length=PROMPT, response_length=length, truncate_text=None, start_text=None, end_text=None)
    rows = max(1, 4096 // (PROMPT + length))
    micro = max(m for m in range(1, batch + 1) if batch % m == 0 and m <= rows)
    module: Any = PPOModule(policy=lm, reward=reward, output=output, task=task, num_ppo_epochs=1, micro_batch_size=micro)
    module._trainer = SimpleNamespace(world_size=1, global_rank=0)
    module.configure_model()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-6)
    module.optimizers = lambda: optimizer
    module.manual_backward = lambda loss: loss.backward()
    return module


def parts(module: Any, batch: PromptBatch) -> tuple[float, float]:
    """Seconds of rollout with scoring, and of the update."""
    began = time.perf_counter()
    rollout = module.rollout(batch)
    sampled = time.perf_counter()
    kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, rollout.real)
    rewards = penalised(rollout.scores, kl, rollout.real, kl_coef=0.15)
    module.update(rollout, *module.advantages(rewards, rollout.values, rollout.real))
    return sampled - began, time.perf_counter() - sampled


def measure(lm: str, reward: str, length: int, batch: int, repeats: int, folder: str) -> tuple[float, float]:
    """Microseconds a sampled token: rollout with scoring, and update; the median."""
    module = build(lm, reward, length, batch, folder)
    tokens = torch.tensor(random_ids(batch, PROMPT))
    queries = tokens.tolist()
    prompts = PromptBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), queries, [""] * batch, {})
    found = [parts(module, prompts) for _ in range(repeats + 1)][1:]
    scale = 1e6 / (batch * length)
    return statistics.median(f[0] for f in found) * scale, statistics.median(f[1] for f in found) * scale


def plot(cells: dict[tuple[int, int], tuple[float, float]], batches: list[int], file: str, title: str) -> None:
    """A line a batch: microseconds a token over the length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharex=True)
    for part, axis in enumerate(axes):
        for batch in batches:
            line = [(length, cell[part]) for (length, b), cell in cells.items() if b == batch]
            if line:
                axis.plot(*zip(*line, strict=True), marker="o", label=f"batch {batch}")
        axis.set(xscale="log", ylim=(0, None), xlabel="response tokens", title=("rollout and scoring", "update (1 epoch)")[part])
        lengths = sorted({length for length, _ in cells})
        axis.set_xticks(lengths, map(str, lengths))
        axis.minorticks_off()
    axes[0].set_ylabel("µs a sampled token")
    axes[1].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="stories260k", choices=SHAPES)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--most", type=int, default=50_000, help="sampled tokens a cell")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default=None, help="Markdown file of the table")
    parser.add_argument("--plot", default=None, help="PNG file of the plot")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cells: dict[tuple[int, int], tuple[float, float]] = {}
    title = f"Microseconds a sampled token: rollout and scoring + update of one epoch; {args.shape}, prompt {PROMPT}"
    lines = [head(title, args.threads), "| batch | " + " | ".join(f"{n} tokens" for n in args.lengths) + " |"]
    lines.append("|--:|" + "--:|" * len(args.lengths))
    with tempfile.TemporaryDirectory() as folder:
        lm = make_lm(args.shape, Path(folder) / "lm")
        reward = make_reward(lm, Path(folder) / "reward")
        for batch in args.batches:
            for length in args.lengths:
                if batch * length <= args.most:
                    cells[length, batch] = cell = measure(lm, reward, length, batch, args.repeats, folder)
                    print(f"{batch} rows, {length} tokens: {cell[0]:.0f} + {cell[1]:.0f}", file=sys.stderr, flush=True)
            row = [cells.get((length, batch)) for length in args.lengths]
            lines.append(f"| {batch} | " + " | ".join(f"{c[0]:.0f} + {c[1]:.0f}" if c else "" for c in row) + " |")
    save("\n".join(lines), args.output)
    if args.plot:
        plot(cells, list(args.batches), args.plot, title)


if __name__ == "__main__":
    main()
