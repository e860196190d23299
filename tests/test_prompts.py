"""Queries: distinct, by the 2019 rule, in splits that share none, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_rlhf.models import load_tokenizer
from lightning_rlhf.prompts import build_prompts, texts_of
from lightning_rlhf.records import DataError
from lightning_rlhf.tasks import Task, UsageError, task_tokens

LM = "stories260k"
TASK = Task(query_length=24)
SIZES = dict(train=12, val=5, test=4)
SPLITS = ("train", "val", "test")


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {s: [json.loads(line) for line in (folder / f"{s}.jsonl").read_text(encoding="utf-8").splitlines()] for s in SPLITS}


def made(folder: Path, source: str = "novels", task: Task = TASK, seed: int = 1, **sizes: int) -> dict[str, list[dict[str, Any]]]:
    build_prompts(LM, task, str(folder), source=source, seed=seed, **{**SIZES, **sizes})
    return read(folder)


@pytest.fixture(scope="module")
def novels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return made(tmp_path_factory.mktemp("novels") / "prompts")


def test_sizes_ids_and_distinct_queries(novels: dict[str, list[dict[str, Any]]]) -> None:
    assert {s: len(rows) for s, rows in novels.items()} == SIZES
    rows = [r for s in SPLITS for r in novels[s]]
    assert len({r["id"] for r in rows}) == len({" ".join(r["prompt"].lower().split()) for r in rows}) == sum(SIZES.values())
    assert [r["id"] for r in novels["val"]][:2] == ["val-00000", "val-00001"]
    assert all(r["source"] for r in rows)


@pytest.mark.parametrize("start", [".", None])
def test_2019_rule(start: str | None, tmp_path: Path) -> None:
    """Of each query: its text's tokens after the first full stop (or from the beginning), up to the last one within 24."""
    task = Task(query_length=24, start_text=start)
    tokenizer = load_tokenizer(LM)
    resolved = task_tokens(task, tokenizer)
    texts = {" ".join(text.split()): tokenizer.encode(text, add_special_tokens=False) for text, _ in texts_of("novels")}
    expected = set()
    for ids in texts.values():
        if start is not None:
            if resolved.start not in ids:
                continue
            ids = ids[ids.index(resolved.start) + 1 :] or ids
        ids = ids[:24]
        while ids and ids[-1] != resolved.end:
            ids = ids[:-1]
        expected.add(tuple(ids))
    for rows in made(tmp_path / "p", task=task).values():
        for row in rows:
            ids = tokenizer.encode(row["prompt"], add_special_tokens=False)
            assert tuple(ids) in expected
            assert len(ids) <= 24
            assert ids[-1] == resolved.end


def test_seed_decides(novels: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    assert made(tmp_path / "again") == novels
    assert made(tmp_path / "other", seed=2) != novels


def test_own_openings(tmp_path: Path) -> None:
    task = Task(query_length=16, start_text=None)
    first, second, other = (made(tmp_path / str(i), source="self", task=task, seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert first == second != other
    rows = [r for s in SPLITS for r in first[s]]
    assert len({r["prompt"] for r in rows}) == len(rows)
    assert {r["source"] for r in rows} == {LM}


NAMES = ["Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue", "Tim", "Amy"]


def test_ones_own_texts(tmp_path: Path) -> None:
    """A file of paragraphs, a folder of them, JSON lines; what repeats or has no full stop is left out."""
    texts = [f"Once upon a time. {name} went to the\npark. And then" for name in NAMES]
    sizes = dict(train=6, val=2, test=2)
    (tmp_path / "folder").mkdir()
    (tmp_path / "texts.txt").write_text("\n\n".join([*texts, texts[0], "no stop at all", ""]), encoding="utf-8")
    (tmp_path / "folder/a.txt").write_bytes("\r\n\r\n".join(texts[:5]).encode())
    (tmp_path / "folder/b.txt").write_text("\n\n".join(texts[5:]), encoding="utf-8")
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": t, "source": "mine"}) + "\n" for t in texts), encoding="utf-8"
    )
    expected = {f"{name} went to the park." for name in NAMES}
    for source in ("texts.txt", "folder"):
        found = made(tmp_path / f"from-{source}", source=str(tmp_path / source), **sizes)
        assert {r["prompt"].strip() for s in SPLITS for r in found[s]} == expected
    found = made(tmp_path / "from-jsonl", source=str(tmp_path / "texts.jsonl"), **sizes)
    assert {" ".join(r["prompt"].split()) for s in SPLITS for r in found[s]} <= expected
    assert {r["source"] for r in found["train"]} == {"mine"}
    info = json.loads((tmp_path / "from-texts.txt/run.json").read_text(encoding="utf-8"))
    assert info["stage"] == "prompts"
    assert set(info["figures"]["left_out"]) <= {"repeated", "no start or end token"}


def nothing(folder: Path) -> str:
    (folder / "empty").mkdir()
    return str(folder / "empty")


def latin(folder: Path) -> str:
    (folder / "latin.txt").write_bytes(b"First line.\nSecond \xe9 line.\n")
    return str(folder / "latin.txt")


def number(folder: Path) -> str:
    (folder / "n.jsonl").write_text('{"text": "a. b."}\n{"text": 3}\n', encoding="utf-8")
    return str(folder / "n.jsonl")


def missing(folder: Path) -> str:
    (folder / "m.jsonl").write_text('{"body": "a. b."}\n', encoding="utf-8")
    return str(folder / "m.jsonl")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda folder: "none", UsageError, "source: 'none': found no such file or folder, expected novels, self or a path"),
        (nothing, UsageError, r"found no \.txt file in the folder"),
        (latin, DataError, r"latin\.txt:2: found a byte 0xe9 that is not UTF-8, expected UTF-8 text"),
        (number, DataError, r"n\.jsonl:2: field 'text': found int, expected a string"),
        (missing, DataError, r"m\.jsonl:1: field 'text': found nothing, expected a string"),
    ],
)
def test_bad_sources(source: Callable[[Path], str], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        made(tmp_path / "out", source=source(tmp_path))
    assert not (tmp_path / "out").exists()


def test_too_few_texts(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("One here. Two there. Three", encoding="utf-8")
    with pytest.raises(UsageError, match=r"found 1 distinct queries .*expected train \+ val \+ test = 21"):
        made(tmp_path / "out", source=str(tmp_path / "few.txt"))
    assert not (tmp_path / "out").exists()


def test_counts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train: found 0, expected at least 1\nval: found -1, expected at least 1"):
        made(tmp_path / "out", train=0, val=-1)
