"""What scores text: learned rewards, known rewards, any Python callable, behind one protocol; and the sign-flip guard.

A reward function gets `prompts`, `completions` and every other column of the prompts' file as keywords, and returns a list
of floats. The guard exists because of 2019's bug: a flipped sign made the policy fluent and maximally bad overnight.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .chat import first_in_messages, need_template, rendered
from .files import file_sha256
from .heldout import accuracy, decisions
from .heldout import accuracy_interval as accuracy_interval
from .models import load_tokenizer, table_of
from .records import Comparison, DataError, Prompt, read_comparisons
from .scalar import load_scalar, read_reward_info
from .tasks import UsageError, told
from .tokens import bos_ids, decode, encode, encode_continuation, pad_batch

GUARD_PAIR = ("prompt", "better", "worse")  # fields of a fixed pair; others are columns, for a reward that takes them
MOST_IN_GROUP = 16  # responses that are read behind one prompt: the attention mask grows with the square of their number


class RewardFunction(Protocol):
    """Anything that scores completions."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """One float a completion; higher is better."""
        ...


@dataclass(frozen=True)
class WeightedReward:
    """One reward of a sum.

    Args:
        reward: A reward directory, `known:NAME`, or any callable `module:function`.
        weight: Its factor.
    """

    reward: str
    weight: float = 1.0


class LearnedReward(nn.Module):
    """A reward directory as a reward function, and as a function of token ids for policies with the same tokenizer."""

    def __init__(self, directory: str, batch_size: int = 64) -> None:
        super().__init__()
        self.scalar, self.tokenizer, self.info = load_scalar(directory)
        self.directory = directory
        self.scalar.requires_grad_(False)
        self.batch_size = batch_size
        self.even = False  # sharded: as many passes on every rank, whatever its rows' lengths

    @torch.no_grad()
    def score_tokens(self, rows: Sequence[Sequence[int]], group: int = 1) -> Tensor:
        """Rows of BOS + query + response ids → (n,) float32 on the model's device.

        Args:
            rows: n of them.
            group: So many rows after one another share their beginning, which is then read once.

        Raises:
            UsageError: A row of more tokens than the model has positions (GPT-2).
        """
        most, longest = table_of(self.scalar.trunk.config), max(map(len, rows), default=1)
        if most is not None and longest > most:
            raise UsageError(f"reward {self.directory}: found a text of {longest} tokens, expected at most its {most} positions")
        device = self.scalar.gain.device
        scores = []
        many = self.batch_size if self.even else rows_at_once(device.type, self.batch_size, longest)
        size = max(1, many // group) * group
        for first in range(0, len(rows), size):
            tokens, mask = (x.to(device) for x in pad_batch(rows[first : first + size], 0, "right"))
            scores.append(self.scalar(tokens, mask) if group == 1 else self.scalar.score_groups(tokens, mask, group).flatten())
        return torch.cat(scores) if scores else torch.zeros(0)

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:  # type: ignore[override]
        """Texts (or token ids) → rewards: the text bridge between tokenizers."""
        bos = bos_ids(self.tokenizer)
        rows = [
            bos + encode(self.tokenizer, p) + encode_continuation(self.tokenizer, c)
            for p, c in zip(prompts, completions, strict=True)
        ]
        same = math.gcd(*(len(list(run)) for _, run in groupby(prompts)))  # responses to one prompt after one another
        group = next(g for g in range(max(1, min(same, MOST_IN_GROUP)), 0, -1) if same % g == 0)
        return [float(x) for x in self.score_tokens(rows, group)]


def rows_at_once(device: str, batch_size: int, width: int) -> int:
    """Rows of so many tokens in a pass: on a GPU more of them where they are short, up to 64k tokens."""
    return batch_size if device == "cpu" else max(batch_size, 2**16 // max(1, width))


def is_learned(name: str) -> bool:
    """Whether a reward's name is a directory, rather than `known:…` or `module:function`."""
    return ":" not in name or Path(name).is_dir()


def find_reward(
    name: str, task: str, allow_other_task: bool = False, option: str = "model.reward", flag: str = "--model.allow_other_task"
) -> None:
    """Check, without loading a model, that a reward exists and was made for the task; `option` and `flag` are for the message.

    Raises:
        UsageError: It does not exist, or was made for another task.
    """
    if not is_learned(name):
        load_callable(name)
        return
    info = read_reward_info(name)
    if info.get("role") == "value":
        raise UsageError(f"{option}: found {name}, a value network, expected a reward model")
    made_for = info["task"]
    if made_for != task and not allow_other_task:
        raise UsageError(
            f"{option}: {name} was made for task {made_for!r}, this run's task is {task!r}; "
            f"pass {flag} true to use it all the same"
        )


