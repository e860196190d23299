"""What can be measured of a response without a model: ROUGE, length, repetition, copying, and what went wrong with it.

`measure` takes scored samples as rows and returns a dictionary for each; `summarise` turns rows into means by policy.
No torch here. None stands for what is not defined: ROUGE without a reference, compression of an empty response.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from eval.copying import (
    copied_sentences,
    count_words,
    distinct_n,
    distinct_n_within,
    novel_ngrams,
    repeated_bigrams,
    sentences,
)
from eval.rouge import ROUGE_TYPES, reads_little, rouge_scores
from eval.text import NOTHING, mean_of, percent, signed
from eval.winrate import Interval, mean_interval, share_interval

Measures = dict[str, float | int | None]

# A refusal is one of these within the first 200 characters, case ignored. The list is short and strict, because people
# write "I can't" of themselves: it is what is refused that tells.
_WILL_NOT = r"(can['’]?t|can ?not|won['’]?t|will not|am (unable|not able) to)"
_I_WILL_NOT = rf"\bi( {_WILL_NOT}|['’]m (unable|not able) to)"
_SUMMARY = r"(an?|the|any|this|that|your) ([\w-]+ ){0,2}(summary|summari[sz]ation|tl;?dr)\b"
_VERB = (
    r"(assist|help|answer|respond|discuss|do (that|this|so)|provide|write|create|produce|give|offer|summari[sz]e|fulfil+|comply|"
    r"generate)"
)
REFUSALS = (
    r"\bas an? (ai|artificial intelligence|(large )?language model)\b",
    r"\b(i['’]?m|i am) (sorry|afraid),?( but)? (i|that i|as an?) ?(can['’]?t|cannot|can not|am unable|am not able|won['’]?t)"
    rf"(( to)? {_VERB}\b|\W*([.!]|$))",
    rf"\bi (must|have to|will have to|need to) (respectfully |politely )?decline to {_VERB}\b",
    rf"{_I_WILL_NOT} (assist|help) (you|with (this|that|your))\b",
    rf"{_I_WILL_NOT} (summari[sz]e|fulfil+|comply|generate)\b",
    rf"{_I_WILL_NOT} (provide|write|create|produce|give|offer|make) (you )?(with )?{_SUMMARY}",
    rf"{_I_WILL_NOT} (write|talk|speak) (about|on) (this|that|such an?) (topic|subject|article|post|text|content)\b",
    rf"^\W*((i['’]?m |i am )?sorry|i apologi[sz]e),?( but)? {_I_WILL_NOT} (do (that|this|so)|help|assist)\W*([.!]|$)",
    rf"^\W*i apologi[sz]e,? but {_I_WILL_NOT}\b",
    r"\bi( do not| don['’]?t) feel comfortable (summari[sz]ing|(writing|providing|creating|producing) " + _SUMMARY + ")",
    r"\bi( am|['’]?m) not comfortable (summari[sz]ing|(writing|providing|creating|producing) " + _SUMMARY + ")",
)
_REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)
_ENDS = re.compile(r"[.!?…؟۔।。！？][\"'”’»)\]]*\s*$")


def measure(rows: Sequence[Mapping[str, Any]], sources: Sequence[str], use_stemmer: bool = True) -> list[Measures]:
    """Measures of n responses.

    Args:
        rows: Samples: `response`; where they have them, `reference` (a text or a list of texts), `found` (whether the
            response has the task's truncate token) and `draws` (which draw it is, where one without it is drawn anew).
        sources: The n texts that the responses are about.
        use_stemmer: Of ROUGE.

    Returns:
        For each row, all shares in [0, 1]:
        rouge1, rouge2, rougeL, rougeLsum (F1; each sentence a line for Lsum; best of several references);
        words; compression (words of the source over words of the response);
        distinct_1, distinct_2, distinct_3, repeated_bigrams (within the response);
        novel_1 … novel_4 (n-grams absent from the source);
        copied (share of its sentences, of three words or more, that stand in the source), copied_at (mean place of those
        in the source: 0 its beginning, 1 its end);
        and, 0 or 1: refusal, empty (nothing but white space), truncated (does not end as a sentence does),
        no_stop (as the function has it), other_script (ROUGE and the measures by words
        read little of the response, or of all its references).
    """
    rouge = _rouge(rows, use_stemmer)
    return [{**r, **_of_text(row, source)} for r, row, source in zip(rouge, rows, sources, strict=True)]


def no_stop(row: Mapping[str, Any]) -> int | None:
    """1 where the first draw lacks the task's truncate token, 0 where it has it; None where a sample does not say."""
    draws = row.get("draws")
    return None if row.get("found") is None else int(not row["found"] or (isinstance(draws, int) and draws > 1))


def _rouge(rows: Sequence[Mapping[str, Any]], use_stemmer: bool) -> list[Measures]:
    """F1 of each row; None where there is no reference that says anything."""
    references = [["\n".join(sentences(t)) for t in _references(row)] for row in rows]
    at = [i for i, several in enumerate(references) if several]
    found = rouge_scores(
        ["\n".join(sentences(rows[i]["response"])) for i in at], [references[i] for i in at], use_stemmer=use_stemmer
    )
    out: list[Measures] = [dict.fromkeys(ROUGE_TYPES) for _ in rows]
    for name in ROUGE_TYPES:
        for i, f1 in zip(at, found[name][:, 2].tolist(), strict=True):
            out[i][name] = f1
    return out


def _references(row: Mapping[str, Any]) -> list[str]:
    """A row's references that say anything."""
    given = row.get("reference")
    return [text for text in ([given] if isinstance(given, str) else given or []) if text.strip()]


SHARES = (  # or how they begin
    "distinct_", "repeated_", "novel_", "copied", "refusal", "empty", "truncated", "no_stop", "cut", "other_script",
)  # fmt: skip


def measure_names() -> set[str]:
    """What `measure` gives of a row."""
    return {*ROUGE_TYPES, *_of_text({"response": ""}, "")}


def _of_text(row: Mapping[str, Any], source: str) -> Measures:
    """What needs a reference to nothing but its script."""
    text, references = row["response"], _references(row)
    count = count_words(text)
    places = copied_sentences(source, text)
    copied = [place for place in places if place is not None]
    shares = {
        **{f"distinct_{n}": distinct_n_within(text, n) for n in (1, 2, 3)},
        "repeated_bigrams": repeated_bigrams(text),
        **{f"novel_{n}": novel_ngrams(source, text, n) for n in (1, 2, 3, 4)},
    }
    empty = not text.strip()
    return {
        "words": count,
        "compression": count_words(source) / count if count else None,
        **{name: None if math.isnan(value) else value for name, value in shares.items()},
        "copied": len(copied) / len(places) if places else None,
        "copied_at": sum(copied) / len(copied) if copied else None,
        "refusal": int(bool(_REFUSAL.search(text[:200]))),
        "empty": int(empty),
        "truncated": int(not empty and not _ENDS.search(text[-100:])),
        "no_stop": no_stop(row),
        "other_script": int(reads_little(text) or (bool(references) and all(map(reads_little, references)))),
    }


def interval_of(name: str, values: Sequence[float], ids: Sequence[Any]) -> Interval:
    """A measure's mean with its interval by prompt; that of shares stays within 0 and 1, with a width where all are alike."""
    return (share_interval if name.startswith(SHARES) else mean_interval)(values, ids)


def perplexity(nll: float, tokens: int) -> float | None:
    """exp of the mean negative log-likelihood a token; None where there is no token."""
    return math.exp(min(nll / tokens, 700.0)) if tokens else None


def other_scripts(shares: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """A warning, where a tenth of a policy's texts and more is in a script that ROUGE does not read; else None.

    Args:
        shares: Policy → `{mean, n}` of `other_script`, or None where it was not measured.
    """
    found = [(name, s) for name, s in shares.items() if s is not None and s["mean"] > 0.1]
    if not found:
        return None
    counts = [f"{round(s['mean'] * s['n'])} of {s['n']}{'' if i else ' texts'} of {name}" for i, (name, s) in enumerate(found)]
    return (
        "ROUGE and the measures of copying and repetition see only the letters a–z and digits, and in "
        f"{', '.join(counts)}, or in their references, most are others: those figures say little."
    )


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means by policy of every score and measure, each over the rows that have it, with 95 % intervals by prompt.

    Args:
        rows: Lines of scores.jsonl: `id`, `policy`, `response`, `scores`, `measures`, `n_tokens`.

    Returns:
        Policy → `{n, prompts, means: {name: {mean, low, high, n}}, distinct: {1, 2, 3}, perplexity}`; `distinct` is over all
        responses of the policy, `perplexity` exp(Σ ref_nll / Σ n_tokens). Where there is no interval, its ends are None.
    """
    by_policy: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_policy.setdefault(row["policy"], []).append(row)
    return {policy: _summary(of_policy) for policy, of_policy in by_policy.items()}


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one policy."""
    values = [{**row["scores"], **row["measures"]} for row in rows]
    means = {}
    for name in dict.fromkeys(name for row in values for name in row):
        kept = [(v[name], row["id"]) for v, row in zip(values, rows, strict=True) if v.get(name) is not None]
        if kept:
            interval = asdict(interval_of(name, [v for v, _ in kept], [i for _, i in kept]))
            means[name] = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in interval.items()}
    told = [(row["scores"]["ref_nll"], row["n_tokens"]) for row in rows if "ref_nll" in row["scores"] and "n_tokens" in row]
    tokens = sum(n for _, n in told)
    distinct = {str(n): distinct_n([row["response"] for row in rows], n) for n in (1, 2, 3)}
    return {
        "n": len(rows),
        "prompts": len({row["id"] for row in rows}),
        "means": means,
        "distinct": {n: None if math.isnan(value) else value for n, value in distinct.items()},
        "perplexity": perplexity(sum(nll for nll, _ in told), tokens),
    }


COLUMNS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "words", "compression", "novel_2", "copied", "known", "learned", "kl")
COUNTED = ("refusal", "empty", "truncated", "no_stop", "cut", "other_script")


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The main figures as lines of text: means, and how many responses something was wrong with."""
    columns = [c for c in COLUMNS if any(c in s["means"] for s in summary.values())]
    counted = [c for c in COUNTED if any(s["means"].get(c, {}).get("mean") for s in summary.values())]
    lines = [["policy", "n", *columns, "perplexity", *counted]]
    for policy, s in summary.items():
        cells = [signed(mean_of(s["means"].get(c)), 3 if c.startswith("rouge") else 2) for c in columns]
        wrong = [percent(s["means"][c]["mean"]) if c in s["means"] else NOTHING for c in counted]
        lines.append([policy, str(s["n"]), *cells, signed(s["perplexity"]), *wrong])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    align = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    return "\n".join("  ".join(f(c, w) for f, c, w in zip(align, line, widths, strict=True)) for line in lines)
