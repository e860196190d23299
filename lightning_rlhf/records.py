"""Records on disk: comparisons, demonstrations, prompts, ratings and samples, read one at a time and checked.

Files are JSON lines (`.gz` allowed; a directory or a glob of them too), one JSON array, CSV, Parquet or Arrow.
Whatever the layout of the labels (`FORMATS`), each comes out as a `Comparison`. A malformed record raises
`DataError` with file, line, field, what was found and what was expected. A well-formed record that can
train nothing (an empty side, identical sides, prompts that differ) is skipped and counted; too many of
those raise as well.

    reader = read_comparisons("labels.jsonl.gz")
    comparisons = list(reader)
    print(reader.format, reader.skipped)
"""

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar, cast

from .fields import (
    Comparison,
    Demonstration,
    LeftOut,
    Prompt,
    Rating,
    Sample,
    Text,
    Unusable,
    a_reference,
    a_string,
    a_text,
    an_integer,
    check_texts,
    kind,
    label_type,
    nearest_to,
    optional,
    pairs,
    rest_of,
    the_scores,
    the_texts,
)
from .files import DataError, PathLike, Row, bad, check, read_rows, with_messages
from .formats import COMPARISONS, FORMATS, Layout, pair_of_texts, prompts_elsewhere, rating

__all__ = [
    "FORMATS", "Comparison", "ComparisonReader", "DataError", "Demonstration", "Prompt", "Rating", "RecordReader", "Sample",
    "Text", "kind", "label_type", "pairs", "read_comparisons", "read_demonstrations", "read_prompts", "read_ratings",
    "read_samples",
]  # fmt: skip

MAX_SKIPPED = 0.01  # share of records that may be well-formed and of no use
PEEKED = 100  # records, of which the first that decides names the file's format
OPENAI_2019 = {"openai_2019", "scalar_compare", "rating"}  # the label files of 2019 are of three types
T = TypeVar("T")


def _detect(layouts: tuple[Layout, ...], record: dict) -> Layout | None:
    """The layout that a record decides for; None where it could be of several (an empty side), or of none."""
    fitting = (layout for layout in layouts if all(record.get(key) is not None for key in layout.keys))
    return next((layout for layout in fitting if layout.when(record)), None)


def _nearest_layout(layouts: tuple[Layout, ...], row: Row) -> Layout:
    """For a file none of whose first records decides, by the first: with one format to choose from, its nearest layout."""
    at, _, record = row
    missing = [[key for key in layout.keys if record.get(key) is None] for layout in layouts]
    names = dict.fromkeys(layout.format for layout in layouts)
    fitting = [layout for layout, lacks in zip(layouts, missing, strict=True) if not lacks]
    if fitting and "pair" not in names:  # pair_implicit has texts last, which a format that is given reads beside any column
        return fitting[-1] if isinstance(record.get("chosen"), str) and "chosen" in fitting[-1].keys else fitting[0]
    if pair := next((layout for layout in fitting if layout.format == "pair"), None):
        return pair  # a side of each record is empty
    if fitting and not all(isinstance(record[side], (str, list)) for side in ("chosen", "rejected")):
        return fitting[0]  # which then says what is wrong with that field
    lacks, nearest = min(zip(missing, layouts, strict=True), key=lambda pair: len(pair[0]))
    if len(names) == 1:
        return nearest  # its first record then raises, naming the field that is missing
    found = f"the fields {', '.join(record) or '(none)'}"
    elsewhere = next(iter(prompts_elsewhere(record)), None)
    if not lacks and elsewhere and "prompt" not in record:
        found += f" (is '{elsewhere}' meant to be 'prompt'? if the sides repeat it, say that the format is pair_implicit)"
    elif len(lacks) == 1 and lacks[0] in record:
        found += f" (nearest to {nearest.format}, whose '{lacks[0]}' is null)"
    elif len(lacks) == 1:
        hint = nearest_to(lacks[0], record)
        found += f" (nearest to {nearest.format}, without '{lacks[0]}'{hint})"
        names = {nearest.format: None} if hint else names  # a slip in one name: its format is all that is wanted
    known = "; ".join(f"{name} {FORMATS[name]}" for name in names)
    raise bad(at, None, found, f"one of the formats {known}" if len(names) > 1 else f"the format {known}")


def _failing(error: DataError) -> Iterator[Row]:
    """Rows of which the first raises."""
    raise error
    yield