def load_callable(name: str) -> RewardFunction:
    """`known:sentiment`, or `module:function` (or `path/to/file.py:function`).

    Raises:
        UsageError: There is no such module or function.
    """
    module, _, function = name.rpartition(":")
    if module == "known":
        from .known import KNOWN

        if function not in KNOWN:
            raise UsageError(f"reward {name!r}: no such known reward, expected one of {sorted(KNOWN)}")
        return KNOWN[function]()  # type: ignore[no-any-return]
    try:
        if module.endswith(".py"):
            loaded = _module_of(Path(module))
        else:
            if os.getcwd() not in sys.path:  # a console script does not look where it was started
                sys.path.insert(0, os.getcwd())
            loaded = importlib.import_module(module)
        found = getattr(loaded, function)
    except Exception as error:  # whatever the user's own module raises
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"reward {name!r}: {what}; expected a reward directory, known:NAME or module:function") from None
    if not callable(found) or isinstance(found, type):
        what = "class" if isinstance(found, type) else type(found).__name__
        raise UsageError(f"reward {name!r}: found a {what}, expected a function, or an object that can be called")
    return found  # type: ignore[no-any-return]


def _module_of(file: Path) -> Any:
    """A file of Python as a module, run once for its place and content."""
    name = f"{file.stem}_{hashlib.sha256(f'{file.resolve()}:{file_sha256(file)}'.encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses, among others, look their module up
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def code_of(reward: str) -> str:
    """A callable's name, with the hash of its file, where it has one that is not of this package."""
    module = reward.rpartition(":")[0]
    file = Path(module)
    if not file.is_file() and not is_learned(reward) and module != "known":
        load_callable(reward)
        file = Path(getattr(sys.modules.get(module), "__file__", None) or module)
    return f"{reward} {file_sha256(file)}" if file.is_file() else reward


def load_reward(name: str) -> LearnedReward | RewardFunction:
    """A reward directory, `known:NAME`, or `module:function`."""
    return LearnedReward(name) if is_learned(name) else load_callable(name)


def _is_number(value: Any) -> bool:
    """Whether `float` takes it."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def accepted(function: Callable[..., Any], columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns that a function takes: all, or, where it has no `**columns`, those that it names."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # not told of some built in C
        return columns
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return columns
    named = {p.name for p in parameters}
    return {name: values for name, values in columns.items() if name in named}


def call_problems(name: str, prompts: Sequence[tuple[str, Prompt]]) -> list[str]:
    """Why a reward function cannot score responses to these prompts, in words; raises UsageError where there is no such function.

    Args:
        name: `known:NAME` or `module:function`; a reward directory has no problem.
        prompts: Where each is from, and the prompt; none: nothing to tell from.
    """
    if is_learned(name) or not prompts:
        return []
    function = load_callable(name)
    if "reference" in getattr(function, "needs", ()):
        without = next((where for where, prompt in prompts if prompt.reference is None), None)
        return [f"{without}: field 'reference': not there, expected one, for {name}"] if without else []
    columns: dict[str, list[Any]] = {"reference": []}
    columns |= {key: [] for _, prompt in prompts for key, value in prompt.meta.items() if value is not None}
    if problem := unbound(function, {"prompts": [], "completions": [], **accepted(function, columns)}):
        given = ", ".join(["prompts", "completions", *sorted(columns)])
        return [f"reward {name!r}: {problem}; it is called with {given} by name, those of the prompts' columns that it takes"]
    return []


def fill_columns(prompts: Sequence[Prompt]) -> None:
    """Give each prompt every column that any has, None where it has not: a reward function gets the same ones in each batch."""
    names: dict[str, None] = dict.fromkeys(key for prompt in prompts for key in prompt.meta)
    for prompt in prompts:
        prompt.meta.update({name: None for name in names if name not in prompt.meta})


def unbound(function: Callable[..., Any], given: dict[str, Any]) -> str | None:
    """Why a function cannot be called with these arguments, in words; None where it can, or where it cannot be told."""
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        return str(error)
    except ValueError:  # of some built in C
        pass
    return None


def _place_of(reward: Any) -> str:
    """`module:function` of a function, or of what is called like one."""
    return f"{getattr(reward, '__module__', '')}:{getattr(reward, '__qualname__', type(reward).__qualname__)}"


def named(reward: Any) -> str:
    """A reward's name: its own, or `module:function` of a function that can be found by it. Raises UsageError for another."""
    if isinstance(reward, str):
        return reward
    name = _place_of(reward)
    if not callable(reward) or told(load_callable, name):
        raise UsageError(f"model.reward: found {reward!r}, expected a name, or a function at the top of a module")
    return name


