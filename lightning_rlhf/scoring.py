"""What scores text: learned rewards, known rewards, any Python callable, behind one protocol; and the sign-flip guard.

A reward function gets `prompts`, `completions` and every other column of the prompts' file as keywords, and returns a list
of floats. The guard exists because of 2019's bug: a flipped sign made the policy fluent and maximally bad overnight.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .models import bos_ids, encode, encode_continuation, load_scalar, pad_batch, read_reward_info
from .records import Comparison, DataError, read_comparisons
from .tasks import UsageError


class RewardFunction(Protocol):
    """Anything that scores completions."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """One float a completion; higher is better."""
        ...


class LearnedReward(nn.Module):
    """A reward directory as a reward function, and as a function of token ids for policies with the same tokenizer."""

    def __init__(self, directory: str, batch_size: int = 64) -> None:
        super().__init__()
        self.scalar, self.tokenizer, self.info = load_scalar(directory)
        self.scalar.requires_grad_(False)
        self.batch_size = batch_size

    @torch.no_grad()
    def score_tokens(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of BOS + query + response ids → (n,) float32 on the model's device."""
        device = self.scalar.gain.device
        scores = []
        for first in range(0, len(rows), self.batch_size):
            tokens, mask = pad_batch(rows[first : first + self.batch_size], 0, "right")
            scores.append(self.scalar(tokens.to(device), mask.to(device)))
        return torch.cat(scores)

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:  # type: ignore[override]
        """Texts (or token ids) → rewards: the text bridge between tokenizers."""
        bos = bos_ids(self.tokenizer)
        rows = [
            bos + encode(self.tokenizer, p) + encode_continuation(self.tokenizer, c)
            for p, c in zip(prompts, completions, strict=True)
        ]
        return [float(x) for x in self.score_tokens(rows)]


def is_learned(name: str) -> bool:
    """Whether a reward's name is a directory, rather than `known:…` or `module:function`."""
    return ":" not in name


def find_reward(name: str, task: str, allow_other_task: bool = False) -> None:
    """Check, without loading a model, that a reward exists and was made for the task.

    Raises:
        UsageError: It does not exist, or was made for another task.
    """
    if not is_learned(name):
        load_callable(name)
        return
    made_for = read_reward_info(name)["task"]
    if made_for != task and not allow_other_task:
        raise UsageError(
            f"model.reward: {name} was made for task {made_for!r}, this run's task is {task!r}; "
            "pass --model.allow_other_task true to use it all the same"
        )


def load_callable(name: str) -> RewardFunction:
    """`known:sentiment`, or `module:function` (or `path/to/file.py:function`).

    Raises:
        UsageError: There is no such module or function.
    """
    module, _, function = name.rpartition(":")
    if module == "known":
        from .known import SentimentReward

        known: dict[str, Callable[[], Any]] = {"sentiment": SentimentReward}
        if function not in known:
            raise UsageError(f"reward {name!r}: no such known reward, expected one of {sorted(known)}")
        return known[function]()
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module).stem, module)
            assert spec is not None
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
        else:
            if os.getcwd() not in sys.path:  # a console script does not look where it was started
                sys.path.insert(0, os.getcwd())
            loaded = importlib.import_module(module)
        found = getattr(loaded, function)
    except (ImportError, AttributeError, FileNotFoundError, SyntaxError, ValueError) as error:
        raise UsageError(f"reward {name!r}: {error}; expected a reward directory, known:NAME or module:function") from None
    if not callable(found):
        raise UsageError(f"reward {name!r}: found a {type(found).__name__}, expected a callable")
    return found  # type: ignore[no-any-return]


def load_reward(name: str) -> LearnedReward | RewardFunction:
    """A reward directory, `known:NAME`, or `module:function`."""
    return LearnedReward(name) if is_learned(name) else load_callable(name)


