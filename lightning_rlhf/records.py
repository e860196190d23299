"""Records on disk: comparisons, demonstrations, prompts, ratings and samples, read one at a time and checked.

Files are JSON lines (`.gz` allowed; a directory or a glob of them too), one JSON array, CSV or Parquet.
Whatever the layout of the labels (`FORMATS`), each comes out as a `Comparison`. A malformed record raises
`DataError` with file, line, field, what was found and what was expected. A well-formed record that can
train nothing (an empty side, identical sides, prompts that differ) is skipped and counted; too many of
those raise as well.

    reader = read_comparisons("labels.jsonl.gz")
    comparisons = list(reader)
    print(reader.format, reader.skipped)

Sources: the label files of arXiv 1909.08593 (2019) and arXiv 2009.01325 (2020), the dialogues of arXiv
2204.05862 (HH), TRL's columns, and SummEval (arXiv 2007.12626). Deviations: (1) the 2019 files' padding is
stripped here, so that no later stage needs to know it; (2) pairs have the chosen response first, those of
2020 too (`meta["choice"]` is its place in the file); (3) where chosen and rejected are plain texts without a
prompt, the prompt is what they share from the start, cut back to a whole word (TRL cuts at the first
character that differs); (4) SummEval's ratings become one ranking of all systems of an article, by the sum
of the four means, to six digits; `pairs` gives its untied pairs (11,342 of 100 articles; sums of floats as
they are differ in their last digit, which makes pairs of some ties). Its file with a line a summary is the
one format that is not streamed: an article's lines may stand anywhere.
"""

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import chain, combinations
from typing import Any, Generic, NamedTuple, TypeVar, cast

from .files import DataError, PathLike, Row, bad, check, read_rows, show
from .tasks import QUERY_2020

__all__ = [
    "FORMATS", "Comparison", "ComparisonReader", "DataError", "Demonstration", "Prompt", "Rating", "RecordReader", "Sample",
    "Text", "pairs", "read_comparisons", "read_demonstrations", "read_prompts", "read_ratings", "read_samples",
]  # fmt: skip

Text = str | list[int] | list[dict]  # plain text, token ids, or messages {role, content}
Reference = Text | list[str]  # a list of strings is several references
T = TypeVar("T")

PAD_2019 = 50259  # pads queries and samples in the label files of 2019
HH_MARKER = "\n\nAssistant:"
SUMMEVAL_AXES = ("coherence", "consistency", "fluency", "relevance")


class _Unusable(Exception):
    """A well-formed record that can train nothing; the message is the reason it is counted under."""


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


# ---------------------------------------------------------------------------- errors and checks of a field


def _nearest(name: str, keys: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, keys, n=1)
    return f" (is '{close[0]}' meant to be '{name}'?)" if close else ""


def kind(text: Text) -> str | None:
    """What a text is made of: a string, ids or messages; None for an empty list, which may be either of the last two."""
    return (
        "a string"
        if isinstance(text, str)
        else None
        if not text
        else "ids"
        if type(text[0]) is int
        else "messages"
    )


def _text(value: Any, at: str, name: str) -> Text:
    if isinstance(value, str):
        return value
    types = set(map(type, value)) if isinstance(value, list) else {None}
    ids = types <= {int} and (not value or min(value) >= 0)  # bool is not int here
    expected = "a string, a list of token ids (integers from 0) or a list of {role, content}"
    check(ids or types == {dict}, value, at, name, expected)
    for i, message in enumerate(() if ids else value):
        for key in ("role", "content"):
            check(key in message, message, at, f"{name}[{i}]", "an object with role and content")
            check(isinstance(message[key], str), message[key], at, f"{name}[{i}].{key}", "a string")
    return value


def _texts(record: dict, at: str, *names: str) -> list[Text]:
    return [_text(record[name], at, name) for name in names]


def _reference(value: Any, at: str, name: str) -> Reference:
    several = isinstance(value, list) and set(map(type, value)) == {str}
    return value if several else _text(value, at, name)


def _number(value: Any, at: str, name: str) -> float:
    return check(type(value) in (int, float) and abs(value) < math.inf, value, at, name, "a finite number")