def call_reward(
    reward: Callable[..., Any], prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]
) -> list[float]:
    """Call a reward function and check what it returns: one finite float a completion, else UsageError."""
    name = f"reward function {_place_of(reward)}"
    if reserved := sorted({"prompts", "completions"} & set(columns)):
        raise UsageError(f"{name}: the prompts have a column {reserved[0]!r}, an argument's name; expected another")
    given = {"prompts": prompts, "completions": completions, **accepted(reward, columns)}
    if problem := unbound(reward, given):
        raise UsageError(f"{name}: {problem}; the columns that there are: {', '.join(sorted(columns)) or 'none'}")
    try:
        scores = reward(**given)
    except Exception as error:
        error.add_note(f"in the {name}")
        raise
    scores = scores.tolist() if hasattr(scores, "tolist") else scores
    if not isinstance(scores, (list, tuple)) or len(scores) != len(completions):
        found = f"{len(scores)} values" if isinstance(scores, (list, tuple)) else type(scores).__name__
        raise UsageError(
            f"{name}: returned {found} for {len(completions)} completions, expected a list of as many floats"
        )
    try:
        values = [float(s) for s in scores]
    except (TypeError, ValueError, OverflowError):
        wrong = next(s for s in scores if not _is_number(s))
        raise UsageError(f"{name}: returned {wrong!r} among its values, expected floats") from None
    for value in values:
        if not math.isfinite(value):
            raise UsageError(f"{name}: returned {value}, expected a finite float")
    return values


