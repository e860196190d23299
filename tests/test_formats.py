"""Files as people really have them: odd rows first, tables of other programs, dialogues that do not begin alike."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lightning_rlhf import sources
from lightning_rlhf.files import DataError, write_jsonl
from lightning_rlhf.records import read_comparisons, read_demonstrations, read_ratings
from lightning_rlhf.sources import texts_of


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def turns(*texts: str, **more: Any) -> list[dict[str, Any]]:
    """`user: hi` → a message."""
    return [{"role": role, "content": content, **more} for role, content in (text.split(": ", 1) for text in texts)]


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"}
DIALOGUES = {"chosen": turns("user: q", "assistant: x"), "rejected": turns("user: q", "assistant: y")}
TEXTS = {"chosen": "What is it? A cat.", "rejected": "What is it? A dog."}


def test_a_rating_may_have_a_column_called_query(tmp_path: Path) -> None:
    file = lines(tmp_path / "r.jsonl", {"prompt": "p", "response": "r", "rating": 3, "query": "q"})
    (rating,) = read_ratings(file)
    (comparison,) = read_comparisons(file)
    assert (rating.rating, rating.meta) == (3, {"query": "q"})
    assert (comparison.ratings, comparison.responses) == ([3], ["r"])


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": turns("user: hi", "assistant: hello", "user: q1", "assistant: x"),
         "rejected": turns("user: hi", "assistant: hello", "user: q2", "assistant: y")},
        {"chosen": turns("system: s", "user: q1", "assistant: x"), "rejected": turns("system: s", "user: q2", "assistant: y")},
        {"prompt": turns("user: q"), "chosen": turns("user: z", "assistant: x"), "rejected": turns("user: z", "assistant: y")},
    ],
)  # fmt: skip
def test_dialogues_that_go_on_with_another_question_are_skipped(tmp_path: Path, record: dict[str, Any]) -> None:
    good = {**DIALOGUES, **({"prompt": turns("user: q")} if "prompt" in record else {})}
    reader = read_comparisons(lines(tmp_path / "d.jsonl", good, record), max_skipped=0.5)
    assert len(list(reader)) == 1
    assert reader.skipped == {"prompts differ": [2]}


@pytest.mark.parametrize(
    ("prompt", "agrees"),
    [
        ("What is it?", True),
        ("What is\n it? ", True),  # spaces do not count
        ("Be brief.", True),
        ("Be brief. What is it?", True),  # the whole dialogue as a text
        (turns("user: What is it?"), True),
        ("", True),
        ("What is 2+2?", False),
        (turns("user: What is 2+2?"), False),
    ],
)
def test_a_prompt_beside_dialogues_must_be_theirs(tmp_path: Path, prompt: Any, agrees: bool) -> None:
    asked = turns("system: Be brief.", "user: What is it?")
    sides = {"chosen": [*asked, *turns("assistant: x")], "rejected": [*asked, *turns("assistant: y")]}
    reader = read_comparisons(lines(tmp_path / "d.jsonl", sides, {**sides, "prompt": prompt}), max_skipped=0.5)
    assert [c.prompt for c in reader] == [asked] * (1 + agrees)
    assert reader.skipped == ({} if agrees else {"prompts differ": [2]})


@pytest.mark.parametrize(("good", "name"), [(HH, "hh"), (TEXTS, "pair_implicit")])
def test_a_prompt_beside_dialogues_in_strings_must_be_theirs(tmp_path: Path, good: dict[str, Any], name: str) -> None:
    asked = "q" if name == "hh" else "What is it?"
    rows = good, {**good, "prompt": asked}, {**good, "prompt": "2+2?"}
    reader = read_comparisons(lines(tmp_path / "d.jsonl", *rows), max_skipped=0.5)
    assert len(list(reader)) == 2 and reader.format == name and reader.skipped == {"prompts differ": [3]}


def test_a_prompt_that_stands_in_a_side_again_is_taken_off(tmp_path: Path) -> None:
    one_side = {"prompt": turns("user: q"), "chosen": turns("user: q", "assistant: x"), "rejected": turns("assistant: y")}
    nulls = {"prompt": turns("user: q"), "chosen": turns("user: q", "assistant: x", name=None),
             "rejected": turns("user: q", "assistant: y", name=None)}  # fmt: skip
    for found in read_comparisons(lines(tmp_path / "d.jsonl", one_side, nulls)):
        assert [[m["content"] for m in response] for response in found.responses] == [["x"], ["y"]]  # type: ignore[index]


def test_a_table_as_pandas_and_numpy_print_it(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "prompt,chosen,rejected\n\"[{'role': 'user', 'content': \"\"it's q\"\"}]\",\"[{'role': 'assistant', 'content': 'x'}]\","
        "\"[{'role': 'assistant', 'content': 'y'}]\"\n"
    )
    (found,) = read_comparisons(tmp_path / "m.csv")
    assert found.prompt == turns("user: it's q") and found.responses[1] == turns("assistant: y")
    (tmp_path / "ids.csv").write_text("query,sample0,sample1,best\n[    1     2 50259],[3 50259],[  4   5],1.0\n")
    (found,) = read_comparisons(tmp_path / "ids.csv")
    assert (found.prompt, found.responses, found.best) == ([1, 2], [[3], [4, 5]], 1)
    (tmp_path / "t.csv").write_text('prompt,chosen,rejected\n"[3, 1, 2]",sorted,not sorted\n')
    (found,) = read_comparisons(tmp_path / "t.csv")
    assert found.prompt == "[3, 1, 2]"


@pytest.mark.parametrize(
    ("first", "rest", "name", "reason"),
    [
        ({"chosen": [], "rejected": DIALOGUES["rejected"]}, DIALOGUES, "pair_implicit", "empty response"),
        ({"prompt": "q", "chosen": [], "rejected": DIALOGUES["rejected"]}, {"prompt": "q", **DIALOGUES}, "pair_implicit",
         "empty response"),
        ({"chosen": "", "rejected": HH["rejected"]}, HH, "hh", "empty response"),
        ({"chosen": "", "rejected": TEXTS["rejected"]}, TEXTS, "pair_implicit", "empty response"),
        ({"chosen": "A cat.", "rejected": "What?"}, TEXTS, "pair_implicit", "prompts differ"),
        ({**GOOD, "chosen": ""}, GOOD, "pair", "empty response"),
    ],
)  # fmt: skip
def test_an_unusable_first_record_does_not_decide(
    tmp_path: Path, first: dict[str, Any], rest: dict[str, Any], name: str, reason: str
) -> None:
    reader = read_comparisons(lines(tmp_path / "f.jsonl", first, *[rest] * 100))
    assert reader.format == name
    assert len(list(reader)) == 100
    assert reader.skipped == {reason: [1]}


def test_a_broken_line_after_an_undecided_one_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text(json.dumps({**GOOD, "chosen": ""}) + "\n{\n")
    reader = read_comparisons(file, max_skipped=1.0)
    with pytest.raises(DataError, match=r"f\.jsonl:2: "):
        list(reader)


def test_what_was_judged_wrong_is_no_demonstration(tmp_path: Path) -> None:
    """Those are left out, and no fault of the file; other labels are other columns."""
    made = lambda *labels: [{"prompt": "q", "completion": "x", "label": label} for label in labels]  # noqa: E731
    rows = made(True, False, 1, 0, "true", "False", "1", "0", "FALSE", "spam", None, 2)
    reader = read_demonstrations(lines(tmp_path / "a.jsonl", *rows), strict=True)
    assert [d.meta["label"] for d in reader] == [True, 1, "true", "1", "spam", None, 2]
    assert reader.skipped == {"label is false": [2, 4, 6, 8, 9]}
    (tmp_path / "t.csv").write_text("prompt,completion,label\nq,x,True\nq,y,False\n")
    assert [d.completion for d in read_demonstrations(tmp_path / "t.csv")] == ["x"]
    with pytest.raises(DataError, match=r"0 of 0 records unusable, 2 left out: 2 label is false \(at 1, 2\), .* one usable"):
        list(read_demonstrations(lines(tmp_path / "b.jsonl", *made(False, 0))))
    empty = {"prompt": "q", "completion": ""}  # 1 of 100 is too many where 50 are left out
    with pytest.raises(DataError, match=r"1 of 50 records unusable, 50 left out: 50 label .*; 1 empty response \(at 100\)"):
        list(read_demonstrations(lines(tmp_path / "c.jsonl", *made(*[False] * 50, *[True] * 49), empty)))


def test_hh_with_windows_line_ends_and_without_an_answer(tmp_path: Path) -> None:
    windows = {side: text.replace("\n", "\r\n") for side, text in HH.items()}
    asked = {side: f"{text}\n\nHuman: more" for side, text in HH.items()}
    reader = read_comparisons(lines(tmp_path / "h.jsonl", windows, asked), max_skipped=0.5)
    (found,) = reader
    assert reader.format == "hh" and found.responses == [" x", " y"] and reader.skipped == {"no answer at the end": [2]}


def test_a_table_with_nulls_and_dates(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = {
        "prompt": ["p", "p"],
        "responses": [["a", "b"], ["c", "d"]],
        "best": [1.0, 0.0],
        "made": [datetime(2026, 1, 2, tzinfo=UTC)] * 2,
    }
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "t.parquet"))
    found = list(read_comparisons(tmp_path / "t.parquet"))
    assert [c.best for c in found] == [1, 0] and all(type(c.best) is int for c in found)
    write_jsonl(tmp_path / "out.jsonl", found)
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["made"].startswith("2026-01-02T00:00:00")
    with pytest.raises(DataError, match=r"t\.jsonl:1: field 'best': found 1\.0"):  # in JSON an integer is meant to be one
        list(read_comparisons(lines(tmp_path / "t.jsonl", {"prompt": "p", "responses": ["a", "b"], "best": 1.0})))


def test_a_judgement_that_is_null_can_be_written_again(tmp_path: Path) -> None:
    found = list(read_comparisons(lines(tmp_path / "n.jsonl", {**GOOD, "best": None, "note": None})))
    write_jsonl(tmp_path / "out.jsonl", found)
    assert next(iter(read_comparisons(tmp_path / "out.jsonl"))).meta == {"note": None}


def test_skipped_records_of_several_files_are_told_apart(tmp_path: Path) -> None:
    for name in "ab":
        lines(tmp_path / f"{name}.jsonl", {**GOOD, "chosen": ""}, GOOD)
    reader = read_comparisons(tmp_path, max_skipped=0.5)
    list(reader)
    assert [Path(place).name for place in reader.skipped_at["empty response"]] == ["a.jsonl:1", "b.jsonl:1"]


def test_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "UPPER.CSV").write_text("prompt,chosen,rejected\np,a,b\n")
    assert next(read_comparisons(tmp_path / "UPPER.CSV")).responses == ["a", "b"]
    (tmp_path / "SOME.JSONL.GZ").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert next(read_comparisons(tmp_path / "SOME.JSONL.GZ")).responses == ["a", "b"]
    (tmp_path / "some.jsonl").mkdir()
    lines(tmp_path / "real.jsonl", GOOD)
    assert len(list(read_comparisons(tmp_path / "*.jsonl"))) == 1  # a folder of that name is no file
    both = tmp_path / "both"
    both.mkdir()
    lines(both / "a.jsonl", GOOD)
    (both / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(DataError, match=r"a\.jsonl and a\.jsonl\.gz, expected one of the two"):
        read_comparisons(both)


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = bytearray(gzip.compress(b"".join(b"line %d\n" % i for i in range(5000)), mtime=0))
    damaged[2000:2100] = bytes(100)
    (tmp_path / "t.txt.gz").write_bytes(damaged)
    with pytest.raises(DataError, match=r"t\.txt\.gz:\d+: found an unreadable file"):
        list(texts_of(str(tmp_path / "t.txt.gz")))
    monkeypatch.setattr(sources, "LONGEST", 20)
    (tmp_path / "long.txt").write_text("Title\n\n" + "ten signs.\n" * 6)
    assert [t.text for t in texts_of(str(tmp_path / "long.txt"))] == ["Title", *["ten signs. ten signs."] * 3]
    lines(tmp_path / "trl.jsonl", {"prompt": "q", "completion": " the summary"})
    assert next(texts_of(str(tmp_path / "trl.jsonl"))).reference == " the summary"