def _integer(value: Any, at: str, name: str) -> int:
    return check(type(value) is int and value >= 0, value, at, name, "an integer from 0")


def _string(value: Any, at: str, name: str) -> str:
    return check(isinstance(value, str), value, at, name, "a string")


def _dict(value: Any, at: str, name: str, *keys: str) -> dict:
    has = f" with {', '.join(keys)}" if keys else ""
    return check(isinstance(value, dict) and set(keys) <= set(value), value, at, name, "an object" + has)


def _list(value: Any, at: str, name: str, length: int | None = None) -> list:
    check(isinstance(value, list), value, at, name, "a list")
    if length not in (None, len(value)):
        raise bad(at, name, f"{len(value)} entries", f"{length} entries")
    return value


def _best(value: Any, at: str, name: str, n: int) -> int:
    valid = type(value) is int and 0 <= value < n
    return check(valid, value, at, name, f"an integer from 0 to {n - 1} (there are {n} responses)")


def _ranks(value: Any, at: str, name: str, n: int) -> list[int]:
    valid = all(type(rank) is int and 1 <= rank <= n for rank in _list(value, at, name, n)) and 1 in value
    return check(valid, value, at, name, f"integers from 1 (best) to {n}, one of them 1")


def _ratings(value: Any, at: str, name: str, n: int) -> list[float]:
    return [_number(rating, at, f"{name}[{i}]") for i, rating in enumerate(_list(value, at, name, n))]


def _scores(value: Any, at: str, name: str) -> dict[str, float]:
    return {key: _number(score, at, f"{name}.{key}") for key, score in _dict(value, at, name).items()}


def _optional(record: dict, at: str, name: str, parse: Callable[..., Any], *args: Any) -> Any:
    return None if record.get(name) is None else parse(record[name], at, name, *args)


def _rest(record: dict, *used: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in used}

# ----------------------------------------------------------------------------- from objects to comparisons


def _unpad(text: Text) -> Text:
    """Token ids without the padding of 2019 on their right."""
    end = len(text)
    while end and text[end - 1] == PAD_2019:
        end -= 1
    return text[:end]


def _empty(text: Text) -> bool:
    if kind(text) == "messages":
        return not any(message["content"].strip() for message in cast(list[dict], text))
    return not (text.strip() if isinstance(text, str) else text)


def _check_texts(prompt: Text, responses: list[Text], at: str, name: str) -> None:
    """Raise for texts of mixed kinds (only after messages may responses be strings) and for unusable ones."""
    kinds = {kind(response) for response in responses} - {None}
    allowed = {kind(prompt), "a string"} if kind(prompt) == "messages" else {kind(prompt)}
    if len(kinds) > 1 or (kind(prompt) and not kinds <= allowed):
        found = f"{' and '.join(sorted(map(str, kinds)))} after a prompt that is {kind(prompt)}"
        raise bad(at, name, found, "texts of one kind")
    if any(map(_empty, responses)):
        raise _Unusable("empty response")
    if _empty(prompt):
        raise _Unusable("empty prompt")
    if len(responses) > 1 and all(response == responses[0] for response in responses):
        raise _Unusable("identical responses")


def _usable(record: Comparison, at: str) -> Comparison:
    """A record whose label some loss can use: a margin alone is of two responses."""
    if label_type(record) == "scalar_compare" and len(record.responses) != 2:
        raise bad(at, "margin", f"it beside {len(record.responses)} responses", "2")
    return record


def _responses(record: dict, at: str) -> Comparison:
    """{prompt, responses} with any of best, ranks, ratings, margin: also a Comparison that was written."""
    values = _list(record["responses"], at, "responses")
    n, enough = len(values), 1 if record.get("ratings") is not None else 2
    if n < enough:
        raise bad(at, "responses", f"{n} responses", f"at least {enough}")
    responses = [_text(value, at, f"responses[{i}]") for i, value in enumerate(values)]
    judged = {
        "best": _optional(record, at, "best", _best, n),
        "ranks": _optional(record, at, "ranks", _ranks, n),
        "ratings": _optional(record, at, "ratings", _ratings, n),
        "margin": _optional(record, at, "margin", _number),
    }
    if judged["ranks"] and judged["best"] is not None:
        check(judged["ranks"][judged["best"]] == 1, judged["best"], at, "best", "a response of rank 1")
    prompt = _text(record["prompt"], at, "prompt")
    _check_texts(prompt, responses, at, "responses")
    if judged["best"] is None and judged["ranks"] and set(judged["ranks"]) == {1}:
        raise _Unusable("all ranks tied")
    meta = _rest(record, "prompt", "responses", *judged)
    if isinstance(inner := meta.get("meta"), dict):  # as `dataclasses.asdict` writes it
        meta = {**inner, **_rest(meta, "meta")}
    return _usable(Comparison(prompt, responses, **judged, meta=meta), at)


