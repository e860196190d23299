"""Files of records: JSON lines (`.gz` allowed), one JSON array, CSV, Parquet, Arrow as `save_to_disk` writes it, Hub datasets →
objects with their file and line, and back.

A path is a file, a directory with files of one kind, a glob, or a dataset on the Hugging Face Hub: `owner/name`,
`owner/name:split` or `owner/name:config:split` (split train by default), where no file of that name is there.

Reading streams: a line, or a chunk and an item, at a time. Whatever goes wrong is a `DataError` that says where, what was
found and what was expected. Writing is atomic.
"""

import ast
import csv
import glob
import gzip
import hashlib
import io
import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import fields, is_dataclass
from datetime import date, timedelta
from datetime import time as clock_time
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import IO, Any, NoReturn, cast

PathLike = str | os.PathLike[str]
Row = tuple[str, int, dict[str, Any]]  # "file:line", line, object


class DataError(ValueError):
    """A record or file that cannot be used: `file:line: field 'name': found this, expected that`."""


def bad(at: str, name: str | None, found: str, expected: str) -> DataError:
    return DataError(f"{at}: {f'field {name!r}: ' if name else ''}found {found}, expected {expected}")


def show(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def check(ok: bool, value: Any, at: str, name: str | None, expected: str) -> Any:
    if not ok:
        raise bad(at, name, show(value), expected)
    return value


# ----------------------------------------------------------------------------------- from bytes to objects


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:i]))
        raise ValueError(f"the name {twice!r} twice in one object")
    return names


# By default Python accepts NaN and Infinity, and of a name that stands twice takes the last value.
_JSON = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)
_BLANK = object()


