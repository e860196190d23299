"""Alarms of a PPO run: what each iteration's own figures say about it, at no further forward pass.

A figure that stays beyond its threshold for `patience` iterations is told once, loudly, and again after it has been well in
between. What means corruption (a KL far below 0, steps that are not finite) stops the run; it is judged in `ppo.py`, at once.
The state is plain, so that a resumed run judges as the whole one would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Thresholds:
    """When to warn. null turns an alarm off; *start* is the run's first iteration.

    Args:
        entropy: The policy's entropy a token is below this share of the start's.
        repetition: This share of a response's bigrams stood in it before (batch mean), and more than at the start.
        length: The mean scored length is above the start's times this, or below the start's divided by it; above 1.
        penalised: More than this share of the responses got the penalty for not ending as they should.
        var_explained: The value function's explained variance is below this.
        over_optimised: In validation the reward rose while the held-out reward fell by more than so many standard errors.
        warmup: Iterations before explained variance is judged: the value head starts at 0.
        patience: Iterations in a row before an alarm is raised.
        stop: Every alarm stops the run.
    """

    entropy: float | None = 0.3
    repetition: float | None = 0.3
    length: float | None = 2.0
    penalised: float | None = 0.5
    var_explained: float | None = -1.0
    over_optimised: float | None = 3.0
    warmup: int = 10
    patience: int = 3
    stop: bool = False

    def problems(self) -> list[str]:
        """Impossible values, in words."""
        found = []
        if self.patience < 1:
            found.append(f"model.alarms.patience: found {self.patience}, expected at least 1")
        if self.warmup < 0:
            found.append(f"model.alarms.warmup: found {self.warmup}, expected at least 0")
        for name, fits, expected in (
            ("entropy", lambda x: 0 < x < 1, "above 0 and below 1, a share"),
            ("repetition", lambda x: 0 < x < 1, "above 0 and below 1, a share"),
            ("length", lambda x: 1 < x < math.inf, "above 1"),
            ("penalised", lambda x: 0 <= x < 1, "0 or more and below 1, a share"),
            ("var_explained", lambda x: -math.inf < x < 1, "below 1"),
            ("over_optimised", lambda x: 0 < x < math.inf, "above 0"),
        ):
            value = getattr(self, name)
            if value is not None and not fits(value):
                found.append(f"model.alarms.{name}: found {value:g}, expected {expected}, or null")
        return found


@dataclass(frozen=True)
class Vitals:
    """One iteration's figures that alarms look at, over the batch of all ranks."""

    entropy: float  # nats a token
    repetition: float  # share of repeated bigrams within a response
    length: float  # scored tokens a response
    penalised: float  # share of responses
    var_explained: float


