"""Text → prompts: queries cut from texts, distinct, in splits that share none, with the human's summary where there is one.

Sources: `self` (openings that the model writes itself: the only text in the domain of `stories260k`), and all of `sources.py`.
Queries are cut by the 2019 rule, or written in the TL;DR form of 2020 (its post shortened at its last newline).

    lightning-rlhf prompts -c configs/sentiment/prompts.yaml -c configs/sentiment/stories260k/prompts.yaml
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from .files import write_jsonl
from .folders import made_elsewhere
from .generation import sample, seed_for
from .models import LM, find_lm, load_lm, load_tokenizer, run_context
from .runinfo import RunInfo
from .sources import Source, source_problems, texts_of
from .splits import fraction, normalised
from .tasks import Task, TaskTokens, UsageError, build_query, query_2020, task_tokens
from .tokens import decode, encode

FORMS, SPLITS = ("2019", "2020"), ("query", "position")


def own_openings(lm: LM, task: Task, resolved: TaskTokens, seed: int, batch_size: int = 256) -> Iterator[list[int]]:
    """Token ids of texts that the model writes from its beginning-of-text token, at temperature 1, without end."""
    start = list(resolved.prefix) or [lm.tokenizer.bos_token_id or lm.tokenizer.eos_token_id]
    tokens = torch.tensor([start] * batch_size)
    stop = {lm.tokenizer.eos_token_id, lm.tokenizer.bos_token_id}
    for batch in range(10_000):
        rows = sample(lm.model, tokens, torch.ones_like(tokens, dtype=torch.bool), task.query_length, 1.0, seed_for(seed, batch))
        for row in rows.tolist():
            ends = [i for i, token in enumerate(row) if token in stop]
            yield row[: ends[0]] if ends else row


def cut_queries(ids: list[int], task: Task, resolved: TaskTokens, most: int) -> list[list[int]]:
    """Up to `most` queries of a text by the 2019 rule, each from what follows the one before it."""
    found: list[list[int]] = []
    while len(found) < most:
        query = build_query(ids, task.query_length, resolved.start, resolved.end, pad_id=-1)
        query = [i for i in query if i >= 0] if query else []
        if not query:
            break
        found.append(query)
        first = ids.index(resolved.start) + 1 if resolved.start is not None else 0
        if first == len(ids):  # the start token is the last one: the query was the whole text
            break
        # What ends a query may start the next one: the last token stays, to be found as a start token.
        ids = ids[first + len(query) - (resolved.start is not None) :]
        if resolved.start is not None and resolved.start not in ids[:-1]:
            break
    return found


LOST = "not the same after a round trip"  # a character was cut in two, say


class Query(NamedTuple):
    """A query's text and where it is from; `reason`: why it cannot be used."""

    prompt: str
    source: Source
    reason: str | None = None


def same_text(ids: list[int], again: list[int], tokenizer: Any) -> bool:
    """Whether the ids of a query and those of its text are the same, but for the white space at its end.

    A blank line inside a text is two tokens of GPT-2's, and one at the end of a text, where the query has been cut.
    """
    if len(again) > len(ids):
        return False
    same = next((i for i, (a, b) in enumerate(zip(ids, again, strict=False)) if a != b), len(again))
    rest, shown = decode(tokenizer, ids[same:]), decode(tokenizer, again[same:])
    return rest == shown and not rest.strip()


def queries_of(
    texts: Iterator[Source], tokenizer: Any, task: Task, resolved: TaskTokens, form: str, most: int
) -> Iterator[Query]:
    """Queries of texts, in the form of 2019 or 2020, and the texts that give none."""
    for text in texts:
        if form == "2020":
            if missing := {"subreddit", "title"} - text.fields.keys():
                yield Query("", text, f"no {' and no '.join(sorted(missing))}")
            elif not text.text:
                yield Query("", text, "empty text")
            else:
                found = query_2020(**text.fields, length=task.query_length, count=lambda t: len(encode(tokenizer, t)))
                yield Query(found or "", text, None if found else "title too long")
            continue
        cut = cut_queries(encode(tokenizer, text.ids or text.text), task, resolved, most)
        for ids in cut:
            prompt = decode(tokenizer, ids)
            yield Query(prompt, text, None if same_text(ids, encode(tokenizer, prompt), tokenizer) else LOST)
        if not cut:
            yield Query("", text, "no start or end token" if text.text or text.ids else "empty text")


def write_prompts(output: Path, records: list[dict[str, Any]], counts: dict[str, int], task: Task) -> None:
    """The prompts of each split, test first; and as demonstrations the human's summaries, ended by the task's truncation text."""
    at = 0
    for split in ("test", "val", "train"):
        rows = [{"id": f"{split}-{i:05d}", **r} for i, r in enumerate(records[at : at + counts[split]])]
        at += counts[split]
        write_jsonl(output / f"{split}.jsonl", rows)
        end = task.truncate_text or ""
        shown = [{"prompt": r["prompt"], "completion": f" {r['reference']}{end}"} for r in rows if "reference" in r]
        if shown and split != "test":
            write_jsonl(output / f"demonstrations.{split}.jsonl", shown)


