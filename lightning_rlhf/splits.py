"""Splits by query: where a query goes depends on the query alone, so that no order of the file, and no other record, moves it.

Two queries are the same where their normalised texts are: case, Unicode form, spaces and punctuation do not count. A prompt that
was derived from two texts (pair_implicit) may hold words of the answers: there the shortest that others begin with is the query
of them all, so that these records do move each other. What holds such words in all of its records is not told from a question.

    lightning-rlhf split --path labels.jsonl.gz --output labels --held_out 0.1
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

from .files import PathLike, members, write_jsonl
from .folders import made_elsewhere, never_writable
from .formats import CJK, Derived
from .records import read_comparisons
from .runinfo import RunInfo
from .tasks import UsageError, fields_2020

R = TypeVar("R")
HELD_OUT = 0.1  # of the queries, where neither option says
BEYOND = 10  # times as many records as a derived prompt's own may begin with it and go on
PARTS = ("train.jsonl", "val.jsonl")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")  # soft hyphens and characters of no width
_APOSTROPHE = re.compile("[‘’ʼʻ′´`]")
_INSIDE = re.compile(r"(?<=\w)'(?=\w)|(?<=\d),(?=\d)|(?<=\b\w)\.(?=\w\b)")  # don't, 1,000, U.S
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")  # vowel signs
_WORD = re.compile(rf"[\w{_MARKS}]+")
_SIGN = re.compile(r"(?<=[^\W_])(\++|#+)(?![\w+#])|(?<=\d)[ \t]*(\+)[ \t]*(?=\d)")  # c++ is not c, and 2 + 2 is 2+2


def normalised(query: Any) -> str:
    """What is equal for near-duplicates: the words of a text (or of messages, with roles), case folded, with the signs of `c++`,
    `c#` and `2+2`; token ids as they are.

    Of a query in the form of 2020 its title and post, so that a post that stands in two subreddits is one.
    """
    if isinstance(query, str):
        if fields := fields_2020(query):
            query = f"{fields['title']} {fields['post']}"
        seen = unicodedata.normalize("NFKC", _APOSTROPHE.sub("'", query)).casefold()
        seen = _UNSEEN.sub("", unicodedata.normalize("NFKC", seen))  # folding takes some letters apart again
        seen = _SIGN.sub(lambda sign: f" {sign[1] or sign[2]} ".replace("+", "plus").replace("#", "sharp"), seen)
        return " ".join(_WORD.findall(_INSIDE.sub("", seen).replace("_", " "))) or " ".join(query.split())
    if query and isinstance(query[0], dict):
        return "\n".join(f"{message['role']} {normalised(message['content'])}" for message in query)
    return json.dumps(query)


def fraction(text: str, salt: str = "split") -> float:
    """A number from 0 to below 1 that depends on the text (and the salt) alone: the first 8 bytes of a SHA-256."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{text}".encode()).digest()[:8]) / 2**64


def _queries(prompts: list[Any]) -> list[str]:
    """The query of each prompt, normalised; of derived ones the shortest of the file that it begins with, in whole words.

    One that many times more records go on from than have it is no question, but what questions begin with ("User:").
    """
    keys = [normalised(prompt) for prompt in prompts]
    derived = {key for key, prompt in zip(keys, prompts, strict=True) if isinstance(prompt, Derived)}
    words = {key: " ".join(CJK.sub(r" \g<0> ", key).split()) for key in derived}
    counts = Counter(words[key] for key in keys if key in words)
    ordered, asked, end = sorted(counts), {}, 0
    until = [0, *accumulate(counts[key] for key in ordered)]
    for i, key in enumerate(ordered):
        if i >= end:
            last = bisect_left(ordered, f"{key}!", i)  # after what goes on with a space, which is before all other characters
            end = last if until[last] - until[i] <= (1 + BEYOND) * counts[key] else i + 1
            query = key
        asked[key] = query
    return [asked[words[key]] if key in words else key for key in keys]


@dataclass(frozen=True)
class Split(Generic[R]):
    """Training records, held-out records, both in file order; `moved`: those that went to training because of their query."""

    train: list[R]
    held_out: list[R]
    moved: int