def _pair(record: dict, at: str) -> Comparison:
    prompt, chosen, rejected = _texts(record, at, "prompt", "chosen", "rejected")
    if kind(prompt) == "messages" and all(side[: len(prompt)] == prompt for side in (chosen, rejected)):  # it stands there again
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    margin = _optional(record, at, "margin", _number)
    _check_texts(prompt, [chosen, rejected], at, "chosen")
    meta = _rest(record, "prompt", "chosen", "rejected", "margin")
    return Comparison(prompt, [chosen, rejected], best=0, margin=margin, meta=meta)


def _pair_implicit(record: dict, at: str) -> Comparison:
    """Whole dialogues in messages: what the two share from the start is the prompt. A `prompt` string beside answers alone
    is the user's message."""
    chosen, rejected = _texts(record, at, "chosen", "rejected")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        check(kind(side) in ("messages", None), side, at, name, "a list of {role, content}")
    asked = record.get("prompt")
    if isinstance(asked, str) and all(side and side[0]["role"] == "assistant" for side in (chosen, rejected)):  # type: ignore[index, call-overload]
        user = [{"role": "user", "content": asked}]
        return _pair({**record, "prompt": user}, at)
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if chosen and chosen == rejected:
        raise _Unusable("identical responses")
    if chosen and rejected and not same:
        raise _Unusable("prompts differ")
    return _pair(
        {**record, "prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}, at
    )


def _pair_of_texts(record: dict, at: str) -> Comparison:
    """Texts without a prompt: the prompt is what the two share from the start, whole words only."""
    chosen, rejected = (_string(record[name], at, name) for name in ("chosen", "rejected"))
    same = len(_shared(chosen, rejected))
    if chosen == rejected:
        raise _Unusable("identical responses")
    if not same:
        raise _Unusable("prompts differ")
    return _pair({**record, "prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}, at)


def _shared(a: str, b: str) -> str:
    """The longest text that both start with and after which, in both, a space or the end comes."""
    for end in range(len(os.path.commonprefix((a, b))), 0, -1):  # noqa: RUF071
        if all(end == len(text) or text[end].isspace() for text in (a, b)):
            return a[:end]
    return ""


def _hh(record: dict, at: str) -> Comparison:
    """Dialogues in strings: the prompt goes through the last marker; the rest is the answer, verbatim."""
    sides = {}
    for name in ("chosen", "rejected"):
        before, marker, answer = _string(record[name], at, name).rpartition(HH_MARKER)
        check(bool(marker), record[name], at, name, f"a dialogue with {show(HH_MARKER)}")
        sides[name] = before + marker, answer
    if sides["chosen"][0] != sides["rejected"][0]:
        raise _Unusable("prompts differ")
    (prompt, chosen), (_, rejected) = sides.values()
    return _pair({**record, "prompt": prompt, "chosen": chosen, "rejected": rejected}, at)


def _votes(record: dict, at: str) -> Comparison:
    """Several labelers' choices: best is the response that more than half of them chose."""
    n = len(_list(record["responses"], at, "responses"))
    votes = [_best(vote, at, f"votes[{i}]", n) for i, vote in enumerate(_list(record["votes"], at, "votes"))]
    choice, most = Counter(votes).most_common(1)[0] if votes else (0, 0)
    if 2 * most <= len(votes):
        raise _Unusable("no majority")
    return _responses({**record, "best": choice}, at)


def _summeval(record: dict, at: str) -> Comparison:
    """An article, the summaries of all systems, and of each the means of the four expert ratings."""
    if "systems" in record:
        systems = _dict(record["systems"], at, "systems")
        texts = [_string(_dict(s, at, f"systems.{k}", "summary", "ratings")["summary"], at, f"systems.{k}.summary")
                 for k, s in systems.items()]  # fmt: skip
        axes = [_dict(s["ratings"], at, f"systems.{k}.ratings", *SUMMEVAL_AXES) for k, s in systems.items()]
        rated = [[_number(a[axis], at, f"systems.{k}.ratings.{axis}") for axis in SUMMEVAL_AXES]
                 for k, a in zip(systems, axes, strict=True)]  # fmt: skip
        meta = {**_rest(record, "article", "systems"), "systems": list(systems)}
        name = "article"
    else:
        values = _list(record["machine_summaries"], at, "machine_summaries")
        texts = [_string(text, at, f"machine_summaries[{i}]") for i, text in enumerate(values)]
        columns = [_ratings(record[axis], at, axis, len(texts)) for axis in SUMMEVAL_AXES]
        rated = [list(row) for row in zip(*columns, strict=True)]
        meta, name = _rest(record, "text", "machine_summaries", *SUMMEVAL_AXES), "text"
    if len(texts) < 2:
        raise bad(at, "systems" if name == "article" else "machine_summaries", f"{len(texts)} summaries", "at least 2")
    prompt, responses = _string(record[name], at, name), cast(list[Text], texts)
    sums = [round(sum(row), 6) for row in rated]  # means of three: equal sums differ in their last digits
    ranks = [1 + sum(other > one for other in sums) for one in sums]
    _check_texts(prompt, responses, at, name)
    if set(ranks) == {1}:
        raise _Unusable("all ranks tied")
    return Comparison(prompt, responses, ranks=ranks, ratings=sums, meta=meta)


def _by_article(rows: Iterable[Row]) -> Iterator[Row]:
    """SummEval's own file, a line for each summary: {id, model_id, decoded, text, expert_annotations: [{axis: 1..5}, ...]}.

    An article's lines may stand anywhere, so that all are read first; each article then comes once, as of its first line.
    """
    articles: dict[str, tuple[str, int, dict[str, Any]]] = {}
    for at, number, line in rows:
        expected = "the fields id, model_id, decoded, expert_annotations, and text, the article that the stories give"
        for key in ("id", "model_id", "decoded", "expert_annotations", "text"):
            if line.get(key) is None:
                raise bad(at, key, f"only {', '.join(line)}", expected)
        name, system, text = (_string(line[key], at, key) for key in ("id", "model_id", "text"))
        votes = [_dict(v, at, f"expert_annotations[{i}]", *SUMMEVAL_AXES)
                 for i, v in enumerate(_list(line["expert_annotations"], at, "expert_annotations"))]  # fmt: skip
        check(bool(votes), votes, at, "expert_annotations", "at least one expert's ratings")
        rated = {axis: sum(_number(v[axis], at, f"expert_annotations[{i}].{axis}") for i, v in enumerate(votes)) / len(votes)
                 for axis in SUMMEVAL_AXES}  # fmt: skip
        about = _rest(line, "model_id", "decoded", "expert_annotations", "turker_annotations", "text")
        start = {"article": text, "systems": {}, **about}
        first_at, _, article = articles.setdefault(name, (at, number, start))
        check(article["article"] == text, text, at, "text", f"the same article as at {first_at}")
        check(system not in article["systems"], system, at, "model_id", f"each system once for an article (id {name!r})")
        article["systems"][system] = {"summary": _string(line["decoded"], at, "decoded"), "ratings": rated}
    yield from articles.values()


def _openai_2019(record: dict, at: str) -> Comparison:
    """Best of N, and scalar_compare: {query, sample0, ...} with best or difference."""
    samples = sorted((key for key in record if re.fullmatch(r"sample\d+", key)), key=lambda key: int(key[6:]))
    if missing := [f"sample{i}" for i in range(len(samples)) if f"sample{i}" not in record]:
        raise bad(at, missing[0], f"only {', '.join(samples)}", f"sample0 to sample{len(samples) - 1}")
    names = ["query", *samples]
    query, *responses = map(_unpad, _texts(record, at, *names))
    best = _optional(record, at, "best", _best, len(responses))
    margin = _optional(record, at, "difference", _number)
    _check_texts(query, responses, at, "sample0")
    meta = _rest(record, "best", "difference", *names)
    return _usable(Comparison(query, responses, best=best, margin=margin, meta=meta), at)


def _rating(record: dict, at: str) -> Rating:
    names = ("query", "sample", "score") if "query" in record else ("prompt", "response", "rating")
    prompt, response = map(_unpad, _texts(record, at, *names[:2]))
    number = _number(record[names[2]], at, names[2])
    _check_texts(prompt, [response], at, names[1])
    return Rating(prompt, response, number, _rest(record, *names))


def _rated(record: dict, at: str) -> Comparison:
    one = _rating(record, at)
    return Comparison(one.prompt, [one.response], ratings=[one.rating], meta=one.meta)


def _query_2020(record: dict, at: str) -> tuple[str, dict[str, Any]]:
    """The prompt of a 2020 record and, for its meta, where it is from (`source`) and the rest of `info`."""
    info = _dict(record["info"], at, "info")
    source = "tldr" if info.get("article") is None else "cnndm"
    names = ("subreddit", "title", "post") if source == "tldr" else ("article",)
    _dict(info, at, "info", *names)
    texts = [_string(info[name], at, f"info.{name}") for name in names]
    form = QUERY_2020 if source == "tldr" else "Article:\n\n{article}\n\nTL;DR:"
    query = form.format(**dict(zip(names, texts, strict=True)))
    return query, {"source": source, "info": _rest(info, "post", "article")}


def _openai_2020(record: dict, at: str) -> Comparison:
    prompt, about = _query_2020(record, at)
    texts: list[Text] = []
    for i, summary in enumerate(_list(record["summaries"], at, "summaries", 2)):
        texts.append(
            _string(_dict(summary, at, f"summaries[{i}]", "text")["text"], at, f"summaries[{i}].text")
        )
    best = _best(record["choice"], at, "choice", 2)
    _check_texts(prompt, texts, at, "summaries")
    order = [best, 1 - best]
    about["summaries"] = [_rest(record["summaries"][i], "text") for i in order]
    return Comparison(prompt, [texts[i] for i in order], best=0, meta=_rest(record, "info", "summaries") | about)


def _openai_2020_axis(record: dict, at: str) -> Comparison:
    prompt, about = _query_2020(record, at)
    summary = _dict(record["summary"], at, "summary", "text", "axes")
    text, axes = _string(summary["text"], at, "summary.text"), _dict(summary["axes"], at, "summary.axes")
    if axes.get("overall") is None:
        raise _Unusable("no overall rating")
    rating = _number(axes["overall"], at, "summary.axes.overall")
    _check_texts(prompt, [text], at, "summary.text")
    about["summary"] = _rest(summary, "text")
    return Comparison(prompt, [text], ratings=[rating], meta=_rest(record, "info", "summary") | about)


# ------------------------------------------------------------------------------------- formats and readers


class _Layout(NamedTuple):
    """The fields of a format and the parser for them; `when` tells apart two formats with the same fields.

    `gather` makes records of lines, where a record is spread over several.
    """

    format: str
    keys: tuple[str, ...]
    parse: Callable[[dict, str], Any]
    when: Callable[[dict], bool] = lambda record: True
    gather: Callable[[Iterable[Row]], Iterator[Row]] | None = None


def _in_messages(record: dict) -> bool:
    """Dialogues in messages, alone or beside a `prompt` string that repeats a user's message."""
    sides = [record["chosen"], record["rejected"]]
    in_messages = all(isinstance(side, list) and side and isinstance(side[0], dict) for side in sides)
    return in_messages and isinstance(record.get("prompt", ""), str)


def _in_hh(record: dict) -> bool:
    return isinstance(record["chosen"], str) and HH_MARKER in record["chosen"]


def _in_texts(record: dict) -> bool:
    """Plain texts that begin alike; whatever else is called chosen and rejected is no format of ours."""
    sides = record["chosen"], record["rejected"]
    return all(isinstance(side, str) for side in sides) and bool(_shared(*sides))


FORMATS: dict[str, str] = {
    "openai_2020": "{info, summaries: [2], choice}",
    "openai_2020_axis": "{info, summary: {text, axes: {overall}}}",
    "openai_2019": "{query, sample0, sample1, ..., best}, in one JSON array or in lines",
    "scalar_compare": "{query, sample0, sample1, difference} or {prompt, responses, margin}",
    "rating": "{query, sample, score} or {prompt, response, rating} or {prompt, responses, ratings}",
    "best_of_n": "{prompt, responses, best}, best from 0",
    "ranked": "{prompt, responses, ranks}, 1 best, ties allowed",
    "votes": "{prompt, responses, votes}, the index that each labeler chose",
    "summeval": "{article, systems: {name: {summary, ratings}}} or {text, machine_summaries, coherence, consistency, ...} "
    "or a line a summary, {id, model_id, decoded, text, expert_annotations}",
    "pair_implicit": "{chosen, rejected, margin?}, whole dialogues in lists of {role, content}, or texts that begin alike",
    "pair": "{prompt, chosen, rejected, margin?}",
    "hh": "{chosen, rejected, margin?}, dialogues in strings with '\\n\\nHuman:' and '\\n\\nAssistant:'",
}
OPENAI_2019 = {"openai_2019", "scalar_compare", "rating"}  # the label files of 2019 are of three types
_COMPARISONS = (  # tried in this order: ours first, whose meta may hold another format's fields
    _Layout("best_of_n", ("prompt", "responses", "best"), _responses),
    _Layout("ranked", ("prompt", "responses", "ranks"), _responses),
    _Layout("votes", ("prompt", "responses", "votes"), _votes),
    _Layout("rating", ("prompt", "responses", "ratings"), _responses),
    _Layout("scalar_compare", ("prompt", "responses", "margin"), _responses),
    _Layout("openai_2020", ("info", "summaries", "choice"), _openai_2020),
    _Layout("openai_2020_axis", ("info", "summary"), _openai_2020_axis),
    _Layout("openai_2019", ("query", "sample0", "sample1", "best"), _openai_2019),
    _Layout("scalar_compare", ("query", "sample0", "sample1", "difference"), _openai_2019),
    _Layout("rating", ("query", "sample", "score"), _rated),
    _Layout("rating", ("prompt", "response", "rating"), _rated),
    _Layout("pair_implicit", ("chosen", "rejected"), _pair_implicit, _in_messages),
    _Layout("pair", ("prompt", "chosen", "rejected"), _pair),
    _Layout("hh", ("chosen", "rejected"), _hh, _in_hh),
    _Layout("pair_implicit", ("chosen", "rejected"), _pair_of_texts, _in_texts),
    _Layout("summeval", ("article", "systems"), _summeval),
    _Layout("summeval", ("text", "machine_summaries", *SUMMEVAL_AXES), _summeval),
    _Layout("summeval", ("decoded", "expert_annotations"), _summeval, gather=_by_article),
)


def _detect(layouts: tuple[_Layout, ...], row: Row) -> _Layout:
    """The layout of a file, by its first record. With one format to choose from, its nearest layout."""
    at, _, record = row
    missing = [[key for key in layout.keys if record.get(key) is None] for layout in layouts]
    names = dict.fromkeys(layout.format for layout in layouts)
    fitting = [layout for layout, lacks in zip(layouts, missing, strict=True) if not lacks]
    for layout in fitting:
        if layout.when(record):
            return layout
    if fitting and len(names) == 1:
        return fitting[0]
    if fitting and not all(isinstance(record[side], (str, list)) for side in ("chosen", "rejected")):
        return fitting[0]  # which then says what is wrong with that field
    lacks, nearest = min(zip(missing, layouts, strict=True), key=lambda pair: len(pair[0]))
    if len(names) == 1:
        return nearest  # its first record then raises, naming the field that is missing
    found = f"the fields {', '.join(record) or '(none)'}"
    if len(lacks) == 1:
        found += f" (nearest to {nearest.format}, without '{lacks[0]}'{_nearest(lacks[0], record)})"
    raise bad(
        at, None, found, "one of the formats " + "; ".join(f"{name} {FORMATS[name]}" for name in names)
    )


class RecordReader(Iterator[T], Generic[T]):
    """Iterates over records. `format` is known from the start; `skipped` (reason -> line numbers) grows.

    At the end, a share of skipped records above `max_skipped`, or no usable record, raises DataError with
    the counts. `strict` raises at the first record that would be skipped.
    """

    def __init__(
        self, path: PathLike, layouts: tuple[_Layout, ...], strict: bool, max_skipped: float
    ) -> None:
        self.path, self.strict, self.max_skipped = os.fspath(path), strict, max_skipped
        self.skipped: dict[str, list[int]] = {}
        self._skipped_at: dict[str, list[str]] = {}  # with the file, where it is one of several
        self.count = 0  # records read so far, the skipped ones too
        self._rows = read_rows(path)
        self._first: Row | None = next(self._rows)  # an empty file raises here
        self._layout = _detect(layouts, self._first)
        self.format, self._keys = self._layout.format, self._layout.keys
        if self._layout.gather:
            self._rows, self._first, self._keys = self._layout.gather(chain([self._first], self._rows)), None, ()

    def __next__(self) -> T:
        while True:
            row, self._first = self._first or next(self._rows, None), None
            if row is None:
                self._finish()
                raise StopIteration
            at, number, record = row
            self.count += 1
            for key in self._keys:
                if key not in record:
                    others = [name for name in record if name not in self._keys]
                    found = f"only {', '.join(record) or 'an empty object'}{_nearest(key, others)}"
                    raise bad(at, key, found, f"the fields {', '.join(self._keys)}")
                check(record[key] is not None, None, at, key, "a value")
            try:
                return self._layout.parse(record, at)
            except _Unusable as reason:
                if self.strict:
                    raise bad(
                        at, None, f"an unusable record: {reason}", "usable ones only (strict)"
                    ) from None
                self.skipped.setdefault(str(reason), []).append(number)
                place = str(number) if at.startswith(f"{self.path}:") else at
                self._skipped_at.setdefault(str(reason), []).append(place)

    def _finish(self) -> None:
        unusable, self._rows = sum(map(len, self.skipped.values())), iter(())
        if unusable == self.count or unusable > self.max_skipped * self.count:
            reasons = [f"{len(n)} {why} (at {', '.join(n[:8])})" for why, n in self._skipped_at.items()]
            found = f"{unusable} of {self.count} records unusable: {'; '.join(reasons)}"
            raise bad(self.path, None, found, f"at most {100 * self.max_skipped:g} %, and one usable")


class ComparisonReader(RecordReader[Comparison]):
    """What `read_comparisons` returns."""


def read_comparisons(
    path: PathLike, format: str | None = None, *, strict: bool = False, max_skipped: float = 0.01
) -> ComparisonReader:
    """Read human comparisons from a file, a directory, a glob or a Hub dataset, in any of FORMATS.

    format: one of FORMATS (openai_2019: any of its three label types; scalar_rating is rating); None detects it from the first
    record. strict: raise at the first unusable
    record. max_skipped: share of unusable records above which the end of the file raises. The reader has
    `.format` and `.skipped`. Raises DataError, as this module's docstring says.
    """
    wanted = {None: set(FORMATS), "openai_2019": OPENAI_2019, "scalar_rating": {"rating"}}.get(format, {format})
    if not wanted <= set(FORMATS):
        raise bad(os.fspath(path), "format", f"'{format}'", f"one of {', '.join(FORMATS)}")
    layouts = tuple(layout for layout in _COMPARISONS if layout.format in wanted)
    return ComparisonReader(path, layouts, strict, max_skipped)


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


def _last_answer(record: dict, at: str) -> tuple[list[dict], list[dict]]:
    """{messages}: what stands before the last message, and that, where it is the assistant's; else all and nothing."""
    messages = cast(list[dict], _text(record["messages"], at, "messages"))
    check(kind(messages) == "messages", record["messages"], at, "messages", "a list of {role, content}")
    answered = messages[-1]["role"] == "assistant"
    return (messages[:-1], messages[-1:]) if answered else (messages, [])


def _demonstration_in_messages(record: dict, at: str) -> Demonstration:
    prompt, answer = _last_answer(record, at)
    check(bool(answer), record["messages"][-1]["role"], at, "messages", "a last message of the role assistant")
    return _demonstration({**_rest(record, "messages"), "prompt": prompt, "completion": answer}, at)


def _prompt_in_messages(record: dict, at: str) -> Prompt:
    prompt, answer = _last_answer(record, at)
    reference = {"reference": answer[0]["content"]} if answer else {}
    return _prompt({**reference, **_rest(record, "messages"), "prompt": prompt}, at)


def _demonstration(record: dict, at: str) -> Demonstration:
    prompt, completion = _texts(record, at, "prompt", "completion")
    _check_texts(prompt, [completion], at, "completion")
    return Demonstration(prompt, completion, _rest(record, "prompt", "completion"))


def _prompt(record: dict, at: str) -> Prompt:
    prompt = _text(record["prompt"], at, "prompt")
    reference = _optional(record, at, "reference", _reference)
    _check_texts(prompt, [], at, "prompt")
    return Prompt(prompt, reference, _rest(record, "prompt", "reference"))


def _sample(record: dict, at: str) -> Sample:
    """An empty response is a sample like any other: that policy said nothing."""
    name = check(type(record["id"]) in (str, int), record["id"], at, "id", "a string or an integer")
    return Sample(
        id=str(name),
        index=_integer(record.get("index", 0), at, "index"),
        task=_optional(record, at, "task", _string),
        policy=_string(record["policy"], at, "policy"),
        prompt=_text(record["prompt"], at, "prompt"),
        response=_text(record["response"], at, "response"),
        reference=_optional(record, at, "reference", _reference),
        seed=_optional(record, at, "seed", _integer),
        scores=_optional(record, at, "scores", _scores),
        meta=_rest(record, *(f.name for f in fields(Sample) if f.name != "meta")),
    )


def read_demonstrations(
    path: PathLike, *, strict: bool = False, max_skipped: float = 0.01
) -> RecordReader[Demonstration]:
    """Read `{prompt, completion}` or `{messages}`; errors, skipping and options as in `read_comparisons`."""
    layouts = (
        _Layout("demonstration", ("prompt", "completion"), _demonstration),
        _Layout("demonstration", ("messages",), _demonstration_in_messages),
    )
    return RecordReader(path, layouts, strict, max_skipped)


def read_prompts(path: PathLike, *, strict: bool = False, max_skipped: float = 0.01) -> RecordReader[Prompt]:
    """Read `{prompt, reference?}` or `{messages}`; errors, skipping and options as in `read_comparisons`."""
    layouts = (_Layout("prompt", ("prompt",), _prompt), _Layout("prompt", ("messages",), _prompt_in_messages))
    return RecordReader(path, layouts, strict, max_skipped)


def read_ratings(path: PathLike, *, strict: bool = False, max_skipped: float = 0.01) -> RecordReader[Rating]:
    """Read `{prompt, response, rating}` or `{query, sample, score}`; the rest as in `read_comparisons`."""
    keys = (("prompt", "response", "rating"), ("query", "sample", "score"))
    return RecordReader(path, tuple(_Layout("rating", names, _rating) for names in keys), strict, max_skipped)


def read_samples(path: PathLike) -> RecordReader[Sample]:
    """Read `{id, policy, prompt, response, index?, task?, reference?, seed?, scores?}`.

    Raises DataError as `read_comparisons` does, and for a second record with the same `(id, policy, index)`.
    """
    seen: dict[tuple[str, str, int], str] = {}

    def parse(record: dict, at: str) -> Sample:
        sample = _sample(record, at)
        first = seen.setdefault((sample.id, sample.policy, sample.index), at)
        if first != at:
            found = f"{sample.id!r} with policy {sample.policy!r} and index {sample.index}, as at {first}"
            raise bad(at, "id", found, "each (id, policy, index) once")
        return sample

    return RecordReader(path, (_Layout("sample", ("id", "policy", "prompt", "response"), parse),), False, 0.0)