def pick_texts(source: str, seed: int, split_by: str, keep: int, join: int) -> Iterator[Source]:
    """The texts of a source in a seeded order: shuffled as they come, or at most `keep` of them, by their hash."""
    texts = joined(texts_of(source), join)
    if split_by == "position":
        listed = list(texts)
        random.Random(seed).shuffle(listed)
    else:
        listed = heapq.nsmallest(keep, texts, key=lambda t: (fraction(t.text, f"text {seed}"), t.text))
    return iter(listed)


def joined(texts: Iterator[Source], least: int) -> Iterator[Source]:
    """Texts of at least so many characters, made of consecutive ones."""
    parts: list[Source] = []
    for text in texts:
        parts.append(text)
        if sum(len(p.text) for p in parts) >= least:
            yield text if len(parts) == 1 else Source(" ".join(p.text for p in parts), parts[0].where)
            parts = []
    if parts:
        yield Source(" ".join(p.text for p in parts), parts[0].where)


def build_prompts(
    lm: str,
    task: Task,
    output: str,
    source: str = "novels",
    train: int = 2000,
    val: int = 300,
    test: int = 500,
    form: str = "2019",
    queries_per_text: int = 1,
    join: int = 0,
    split_by: str = "query",
    seed: int = 1,
) -> None:
    """Cut distinct queries from texts and write them as {train,val,test}.jsonl; case, spaces and punctuation make none distinct.

    Where a text has a human's summary, it is the prompt's `reference`, and with the task's truncation text after it a
    demonstration (demonstrations.{train,val}.jsonl). What is left out, such as a query that does not come back the same from
    text to tokens, is counted.

    Args:
        lm: Model whose tokenizer cuts the queries (and who writes them, where the source is `self`).
        task: The task.
        output: Folder of the files.
        source: `novels`, `self`, or texts: a file, a folder, a glob or a Hub id; .txt, .story, JSON lines, CSV, Parquet.
        train: Number of training prompts.
        val: Number of validation prompts (for held-out labels).
        test: Number of test prompts (for the report).
        form: `2019`: cut from the text's tokens; `2020`: SUBREDDIT, TITLE, POST and TL;DR:, the post shortened to fit.
        queries_per_text: At most so many queries from one text, without overlap (1 in the paper).
        join: Join consecutive texts until they have so many characters (BookCorpus has a sentence a row); 0: no.
        split_by: `query`: by a hash of the query, so that the order of the source changes nothing; `position`: by the place after
            a seeded shuffle.
        seed: Of the choice of texts, and of the model's own openings.

    Raises:
        UsageError: Too few distinct queries, or an option out of range.
    """
    counts = {"train": train, "val": val, "test": test}
    least = [*((k, v, 1) for k, v in counts.items()), ("queries_per_text", queries_per_text, 1), ("join", join, 0)]
    problems = task.problems() + [f"{k}: found {v}, expected at least {low}" for k, v, low in least if v < low]
    chosen = (("form", form, FORMS), ("split_by", split_by, SPLITS))
    problems += [f"{k}: found {v!r}, expected {' or '.join(known)}" for k, v, known in chosen if v not in known]
    if source == "self" and form == "2020":
        problems.append("form: found 2020 with source self, expected posts with a subreddit and a title")
    if source == "self" and join > 0:
        problems.append(f"join: found {join} with source self, expected 0: the model's openings are not joined")
    if source != "self":
        problems += source_problems(source)
    if problem := made_elsewhere(output, [f"{split}.jsonl" for split in counts]):
        problems.append(problem)
    if problems:
        raise UsageError("\n".join(problems))
    find_lm(lm)
    wanted = sum(counts.values())
    options = dict(form=form, queries_per_text=queries_per_text, join=join, split_by=split_by)
    info = RunInfo("prompts", seed, {"lm": lm, "source": source, **counts, **options, "task": vars(task)}, [source])
    model = load_lm(lm) if source == "self" else None
    tokenizer = model.tokenizer if model else load_tokenizer(lm)
    resolved = task_tokens(task, tokenizer)
    found: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    formats: set[str] = set()
    bar = tqdm(total=wanted, desc="prompts", unit="query")
    texts: Iterator[Source]
    if model:
        texts = (Source("", lm, ids=ids, format="the model's own openings") for ids in own_openings(model, task, resolved, seed))
    else:
        texts = pick_texts(source, seed, split_by, keep=4 * wanted + 1000, join=join)
    with run_context():
        for prompt, text, reason in queries_of(texts, tokenizer, task, resolved, form, queries_per_text):
            key = normalised(prompt)
            if reason := reason or ("repeated" if key in found else None):
                left_out[reason] += 1
                if model and left_out["repeated"] > 50 * wanted:
                    break
                continue
            found[key] = {"prompt": prompt, "source": text.where}
            found[key] |= {"reference": text.reference} if text.reference is not None else {}
            formats.add(text.format)
            bar.update()
            if len(found) == wanted:
                break
    bar.close()
    if len(found) < wanted:
        raise UsageError(
            f"source {source!r}: found {len(found)} distinct queries (left out: {dict(left_out)}), "
            f"expected train + val + test = {wanted}"
        )
    keys = list(found) if split_by == "position" else sorted(found, key=fraction)
    write_prompts(Path(output), [found[key] for key in keys], counts, task)
    info.write(output, figures={"left_out": dict(left_out), "prompts": wanted, "formats": sorted(formats)})
    sizes = f"{train} train, {val} val, {test} test prompts (source: {', '.join(sorted(formats))})"
    print(f"{output}: {sizes}; left out: {dict(left_out) or 'none'}")