class RecordReader(Iterator[T], Generic[T]):
    """Iterates over records. `format` is known from the start; `skipped` (reason -> line numbers; `skipped_at`: with the file,
    where it is one of several) grows.

    At the end, a share of skipped records above `max_skipped`, or no usable record, raises DataError with
    the counts. `strict` raises at the first record that would be skipped. Neither counts records that are meant to be left out
    (`LeftOut`).
    """

    def __init__(
        self, path: PathLike, layouts: tuple[Layout, ...], strict: bool, max_skipped: float
    ) -> None:
        self.path, self.strict, self.max_skipped = os.fspath(path), strict, max_skipped
        if not 0 <= max_skipped <= 1:
            raise bad(self.path, "max_skipped", str(max_skipped), "a share from 0 to 1")
        self.skipped: dict[str, list[int]] = {}
        self.skipped_at: dict[str, list[str]] = {}  # with the file, where it is one of several
        self._left_out: set[str] = set()  # the reasons that are no fault of the file
        self.count = 0  # records read so far, the skipped ones too
        self.at = ""  # file and line of the last one
        rows: Iterator[Row] = ((at, number, with_messages(record, at)) for at, number, record in read_rows(path))
        peeked = [next(rows)]  # an empty file raises here
        layout = _detect(layouts, peeked[0][2])
        try:
            while layout is None and len(peeked) < PEEKED and (row := next(rows, None)):
                peeked.append(row)
                layout = _detect(layouts, row[2])
        except DataError as error:  # told when the rows before it have been read
            rows = _failing(error)
        self._layout = layout or _nearest_layout(layouts, peeked[0])
        self._rows: Iterator[Row] = chain(peeked, rows)
        self.format, self._keys = self._layout.format, self._layout.keys
        known = [self._layout, *(one for one in layouts if layout is None and one.format == self.format)]
        self._fields = ", or ".join(dict.fromkeys(", ".join(one.keys) for one in known))
        if self._layout.gather:
            self._rows, self._keys = self._layout.gather(self._rows), ()

    def __next__(self) -> T:
        while True:
            row = next(self._rows, None)
            if row is None:
                self._finish()
                raise StopIteration
            at, number, record = row
            self.count += 1
            for key in self._keys:
                if key not in record:
                    others = [name for name in record if name not in self._keys]
                    found = f"only {', '.join(record) or 'an empty object'}{nearest_to(key, others)}"
                    raise bad(at, key, found, f"the fields {self._fields}")
                check(record[key] is not None, None, at, key, "a value")
            try:
                self.at = at
                return self._layout.parse(record, at)
            except Unusable as reason:
                if isinstance(reason, LeftOut):
                    self._left_out.add(str(reason))
                elif self.strict:
                    raise bad(
                        at, None, f"an unusable record: {reason}", "usable ones only (strict)"
                    ) from None
                self.skipped.setdefault(str(reason), []).append(number)
                place = str(number) if at.startswith(f"{self.path}:") else at
                self.skipped_at.setdefault(str(reason), []).append(place)

    def placed(self) -> Iterator[tuple[str, T]]:
        """The records, each after its file and line."""
        return ((self.at, record) for record in self)

    def reasons(self) -> str:
        """What was left out, by reason, and where; empty where nothing was."""
        return "; ".join(f"{len(n)} {why} (at {', '.join(n[:8])})" for why, n in self.skipped_at.items())

    def _finish(self) -> None:
        self._rows = iter(())
        left_out = sum(len(self.skipped[why]) for why in self._left_out)
        unusable, of = sum(map(len, self.skipped.values())) - left_out, self.count - left_out
        if unusable == of or unusable > self.max_skipped * of:
            beside = f", {left_out} left out" if left_out else ""
            found = f"{unusable} of {of} records unusable{beside}: {self.reasons()}"
            raise bad(self.path, None, found, f"at most {100 * self.max_skipped:g} %, and one usable")


class ComparisonReader(RecordReader[Comparison]):
    """What `read_comparisons` returns."""


def read_comparisons(
    path: PathLike, format: str | None = None, *, strict: bool = False, max_skipped: float = MAX_SKIPPED
) -> ComparisonReader:
    """Read human comparisons from a file, a directory, a glob or a Hub dataset, in any of FORMATS.

    format: one of FORMATS (openai_2019: any of its three label types; best_of_N, scalar_rating: as the paper names them); None
    detects it from the first record. strict: raise at the first unusable record. max_skipped: share of unusable records above
    which the end of the file raises. The reader has `.format` and `.skipped`. Raises DataError, as this module's docstring says.
    """
    named = {"openai_2019": OPENAI_2019, "best_of_N": {"openai_2019", "best_of_n"}, "scalar_rating": {"rating"}}
    wanted = set(FORMATS) if format is None else named.get(format, {format})
    if not wanted <= set(FORMATS):
        raise bad(os.fspath(path), "format", f"'{format}'", f"one of {', '.join(FORMATS)}")
    layouts = tuple(layout for layout in COMPARISONS if layout.format in wanted)
    if format == "pair_implicit":
        asked_for = partial(pair_of_texts, asked_for=True)
        layouts = tuple(one._replace(parse=asked_for) if one.parse is pair_of_texts else one for one in layouts)
    return ComparisonReader(path, layouts, strict, max_skipped)