_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+){0,2}")
_KINDS = {".jsonl", ".json", ".csv", ".parquet", ".arrow", ".txt", ".story"}  # which no dataset on the Hub is called
# what a command, or `datasets`, leaves beside records
_BESIDE = ("run.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def _is_beside(name: str) -> bool:
    return name in _BESIDE or name.endswith(".key.json")  # of `python -m eval`: what a file was made from


def kind_of(name: str) -> str:
    """A file's suffix without `.gz`, such as `.jsonl`."""
    return os.path.splitext(name.lower().removesuffix(".gz"))[1]


def list_files(path: PathLike, kinds: tuple[str, ...] = (".jsonl", ".json", ".csv", ".parquet", ".arrow")) -> list[str]:
    """The file itself, a directory's files of those kinds (with or without .gz) sorted, or a glob's matches sorted, in both
    without what only stands beside records.

    Raises:
        DataError: No such file in the directory or for the glob, or several kinds side by side.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        inside = sorted(str(f) for f in Path(name).iterdir() if not (_is_beside(f.name) or f.name.startswith(".")))
        found = [file for file in inside if kind_of(file) in kinds]
        if len(several := {kind_of(file) for file in found}) > 1:
            kept = ", ".join(sorted(several))
            raise bad(name, None, f"files of several kinds ({kept})", "one kind; name it by a glob such as *.csv")
    elif os.path.exists(name) or not glob.has_magic(name):
        if os.path.exists(name) and not os.path.isfile(name):
            raise bad(name, None, "a pipe or device", "a file, which is opened more than once")
        return [name]
    else:
        matches = (file for file in glob.glob(name, recursive=True) if not _is_beside(os.path.basename(file)))
        found = sorted(file for file in matches if os.path.isfile(file))
    zipped = {file[:-3]: os.path.basename(file) for file in found if file.lower().endswith(".gz")}
    if twice := sorted(file for file in found if file in zipped):
        raise bad(name, None, f"{twice[0]} and {zipped[twice[0]]}", "one of the two")
    if not found:
        below = sorted(Path(name).rglob("*")) if os.path.isdir(name) else []
        deeper = next((f for f in below if kind_of(f.name) in kinds and not _is_beside(f.name)), None)
        where = f" ({deeper} stands deeper: {name}/**/*{kind_of(deeper.name)} reads subfolders)" if deeper else ""
        raise bad(name, None, "no file", f"a directory with *{', *'.join(kinds)} files, or a glob that matches{where}")
    return found


def is_hub_id(path: PathLike) -> bool:
    """Whether a path names a dataset on the Hub: `owner/name[[:config]:split]`, no file of a known kind, and nothing on disk."""
    name = os.fspath(path)
    return bool(_HUB.fullmatch(name)) and kind_of(name) not in _KINDS and not os.path.exists(name.split("/")[0])


def is_there(path: PathLike) -> bool:
    """Whether a path names something that can be opened: a file, a directory, a glob that matches, or a dataset on the Hub."""
    name = os.fspath(path)
    return os.path.exists(name) or bool(glob.has_magic(name) and glob.glob(name, recursive=True)) or is_hub_id(name)


def open_bytes(file: str) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file, "rb") if file.lower().endswith(".gz") else open(file, "rb"))


def _encodable(value: Any, source: str) -> Any:
    """`value`, parsed from `source`; half a surrogate pair, which an escape can spell, raises."""
    if "\\ud" in source or "\\uD" in source:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _json_lines(file: str) -> Iterator[tuple[int, Any]]:
    with open_bytes(file) as handle:
        for number, raw in enumerate(handle, 1):
            text = raw.decode("utf-8")
            text = text.removeprefix("\ufeff") if number == 1 else text
            yield number, _encodable(_JSON.decode(text), text) if text.strip() else _BLANK


def _utf8(text: str) -> None:
    """Raise UnicodeDecodeError for a byte that was not UTF-8; a reader of chunks lets it through, so that its place is told."""
    if not text.isascii():
        text.encode(errors="surrogateescape").decode("utf-8")


def _json_array(file: str, chunk: int = 1 << 16) -> Iterator[tuple[int, Any]]:
    """The items of one array, counted from 1; holds a chunk and an item at a time."""
    number, buffer, ended = 1, "", False
    with open_bytes(file) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape") as handle:
        while True:
            buffer = buffer.lstrip()
            separator, body = buffer[:1], buffer[1:].lstrip()
            if separator == "]" and number > 1:
                if (body + handle.read(chunk)).strip():
                    raise ValueError("text after the end of the array")
                return
            try:
                if separator != ("," if number > 1 else "["):
                    raise json.JSONDecodeError("Expecting ',' or ']'", buffer, 0)
                value, end = _JSON.raw_decode(body)
            except json.JSONDecodeError as error:
                if number == 1 and body.startswith("]"):
                    return
                # An item that the buffer cuts off fails near the buffer's end, or as an unterminated string.
                cut = error.msg.startswith("Unterminated") or len(error.doc) - error.pos < 16
                if ended or not cut:
                    raise
                more = handle.read(max(chunk, len(buffer)))
                buffer, ended = buffer + more, not more
                continue
            source = body[:end]
            _utf8(source)
            yield number, _encodable(value, source)
            buffer, number = body[end:], number + 1


# A CSV cell is text. These columns hold a number, a list or an object, as JSON or as Python prints them (pandas does); empty
# cells there mean no value.
_CSV_JSON = {"best", "ranks", "ratings", "rating", "margin", "responses", "score", "difference", "choice", "votes"}
_CSV_JSON |= {"index", "seed", "scores", "machine_summaries", "expert_annotations"}
_CSV_JSON |= {"coherence", "consistency", "fluency", "relevance"}  # SummEval's axes
_WHOLE = {"best", "ranks", "choice", "votes", "index", "seed"}  # integers, which a table holds as floats where some are null
_CSV_OBJECTS = {"info", "summaries", "summary", "systems", "meta"}  # these may: an object, or a list of them
_PRINTED_IDS = re.compile(r"\[\s*\d+(\s+\d+)*\s*\]")
_CUT_IDS = re.compile(r"\[(\s*\d+){3}\s+\.\.\.(\s+\d+){3}\s*\]")  # as NumPy prints more than a thousand
_MESSAGES = re.compile(r"""\[\s*\{\s*(['"])(role\1:.*\1content|content\1:.*\1role)\1:""", re.DOTALL)
_BETWEEN = re.compile(r"""(?<=\})\s+(?=\{(['"])(role|content)\1:)""")  # two messages as NumPy prints them
_CSV_TEXTS = re.compile("messages|prompt|query|sample[0-9]*|chosen|rejected|response|completion")  # these may be ids or messages


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row without its nulls, and with integers where they are meant."""
    as_int = lambda x: int(x) if type(x) is float and x.is_integer() else x  # noqa: E731
    made = lambda x: list(map(as_int, x)) if isinstance(x, list) else as_int(x)  # noqa: E731
    return {name: made(value) if name in _WHOLE else value for name, value in row.items() if value is not None}


def _cells(row: dict[str, str], at: str, in_ids: bool | None) -> tuple[dict[str, Any], bool | None]:
    """A CSV row as the values that it holds, and `in_ids`; what is not JSON stays text, which the check of that field reports.

    Texts that read as lists of numbers are token ids (`in_ids`) where all of the file's first ones do; later ones then are, too.
    """
    texts = {name: _ids_or_messages(text, at, name) for name, text in row.items() if _CSV_TEXTS.fullmatch(name)}
    filled = {name: value for name, value in texts.items() if value not in ("", "[]")}
    other = next((name for name, value in filled.items() if isinstance(value, str) or type(value[0]) is not int), None)
    in_ids = other is None if in_ids is None and filled else in_ids
    if in_ids and other:
        raise bad(at, other, show(row[other]), "token ids, as in the file's first row")
    found: dict[str, Any] = dict(row)
    for name, text in row.items():
        if name in _CSV_JSON:
            found[name] = next(_parsed(text), text) if text.strip() else None
        elif name in _CSV_OBJECTS and text[:1] in ("[", "{"):
            found[name] = next(_parsed(text), text)
        elif name in texts and isinstance(value := texts[name], list) and (in_ids or isinstance(value[0], dict)):
            found[name] = value
        elif text == "[]" and in_ids:
            found[name] = []
    return found, in_ids


def _parsed(text: str) -> Iterator[Any]:
    """What a cell says as JSON, and what it says as Python, where it does."""
    for parse in (_JSON.decode, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            yield parse(text)


def _ids_or_messages(text: str, at: str, name: str) -> Any:
    """The token ids or messages that a text holds, as JSON or as Python or NumPy print them; else the text itself."""
    if text[:1] != "[":
        return text
    if _PRINTED_IDS.fullmatch(text):
        return [int(number) for number in text[1:-1].split()]
    check(not _CUT_IDS.fullmatch(text), text, at, name, "all of its numbers, not '...'")
    in_messages = _MESSAGES.match(text)
    for value in chain(_parsed(text), _parsed(_BETWEEN.sub(", ", text)) if in_messages else ()):
        with suppress(TypeError):
            messages = all(isinstance(x, dict) and {"role", "content"} <= set(x) for x in value)
            if value and (messages or all(type(x) is int for x in value)):
                return value
    check(not in_messages, text, at, name, "a list of {role, content} as JSON or as Python prints it")
    return text


def with_messages(row: dict[str, Any], at: str) -> dict[str, Any]:
    """A row of any container, with the messages that all of its sides hold as texts; in a CSV they are read already."""
    shapes = (("chosen", "rejected"), ("prompt", "completion"), ("prompt",))
    sides = next((names for names in shapes if names[-1] in row), ("messages",))
    held = {name for name in ("prompt", *sides) if isinstance(row.get(name), str) and _MESSAGES.match(row[name])}
    return {**row, **{name: _ids_or_messages(row[name], at, name) for name in held}} if held >= set(sides) else row


def _csv_rows(file: str) -> Iterator[tuple[int, Any]]:
    """By the csv module: pandas would turn the answers "None" and "NA" into nulls, and "42" into a number.

    A row's number is the line of the file that it begins with; its last line comes as a blank one, so that an error after it
    is told where the next row begins.
    """
    csv.field_size_limit(1 << 30)  # its own limit, 128 KB, is shorter than some articles
    with open_bytes(file) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as handle:
        header: list[str] = []
        in_ids: bool | None = None
        reader, end = csv.reader(handle, strict=True), 0
        for cells in reader:
            begin, end = end + 1, reader.line_num
            for text in cells:
                _utf8(text)
            if not header:
                if twice := next((name for i, name in enumerate(cells) if name and name in cells[:i]), None):
                    raise bad(f"{file}:{begin}", twice, "two columns of that name", "one")
                header = cells
            elif cells:
                if len(cells) != len(header):
                    raise csv.Error("more or fewer cells than the header has")
                row, in_ids = _cells(dict(zip(header, cells, strict=True)), f"{file}:{begin}", in_ids)
                yield begin, _whole(row)
            yield end, _BLANK


def _table_rows(file: str) -> Iterator[tuple[int, Any]]:
    """A null cell is an absent field. By pyarrow, on which `datasets` stands: that holds all of a file that it reads ahead."""
    from pyarrow import ipc
    from pyarrow.parquet import ParquetFile

    with open_bytes(file) as handle:
        if kind_of(file) == ".arrow":
            batches = ipc.open_stream(handle)
        else:
            batches = ParquetFile(handle, pre_buffer=False).iter_batches(batch_size=256, use_threads=False)
        parts = (batch.slice(start, 256).to_pylist() for batch in batches for start in range(0, batch.num_rows, 256))
        for number, row in enumerate(chain.from_iterable(parts), 1):
            yield number, _whole(row)


def _hub_rows(name: str) -> Iterator[tuple[int, Any]]:
    """A dataset on the Hub, streamed; a null cell is an absent field."""
    from datasets import load_dataset

    repository, *rest = name.split(":")
    rows = load_dataset(repository, *rest[:-1], split=rest[-1] if rest else "train", streaming=True)
    if getattr(rows, "features", None):
        rows = rows.decode(False)  # pictures and sounds stay bytes
    for number, row in enumerate(rows, 1):
        yield number, _whole(row)


def _explain(error: Exception, in_lines: bool) -> tuple[str, str]:
    """What was found and what was expected, for an error from reading a file."""
    if isinstance(error, UnicodeDecodeError):
        offset = f" at byte offset {error.start} of the line" if in_lines else ""
        return f"byte 0x{error.object[error.start]:02x}{offset}", "UTF-8 text"
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair in an escape", "text that UTF-8 can hold"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON ({error.msg}{f' at column {error.colno}' if in_lines else ''})", "a JSON object"
    if isinstance(error, FileNotFoundError) and error.errno is None:  # what `datasets` raises
        return f"no such file, and no such dataset ({error})", "a file, a directory, a glob or a dataset on the Hub"
    if isinstance(error, FileNotFoundError):
        return "no such file", "a file, a directory or a glob"
    if isinstance(error, ConnectionError):
        return f"no such file, and no way to the Hub ({error})", "a file, a directory, a glob or a dataset on the Hub"
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
        return f"a truncated or damaged gzip file ({error})", "a whole one"
    return f"unreadable data ({error})", "a well-formed file"


def _guarded(file: str, unit: str, rows: Iterator[tuple[int, Any]]) -> Iterator[Row]:
    """`rows` as Rows; every error of reading becomes a DataError that says where."""
    number, empty = 0, True
    try:
        for number, value in rows:
            if value is not _BLANK:
                empty, at = False, f"{file}:{unit}{number}"
                yield at, number, check(isinstance(value, dict), value, at, None, "a JSON object")
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, RecursionError, RuntimeError, OverflowError) as error:
        raise bad(f"{file}:{unit}{number + 1}", None, *_explain(error, not unit and kind_of(file) != ".csv")) from error
    if empty:
        raise bad(f"{file}:{unit}1", None, "an empty file", "at least one record")


def read_rows(path: PathLike) -> Iterator[Row]:
    """Every record of `path`, whatever its container."""
    if is_hub_id(path):
        yield from _guarded(os.fspath(path), "row ", _hub_rows(os.fspath(path)))
        return
    for file in list_files(path):
        kind, head = kind_of(file), b""
        if kind not in (".csv", ".parquet", ".arrow"):
            try:
                with open_bytes(file) as handle:
                    head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            except (OSError, EOFError, zlib.error):
                pass  # _json_lines meets the same error, where it gets its line number
        if kind == ".csv":
            yield from _guarded(file, "", _csv_rows(file))
        elif kind in (".parquet", ".arrow"):
            yield from _guarded(file, "row ", _table_rows(file))
        elif head.startswith(b"["):
            yield from _guarded(file, "item ", _json_array(file))
        else:
            yield from _guarded(file, "", _json_lines(file))


def read_jsonl(path: PathLike) -> Iterator[tuple[str, int, dict]]:
    """Stream `(file, line from 1, object)` from a file, a directory of *.jsonl[.gz] (sorted) or a glob.

    Holds a line at a time; skips blank lines; tolerates a byte order mark. Raises DataError, with file and
    line, for a missing or empty file, truncated gzip, broken JSON, NaN or Infinity, a name twice in one
    object, a byte that is not UTF-8, a line that is not an object.
    """
    for file in list_files(path, (".jsonl",)):
        for _, number, record in _guarded(file, "", _json_lines(file)):
            yield file, number, record


# ------------------------------------------------------------------------------------------------- writing


def _plain(row: Any, at: str) -> dict:
    """A dict as it is; a dataclass without its None fields and with its `meta` at the top level, under
    `meta` what there has the name of a field, or would make a pair of its responses."""
    if isinstance(row, dict):
        return row
    if not is_dataclass(row) or isinstance(row, type):
        raise bad(at, None, f"a {type(row).__name__}", "a dict or a dataclass")
    names = [f.name for f in fields(row) if f.name != "meta"]
    meta = getattr(row, "meta", {})
    own = {name: getattr(row, name) for name in names if getattr(row, name) is not None}
    names += [side for side in ("chosen", "rejected") if meta.get(side) in own.get("responses", ())]
    clash = {name: value for name, value in meta.items() if name in names}
    rest = {name: value for name, value in meta.items() if name not in names}
    if clash:
        rest["meta"] = {**clash, **({"meta": rest["meta"]} if "meta" in rest else {})}
    return {**own, **_finite(rest)}


def _finite(value: Any) -> Any:
    """What stands beside a record, with null for NaN and infinities, which tables hold and JSON cannot."""
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_table(value: Any) -> Any:
    """Of what Parquet holds beside JSON's own: dates and times in ISO 8601, decimals, durations in seconds."""
    if isinstance(value, (date, clock_time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _encode(row: Any, at: str) -> bytes:
    row = _plain(row, at)
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_from_table).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        found = f"a row that JSON cannot hold ({error})"
        raise bad(at, None, found, "strings, finite numbers, lists, dicts") from error


def write_jsonl(path: PathLike, rows: Iterable[Any]) -> int:
    """Write dicts or dataclasses as JSON lines, gzipped where the name ends in .gz; return how many.

    Atomic: readers see the old file or the whole new one, and an error leaves the old one. The same rows
    give the same bytes. Raises DataError for a row that JSON cannot hold: NaN, Infinity, an unknown type.
    """
    path, count = Path(path), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as raw:
            zipped = path.suffix.lower() == ".gz"
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if zipped else nullcontext(raw) as out:
                for count, row in enumerate(rows, 1):
                    out.write(_encode(row, f"{path}:{count}"))
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def append_jsonl(path: PathLike, rows: Iterable[Any]) -> None:
    """Add rows to a file of JSON lines and wait until they are on disk; a kill leaves half a line at most, an error nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(_encode(row, f"{path}: a new row") for row in rows)
    with path.open("ab", buffering=0) as handle:
        before = os.fstat(handle.fileno()).st_size
        try:
            while data:
                data = data[handle.write(data) :]
            os.fsync(handle.fileno())
        except OSError:  # a full disk
            os.ftruncate(handle.fileno(), before)
            raise


def _is_json(data: bytes) -> bool:
    with suppress(ValueError):
        json.loads(data)
        return True
    return False


def whole_lines(path: PathLike) -> int:
    """Lines of a file of JSON lines, 0 where there is none. Half a line at its end, as a killed run may leave, is taken off; a
    whole one without a line end gets one."""
    data = Path(path).read_bytes() if Path(path).is_file() else b""
    whole = data.rfind(b"\n") + 1
    if data[whole:].strip() and _is_json(data[whole:]):
        with Path(path).open("ab") as handle:
            handle.write(b"\n")
        return data.count(b"\n") + 1
    if whole < len(data):
        said = f"{path}: half a line at the end ({len(data) - whole} bytes) was taken off; a run was killed there"
        warnings.warn(said, stacklevel=2)
        os.truncate(path, whole)
    return data.count(b"\n")


def unfinished(path: PathLike, key: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that an interrupted run with the same key left in a file, which is made ready for `append_jsonl`.

    The key, whatever decides the rows, is the file's first line; a file with another key is begun anew.
    """
    path, head = Path(path), json.dumps(key, sort_keys=True).encode()
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []  # what no line end follows was torn off
    if not lines or lines[0] != head:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(head + b"\n")
        return []
    os.truncate(path, sum(len(line) + 1 for line in lines))
    return [json.loads(line) for line in lines[1:]]


def file_sha256(path: PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def members(path: PathLike) -> list[str]:
    """The files on disk that a path names: itself, a directory's (not the records of runs), a glob's; none that is not there."""
    name = os.fspath(path)
    found = glob.glob(os.path.join(glob.escape(name), "*")) if os.path.isdir(name) else [name]
    if not os.path.exists(name) and glob.has_magic(name):
        found = glob.glob(name, recursive=True)
    return sorted(file for file in found if os.path.isfile(file) and (file == name or not _is_beside(os.path.basename(file))))


def content(path: PathLike) -> str:
    """What a path's files hold, as a short hash, wherever they stand; the path itself where there are none."""
    files = members(path)
    if not files:
        return os.fspath(path)
    each = [file_sha256(file) for file in files]
    whole = each[0] if files == [os.fspath(path)] else hashlib.sha256("".join(each).encode()).hexdigest()
    return f"sha256 {whole[:16]}"
