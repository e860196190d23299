"""Texts from the files that people have: each format, what it becomes, and every error by message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_rlhf.files import DataError
from lightning_rlhf.sources import FORMATS, Source, format_of, source_problems, texts_of
from lightning_rlhf.tasks import UsageError

POST = {"subreddit": "cats", "title": "T", "post": " A post.\n\n\n\nEnd. ", "summary": "  short "}
FIELDS = {"subreddit": "cats", "title": "T", "post": "A post.\n\nEnd."}
CASES: dict[str, tuple[dict[str, Any], Source]] = {
    "tldr": (POST, Source("A post.\n\nEnd.", "t.jsonl:1", "short", FIELDS)),
    "tldr with a reference": (
        {**POST, "summary": None, "reference": "r", "id": "t3"},
        Source("A post.\n\nEnd.", "t3", "r", FIELDS),
    ),
    "webis": (
        {"content": " Body. ", "summary": "s", "subreddit": "cats", "author": "a", "body": "Body. TL;DR s"},
        Source("Body.", "t.jsonl:1", "s", {"subreddit": "cats", "post": "Body."}),
    ),
    "webis without a summary": ({"content": "Body.", "summary": None}, Source("Body.", "t.jsonl:1", None, {"post": "Body."})),
    "cnndm": (
        {"article": "(CNN)It rained.\n\n\nA lot.", "highlights": "Rain .\nMore rain .", "id": "x"},
        Source("It rained.\n\nA lot.", "x", "Rain .\nMore rain ."),
    ),
    "prompt": ({"prompt": "Q", "reference": "A"}, Source("Q", "t.jsonl:1", "A")),
    "prompt with an empty reference": ({"prompt": "Q", "reference": ""}, Source("Q", "t.jsonl:1")),
    "text": ({"text": "Once. ", "source": "book"}, Source("Once. ", "book")),
    "text of no known source": ({"text": "Once.", "source": None, "id": None}, Source("Once.", "t.jsonl:1")),
}


def write(file: Path, *rows: Any) -> str:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", CASES)
def test_each_format(name: str, tmp_path: Path) -> None:
    record, expected = CASES[name]
    assert format_of(record) == name.split()[0]
    assert list(texts_of(write(tmp_path / "t.jsonl", record))) == [expected]
    assert {n.split()[0] for n in CASES} == set(FORMATS)


def test_containers(tmp_path: Path) -> None:
    """Gzip, CSV, Parquet, an array, a directory and a glob of posts give the same posts."""
    pandas = pytest.importorskip("pandas")
    rows = [{**POST, "post": f"Post {i}."} for i in range(3)]
    write(tmp_path / "a/1.jsonl", rows[0])
    (tmp_path / "a/2.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows[1:]).encode()))
    write(tmp_path / "all.json", json.dumps(rows))
    pandas.DataFrame(rows).to_csv(tmp_path / "all.csv", index=False)
    pandas.DataFrame(rows).to_parquet(tmp_path / "all.parquet")
    for source in ("a", "a/*.jsonl*", "all.json", "all.csv", "all.parquet"):
        found = list(texts_of(str(tmp_path / source)))
        assert [t.text for t in found] == ["Post 0.", "Post 1.", "Post 2."], source
        assert {t.fields["title"] for t in found} == {"T"}
        assert {t.reference for t in found} == {"short"}


def test_stories(tmp_path: Path) -> None:
    story = "(CNN) -- It rained.\n\nA lot.\n\n@highlight\n\nRain\n\n@highlight\n\nMore rain\n"
    write(tmp_path / "s/b.story", "No highlight.")
    write(tmp_path / "s/a.story", story)
    assert list(texts_of(str(tmp_path / "s"))) == [
        Source("It rained.\n\nA lot.", "a.story", "Rain\nMore rain"),
        Source("No highlight.", "b.story"),
    ]
    assert len(list(texts_of(str(tmp_path / "s/a.story")))) == 1


def test_plain_text(tmp_path: Path) -> None:
    """Paragraphs, gzipped or not; without blank lines, whole lines up to a length."""
    (tmp_path / "n").mkdir()
    (tmp_path / "n/b.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfOne\r\nline.\r\n\r\n \r\nTwo."))
    write(tmp_path / "n/a.txt", "Zero.\n")
    assert [(t.text, t.where) for t in texts_of(str(tmp_path / "n"))] == [
        ("Zero.", "a.txt:1"), ("One line.", "b.txt.gz:3"), ("Two.", "b.txt.gz:5"),
    ]  # fmt: skip
    sentence = "He went out into the rain and came back. "
    found = [t.text for t in texts_of(write(tmp_path / "book.txt", *[sentence + "\n"] * 1500))]
    assert " ".join(found).split() == (sentence * 1500).split()
    assert all(1000 <= len(text) < 1000 + len(sentence) for text in found[:-1])
    # A blank line beyond the first 1,000 lines changes nothing; one within makes paragraphs
    assert len(list(texts_of(write(tmp_path / "late.txt", *["word\n"] * 1001, "\n", *["word\n"] * 9)))) == 6
    assert len(list(texts_of(write(tmp_path / "early.txt", *["word\n"] * 999, "\n", *["word\n"] * 9)))) == 2


def test_the_embedded_novels() -> None:
    first = next(texts_of("novels"))
    assert first.where == "Anon_Clara_1864"
    assert first.reference is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**POST, "post": 3}, r"t\.jsonl:2: field 'post': found int, expected a string"),
        ({**POST, "title": None}, r"t\.jsonl:2: field 'title': found nothing, expected a string"),
        ({**POST, "summary": ["s"]}, r"t\.jsonl:2: field 'summary': found list, expected a string"),
        ({"text": "other"}, r"t\.jsonl:2: field 'post': found nothing, expected a string"),
        ("{broken\n", r"t\.jsonl:2: found broken JSON"),
    ],
)
def test_a_malformed_line_says_where(row: Any, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", POST, row)
    with pytest.raises(DataError, match=message):
        list(texts_of(source))


def test_unknown_fields_list_the_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"field 'text': found nothing, expected a string, or the fields of one of") as e:
        next(texts_of(write(tmp_path / "t.jsonl", {"body": "b"})))
    assert all(name in str(e.value) for name in FORMATS)


def test_damaged_files_say_where(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"First line.\nSecond \xe9 line.\n")
    with pytest.raises(DataError, match=r"t\.txt:2: found a byte 0xe9 that is not UTF-8, expected UTF-8 text"):
        list(texts_of(str(tmp_path / "t.txt")))
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"line\n" * 9999)[:-20])
    with pytest.raises(DataError, match=r"t\.txt\.gz:\d+: found an unreadable file \(.*\), expected a whole one"):
        list(texts_of(str(tmp_path / "t.txt.gz")))


def test_problems_come_before_reading(tmp_path: Path) -> None:
    assert source_problems("novels") == source_problems("owner/dataset:test") == []
    assert "found no such file or folder, expected novels, self or a path" in source_problems("nowhere.txt")[0]
    write(tmp_path / "a.txt", "x")
    write(tmp_path / "b.jsonl", POST)
    assert "found files of several kinds (.jsonl, .txt), expected one kind" in source_problems(str(tmp_path))[0]
    with pytest.raises(UsageError, match="several kinds"):
        next(texts_of(str(tmp_path)))
    (tmp_path / "empty").mkdir()
    assert "found no .txt file in the folder" in source_problems(str(tmp_path / "empty"))[0]
    write(tmp_path / "above/deeper/a.txt", "x")
    assert "deeper/a.txt stands deeper: " in source_problems(str(tmp_path / "above"))[0]