def _option_problems(held_out: float | None, first: int | None) -> list[str]:
    """What is wrong with the two options, of which one is given at most."""
    if held_out is not None and first is not None:
        return [f"held_out, first: found {held_out} and {first}, expected one of the two"]
    if held_out is not None and not 0 < held_out < 1:
        return [f"held_out: found {held_out}, expected above 0 and below 1"]
    return [f"first: found {first}, expected at least 1"] if first is not None and first < 1 else []


def split_records(records: Iterable[R], held_out: float | None = None, first: int | None = None) -> Split[R]:
    """Split records by their query (`prompt`, an attribute or a key): no query, and no near-duplicate, is in both parts.

    Args:
        records: Comparisons, prompts, demonstrations, or dicts with a `prompt`.
        held_out: Share of the *queries* held out; which ones depends on their normalised text alone. None: a tenth.
        first: In place of that: the first so many records train (2019); a later one whose query is among them is moved there.

    Raises:
        UsageError: An option out of range, both options, or a part without a record.
    """
    if problems := _option_problems(held_out, first):
        raise UsageError("\n".join(problems))
    share = HELD_OUT if held_out is None else held_out
    rows = list(records)
    keys = _queries([row["prompt"] if isinstance(row, dict) else row.prompt for row in rows])  # type: ignore[attr-defined]
    seen = set(keys[:first]) if first is not None else set()
    trains = [key in seen if first is not None else fraction(key) >= share for key in keys]
    found = Split(
        train=[row for row, train in zip(rows, trains, strict=True) if train],
        held_out=[row for row, train in zip(rows, trains, strict=True) if not train],
        moved=sum(trains[first:]) if first is not None else 0,
    )
    for name, part in (("train", found.train), ("held-out", found.held_out)):
        if not part:
            among = f"among {len(rows)} with {len(set(keys))} queries"
            raise UsageError(f"split: found no {name} record {among}, expected at least one")
    return found


def _output_problems(path: PathLike, output: Path) -> list[str]:
    """What keeps the two files from being written: records there that are the input, or of one's own; a folder that cannot be."""
    if problem := never_writable(output):
        return [f"output: {problem}"]
    for part in (output / name for name in PARTS):
        if part.exists() and any(part.samefile(file) for file in members(path)):
            return [f"output: {part} is the input, and is not replaced; expected another folder"]
    problem = made_elsewhere(output, PARTS)
    return [problem] if problem else []


def split_comparisons(
    path: PathLike,
    output: str,
    held_out: float | None = None,
    first: int | None = None,
    format: str | None = None,
    strict: bool = False,
) -> None:
    """Split comparisons of any readable format by query and write them as {train,val}.jsonl.

    Args:
        path: File, directory, glob or Hub id of comparisons.
        output: Folder of the two files; those of an earlier run are replaced, others are not.
        held_out: Share of the queries held out; which ones depends on their text alone, not on the order. Null: a tenth.
        first: In place of held_out: the first so many records train, the rest is held out (2019).
        format: Format of the file; null: detected.
        strict: Raise at the first record that cannot be used, in place of skipping it.

    Raises:
        UsageError, DataError: An option or a file is wrong.
    """
    if problems := _option_problems(held_out, first) + _output_problems(path, Path(output)):
        raise UsageError("\n".join(problems))
    share = HELD_OUT if held_out is None and first is None else held_out
    info = RunInfo("split", None, {"path": str(path), "held_out": share, "first": first, "format": format}, [str(path)])
    reader = read_comparisons(path, format, strict=strict)
    found = split_records(reader, held_out, first)
    sizes = [write_jsonl(Path(output) / name, rows) for name, rows in zip(PARTS, (found.train, found.held_out), strict=True)]
    counts = {"train": sizes[0], "val": sizes[1], "moved": found.moved}
    info.write(output, figures={**counts, "format": reader.format, "skipped": reader.skipped_at})
    skipped = {why: len(lines) for why, lines in reader.skipped.items()}
    print(
        f"{output}: {counts['train']} train, {counts['val']} held out (format {reader.format}); "
        f"moved to train because their query is there: {found.moved}; skipped: {skipped or 'none'}"
    )
