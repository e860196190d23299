"""The report's sample browser: which prompts, what is marked as copied, and the one script of the page.

Every prompt is plain HTML, escaped, the first ones shown and the others hidden; the script only hides, shows and moves what is
there. It never makes markup out of data. `SCRIPT_HASH` goes into the page's content security policy, so that a browser runs
this script and no other, and asks for nothing.
"""

import base64
import hashlib
import json
import random
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

from eval.evidence import figures
from eval.outcomes import Outcomes, key_of
from eval.text import figure_text, name_of, short

Row = Mapping[str, Any]
Span = tuple[int, int]
LONGEST_RESPONSE, LONGEST_SOURCE = 4_000, 20_000  # characters shown; the rest is counted
COPIED_WORDS = 5  # so many in a row are marked
SIDE_BY_SIDE = 300  # a longer source stands beside its responses, a shorter one above them
SHOWN = ("known", "learned", "rougeL")  # scores on a card
TRIES = 50  # places in the source that a run of words is compared with

SCRIPT = """\
"use strict";
(() => {
  const list = document.getElementById("sample-list"), tools = document.getElementById("sample-tools");
  if (!list || !tools) return;
  const get = id => document.getElementById(id);
  const find = get("find"), show = get("show"), sort = get("sort"), whose = get("whose");
  const count = get("count"), more = get("more");
  const page = Number(list.dataset.page);
  const all = Array.from(list.children, (node, order) => ({
    node, order, text: null, scores: JSON.parse(node.dataset.scores), won: node.dataset.won, apart: Number(node.dataset.apart)
  }));
  let shown = page;
  const value = (item, key) => {
    if (key === "apart") return item.apart;
    const v = (item.scores[whose.value] || {})[key];
    return typeof v === "number" ? v : null;
  };
  const update = () => {
    const words = find.value.trim().toLowerCase();
    const space = sort.value.lastIndexOf(" "), key = sort.value.slice(0, space), way = sort.value.slice(space + 1);
    whose.disabled = key === "chance" || key === "apart";
    const kept = all.filter(item => {
      if (show.value === "apart" ? item.apart <= 0 : show.value !== "all" && item.won !== show.value) return false;
      if (!words) return true;
      if (item.text === null) item.text = item.node.textContent.toLowerCase();
      return item.text.includes(words);
    });
    if (key !== "chance") kept.sort((a, b) => {
      const x = value(a, key), y = value(b, key);
      if (x === null || y === null) return (x === null) - (y === null) || a.order - b.order;
      return (way === "up" ? x - y : y - x) || a.order - b.order;
    });
    const visible = new Set(kept.slice(0, shown));
    for (const item of all) item.node.hidden = !visible.has(item);
    list.append(...kept.slice(0, shown).map(item => item.node));
    const total = kept.length === all.length ? all.length : `${kept.length} found of ${all.length}`;
    count.textContent = `${visible.size} shown of ${total}`;
    more.hidden = visible.size >= kept.length;
  };
  const restart = () => { shown = page; update(); };
  find.addEventListener("input", restart);
  for (const choice of [show, sort, whose]) choice.addEventListener("change", restart);
  more.addEventListener("click", () => { shown += page; update(); });
  tools.hidden = false;
  update();
})();
"""
SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


