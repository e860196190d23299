"""Texts that queries are cut from: novels, posts, articles, in the files that people have, one at a time and checked.

A source is `novels` (the embedded excerpts), a file, a folder with files of one kind, a glob, or a dataset on the Hub:

- `.txt` (`.gz` allowed): a text a paragraph (blank lines between); a file whose first 1,000 lines have no blank one
  (BookCorpus: a sentence a line; some novels) gives texts of at least 1,000 characters, of whole lines;
- `.story`: CNN and Daily Mail articles with `@highlight` sections, a file each;
- JSON lines, a JSON array, CSV, Parquet, Arrow: one of `FORMATS`, known by its fields. Posts and articles are cleaned
  (`cleaning.py`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from .cleaning import clean_cnndm, clean_tldr
from .files import DataError, bad, is_hub_id, is_there, kind_of, list_files, open_bytes, read_rows
from .models import ASSETS
from .tasks import UsageError

KINDS = (".txt", ".story", ".jsonl", ".json", ".csv", ".parquet", ".arrow")
LONGEST = 100_000  # characters of a paragraph, which ends with the line
UNBROKEN = 1000  # lines without a blank one, after which a .txt file is read by lines; and characters of a text made of them


@dataclass(frozen=True)
class Source:
    """A text, where it is from, the human's summary of it where there is one, and the fields of a 2020 query."""

    text: str
    where: str
    reference: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    ids: list[int] | None = None  # in place of the text, where a model wrote it
    format: str = field(default="plain text", compare=False)


FORMATS: dict[str, str] = {
    "tldr": "{subreddit, title, post, summary or reference}: OpenAI's filtered TL;DR",
    "webis": "{content, summary, subreddit?, title?}: Webis-TLDR-17",
    "cnndm": "{article, highlights, id?}: CNN/DailyMail as on the Hub",
    "prompt": "{prompt, reference or completion?}: queries as they are",
    "text": "{text, source?}: any text, BookCorpus",
}


def format_of(record: dict[str, Any]) -> str | None:
    """The format that a record's fields name, or None."""
    if {"title", "post"} <= record.keys():
        return "tldr"
    if {"content", "summary"} <= record.keys():
        return "webis"
    if {"article", "highlights"} <= record.keys():
        return "cnndm"
    return next((name for name in ("prompt", "text") if name in record), None)


def source_problems(source: str) -> list[str]:
    """What keeps a source from being read, in words."""
    if source == "novels":
        return []
    if not is_there(source):
        expected = "novels, self or a path (or a glob, or owner/name on the Hub)"
        return [f"source: {source!r}: found no such file or folder, expected {expected}"]
    if not is_hub_id(source):
        try:
            list_files(source, KINDS)
        except DataError as error:
            _, empty, deeper = str(error).partition("a glob that matches")
            found = f"found no .txt file in the folder, nor another that can be read{deeper}" if empty else str(error)
            return [f"source: {source!r}: {found}"]
    return []


def texts_of(source: str) -> Iterator[Source]:
    """Every text of a source; raises DataError or UsageError."""
    if problems := source_problems(source):
        raise UsageError("\n".join(problems))
    if source == "novels":
        source = str(ASSETS / "novels" / "excerpts.jsonl.gz")
    files = [source] if is_hub_id(source) else list_files(source, KINDS)
    for file in files:
        if kind_of(file) == ".txt":
            yield from _txt(file)
        elif kind_of(file) == ".story":
            yield _story(file)
        else:
            yield from _records(file)


