"""The learned reward on held-out comparisons: accuracy beside chance and the labeler's own, calibration, an ensemble of seeds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from eval.calibration import calibrate
from eval.calibration import ensemble as ensembled
from eval.copying import words
from lightning_rlhf.records import read_comparisons
from lightning_rlhf.scoring import LearnedReward, comparison_accuracy, comparison_scores, load_callable

LEAST_CALIBRATED = 40  # held-out comparisons, below which halves and bins say nothing


def judge_reward(learned: str | None, known: str | None, comparisons: str | None, others: list[str]) -> tuple[Any, Any, Any]:
    """The learned reward on held-out comparisons: its accuracy beside chance and the labeler's own, its calibration, and
    what it says together with other reward models."""
    if not (learned and comparisons):
        return None, None, None
    held_out, model = list(read_comparisons(comparisons)), LearnedReward(learned)
    scores = comparison_scores(model, held_out)
    found = comparison_accuracy(model, held_out, scores=scores)
    more = {k: model.info.get(k) for k in ("gain", "bias", "labels", "base")}
    labeler = comparison_accuracy(load_callable(known), held_out, model.tokenizer)["accuracy"] if known else None
    best = [i for i, c in enumerate(held_out) if c.best is not None]
    choices, prompts = [held_out[i].best or 0 for i in best], [str(held_out[i].prompt) for i in best]

    def trained(reward: LearnedReward, given: list[list[float]]) -> list[list[float]]:
        """Scores in the scale that was trained, before the last normalisation divided by the spread: probabilities are of it."""
        spread = next((n["std"] for n in reward.info.get("normalisations", []) if n["when"] == "after training"), 1.0)
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