def choose(
    table: Mapping[str, Sequence[Row]], outcomes: Outcomes, judge: str, n: int, seed: int, hide: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Up to n prompts by a seeded draw, each with every policy's first response that was judged, cut, with the spans copied.

    Args:
        table: Policy → its rows, from the baseline to the main one.
        outcomes, judge: What decides who won, and its name.
        n: Prompts; those that every policy answered come before all others.
        seed: Of the draw; the first k of a longer draw are those of a shorter one.
        hide: Ids of prompts that are not shown.
    """
    first: dict[Any, dict[str, Row]] = {}
    judged = {(name, key) for pair, won in outcomes.won.items() for keys in won for name, key in zip(pair, keys, strict=True)}
    for name, rows in table.items():
        for row in sorted(rows, key=lambda row: ((name, key_of(row)) not in judged, row.get("index", 0))):
            first.setdefault(row["id"], {}).setdefault(name, row)
    shared = [key for key, found in first.items() if len(found) == len(table)] or list(first)
    shared = sorted((key for key in shared if str(key) not in hide), key=str)  # whatever the order of the files
    random.Random(seed).shuffle(shared)
    return [_sample(key, first[key], outcomes, judge, list(table)) for key in shared[:n]]


def _sample(key: Any, rows: Mapping[str, Row], outcomes: Outcomes, judge: str, names: Sequence[str]) -> dict[str, Any]:
    """One prompt as the report keeps it."""
    some = next(iter(rows.values()))
    reference = some.get("reference")
    references = [reference] if isinstance(reference, str) else list(reference or [])
    source, source_cut = cut(some["prompt"].strip(), LONGEST_SOURCE)
    responses: list[dict[str, Any]] = []
    taken: list[Span] = []
    for name, row in rows.items():
        text, text_cut = cut(row["response"].strip(), LONGEST_RESPONSE)
        spans = copied_spans(source, text)
        if name == names[-1]:
            taken = [there for _, there in spans]
        found = {k: v for k, v in figures(row).items() if k != "ref_nll"}
        copied = [here for here, _ in spans]
        said = {"policy": name, "text": text, "cut": text_cut, "copied": copied, "found": bool(row.get("found", True))}
        responses.append({**said, "scores": found})
    won = {
        (a, b): value
        for b, a in combinations(rows, 2)
        if (value := outcomes.between(a, key_of(rows[a]), b, key_of(rows[b]))) is not None
    }
    return {
        "id": key,
        "prompt": source,
        "cut": source_cut,
        "copied": taken,
        "references": [cut(r.strip(), LONGEST_RESPONSE)[0] for r in references[:3]],
        "apart": apart({r["policy"]: r["scores"] for r in responses}, won, judge),
        "won": _won(won.get((names[-1], names[0]))),
        "pick": _pick(won),
        "responses": responses,
    }


def cut(text: str, longest: int) -> tuple[str, int]:
    """The beginning of a text, and how many characters were left out."""
    return (text, 0) if len(text) <= longest else (text[:longest], len(text) - longest)


def apart(scores: Mapping[str, Mapping[str, float]], won: Mapping[tuple[str, str], float], judge: str) -> float:
    """How far measures disagree on one prompt: the share of judged pairs of responses that the judge and another measure (the
    known or learned reward, ROUGE-L) order differently, the mean over those measures; 0 where there is none.

    Args:
        scores: Policy → its response's figures.
        won: Two policies → the first one's outcome.
        judge: Its name: a measure is not compared with itself.
    """
    shares = []
    for measure in ("known", "learned", "rougeL"):
        if measure == judge or not won or not all(measure in s for s in scores.values()):
            continue
        told = [(scores[a][measure] - scores[b][measure]) * (value - 0.5) < 0 for (a, b), value in won.items()]
        shares.append(sum(told) / len(told))
    return sum(shares) / len(shares) if shares else 0.0


def _won(outcome: float | None) -> str:
    """Whether the main policy's response was judged better than the baseline's: won, lost, tied, or alone."""
    if outcome is None:
        return "alone"
    return "won" if outcome > 0.5 else "lost" if outcome < 0.5 else "tied"


def _pick(won: Mapping[tuple[str, str], float]) -> str | None:
    """The policy whose response beat every other that it was compared with; None where there is no such."""
    lost = {policy for pair, value in won.items() for policy, own in zip(pair, (value, 1 - value), strict=True) if own <= 0.5}
    best = {policy for pair in won for policy in pair} - lost
    return best.pop() if len(best) == 1 else None


def copied_spans(source: str, text: str, at_least: int = COPIED_WORDS) -> list[tuple[Span, Span]]:
    """Runs of `at_least` or more words of a text that stand in the source in that order, longest first from the left.

    Case and punctuation do not count; words here are runs of letters and digits of any script.

    Returns:
        ((start, end) in the text, (start, end) in the source) in characters; of equally long ones the source's first.
    """
    here, there = (list(re.finditer(r"\w+", t)) for t in (text, source))
    said, told = ([m.group().lower() for m in found] for found in (here, there))
    places: dict[tuple[str, ...], list[int]] = {}
    for j in range(len(told) - at_least + 1):
        places.setdefault(tuple(told[j : j + at_least]), []).append(j)
    spans, i = [], 0
    while i <= len(said) - at_least:
        best, at = 0, 0
        for j in places.get(tuple(said[i : i + at_least]), [])[:TRIES]:
            n = at_least
            while i + n < len(said) and j + n < len(told) and said[i + n] == told[j + n]:
                n += 1
            if n > best:
                best, at = n, j
        if best:
            spans.append(((here[i].start(), here[i + best - 1].end()), (there[at].start(), there[at + best - 1].end())))
        i += best or 1
    return spans


def marked(text: str, spans: Sequence[Sequence[int]], left_out: int = 0) -> str:
    """Escaped text with `<mark>` around the spans (overlapping ones joined), and a word on what was left out."""
    out, at = [], 0
    for start, end in sorted((int(a), int(b)) for a, b in spans):
        if end <= at:
            continue
        start = max(start, at)
        out += [escape(text[at:start]), "<mark>", escape(text[start:end]), "</mark>"]
        at = end
    out.append(escape(text[at:]))
    if left_out:
        out.append(f'<span class="dim"> … and {left_out:,} more characters</span>')
    return "".join(out)


def render(report: Mapping[str, Any]) -> str:
    """The browser's HTML: tools (shown by the script alone), the list, and the script."""
    samples, page = [*report["samples"], *report["more_samples"]], max(1, len(report["samples"]))
    names = list(dict.fromkeys(name for s in samples for r in s["responses"] for name in r["scores"]))
    blocks = [_article(sample, report, hidden=i >= page) for i, sample in enumerate(samples)]
    hidden = "" if len(samples) > page else " hidden"
    return (
        f"{_tools(report, names)}\n"
        f'<div id="sample-list" data-page="{page}">\n{"".join(blocks)}</div>\n'
        f'<p><button id="more" type="button"{hidden}>Show more</button></p>\n<script>{SCRIPT}</script>'
    )


def _tools(report: Mapping[str, Any], names: Sequence[str]) -> str:
    """What the script acts on: a text to find, what to show, what to sort by and of which policy."""
    main, baseline = report["main"], report["baseline"]
    sorts = [("chance down", "chance"), ("apart down", "disagreement of the measures")]
    for name in names:
        sorts += [(f"{name} down", f"{name_of(name)}, highest first"), (f"{name} up", f"{name_of(name)}, lowest first")]
    shows = [("all", "all prompts"), ("apart", "where measures disagree")]
    if main != baseline:
        shows += [(kind, f"{main} {kind} against {baseline}") for kind in ("won", "lost", "tied")]
    whose = [(p["name"], p["name"]) for p in reversed(report["policies"])]
    return (
        '<div id="sample-tools" class="tools" role="search" hidden>\n'
        '<label class="find">Find <input id="find" type="search" placeholder="words of a source or response"/></label>\n'
        f"{_select('show', 'Show', shows)}\n{_select('sort', 'Sort by', sorts)}\n{_select('whose', 'of', whose)}\n"
        '<output id="count" aria-live="polite"></output>\n</div>'
    )


def _select(key: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{label} <select id="{key}">{inner}</select></label>'


def _article(sample: Mapping[str, Any], report: Mapping[str, Any], hidden: bool) -> str:
    """One prompt: its source, and a card for each policy's response and for each reference that is not one of them."""
    said = {r["text"] for r in sample["responses"]}
    cards = [_card(r, report, sample["pick"] == r["policy"], r["text"] in sample["references"]) for r in sample["responses"]]
    cards += [
        f'<div class="card reference"><h4>reference</h4><p class="text" dir="auto">{escape(text)}</p></div>'
        for text in sample["references"]
        if text not in said
    ]
    scores = {r["policy"]: {k: float(f"{v:.6g}") for k, v in r["scores"].items()} for r in sample["responses"]}
    data = f'data-scores="{escape(json.dumps(scores))}" data-won="{sample["won"]}" data-apart="{short(sample["apart"])}"'
    prompt = marked(sample["prompt"], sample["copied"], sample["cut"])
    style = "sample long" if len(sample["prompt"]) > SIDE_BY_SIDE else "sample"
    return (
        f'<article class="{style}" {data}{" hidden" * hidden}>\n<h3><bdi>{escape(str(sample["id"]))}</bdi></h3>\n'
        f'<div class="sides"><p class="prompt" dir="auto" tabindex="0">{prompt}</p>\n'
        f'<div class="cards">{"".join(cards)}</div></div></article>\n'
    )


def _card(response: Mapping[str, Any], report: Mapping[str, Any], pick: bool, reference: bool) -> str:
    """A policy's response; `reference`: it is the reference's text, which has no card of its own then."""
    scores = response["scores"]
    said = [f"{name_of(name)} {figure_text(name, scores[name])}" for name in SHOWN if name in scores]
    said += [] if response["found"] else ["no stop"]
    parts = " ".join(f'<span class="unbroken">{escape(part)}</span>' for part in said)
    text = marked(response["text"], response["copied"], response["cut"]) or '<span class="dim">(empty)</span>'
    style = "card main" if response["policy"] == report["main"] else "card"
    badge = ' <span class="pick">judge’s pick</span>' if pick else ""
    badge += ' <span class="pick">the reference’s text</span>' if reference and response["policy"] != "reference" else ""
    return (
        f'<div class="{style}"><h4><bdi>{escape(response["policy"])}</bdi>{badge}</h4>'
        f'<p class="text" dir="auto">{text}</p><p class="scores">{parts}</p></div>'
    )