def weighted_sum(weights: Sequence[float], rewards: Sequence[RewardFunction]) -> RewardFunction:
    """Σ weight · reward as one reward function; a single reward of weight 1 is itself."""
    if list(weights) == [1.0]:
        return rewards[0]

    def score(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        each = [call_reward(reward, prompts, completions, columns) for reward in rewards]
        return [sum(w * s for w, s in zip(weights, scores, strict=True)) for scores in zip(*each, strict=True)]

    return score


# -------------------------------------------------------------------------------------------------------- the guard


def prefers(comparison: Comparison) -> bool:
    """Whether a label prefers any response to another."""
    labels = {k: getattr(comparison, k) for k in ("best", "ranks", "ratings", "margin")}
    return bool(decisions([0.0] * len(comparison.responses), **labels))


def as_text(text: str | list[int], where: str, tokenizer: Any, continuation: bool) -> str:
    """A text, or token ids decoded. Raises UsageError for ids without a tokenizer."""
    if isinstance(text, str):
        return text
    if tokenizer is None:
        raise UsageError(f"{where}: found token ids, and this reward reads texts; give the tokenizer that made them")
    return decode(tokenizer, text, continuation)


def comparison_scores(reward: Callable[..., Any], comparisons: Sequence[Comparison], tokenizer: Any = None) -> list[list[float]]:
    """A reward's scores of the responses of each comparison.

    Args:
        reward: A reward function. Only a learned one is given token ids as they are, and messages in its chat template.
        comparisons: Of any label type.
        tokenizer: Turns token ids into the texts that any other reward reads.

    Raises:
        DataError: A comparison is in messages, which the reward cannot read.
        UsageError: One is in token ids, and there is no tokenizer.
    """
    prompts: list[Any] = []
    completions: list[Any] = []
    for i, comparison in enumerate(comparisons, 1):
        where = f"comparison {i}"
        if isinstance(reward, LearnedReward):
            comparison = rendered(comparison, reward.tokenizer, where)
        texts: list[Any] = [comparison.prompt, *comparison.responses]
        if not isinstance(reward, LearnedReward):
            if first_in_messages(comparison):
                raise DataError(f"{where}: found messages, and this reward reads texts; expected a text or token ids")
            texts = [as_text(text, where, tokenizer, continuation=j > 0) for j, text in enumerate(texts)]
        prompts += [texts[0]] * len(comparison.responses)
        completions += texts[1:]
    keys = {"reference"}.union(*(c.meta for c in comparisons)) - {"prompts", "completions"}
    columns = {key: [c.meta.get(key) for c in comparisons for _ in c.responses] for key in sorted(keys)}
    scores = iter(call_reward(reward, prompts, completions, columns))
    return [list(islice(scores, len(c.responses))) for c in comparisons]


def comparison_accuracy(
    reward: Callable[..., Any],
    comparisons: Sequence[Comparison],
    tokenizer: Any = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> dict[str, float]:
    """How often a reward prefers the responses that the labels do; comparisons whose label prefers none are left out.

    Args:
        reward, comparisons, tokenizer: As for `comparison_scores`.
        scores: What that returned, where it is there already.

    Returns:
        accuracy, low, high (95 % Wilson), chance (mean of 1/N), n: comparisons.

    Raises:
        DataError: A comparison is in messages, which the reward cannot read.
        UsageError: One is in token ids, and there is no tokenizer; or no label prefers any response.
    """
    usable = [i for i, c in enumerate(comparisons) if prefers(c)]
    if not usable:
        raise UsageError(f"found {len(comparisons)} comparisons, and none says which response is best")
    judged = [comparisons[i] for i in usable]
    given = comparison_scores(reward, judged, tokenizer) if scores is None else [scores[i] for i in usable]
    return accuracy([decisions(own, c.best, c.ranks, c.ratings, c.margin) for own, c in zip(given, judged, strict=True)])


def guard_problems(comparisons: str | None, pairs: Sequence[dict[str, Any]] | None, reward: str | None = None) -> list[str]:
    """What is wrong with the guard's own material, in words, told without a model: the file and the fixed pairs.

    Args:
        comparisons, pairs: The options of the same names.
        reward: The directory of the reward that is guarded; None: it reads texts alone.
    """
    problems = []
    if comparisons is not None:
        try:
            usable, tokenizer = 0, None
            for where, record in read_comparisons(comparisons).placed():  # every record is checked
                usable += prefers(record)
                if tokenizer is None and (field := first_in_messages(record)):
                    if reward is None:
                        raise DataError(f"{where}: field {field!r}: found messages, and the reward reads texts; expected a text")
                    tokenizer = load_tokenizer(reward)
                    need_template(tokenizer, f"{where}: field {field!r}")
            if not usable:
                problems.append(f"model.guard_comparisons: {comparisons}: no comparison says which response is best")
        except DataError as error:
            problems.append(f"model.guard_comparisons: {error}")
    for i, pair in enumerate(pairs or []):
        if not isinstance(pair, dict) or not {*GUARD_PAIR} <= pair.keys():
            found = sorted(pair) if isinstance(pair, dict) else type(pair).__name__
            problems.append(f"model.guard_pairs[{i}]: found {found}, expected {sorted(GUARD_PAIR)}")
    return problems


def guard(reward: Callable[..., Any], comparisons_path: str, tokenizer: Any = None, limit: int = 512) -> dict[str, Any]:
    """Refuse a reward that does not beat chance on held-out comparisons: a flipped sign, or a head that never trained.

    Args:
        reward: The reward function.
        comparisons_path: Held-out comparisons of the task.
        tokenizer: Of token ids in them, for a reward that reads texts.
        limit: At most so many are scored.

    Returns:
        What `comparison_accuracy` returns.

    Raises:
        UsageError: The lower end of the accuracy's 95 % interval does not exceed chance.
    """
    held_out = list(islice(filter(prefers, read_comparisons(comparisons_path)), limit))
    if not held_out:
        raise UsageError(f"guard_comparisons: {comparisons_path}: no comparison says which response is best")
    found = comparison_accuracy(reward, held_out, tokenizer)
    if not found["low"] > found["chance"]:
        raise UsageError(
            f"the reward was refused: on {found['n']:.0f} held-out comparisons of {comparisons_path} it agrees with the labels "
            f"in {found['accuracy']:.3f} (95 % interval {found['low']:.3f} to {found['high']:.3f}), "
            f"and chance is {found['chance']:.3f}; is its sign flipped, or was it never trained? "
            "(--model.allow_unguarded true starts all the same)"
        )
    return {"kind": "comparisons", "file": comparisons_path, **found}
