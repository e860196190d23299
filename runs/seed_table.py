"""One table over the reports of several seeds: mean, and a 95 % t interval over seeds.

python runs/seed_table.py out/sentiment/stories260k-seed{1,2,3}/report/report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from eval.winrate import mean_interval

FIGURES = {
    "known reward: rlhf over zero-shot": lambda r: win(r, "rlhf", "zero-shot"),
    "known reward: rlhf over supervised": lambda r: win(r, "rlhf", "supervised"),
    "known reward: supervised over zero-shot": lambda r: win(r, "supervised", "zero-shot"),
    "known reward: second draw over zero-shot": lambda r: win(r, "zero-shot (second draw)", "zero-shot"),
    "KL to the reference, nats a response": lambda r: policy(r, "rlhf")["scores"]["kl"]["mean"],
    "learned score, rlhf": lambda r: policy(r, "rlhf")["scores"]["learned"]["mean"],
    "known score, rlhf": lambda r: policy(r, "rlhf")["scores"]["known"]["mean"],
    "known score, zero-shot": lambda r: policy(r, "zero-shot")["scores"]["known"]["mean"],
    "within-response distinct-2, rlhf / zero-shot": lambda r: policy(r, "rlhf")["ratio"]["distinct_2_within"],
    "corpus distinct-2, rlhf / zero-shot": lambda r: policy(r, "rlhf")["ratio"]["distinct_2"],
    "corpus distinct-2, supervised / zero-shot": lambda r: policy(r, "supervised")["ratio"]["distinct_2"],
    "perplexity under the reference, zero-shot": lambda r: policy(r, "zero-shot")["perplexity"],
    "perplexity under the reference, supervised": lambda r: policy(r, "supervised")["perplexity"],
    "perplexity under the reference, rlhf": lambda r: policy(r, "rlhf")["perplexity"],
    "reward model: held-out accuracy": lambda r: r["reward_model"]["accuracy"],
    "reward model: chance": lambda r: r["reward_model"]["chance"],
}


def policy(report: dict[str, Any], name: str) -> dict[str, Any]:
    """A policy's figures."""
    return next(p for p in report["policies"] if p["name"] == name)


def win(report: dict[str, Any], a: str, b: str) -> float:
    """Win rate of policy a over policy b; each pair stands once in a report."""
    for c in report["comparisons"]:
        if (c["a"], c["b"]) == (a, b):
            return float(c["rate"])
        if (c["a"], c["b"]) == (b, a):
            return 1.0 - float(c["rate"])
    raise SystemExit(f"no comparison of {a} with {b}")


def main(paths: list[str]) -> None:
    """Print the table as Markdown."""
    reports = [json.loads(Path(p).read_text(encoding="utf-8")) for p in paths]
    seeds = [Path(p).parts[-3] for p in paths]
    print(f"| figure | {' | '.join(seeds)} | mean (95 % interval over seeds) |")
    print("|---|" + "---:|" * (len(seeds) + 1))
    for name, figure in FIGURES.items():
        values = [figure(r) for r in reports]
        if len(values) > 1 and len(set(values)) > 1:
            found = mean_interval(values)
            summary = f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"
        else:
            summary = f"{sum(values) / len(values):.3f}"
        print(f"| {name} | {' | '.join(f'{v:.3f}' for v in values)} | {summary} |")


if __name__ == "__main__":
    main(sys.argv[1:])
