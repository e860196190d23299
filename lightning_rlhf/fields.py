"""What records hold, and the checks of a field: each raises `DataError` with file, line, field, what was found and expected."""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, cast

from .files import bad, check

Text = str | list[int] | list[dict]  # plain text, token ids, or messages {role, content}
Reference = Text | list[str]  # a list of strings is several references
JUDGEMENTS = ("best", "ranks", "ratings", "margin")


class Unusable(Exception):
    """A well-formed record that can train nothing; the message is the reason it is counted under."""


class LeftOut(Unusable):
    """One that is meant to be left out: counted by its reason, but no fault of the file."""


@dataclass(frozen=True)
class Comparison:
    """A prompt and its judged responses. Of the judgements, those that the labels do not have are None.

    best: index of the preferred response. ranks: 1 is best, ties allowed. ratings: a number for each
    response. margin: of a pair, chosen minus rejected; of `scalar_compare`, response 1 minus response 0.
    meta: other columns.
    """

    prompt: Text
    responses: list[Text]
    best: int | None = None
    ranks: list[int] | None = None
    ratings: list[float] | None = None
    margin: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def label_type(label: Any) -> str:
    """What decides the loss of a `Comparison` or `data.Judged`.

    ranked (ranks, untied), pairwise or best_of_n (best), scalar_rating, scalar_compare.
    """
    if label.ranks is not None and len(set(label.ranks)) > 1:
        return "ranked"
    if label.best is not None:
        return "pairwise" if len(label.responses) == 2 else "best_of_n"
    return "scalar_rating" if label.ratings is not None else "scalar_compare"


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a good answer to it."""

    prompt: Text
    completion: Text
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample from, with a human answer where there is one."""

    prompt: Text
    reference: Reference | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rating:
    """One response and a number on a human scale."""

    prompt: Text
    response: Text
    rating: float
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What a policy answered. `id` names the prompt, for every policy; (id, policy, index) is unique."""

    id: str
    index: int
    task: str | None
    policy: str
    prompt: Text
    response: Text
    reference: Reference | None = None
    seed: int | None = None
    scores: dict[str, float] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def pairs(comparison: Comparison) -> Iterator[Comparison]:
    """The pairs of a comparison, the preferred response first: of `ranks` or `ratings` every untied one, of `best` it with each.

    `margin` is the difference of their ratings, where there are any.
    """
    responses, ratings, meta = comparison.responses, comparison.ratings, comparison.meta
    order = comparison.ranks or (ratings and [-r for r in ratings])
    for i, j in combinations(range(len(responses)), 2):
        if order:
            better, worse = (i, j) if order[i] < order[j] else (j, i)
            if order[i] == order[j]:
                continue
        elif comparison.best in (i, j):
            better, worse = (i, j) if comparison.best == i else (j, i)
        else:
            continue
        margin = ratings[better] - ratings[worse] if ratings else comparison.margin
        yield Comparison(comparison.prompt, [responses[better], responses[worse]], best=0, margin=margin, meta=meta)


# ------------------------------------------------------------------------------------------------ checks of a field


def nearest_to(name: str, keys: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, keys, n=1)
    return f" (is '{close[0]}' meant to be '{name}'?)" if close else ""


def kind(text: Text) -> str | None:
    """What a text is made of: a string, ids or messages; None for an empty list, which may be either of the last two."""
    if isinstance(text, str):
        return "a string"
    return None if not text else "ids" if type(text[0]) is int else "messages"


def a_text(value: Any, at: str, name: str) -> Text:
    if isinstance(value, str):
        return value
    types = set(map(type, value)) if isinstance(value, list) else {None}
    ids = types <= {int} and (not value or min(value) >= 0)  # bool is not int here
    expected = "a string, a list of token ids (integers from 0) or a list of {role, content}"
    check(ids or types == {dict}, value, at, name, expected)
    for i, message in enumerate(() if ids else value):
        for key in ("role", "content"):
            check(key in message, message, at, f"{name}[{i}]", "an object with role and content")
            if key == "content" and (isinstance(message[key], list) or (message[key] is None and message.get("tool_calls"))):
                raise Unusable("a message that is not text")
            check(isinstance(message[key], str), message[key], at, f"{name}[{i}].{key}", "a string")
    return value


def the_texts(record: dict, at: str, *names: str) -> list[Text]:
    return [a_text(record[name], at, name) for name in names]


def a_reference(value: Any, at: str, name: str) -> Reference:
    several = isinstance(value, list) and set(map(type, value)) == {str}
    return value if several else a_text(value, at, name)


def a_number(value: Any, at: str, name: str) -> float:
    finite = type(value) in (int, float) and abs(value) <= sys.float_info.max  # a JSON integer may be larger
    return check(finite, value, at, name, "a finite number")


def an_integer(value: Any, at: str, name: str) -> int:
    return check(type(value) is int and value >= 0, value, at, name, "an integer from 0")


def a_string(value: Any, at: str, name: str) -> str:
    return check(isinstance(value, str), value, at, name, "a string")


def a_dict(value: Any, at: str, name: str, *keys: str) -> dict:
    has = f" with {', '.join(keys)}" if keys else ""
    return check(isinstance(value, dict) and set(keys) <= set(value), value, at, name, "an object" + has)


def a_list(value: Any, at: str, name: str, length: int | None = None) -> list:
    check(isinstance(value, list), value, at, name, "a list")
    if length not in (None, len(value)):
        raise bad(at, name, f"{len(value)} entries", f"{length} entries")
    return value


def a_best(value: Any, at: str, name: str, n: int) -> int:
    valid = type(value) is int and 0 <= value < n
    return check(valid, value, at, name, f"an integer from 0 to {n - 1} (there are {n} responses)")


def the_ranks(value: Any, at: str, name: str, n: int) -> list[int]:
    valid = all(type(rank) is int and 1 <= rank <= n for rank in a_list(value, at, name, n)) and 1 in value
    return check(valid, value, at, name, f"integers from 1 (best) to {n}, one of them 1")


def the_ratings(value: Any, at: str, name: str, n: int) -> list[float]:
    return [a_number(rating, at, f"{name}[{i}]") for i, rating in enumerate(a_list(value, at, name, n))]


def the_scores(value: Any, at: str, name: str) -> dict[str, float]:
    return {key: a_number(score, at, f"{name}.{key}") for key, score in a_dict(value, at, name).items()}


def optional(record: dict, at: str, name: str, parse: Callable[..., Any], *args: Any) -> Any:
    return None if record.get(name) is None else parse(record[name], at, name, *args)


def rest_of(record: dict, *used: str) -> dict[str, Any]:
    """The other columns: what a record's `meta` holds. A judgement that it has not is none of them."""
    return {key: value for key, value in record.items() if key not in used and not (value is None and key in JUDGEMENTS)}


