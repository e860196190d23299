"""Text → prompts: queries cut from texts by the 2019 rule, distinct, in splits that share none.

Sources: `novels` (the embedded excerpts), `self` (openings that the model writes itself: the only text in the domain of
`stories260k`), a .txt file or a folder of them (a text a paragraph), or JSON lines with a field `text`.

    lightning-rlhf prompts -c configs/sentiment/prompts.yaml -c configs/sentiment/stories260k/prompts.yaml
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .files import DataError, read_jsonl, write_jsonl
from .generation import sample, seed_for
from .models import ASSETS, LM, decode, encode, find_lm, load_lm, load_tokenizer, run_context
from .runinfo import RunInfo
from .tasks import Task, TaskTokens, UsageError, build_query, task_tokens


def source_problems(source: str) -> list[str]:
    """What keeps a source from being read, in words."""
    if source == "novels":
        return []
    path = Path(source)
    if not path.exists():
        return [f"source: {source!r}: found no such file or folder, expected novels, self or a path"]
    if path.is_dir() and not any(path.glob("*.txt")):
        return [f"source: {source!r}: found no .txt file in the folder"]
    return []


def texts_of(source: str) -> Iterator[tuple[str, str]]:
    """(text, where it is from) of every text of a source; raises DataError or UsageError."""
    if problems := source_problems(source):
        raise UsageError("\n".join(problems))
    path = ASSETS / "novels" / "excerpts.jsonl.gz" if source == "novels" else Path(source)
    if path.is_dir() or path.suffix == ".txt":
        for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
            for number, paragraph in enumerate(read_text(file).split("\n\n"), 1):
                if paragraph.strip():
                    yield " ".join(paragraph.split()), f"{file.name}#{number}"
        return
    for name, line, record in read_jsonl(path):
        text = record.get("text")
        if not isinstance(text, str):
            found = "nothing" if text is None else type(text).__name__
            raise DataError(f"{name}:{line}: field 'text': found {found}, expected a string")
        yield text, str(record.get("source", f"{Path(name).name}:{line}"))


def read_text(file: Path) -> str:
    """A text file; raises DataError with the line of a byte that is not UTF-8."""
    data = file.read_bytes()
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line}: found a byte {data[error.start]:#04x} that is not UTF-8, expected UTF-8 text") from None


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


def build_prompts(
    lm: str,
    task: Task,
    output: str,
    source: str = "novels",
    train: int = 2000,
    val: int = 300,
    test: int = 500,
    seed: int = 1,
) -> None:
    """Cut distinct queries from texts and write them as {train,val,test}.jsonl.

    A query that does not come back the same from text to tokens is left out, and counted.

    Args:
        lm: Model whose tokenizer cuts the queries (and who writes them, where the source is `self`).
        task: The task.
        output: Folder of the three files.
        source: `novels`, `self`, a .txt file, a folder of them, or JSON lines with a field `text`.
        train: Number of training prompts.
        val: Number of validation prompts (for held-out labels).
        test: Number of test prompts (for the report).
        seed: Of the shuffle, and of the model's own openings.

    Raises:
        UsageError: Too few distinct queries, or an option out of range.
    """
    wanted = train + val + test
    counts = {"train": train, "val": val, "test": test}
    problems = task.problems() + [f"{k}: found {v}, expected at least 1" for k, v in counts.items() if v < 1]
    if source != "self":
        problems += source_problems(source)
    if problems:
        raise UsageError("\n".join(problems))
    find_lm(lm)
    info = RunInfo("prompts", seed, {"lm": lm, "source": source, **counts, "task": vars(task)})
    model = load_lm(lm) if source == "self" else None
    tokenizer = model.tokenizer if model else load_tokenizer(lm)
    resolved = task_tokens(task, tokenizer)
    texts: Iterator[tuple[list[int], str]]
    if model:
        texts = ((ids, lm) for ids in own_openings(model, task, resolved, seed))
    else:
        listed = list(texts_of(source))
        random.Random(seed).shuffle(listed)
        texts = ((encode(tokenizer, text), where) for text, where in listed)
    found: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    bar = tqdm(total=wanted, desc="prompts", unit="query")
    with run_context():
        for ids, where in texts:
            query = build_query(ids, task.query_length, resolved.start, resolved.end, pad_id=-1)
            kept = [i for i in query if i >= 0] if query else []
            text = decode(tokenizer, kept)
            key = " ".join(text.lower().split())
            reason = None
            if not kept:
                reason = "no start or end token"
            elif encode(tokenizer, text) != kept:
                reason = "not the same after a round trip"
            elif key in found:
                reason = "repeated"
            if reason:
                left_out[reason] += 1
                if model and left_out["repeated"] > 50 * wanted:
                    break
                continue
            found[key] = {"prompt": text, "source": where}
            bar.update()
            if len(found) == wanted:
                break
    bar.close()
    if len(found) < wanted:
        raise UsageError(
            f"source {source!r}: found {len(found)} distinct queries (left out: {dict(left_out)}), "
            f"expected train + val + test = {wanted}"
        )
    records = list(found.values())
    at = 0
    for split, count in (("test", test), ("val", val), ("train", train)):
        rows = [{"id": f"{split}-{i:05d}", **r} for i, r in enumerate(records[at : at + count])]
        at += count
        write_jsonl(Path(output) / f"{split}.jsonl", rows)
    info.write(output, figures={"left_out": dict(left_out), "prompts": wanted})
    print(f"{output}: {train} train, {val} val, {test} test prompts; left out: {dict(left_out) or 'none'}")