class Alarms:
    """Judges iterations and validations one after the other.

    Args:
        thresholds: When to warn.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.start: dict[str, float] | None = None  # each figure of the first iteration that had one
        self.streak: dict[str, int] = {}  # iterations in a row, by alarm
        self.raised: dict[str, str] = {}  # alarm → what was said first, for run.json
        self.best: tuple[list[float], list[float]] | None = None  # scores and held-out rewards where the latter was highest
        self.over = False  # whether the last validation was over-optimised

    def judge(self, iteration: int, vitals: Vitals) -> list[str]:
        """The alarms that are raised now, in words."""
        start = self.start or {}
        self.start = {k: start[k] if is_start(k, start.get(k, math.nan)) else value for k, value in asdict(vitals).items()}
        found = self._found(iteration, vitals)
        self.streak = {name: self.streak.get(name, 0) + 1 for name in found}
        told = [name for name, count in self.streak.items() if count == self.thresholds.patience]
        return [self.note(name, f"{found[name]} (iteration {iteration})") for name in told]

    def _found(self, iteration: int, now: Vitals) -> dict[str, str]:
        """Every alarm whose figure is beyond its threshold → what to say."""
        known = self.start or {}
        limit, start = self.thresholds, Vitals(**{k: v if is_start(k, v) else math.nan for k, v in known.items()})
        found: dict[str, str] = {}
        if limit.entropy is not None and now.entropy < limit.entropy * start.entropy:
            figures = f"{now.entropy:.3f} nats a token, {start.entropy:.3f} at the start"
            found["entropy"] = f"entropy collapse: {figures}, limit {limit.entropy:g} of it"
        if limit.repetition is not None and now.repetition > max(limit.repetition, start.repetition):
            figures = f"{now.repetition:.0%} of a response's bigrams stood in it before, {start.repetition:.0%} at the start"
            found["repetition"] = f"repetition: {figures}, limit {limit.repetition:.0%}"
        if limit.length is not None and (
            now.length > start.length * limit.length or now.length < start.length / limit.length
        ):
            figures = f"{now.length:.1f} tokens a response, {start.length:.1f} at the start"
            found["length"] = f"length drift: {figures}, limit a factor {limit.length:g}"
        if limit.penalised is not None and now.penalised > limit.penalised:
            figures = f"{now.penalised:.0%} of the responses did not end as they should and got the penalty"
            question = "does the task's truncation or stop token suit this policy?"
            found["penalised"] = f"penalised: {figures}, limit {limit.penalised:.0%}; {question}"
        if limit.var_explained is not None and iteration >= limit.warmup and now.var_explained < limit.var_explained:
            figures = f"explained variance {now.var_explained:.2f}, limit {limit.var_explained:g}"
            found["var_explained"] = f"value function: {figures}: worse than a constant"
        return found

    def judge_validation(self, iteration: int, scores: Sequence[float], held_out: Sequence[float]) -> list[str]:
        """Over-optimisation: against the validation where the held-out reward was highest, on the same prompts.

        Args:
            iteration: For the message.
            scores: The reward that is trained on, a prompt.
            held_out: A reward that is not, a prompt.
        """
        limit = self.thresholds.over_optimised
        if self.best is None or sum(held_out) > sum(self.best[1]):
            self.best = (list(scores), list(held_out))
        if limit is None:
            return []
        rise, _ = _paired(scores, self.best[0])
        fall, error = _paired(held_out, self.best[1])
        told, self.over = self.over, rise > 0 and fall < -limit * error
        if told or not self.over:
            return []
        text = (
            f"over-optimisation: the reward rose by {rise:.3f} while the held-out reward fell by {-fall:.3f} "
            f"({-fall / error if error else math.inf:.1f} standard errors) since its best validation"
        )
        return [self.note("over_optimised", f"{text} (iteration {iteration})")]

    def note(self, name: str, text: str) -> str:
        """Keep an alarm for run.json; returns the text."""
        self.raised.setdefault(name, text)
        return text

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"start": self.start, "streak": self.streak, "raised": self.raised, "best": self.best, "over": self.over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.start, self.streak, self.raised, self.best = (state[k] for k in ("start", "streak", "raised", "best"))
        self.over = state.get("over", False)


def is_start(name: str, value: float) -> bool:
    """Whether later iterations can be compared with a figure: a skipped one has none, responses of no token have no length."""
    return math.isfinite(value) and (value > 0 or name != "length")


def negative_kl(per_response: Tensor, tolerance: float, iteration: int) -> str | None:
    """A KL is not negative: a mean below 0 by more than tolerance and noise means that two distributions were mixed up.

    Args:
        per_response: (B,) sums of log π − log ρ over sampled tokens.
        tolerance: Nats.
        iteration: For the message.

    Returns:
        What to say, or None.
    """
    mean = per_response.mean().item()
    noise = 3 * per_response.std().item() / math.sqrt(len(per_response)) if len(per_response) > 1 else math.inf
    if not mean < -(tolerance + noise):
        return None
    return f"mean KL to the reference is {mean:.3f} nats at iteration {iteration}, below -{tolerance} - {noise:.3f} (noise)"


def repeated_bigrams(tokens: Tensor, mask: Tensor) -> Tensor:
    """Share of each row's bigrams that stood earlier in the same row: (B, T) ids, (B, T) bool (right-padded) → (B,) float32.

    A row of fewer than two tokens has none, and the share 0.
    """
    if tokens.shape[1] < 2:
        return torch.zeros(len(tokens), device=tokens.device)
    real = mask[:, 1:] & mask[:, :-1]
    pairs = torch.where(real, tokens[:, :-1] * (tokens.max() + 1) + tokens[:, 1:], -1).sort(1).values
    again = (pairs[:, 1:] == pairs[:, :-1]) & (pairs[:, 1:] >= 0)
    return again.sum(1) / real.sum(1).clamp_min(1)


def _paired(now: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Mean difference of pairs, and its standard error."""
    differences = torch.tensor(now, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
    n = len(differences)
    return differences.mean().item(), (differences.std().item() / math.sqrt(n) if n > 1 else math.inf)
