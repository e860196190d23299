"""PPO's validation: what is kept of each held-out prompt's sample, the figures over them, and the table of samples.

The policy answers the same prompts with the same seed each time, so that two validations are compared prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .files import write_jsonl


@dataclass(frozen=True)
class Answer:
    """One held-out prompt with the policy's sample."""

    index: int  # of the prompt in its file
    id: str
    prompt: str
    response: str  # what is scored
    reference: Any
    seed: int
    score: float
    kl: float  # Σ log π − log ρ over the response, nats
    stopped: bool  # it ended as it should
    held_out: float | None  # the reward that is not trained on


def gather(answers: Sequence[Answer], ranks: int) -> list[Answer]:
    """The answers of all ranks, on every rank, in the file's order."""
    everyone: list[Any] = [list(answers)]
    if ranks > 1:
        everyone = [None] * ranks
        torch.distributed.all_gather_object(everyone, list(answers))
    return sorted((a for some in everyone for a in some), key=lambda a: a.index)


def beats(now: Sequence[float], first: Sequence[float]) -> float:
    """Share of prompts whose score is above the first sample's, a tie half."""
    return sum((a > b) + 0.5 * (a == b) for a, b in zip(now, first, strict=True)) / len(now)


def figures(answers: Sequence[Answer], first: Sequence[float] | None) -> dict[str, float]:
    """Means over the prompts, by metric name.

    Args:
        answers: Of all ranks.
        first: Iteration 0's scores of the same prompts, where they are known.
    """
    n = len(answers)
    found = {
        "val/score": sum(a.score for a in answers) / n,
        "val/kl": sum(a.kl for a in answers) / n,
        "val/found": sum(a.stopped for a in answers) / n,
    }
    if first is not None:
        found["val/beats_first"] = beats([a.score for a in answers], first)
    if answers[0].held_out is not None:
        found["val/held_out"] = sum(a.held_out or 0.0 for a in answers) / n
    return found


def metric_figures(metric: Any) -> dict[str, float]:
    """What a metric computed, by name: the mean where it gives a value a response, the first where it gives a tuple."""
    value = metric.compute()
    values = value if isinstance(value, dict) else {type(metric).__name__: value}
    return {k: float(torch.as_tensor(v[0] if isinstance(v, tuple) else v).float().mean()) for k, v in values.items()}


def write_table(path: Path, answers: Sequence[Answer], **more: Any) -> None:
    """The answers as JSON lines, records of samples; `more` stands in every line."""
    rows = ({"id": a.id, **more, **{k: v for k, v in asdict(a).items() if v is not None}, "index": 0} for a in answers)
    write_jsonl(path, rows)