def is_empty(text: Text) -> bool:
    if kind(text) == "messages":
        return not any(message["content"].strip() for message in cast(list[dict], text))
    return not (text.strip() if isinstance(text, str) else text)


def check_texts(prompt: Text, responses: list[Text], at: str, *names: str) -> None:
    """Raise for texts of mixed kinds (only after messages may responses be strings) and for unusable ones.

    names: the responses' fields, or the one that holds them all; an error names the first that is of another kind.
    """
    each = [kind(response) for response in responses]
    kinds = {*each} - {None}
    allowed = {kind(prompt), "a string"} if kind(prompt) == "messages" else {kind(prompt)}
    if len(kinds) > 1 or (kind(prompt) and not kinds <= allowed):
        found = f"{' and '.join(sorted(map(str, kinds)))} after a prompt that is {kind(prompt)}"
        wanted = allowed if kind(prompt) and not kinds <= allowed else {next(filter(None, each))}
        odd = next(i for i, of in enumerate(each) if of and of not in wanted)
        raise bad(at, names[odd if len(names) > 1 else 0], found, "texts of one kind")
    if any(map(is_empty, responses)):
        raise Unusable("empty response")
    if is_empty(prompt):
        raise Unusable("empty prompt")
    if len(responses) > 1 and all(response == responses[0] for response in responses):
        raise Unusable("identical responses")