def _lines(file: str) -> Iterator[str]:
    """Lines of a text file; raises DataError with the line of a byte that is not UTF-8, or for damaged gzip."""
    number = 0
    try:
        with open_bytes(file) as handle:
            for number, raw in enumerate(handle, 1):
                try:
                    yield raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    byte = f"a byte {error.object[error.start]:#04x} that is not UTF-8"
                    raise DataError(f"{file}:{number}: found {byte}, expected UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise bad(f"{file}:{number + 1}", None, f"an unreadable file ({error})", "a whole one") from error


def _txt(file: str) -> Iterator[Source]:
    """Paragraphs; or, without blank lines, whole lines until they have `UNBROKEN` characters."""
    lines = _lines(file)
    head = list(islice(lines, UNBROKEN))
    by_lines = len(head) == UNBROKEN and all(line.strip() for line in head)
    text, number = "", 0
    for number, line in enumerate(chain(head, lines), 1):
        text = f"{text} {line.strip()}".strip()
        if text and (len(text) >= UNBROKEN if by_lines else not line.strip() or len(text) >= LONGEST):
            yield Source(" ".join(text.split()), f"{Path(file).name}:{number}")
            text = ""
    if text:
        yield Source(" ".join(text.split()), f"{Path(file).name}:{number}")


def _story(file: str) -> Source:
    """An article and its highlights, a line each."""
    article, *highlights = "\n".join(_lines(file)).split("@highlight")
    reference = "\n".join(h.strip() for h in highlights if h.strip()) or None
    return Source(clean_cnndm(article), Path(file).name, reference, format="story")


def _records(file: str) -> Iterator[Source]:
    """Records of one format, which the first one names; an error has file, line and field."""
    format = None
    for at, _, record in read_rows(file):
        format = format or format_of(record)
        if format is None:
            known = "; ".join(f"{name} {about}" for name, about in FORMATS.items())
            raise DataError(f"{at}: field 'text': found nothing, expected a string, or the fields of one of the formats: {known}")
        yield replace(_PARSERS[format](record, at), format=format)


def _get(record: dict[str, Any], at: str, name: str) -> str:
    """A field that must be a string."""
    if not isinstance(record.get(name), str):
        found = "nothing" if record.get(name) is None else type(record[name]).__name__
        raise DataError(f"{at}: field {name!r}: found {found}, expected a string")
    return str(record[name])


def _where(record: dict[str, Any], at: str) -> str:
    """The record's own id, or its file and line."""
    return str(next((record[name] for name in ("source", "id") if record.get(name) is not None), Path(at).name))


def _tldr(record: dict[str, Any], at: str) -> Source:
    text = clean_tldr(_get(record, at, "post"))
    summary = "summary" if record.get("summary") is not None else "reference"
    reference = clean_tldr(_get(record, at, summary)) if record.get(summary) is not None else None
    fields = {"subreddit": _get(record, at, "subreddit"), "title": _get(record, at, "title"), "post": text}
    return Source(text, _where(record, at), reference or None, fields)


def _webis(record: dict[str, Any], at: str) -> Source:
    text = clean_tldr(_get(record, at, "content"))
    reference = clean_tldr(_get(record, at, "summary")) if record.get("summary") is not None else None
    fields = {k: _get(record, at, k) for k in ("subreddit", "title") if record.get(k) is not None}
    return Source(text, _where(record, at), reference or None, {**fields, "post": text})


def _cnndm(record: dict[str, Any], at: str) -> Source:
    reference = "\n".join(line.strip() for line in _get(record, at, "highlights").split("\n") if line.strip())
    return Source(clean_cnndm(_get(record, at, "article")), _where(record, at), reference or None)


def _prompt(record: dict[str, Any], at: str) -> Source:
    name = "completion" if record.get("reference") is None and isinstance(record.get("completion"), str) else "reference"
    reference = _get(record, at, name) if record.get(name) is not None else None
    return Source(_get(record, at, "prompt"), _where(record, at), reference or None)


def _text(record: dict[str, Any], at: str) -> Source:
    return Source(_get(record, at, "text"), _where(record, at))


_PARSERS: dict[str, Callable[[dict[str, Any], str], Source]] = {
    "tldr": _tldr, "webis": _webis, "cnndm": _cnndm, "prompt": _prompt, "text": _text,
}  # fmt: skip
