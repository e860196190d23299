"""The layouts of labels that `records.read_comparisons` knows (`FORMATS`), and how a `Comparison` is made of each.

Sources: the label files of arXiv 1909.08593 (2019) and arXiv 2009.01325 (2020), the dialogues of arXiv
2204.05862 (HH), TRL's columns, and SummEval (arXiv 2007.12626). Deviations: (1) the 2019 files' padding is
stripped here, so that no later stage needs to know it; (2) pairs have the chosen response first, those of
2020 too (`meta["choice"]` is its place in the file); (3) where chosen and rejected are plain texts without a
prompt, the prompt is what they share from the start, cut back to the last label of an answer ("Answer:") or
else to a whole word, in Chinese and Japanese a character (TRL cuts at the first that differs); (4) SummEval's ratings become one
ranking of all systems of an article, by the sum of the four means, to six digits; `pairs` gives its untied
pairs (11,342 of 100 articles; sums of floats as they are differ in their last digit, which makes pairs of
some ties). Its file with a line a summary is the one format that is not streamed: an article's lines may
stand anywhere.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

from .fields import (
    Comparison,
    Rating,
    Text,
    Unusable,
    a_best,
    a_dict,
    a_list,
    a_number,
    a_string,
    a_text,
    check_texts,
    kind,
    label_type,
    optional,
    rest_of,
    the_ranks,
    the_ratings,
    the_texts,
)
from .files import Row, bad, check, show
from .tasks import QUERY_2020

PAD_2019 = 50259  # pads queries and samples in the label files of 2019
HH_MARKER, HH_ASKED = "\n\nAssistant:", "\n\nHuman:"
ANSWERS = re.compile(  # what an answer begins after, at a line's start or as a chat template writes it
    r"\n[ #*]*(answer|assistant|response|output|reply|completion|summary|tl;dr|bot|ai|model|a)\**:\**"
    r"|<\|assistant\|>\n?|<\|im_start\|>assistant\n?|<start_of_turn>model\n?|\[/INST\]",
    re.IGNORECASE,
)
REPEATED = 20  # characters of a prompt that no answer repeats by chance
PROMPTS_ELSEWHERE = (  # names of prompts in others' files
    "question", "input", "instruction", "query", "trajectory", "post", "article", "context", "history", "document", "text",
    "problem", "conversation", "conversations", "system",
)  # fmt: skip
ASKING = ("user", "human", "system")  # roles whose message is no answer
CJK = re.compile("[\u3000-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")  # needs no spaces
SUMMEVAL_AXES = ("coherence", "consistency", "fluency", "relevance")


class Layout(NamedTuple):
    """The fields of a format and the parser for them; `when` tells apart two formats with the same fields.

    `gather` makes records of lines, where a record is spread over several.
    """

    format: str
    keys: tuple[str, ...]
    parse: Callable[[dict, str], Any]
    when: Callable[[dict], bool] = lambda record: True
    gather: Callable[[Iterable[Row]], Iterator[Row]] | None = None


# ------------------------------------------------------------------------------------------ ours, and those of others


def _unpad(text: Text) -> Text:
    """Token ids without the padding of 2019 on either side."""
    begin, end = 0, len(text)
    while end and text[end - 1] == PAD_2019:
        end -= 1
    while begin < end and text[begin] == PAD_2019:
        begin += 1
    return text[begin:end]


def _usable(record: Comparison, at: str) -> Comparison:
    """A record whose label some loss can use: a margin alone is of two responses."""
    if label_type(record) == "scalar_compare" and len(record.responses) != 2:
        raise bad(at, "margin", f"it beside {len(record.responses)} responses", "2")
    return record


def _responses(record: dict, at: str) -> Comparison:
    """{prompt, responses} with any of best, ranks, ratings, margin: also a Comparison that was written."""
    values = a_list(record["responses"], at, "responses")
    n, enough = len(values), 1 if record.get("ratings") is not None else 2
    if n < enough:
        raise bad(at, "responses", f"{n} responses", f"at least {enough}")
    responses = [a_text(value, at, f"responses[{i}]") for i, value in enumerate(values)]
    judged = {
        "best": optional(record, at, "best", a_best, n),
        "ranks": optional(record, at, "ranks", the_ranks, n),
        "ratings": optional(record, at, "ratings", the_ratings, n),
        "margin": optional(record, at, "margin", a_number),
    }
    if judged["ranks"] and judged["best"] is not None:
        check(judged["ranks"][judged["best"]] == 1, judged["best"], at, "best", "a response of rank 1")
    prompt = a_text(record["prompt"], at, "prompt")
    check_texts(prompt, responses, at, "responses")
    if judged["best"] is None and judged["ranks"] and set(judged["ranks"]) == {1}:
        raise Unusable("all ranks tied")
    meta = rest_of(record, "prompt", "responses", *judged)
    if isinstance(inner := meta.get("meta"), dict):  # as `dataclasses.asdict` writes it
        meta = {**inner, **rest_of(meta, "meta")}
    return _usable(Comparison(prompt, responses, **judged, meta=meta), at)


def _turn(message: dict) -> tuple[str, str]:
    """What tells one message from another; Parquet gives each message the fields of all, as nulls."""
    return message["role"], message["content"]


def _answer(prompt: list[dict], side: Text) -> Text:
    """What a side says after the prompt, which may stand there again."""
    if kind(side) != "messages":
        return side
    turns = cast(list[dict], side)
    if list(map(_turn, turns[: len(prompt)])) == list(map(_turn, prompt)):
        turns = turns[len(prompt) :]
    if turns and turns[0]["role"] in ASKING:
        raise Unusable("prompts differ")
    if turns and turns[-1]["role"] in (*ASKING, "tool"):
        raise Unusable("no answer at the end")
    if turns and not turns[-1]["content"].strip():
        raise Unusable("empty response")
    return turns


def _without(prompt: str, sides: list[Text]) -> list[Text]:
    """Answers without the prompt that they repeat; one so short that an answer may begin with it stays, as does an answer that is
    the prompt and no more where the other does not repeat it."""
    repeats = [len(prompt.strip()) >= REPEATED and isinstance(side, str) and side.startswith(prompt) for side in sides]
    return [s[len(prompt) :] if again and (all(repeats) or s != prompt) else s for s, again in zip(sides, repeats, strict=True)]


def _is_hh(side: Any) -> bool:
    """Whether a side is a whole dialogue of the format hh."""
    text = side.replace("\r\n", "\n") if isinstance(side, str) else ""
    return text.startswith(HH_ASKED) and HH_MARKER in text


def _pair(record: dict, at: str) -> Comparison:
    prompt, chosen, rejected = the_texts(record, at, "prompt", "chosen", "rejected")
    if kind(prompt) == "messages":
        chosen, rejected = (_answer(prompt, side) for side in (chosen, rejected))  # type: ignore[arg-type]
    elif isinstance(prompt, str):
        chosen, rejected = _without(prompt, [chosen, rejected])
    if all(map(_is_hh, (chosen, rejected))):
        raise bad(at, "chosen", "a dialogue of the format hh", "answers alone in the format pair; one format a file")
    margin = optional(record, at, "margin", a_number)
    check_texts(prompt, [chosen, rejected], at, "chosen", "rejected")
    if kind(chosen) == kind(rejected) == "messages" and list(map(_turn, chosen)) == list(map(_turn, rejected)):  # type: ignore[arg-type]
        raise Unusable("identical responses")
    meta = rest_of(record, "prompt", "chosen", "rejected", "margin")
    return Comparison(prompt, [chosen, rejected], best=0, margin=margin, meta=meta)


def _agree(asked: Text | None, *shared: str) -> None:
    """Raise for a prompt of the record's own that stands in no text of the dialogues' shared start, nor holds all of them."""
    own = [asked] if isinstance(asked, str) else [turn["content"] for turn in asked or () if isinstance(turn, dict)]
    texts, owns = ([" ".join(text.split()) for text in found] for found in (shared, own))
    for one in owns:
        if not any(one in text for text in texts) and not all(text in one for text in texts):
            raise Unusable("prompts differ")


def _pair_implicit(record: dict, at: str) -> Comparison:
    """Whole dialogues in messages: what the two share from the start is the prompt. A `prompt` string beside answers alone
    is the user's message; beside whole dialogues it must stand in what they share."""
    chosen, rejected = the_texts(record, at, "chosen", "rejected")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        check(kind(side) in ("messages", None), side, at, name, "a list of {role, content}")
    asked = optional(record, at, "prompt", a_text)
    if asked is not None and all(side and side[0]["role"] == "assistant" for side in (chosen, rejected)):  # type: ignore[index, call-overload]
        user = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        return _pair({**record, "prompt": user}, at)
    same = 0
    while same < min(len(chosen), len(rejected)) and _turn(chosen[same]) == _turn(rejected[same]):  # type: ignore[arg-type]
        same += 1
    if chosen and same == len(chosen) == len(rejected):
        raise Unusable("identical responses")
    if chosen and rejected and not same:
        raise Unusable("prompts differ")
    if same and asked:
        _agree(asked, *(turn["content"] for turn in cast(list[dict], chosen[:same])))
    return _pair(
        {**record, "prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}, at
    )


class Derived(str):
    """A prompt that is what two texts share: it may hold words of the answers, of which `splits` has to know."""


def pair_of_texts(record: dict, at: str, asked_for: bool = False) -> Comparison:
    """Texts without a prompt: the prompt is what the two share from the start, whole words only, up to an answer's label.

    Where the format was not asked for, a dialogue of HH is none of them.
    """
    chosen, rejected = (a_string(record[name], at, name) for name in ("chosen", "rejected"))
    if not asked_for and all(map(_is_hh, (chosen, rejected))):
        expected = "one format a file, as the first record's: pair_implicit, plain texts"
        raise bad(at, "chosen", "a dialogue of the format hh", expected)
    same = len(_shared(chosen, rejected))
    if not (chosen.strip() and rejected.strip()):
        raise Unusable("empty response")
    if chosen == rejected:
        raise Unusable("identical responses")
    if not same:
        raise Unusable("prompts differ")
    _agree(optional(record, at, "prompt", a_text), chosen[:same])
    return _pair({**record, "prompt": Derived(chosen[:same]), "chosen": chosen[same:], "rejected": rejected[same:]}, at)


def _shared(a: str, b: str) -> str:
    """The longest text that both start with and after which, in both, a space or the end comes, or which is cut beside a Chinese
    or Japanese character; where its last line begins with an answer's label, up to that.

    Without the label, one question would be as many queries as its answers share words.
    """
    for end in range(len(os.path.commonprefix((a, b))), 0, -1):  # noqa: RUF071
        if all(end == len(text) or text[end].isspace() or CJK.search(text, end - 1, end + 1) for text in (a, b)):
            labels = [label.end() for label in ANSWERS.finditer(a[:end]) if "\n" not in a[label.end() : end]]
            return a[: labels[-1]] if labels else a[:end]
    return ""


def _hh(record: dict, at: str) -> Comparison:
    """Dialogues in strings: the prompt goes through the last marker; the rest is the answer, verbatim."""
    sides = {}
    for name in ("chosen", "rejected"):
        dialogue = a_string(record[name], at, name)
        if not dialogue.strip():
            raise Unusable("empty response")
        if HH_MARKER not in dialogue:
            dialogue = dialogue.replace("\r\n", "\n")
        before, marker, answer = dialogue.rpartition(HH_MARKER)
        check(bool(marker), record[name], at, name, f"a dialogue with {show(HH_MARKER)}")
        if HH_ASKED in answer:
            raise Unusable("no answer at the end")
        sides[name] = before + marker, answer
    if sides["chosen"][0] != sides["rejected"][0]:
        raise Unusable("prompts differ")
    (prompt, chosen), (_, rejected) = sides.values()
    _agree(optional(record, at, "prompt", a_text), prompt)
    if not prompt.replace(HH_ASKED.strip(), "").replace(HH_MARKER.strip(), "").strip():
        raise Unusable("empty prompt")
    return _pair({**record, "prompt": prompt, "chosen": chosen, "rejected": rejected}, at)


def _votes(record: dict, at: str) -> Comparison:
    """Several labelers' choices: best is the response that more than half of them chose."""
    n = len(a_list(record["responses"], at, "responses"))
    votes = [a_best(vote, at, f"votes[{i}]", n) for i, vote in enumerate(a_list(record["votes"], at, "votes"))]
    choice, most = Counter(votes).most_common(1)[0] if votes else (0, 0)
    if 2 * most <= len(votes):
        raise Unusable("no majority")
    return _responses({**record, "best": choice}, at)


def _summeval(record: dict, at: str) -> Comparison:
    """An article, the summaries of all systems, and of each the means of the four expert ratings."""
    if "systems" in record:
        systems = a_dict(record["systems"], at, "systems")
        texts = [a_string(a_dict(s, at, f"systems.{k}", "summary", "ratings")["summary"], at, f"systems.{k}.summary")
                 for k, s in systems.items()]  # fmt: skip
        axes = [a_dict(s["ratings"], at, f"systems.{k}.ratings", *SUMMEVAL_AXES) for k, s in systems.items()]
        rated = [[a_number(a[axis], at, f"systems.{k}.ratings.{axis}") for axis in SUMMEVAL_AXES]
                 for k, a in zip(systems, axes, strict=True)]  # fmt: skip
        meta = {**rest_of(record, "article", "systems"), "systems": list(systems)}
        name = "article"
    else:
        values = a_list(record["machine_summaries"], at, "machine_summaries")
        texts = [a_string(text, at, f"machine_summaries[{i}]") for i, text in enumerate(values)]
        columns = [the_ratings(record[axis], at, axis, len(texts)) for axis in SUMMEVAL_AXES]
        rated = [list(row) for row in zip(*columns, strict=True)]
        meta, name = rest_of(record, "text", "machine_summaries", *SUMMEVAL_AXES), "text"
    if len(texts) < 2:
        raise bad(at, "systems" if name == "article" else "machine_summaries", f"{len(texts)} summaries", "at least 2")
    prompt, responses = a_string(record[name], at, name), cast(list[Text], texts)
    sums = [round(sum(row), 6) for row in rated]  # means of three: equal sums differ in their last digits
    ranks = [1 + sum(other > one for other in sums) for one in sums]
    check_texts(prompt, responses, at, name)
    if set(ranks) == {1}:
        raise Unusable("all ranks tied")
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
        name, system, text = (a_string(line[key], at, key) for key in ("id", "model_id", "text"))
        votes = [a_dict(v, at, f"expert_annotations[{i}]", *SUMMEVAL_AXES)
                 for i, v in enumerate(a_list(line["expert_annotations"], at, "expert_annotations"))]  # fmt: skip
        check(bool(votes), votes, at, "expert_annotations", "at least one expert's ratings")
        rated = {axis: sum(a_number(v[axis], at, f"expert_annotations[{i}].{axis}") for i, v in enumerate(votes)) / len(votes)
                 for axis in SUMMEVAL_AXES}  # fmt: skip
        about = rest_of(line, "model_id", "decoded", "expert_annotations", "turker_annotations", "text")
        start = {"article": text, "systems": {}, **about}
        first_at, _, article = articles.setdefault(name, (at, number, start))
        check(article["article"] == text, text, at, "text", f"the same article as at {first_at}")
        check(system not in article["systems"], system, at, "model_id", f"each system once for an article (id {name!r})")
        article["systems"][system] = {"summary": a_string(line["decoded"], at, "decoded"), "ratings": rated}
    yield from articles.values()


def _openai_2019(record: dict, at: str) -> Comparison:
    """Best of N, and scalar_compare: {query, sample0, ...} with best or difference."""
    samples = sorted((key for key in record if re.fullmatch(r"sample\d+", key)), key=lambda key: int(key[6:]))
    if missing := [f"sample{i}" for i in range(len(samples)) if f"sample{i}" not in record]:
        raise bad(at, missing[0], f"only {', '.join(samples)}", f"sample0 to sample{len(samples) - 1}")
    names = ["query", *samples]
    query, *responses = map(_unpad, the_texts(record, at, *names))
    best = optional(record, at, "best", a_best, len(responses))
    margin = optional(record, at, "difference", a_number)
    check_texts(query, responses, at, *samples)
    meta = rest_of(record, "best", "difference", *names)
    return _usable(Comparison(query, responses, best=best, margin=margin, meta=meta), at)


def rating(record: dict, at: str) -> Rating:
    ours = ("prompt", "response", "rating")
    names = ours if all(record.get(name) is not None for name in ours) else ("query", "sample", "score")
    prompt, response = map(_unpad, the_texts(record, at, *names[:2]))
    number = a_number(record[names[2]], at, names[2])
    check_texts(prompt, [response], at, names[1])
    return Rating(prompt, response, number, rest_of(record, *names))


def _rated(record: dict, at: str) -> Comparison:
    one = rating(record, at)
    return Comparison(one.prompt, [one.response], ratings=[one.rating], meta=one.meta)


def _query_2020(record: dict, at: str) -> tuple[str, dict[str, Any]]:
    """The prompt of a 2020 record and, for its meta, where it is from (`source`) and the rest of `info`."""
    info = a_dict(record["info"], at, "info")
    article, post = (info.get(name) for name in ("article", "post"))
    source = "tldr" if article is None or (post is not None and not str(article).strip()) else "cnndm"
    names = ("subreddit", "title", "post") if source == "tldr" else ("article",)
    a_dict(info, at, "info", *names)
    texts = [a_string(info[name], at, f"info.{name}") for name in names]
    if not "".join(texts[-2:]).strip():  # the title and the post, or the article
        raise Unusable("empty prompt")
    form = QUERY_2020 if source == "tldr" else "Article:\n\n{article}\n\nTL;DR:"
    query = form.format(**dict(zip(names, texts, strict=True)))
    return query, {"source": source, "info": rest_of(info, "post", "article")}


def _openai_2020(record: dict, at: str) -> Comparison:
    prompt, about = _query_2020(record, at)
    texts: list[Text] = []
    for i, summary in enumerate(a_list(record["summaries"], at, "summaries", 2)):
        texts.append(
            a_string(a_dict(summary, at, f"summaries[{i}]", "text")["text"], at, f"summaries[{i}].text")
        )
    best = a_best(record["choice"], at, "choice", 2)
    check_texts(prompt, texts, at, "summaries")
    order = [best, 1 - best]
    about["summaries"] = [rest_of(record["summaries"][i], "text") for i in order]
    return Comparison(prompt, [texts[i] for i in order], best=0, meta=rest_of(record, "info", "summaries") | about)


def _openai_2020_axis(record: dict, at: str) -> Comparison:
    prompt, about = _query_2020(record, at)
    summary = a_dict(record["summary"], at, "summary", "text", "axes")
    text, axes = a_string(summary["text"], at, "summary.text"), a_dict(summary["axes"], at, "summary.axes")
    if axes.get("overall") is None:
        raise Unusable("no overall rating")
    rating = a_number(axes["overall"], at, "summary.axes.overall")
    check(1 <= rating <= 7, rating, at, "summary.axes.overall", "a number from 1 to 7")
    check_texts(prompt, [text], at, "summary.text")
    about["summary"] = rest_of(summary, "text")
    return Comparison(prompt, [text], ratings=[rating], meta=rest_of(record, "info", "summary") | about)


# ------------------------------------------------------------------------------------------------------- the table


def _in_messages(record: dict) -> bool:
    """Dialogues in messages, alone or beside a `prompt` string that repeats a user's message."""
    sides = [record["chosen"], record["rejected"]]
    in_messages = all(isinstance(side, list) and side and isinstance(side[0], dict) for side in sides)
    return in_messages and (not record.get("prompt") or isinstance(record["prompt"], str))


def _has_sides(record: dict) -> bool:
    return all(record[side] not in ("", []) for side in ("chosen", "rejected"))


def _in_hh(record: dict) -> bool:
    return isinstance(record["chosen"], str) and HH_MARKER in record["chosen"].replace("\r\n", "\n")


def _is_repeated_hh(record: dict) -> bool:
    """HH's dialogues beside a prompt, which stands in them."""
    prompt, sides = record["prompt"], (record["chosen"], record["rejected"])
    in_texts = isinstance(prompt, str) and all(isinstance(side, str) for side in sides)
    repeated = in_texts and _in_hh(record) and all(side.strip().startswith(prompt.strip()) for side in sides)
    return repeated or all(map(_is_hh, sides))


def prompts_elsewhere(record: dict) -> list[str]:
    """Columns of other names that may hold the prompt; a `system` of one word says where a record is from."""
    names = [name for name in PROMPTS_ELSEWHERE if record.get(name)]
    is_label = re.compile(r"[!-~]*[\w/]", re.ASCII).fullmatch
    return [name for name in names if not (name == "system" and is_label(str(record[name])))]


def _in_texts(record: dict) -> bool:
    """Plain texts that begin alike; whatever else is called chosen and rejected is no format of ours."""
    sides = record["chosen"], record["rejected"]
    shared = _shared(*sides) if all(isinstance(side, str) for side in sides) else ""
    return bool(shared) and all(str(record[name]).strip() in shared for name in prompts_elsewhere(record))


def _no_pair(record: dict) -> bool:
    """Not {prompt, chosen, rejected}, which say what the label is."""
    return any(record.get(name) is None for name in ("prompt", "chosen", "rejected"))


def _no_sides(record: dict) -> bool:
    """Not {chosen, rejected} of the same responses, which say what the label is."""
    responses = record.get("responses") or [record.get("response")]
    sides = record.get("chosen"), record.get("rejected")
    return _no_pair(record) or not isinstance(responses, list) or not all(response in sides for response in responses)


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
    "pair": "{prompt, chosen, rejected, margin?}, sides that may repeat a prompt of 20 characters or more",
    "hh": "{prompt?, chosen, rejected, margin?}, dialogues in strings with '\\n\\nHuman:' and '\\n\\nAssistant:'",
}
COMPARISONS = (  # tried in this order: ours first, whose meta may hold another format's fields
    Layout("best_of_n", ("prompt", "responses", "best"), _responses, _no_sides),
    Layout("ranked", ("prompt", "responses", "ranks"), _responses, _no_sides),
    Layout("votes", ("prompt", "responses", "votes"), _votes, _no_sides),
    Layout("rating", ("prompt", "responses", "ratings"), _responses, _no_sides),
    Layout("scalar_compare", ("prompt", "responses", "margin"), _responses, _no_sides),
    Layout("openai_2020", ("info", "summaries", "choice"), _openai_2020, _no_pair),
    Layout("openai_2020_axis", ("info", "summary"), _openai_2020_axis, _no_pair),
    Layout("openai_2019", ("query", "sample0", "sample1", "best"), _openai_2019, _no_pair),
    Layout("scalar_compare", ("query", "sample0", "sample1", "difference"), _openai_2019, _no_pair),
    Layout("rating", ("query", "sample", "score"), _rated, _no_pair),
    Layout("rating", ("prompt", "response", "rating"), _rated, _no_sides),
    Layout("pair_implicit", ("chosen", "rejected"), _pair_implicit, _in_messages),
    Layout("hh", ("prompt", "chosen", "rejected"), _hh, _is_repeated_hh),
    Layout("pair", ("prompt", "chosen", "rejected"), _pair, _has_sides),
    Layout("hh", ("chosen", "rejected"), _hh, _in_hh),
    Layout("pair_implicit", ("chosen", "rejected"), pair_of_texts, _in_texts),
    Layout("summeval", ("article", "systems"), _summeval),
    Layout("summeval", ("text", "machine_summaries", *SUMMEVAL_AXES), _summeval),
    Layout("summeval", ("decoded", "expert_annotations"), _summeval, gather=_by_article),
)