def _last_answer(record: dict, at: str) -> tuple[list[dict], list[dict]]:
    """{messages}: what stands before the last message, and that, where it is the assistant's; else all and nothing."""
    messages = cast(list[dict], a_text(record["messages"], at, "messages"))
    check(kind(messages) == "messages", record["messages"], at, "messages", "a list of {role, content}")
    answered = messages[-1]["role"] == "assistant"
    return (messages[:-1], messages[-1:]) if answered else (messages, [])


def _demonstration_in_messages(record: dict, at: str) -> Demonstration:
    prompt, answer = _last_answer(record, at)
    check(bool(answer), record["messages"][-1]["role"], at, "messages", "a last message of the role assistant")
    return _demonstration({**rest_of(record, "messages"), "prompt": prompt, "completion": answer}, at)


def _prompt_in_messages(record: dict, at: str) -> Prompt:
    prompt, answer = _last_answer(record, at)
    reference = {"reference": answer[0]["content"]} if answer else {}
    return _prompt({**reference, **rest_of(record, "messages"), "prompt": prompt}, at)


def _demonstration(record: dict, at: str) -> Demonstration:
    prompt, completion = the_texts(record, at, "prompt", "completion")
    label = record.get("label")  # TRL's unpaired preferences
    if label.strip().lower() in ("false", "0", "0.0") if isinstance(label, str) else label == 0:  # False too
        raise LeftOut("label is false")
    check_texts(prompt, [completion], at, "completion")
    return Demonstration(prompt, completion, rest_of(record, "prompt", "completion"))


def _prompt(record: dict, at: str) -> Prompt:
    prompt = a_text(record["prompt"], at, "prompt")
    reference = optional(record, at, "reference", a_reference) or None  # a table's empty cell is none
    check_texts(prompt, [], at, "prompt")
    return Prompt(prompt, reference, rest_of(record, "prompt", "reference"))


def _of_file(at: str) -> str:
    """What a file's name says, of `file:line`."""
    return re.sub(r"(\.(jsonl|json|csv|parquet))?(\.gz)?$", "", Path(at.rpartition(":")[0]).name)


def _sample(record: dict, at: str) -> Sample:
    """An empty response is a sample like any other: that policy said nothing."""
    name = check(type(record["id"]) in (str, int), record["id"], at, "id", "a string or an integer")
    return Sample(
        id=str(name),
        index=an_integer(record.get("index", 0), at, "index"),
        task=optional(record, at, "task", a_string),
        policy=a_string(record.get("policy", _of_file(at)), at, "policy"),
        prompt=a_text(record["prompt"], at, "prompt"),
        response=a_text(record["response"], at, "response"),
        reference=optional(record, at, "reference", a_reference),
        seed=optional(record, at, "seed", an_integer),
        scores=optional(record, at, "scores", the_scores),
        meta=rest_of(record, *(f.name for f in fields(Sample) if f.name != "meta")),
    )


def read_demonstrations(
    path: PathLike, *, strict: bool = False, max_skipped: float = MAX_SKIPPED
) -> RecordReader[Demonstration]:
    """Read `{prompt, completion}` or `{messages}`; errors, skipping and options as in `read_comparisons`.

    Where a `label` is false (or 0, or either as text) the record is left out, under that reason, which is no fault of the file.
    """
    layouts = (
        Layout("demonstration", ("prompt", "completion"), _demonstration),
        Layout("demonstration", ("messages",), _demonstration_in_messages),
    )
    return RecordReader(path, layouts, strict, max_skipped)


def read_prompts(path: PathLike, *, strict: bool = False, max_skipped: float = MAX_SKIPPED) -> RecordReader[Prompt]:
    """Read `{prompt, reference?}` or `{messages}`; errors, skipping and options as in `read_comparisons`."""
    layouts = (Layout("prompt", ("prompt",), _prompt), Layout("prompt", ("messages",), _prompt_in_messages))
    return RecordReader(path, layouts, strict, max_skipped)


def read_ratings(path: PathLike, *, strict: bool = False, max_skipped: float = MAX_SKIPPED) -> RecordReader[Rating]:
    """Read `{prompt, response, rating}` or `{query, sample, score}`; the rest as in `read_comparisons`."""
    keys = (("prompt", "response", "rating"), ("query", "sample", "score"))
    return RecordReader(path, tuple(Layout("rating", names, rating) for names in keys), strict, max_skipped)


def read_samples(path: PathLike) -> RecordReader[Sample]:
    """Read `{id, policy?, prompt, response, index?, task?, reference?, seed?, scores?}`; without a policy it is the file's name.

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

    return RecordReader(path, (Layout("sample", ("id", "prompt", "response"), parse),), False, 0.0)