def _is_number(value: Any) -> bool:
    """Whether `float` takes it."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def call_reward(
    reward: Callable[..., Any], prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]
) -> list[float]:
    """Call a reward function and check what it returns: one finite float a completion, else UsageError."""
    scores = reward(prompts=prompts, completions=completions, **columns)
    if not isinstance(scores, (list, tuple)) or len(scores) != len(completions):
        found = f"{len(scores)} values" if isinstance(scores, (list, tuple)) else type(scores).__name__
        raise UsageError(
            f"reward function: returned {found} for {len(completions)} completions, expected a list of as many floats"
        )
    try:
        values = [float(s) for s in scores]
    except (TypeError, ValueError):
        wrong = next(s for s in scores if not _is_number(s))
        raise UsageError(f"reward function: returned {wrong!r} among its values, expected floats") from None
    for value in values:
        if not math.isfinite(value):
            raise UsageError(f"reward function: returned {value}, expected a finite float")
    return values


# -------------------------------------------------------------------------------------------------------- the guard


def accuracy_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Share of hits with its Wilson interval (scipy): (rate, low, high)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return hits / n, float(interval.low), float(interval.high)


def comparison_accuracy(reward: Callable[..., Any], comparisons: Sequence[Comparison]) -> dict[str, float]:
    """How often a reward prefers the response that the labeler chose.

    Returns:
        accuracy, low, high (95 % Wilson), chance (mean of 1/N), n.
    """
    usable = [c for c in comparisons if c.best is not None]
    prompts = [c.prompt for c in usable for _ in c.responses]
    completions = [r for c in usable for r in c.responses]
    scores = call_reward(reward, prompts, completions, {})
    hits, at = 0, 0
    for comparison in usable:
        own = scores[at : at + len(comparison.responses)]
        at += len(own)
        assert comparison.best is not None
        rest = [s for i, s in enumerate(own) if i != comparison.best]
        hits += own[comparison.best] > max(rest)  # a tie is no hit: a constant reward must not pass
    rate, low, high = accuracy_interval(hits, len(usable))
    chance = sum(1 / len(c.responses) for c in usable) / len(usable)
    return {"accuracy": rate, "low": low, "high": high, "chance": chance, "n": len(usable)}


def guard_problems(comparisons: str | None, pairs: Sequence[dict[str, Any]] | None) -> list[str]:
    """What is wrong with the guard's own material, in words, told without a model: the file and the fixed pairs."""
    problems = []
    if comparisons is not None:
        try:
            if all(c.best is None for c in read_comparisons(comparisons)):
                problems.append(f"model.guard_comparisons: {comparisons}: no comparison says which response is best")
        except DataError as error:
            problems.append(f"model.guard_comparisons: {error}")
    for i, pair in enumerate(pairs or []):
        keys = {"prompt", "better", "worse"}
        if not isinstance(pair, dict) or pair.keys() != keys:
            found = sorted(pair) if isinstance(pair, dict) else type(pair).__name__
            problems.append(f"model.guard_pairs[{i}]: found {found}, expected {sorted(keys)}")
    return problems


def guard(reward: Callable[..., Any], comparisons_path: str, limit: int = 512) -> dict[str, Any]:
    """Refuse a reward that does not beat chance on held-out comparisons: a flipped sign, or a head that never trained.

    Args:
        reward: The reward function.
        comparisons_path: Held-out comparisons of the task.
        limit: At most so many are scored.

    Returns:
        What `comparison_accuracy` returns.

    Raises:
        UsageError: The lower end of the accuracy's 95 % interval does not exceed chance.
    """
    held_out = [c for c in read_comparisons(comparisons_path) if c.best is not None][:limit]
    if not held_out:
        raise UsageError(f"guard_comparisons: {comparisons_path}: no comparison says which response is best")
    found = comparison_accuracy(reward, held_out)
    if not found["low"] > found["chance"]:
        raise UsageError(
            f"the reward was refused: on {found['n']:.0f} held-out comparisons of {comparisons_path} it agrees with the labels "
            f"in {found['accuracy']:.3f} (95 % interval {found['low']:.3f} to {found['high']:.3f}), "
            f"and chance is {found['chance']:.3f}; is its sign flipped, or was it never trained? "
            "(--model.allow_unguarded true starts all the same)"
        )
    return {"kind": "comparisons", "file": comparisons_path, **found}
