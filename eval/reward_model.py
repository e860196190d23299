"""The learned reward on held-out comparisons: accuracy beside chance and the labeler's own, calibration, an ensemble of seeds."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from eval.calibration import calibrate
from eval.calibration import ensemble as ensembled
from eval.copying import words
from lightning_rlhf.heldout import decisions
from lightning_rlhf.records import Comparison, read_comparisons
from lightning_rlhf.scoring import LearnedReward, comparison_accuracy, comparison_scores, load_reward
from lightning_rlhf.tasks import UsageError

LEAST_CALIBRATED = 40  # held-out comparisons, below which halves and bins say nothing


def choice(label: Comparison) -> int | None:
    """The one response that a label puts first; None where it puts several there, or none."""
    if label.best is not None:
        return label.best
    places = [-r for r in label.ranks] if label.ranks else label.ratings or [0.0, label.margin or 0.0]
    first = [i for i, place in enumerate(places) if place == max(places)]
    return first[0] if len(first) == 1 else None


def labeler_accuracy(known: str, held_out: list[Comparison], tokenizer: Any) -> float | None:
    """How often the known reward says what the labels do; None, with a warning, where it cannot score their responses."""
    try:
        return comparison_accuracy(load_reward(known), held_out, tokenizer)["accuracy"]
    except (UsageError, TypeError) as error:  # of a function: it wants columns that labels do not have
        warnings.warn(f"{known} on the held-out comparisons is left out of the report: {error}", stacklevel=2)
        return None


def judge_reward(learned: str | None, known: str | None, comparisons: str | None, others: list[str]) -> tuple[Any, Any, Any]:
    """The learned reward on held-out comparisons: its accuracy beside chance and the labeler's own, its calibration, and
    what it says together with other reward models."""
    if not (learned and comparisons):
        return None, None, None
    held_out, model = list(read_comparisons(comparisons)), LearnedReward(learned)
    scores = comparison_scores(model, held_out)
    found = comparison_accuracy(model, held_out, scores=scores)
    judged = [decisions(s, c.best, c.ranks, c.ratings, c.margin) for s, c in zip(scores, held_out, strict=True)]
    more: dict[str, Any] = {"of": "pairs" if any(len(made) > 1 for made in judged) else "choices"}
    more |= {k: model.info.get(k) for k in ("gain", "bias", "labels", "base")}
    labeler = labeler_accuracy(known, held_out, model.tokenizer) if known else None
    chosen = {i: first for i, c in enumerate(held_out) if (first := choice(c)) is not None}
    best, choices, prompts = list(chosen), list(chosen.values()), [str(held_out[i].prompt) for i in chosen]

    def trained(reward: LearnedReward, given: list[list[float]]) -> list[list[float]]:
        """Scores in the scale that was trained, before the last normalisation divided by the spread: probabilities are of it."""
        last: dict[str, Any] = next((n for n in reward.info.get("normalisations", []) if n["when"] == "after training"), {})
        to = last.get("target_std", 1.0)  # None: it was shifted alone
        spread = last["std"] / to if last and to is not None else 1.0
        return [[s * spread for s in given[i]] for i in best]

    rows = trained(model, scores)
    lengths = [[len(words(r)) if isinstance(r, str) else len(r) for r in held_out[i].responses] for i in best]
    named = [held_out[i].meta.get("labeler", held_out[i].meta.get("worker")) for i in best]
    labelers = [None if x is None else str(x) for x in named] if any(x is not None for x in named) else None
    enough = len(best) >= LEAST_CALIBRATED
    calibration = asdict(calibrate(rows, choices, lengths, labelers=labelers, prompts=prompts)) if enough else None
    members = [rows] + [trained(other, comparison_scores(other, held_out)) for other in map(LearnedReward, others)]
    together = asdict(ensembled(members, choices, prompts)) if others and best else None
    return {**found, **more, "labeler_accuracy": labeler}, calibration, together
