"""Splits by query: the same in any order, without leaks, counted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_rlhf.cli import main
from lightning_rlhf.records import Comparison, Prompt, read_comparisons
from lightning_rlhf.splits import fraction, normalised, split_records
from lightning_rlhf.tasks import UsageError

RECORDS = [Prompt(f"Query number {i}.", meta={"i": i}) for i in range(400)]


def queries(records: list[Any]) -> set[str]:
    return {normalised(r.prompt) for r in records}


def test_normalised() -> None:
    same = ["The cat sat.", " the  CAT\nsat ", "The cat sat!", "“The cat” sat…", "Ｔhe cat sat"]
    assert {normalised(text) for text in same} == {"the cat sat"}
    assert normalised("the cats at") != "the cat sat" == normalised("the c\u00adat s\u200bat\ufeff")
    assert {normalised(f"Don{c}t") for c in "'\u2019\u02bc\u00b4`"} == {"dont"}
    for one, other in (("the U.S", "the US"), ("1,000 men", "1000 men"), ("a_b", "a b")):
        assert normalised(one) == normalised(other)
    for one, other in (("C++", "C#"), ("2+2", "2-2"), ("कि", "की"), ("stop.Go", "stopGo")):
        assert normalised(one) != normalised(other)
    post = "SUBREDDIT: r/{}\n\nTITLE: t\n\nPOST: {}\n\nTL;DR:"
    assert normalised(post.format("a", "p")) == normalised(post.format("b", "p")) != normalised(post.format("a", "q"))
    assert normalised("?!") == "?!" != normalised("!")  # no word at all: as it is, but for spaces
    assert normalised("?! 🙂  🙂") == normalised(" ?! 🙂 🙂")
    assert normalised([1, 23]) != normalised([12, 3])
    hello, other = ([{"role": role, "content": "Hello!"}] for role in ("user", "system"))
    assert normalised(hello) == normalised([{"role": "user", "content": "hello"}]) != normalised(other)
    assert normalised([]) == "[]"


def test_fraction_is_fixed_and_even() -> None:
    # SHA-256 of "split\0a" begins with 8 bytes that are this share of 2^64, by another implementation (sha256sum)
    assert fraction("a") == int("8c90dcac7e970eb0", 16) / 2**64
    assert fraction("a") != fraction("a", "another")
    numbers = [fraction(str(i)) for i in range(4000)]
    assert all(0 <= x < 1 for x in numbers)
    for tenth in range(10):
        assert 340 < sum(tenth / 10 <= x < (tenth + 1) / 10 for x in numbers) < 460


def test_any_order_gives_the_same_parts() -> None:
    first = split_records(RECORDS, held_out=0.2)
    assert 60 <= len(first.held_out) <= 100
    assert [r.meta["i"] for r in first.train] == sorted(r.meta["i"] for r in first.train)  # file order
    for seed in range(3):
        shuffled = random.Random(seed).sample(RECORDS, len(RECORDS))
        again = split_records(shuffled, held_out=0.2)
        assert queries(again.train) == queries(first.train)
        assert queries(again.held_out) == queries(first.held_out)
    fewer = split_records(RECORDS[:200], held_out=0.2)  # nor do other records move a query
    assert queries(fewer.held_out) == queries(first.held_out) & queries(RECORDS[:200])
    assert first.moved == 0


def test_near_duplicates_go_together() -> None:
    doubled = [r for record in RECORDS for r in (record, Prompt(record.prompt.upper().replace(".", "  !")))]
    found = split_records(doubled, held_out=0.3)
    assert not queries(found.train) & queries(found.held_out)
    assert len(found.train) + len(found.held_out) == 800


def implicit(file: Path, *sides: tuple[str, str]) -> list[Comparison]:
    file.write_text("".join(json.dumps({"chosen": a, "rejected": b}) + "\n" for a, b in sides), encoding="utf-8")
    return list(read_comparisons(file, "pair_implicit"))


@pytest.mark.parametrize(
    ("question", "shared", "other"),
    [("Please tell me what number {} means in words.", " It is", " Well, perhaps"), ("数字{}是什么意思", "这是", "也许")],
)
def test_words_that_answers_share_part_no_question(tmp_path: Path, question: str, shared: str, other: str) -> None:
    asked = [question.format(i) for i in range(300)]
    sides = [(f"{q}{shared} good a", f"{q}{shared} bad b") for q in asked] + [(f"{q} x", f"{q}{other} y") for q in asked]
    found = implicit(tmp_path / "a.jsonl", *sides)
    assert {str(c.prompt) for c in found} > set(asked)
    parts = split_records(found, held_out=0.2)
    of = lambda rows: {next(i for i, q in enumerate(asked) if str(c.prompt).startswith(q)) for c in rows}  # noqa: E731
    assert not of(parts.train) & of(parts.held_out) and 30 < len(of(parts.held_out)) < 90
    again = split_records(random.Random(0).sample(found, len(found)), held_out=0.2)
    assert of(again.held_out) == of(parts.held_out)
    assert not of(split_records(found, first=100).held_out) & set(range(100))


def test_what_all_questions_begin_with_joins_none(tmp_path: Path) -> None:
    sides = [(f"User: q {i}?\nBot: yes", f"User: q {i}?\nBot: no") for i in range(200)]
    found = implicit(tmp_path / "a.jsonl", *sides, ("User: one thing", "User: another"))
    assert str(found[-1].prompt) == "User:"  # of two dialogues that differ from the start
    assert 10 < len(split_records(found, held_out=0.2).held_out) < 70


def test_first_so_many_train_and_leaks_are_moved() -> None:
    records = [{"prompt": p} for p in ("a b", "c", "d", "A  b!", "e", "C", "e")]
    found = split_records(records, first=3)
    assert [r["prompt"] for r in found.train] == ["a b", "c", "d", "A  b!", "C"]
    assert [r["prompt"] for r in found.held_out] == ["e", "e"]
    assert found.moved == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 0.0}, "held_out: found 0.0, expected above 0 and below 1"),
        ({"held_out": 1.0}, "held_out: found 1.0, expected above 0 and below 1"),
        ({"first": 0}, "first: found 0, expected at least 1"),
        ({"held_out": 0.3, "first": 10}, "held_out, first: found 0.3 and 10, expected one of the two"),
        ({"first": 400}, "split: found no held-out record among 400 with 400 queries, expected at least one"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_records(RECORDS, **options)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]) -> None:
    rows = [{"prompt": f"q {i % 50}", "chosen": "a", "rejected": f"b {i}"} for i in range(100)] + [
        {"prompt": "q 1", "chosen": "a", "rejected": ""}
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    main(["split", "--path", str(tmp_path / "labels.jsonl"), "--output", str(tmp_path / "out"), "--first", "40"])
    # 50 queries twice; the first 40 of them train, their second turn (records 51 to 90) is moved, 10 queries are held out twice
    said = capsys.readouterr().out
    assert "80 train, 20 held out (format pair); moved to train because their query is there: 40" in said
    assert "skipped: {'empty response': 1}" in said
    parts = [list(read_comparisons(tmp_path / f"out/{name}.jsonl")) for name in ("train", "val")]
    assert [len(part) for part in parts] == [80, 20]
    assert not queries(parts[0]) & queries(parts[1])
    assert isinstance(parts[0][0], Comparison)
    info = json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))
    assert info["figures"] == {"train": 80, "val": 20, "moved": 40, "format": "pair", "skipped": {"empty response": ["101"]}}
    words = ["split", "--path", str(tmp_path / "labels.jsonl"), "--output", str(tmp_path / "no"), "--strict", "true"]
    assert "labels.jsonl:101: found an unusable record: empty response" in refused(words)
    assert not (tmp_path / "no").exists()


def test_labels_of_ones_own_are_not_replaced(tmp_path: Path, refused: Callable[..., str]) -> None:
    rows = [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(50)]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    for name in ("lab/train.jsonl", "other/val.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, encoding="utf-8")
    words = ["split", "--path", str(tmp_path / "lab/train.jsonl"), "--output"]
    error = refused([*words, str(tmp_path / "lab")])
    assert "lab/train.jsonl is the input, and is not replaced; expected another folder" in error
    error = refused([*words, str(tmp_path / "other")])
    assert "other/val.jsonl is there and was not made by this command (no run.json); expected another folder" in error
    assert all((tmp_path / name).read_text(encoding="utf-8") == text for name in ("lab/train.jsonl", "other/val.jsonl"))
    for _ in range(2):  # what an earlier split made is made anew
        main([*words, str(tmp_path / "parts")])
    for path in (tmp_path / "parts/val.jsonl", tmp_path / "parts"):  # but not over what is read, run.json or not
        error = refused(["split", "--path", str(path), "--output", str(tmp_path / "parts")])
        assert "is the input" in error and "parts/run.json" not in error


def test_what_cannot_be_written_is_told_before_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr("lightning_rlhf.splits.read_comparisons", None)
    words = ["split", "--path", str(tmp_path / "labels.jsonl"), "--output"]
    (tmp_path / "file").write_text("mine")
    for output, why in (("/proc/x", "No such file or directory"), (str(tmp_path / "file"), "File exists")):
        error = refused([*words, output, "--held_out", "0.3", "--first", "10"])
        assert f"output: {output}: cannot be made ({why}), expected a folder that can be written to" in error
        assert "held_out, first: found 0.3 and 10, expected one of the two" in error
