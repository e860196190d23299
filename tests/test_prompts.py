"""Queries: distinct, by the 2019 rule, in splits that share none, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_rlhf.models import load_tokenizer
from lightning_rlhf.prompts import LOST, build_prompts, cut_queries, queries_of
from lightning_rlhf.records import DataError
from lightning_rlhf.sources import Source, texts_of
from lightning_rlhf.splits import normalised
from lightning_rlhf.tasks import Task, TaskTokens, UsageError, task_tokens

LM = "stories260k"
TASK = Task(query_length=24)
SIZES = dict(train=12, val=5, test=4)
SPLITS = ("train", "val", "test")


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {s: [json.loads(line) for line in (folder / f"{s}.jsonl").read_text(encoding="utf-8").splitlines()] for s in SPLITS}


def made(folder: Path, source: str = "novels", task: Task = TASK, seed: int = 1, **sizes: Any) -> dict[str, list[dict[str, Any]]]:
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
    texts = {t.text: tokenizer.encode(t.text, add_special_tokens=False) for t in texts_of("novels")}
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
    assert info["figures"]["formats"] == ["plain text"]
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


# ----------------------------------------------------------------------------- splits, references, several a text, 2020


def posts(folder: Path, n: int = 24, **more: Any) -> Path:
    rows = [
        {"subreddit": "pets", "title": f"Dog {i}", "summary": f"dog {i}"}
        | {"post": f"Once there was dog {i}. It ran. It sat.\nThe end {i}."}
        for i in range(n)
    ]
    file = folder / "posts.jsonl"
    file.write_text("".join(json.dumps({**r, **more}) + "\n" for r in rows), encoding="utf-8")
    return file


SUMMARY = Task(name="tldr", query_length=32, start_text=None, end_text=None, truncate_text="\n")


def test_order_of_the_source_changes_nothing(tmp_path: Path) -> None:
    file = posts(tmp_path)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(lines[::-1]), encoding="utf-8")
    sizes = dict(train=10, val=5, test=4)  # of 24: which ones are taken does not depend on the order either
    first, turned = (made(tmp_path / f"{i}", str(f), SUMMARY, **sizes) for i, f in enumerate((file, tmp_path / "turned.jsonl")))
    for split in SPLITS:
        assert [(r["id"], r["prompt"]) for r in first[split]] == [(r["id"], r["prompt"]) for r in turned[split]]
    build_prompts(LM, SUMMARY, str(tmp_path / "p"), source=str(file), split_by="position", **sizes)
    build_prompts(LM, SUMMARY, str(tmp_path / "q"), source=str(tmp_path / "turned.jsonl"), split_by="position", **sizes)
    assert read(tmp_path / "p") != read(tmp_path / "q")


@pytest.mark.parametrize("split_by", ["query", "position"])
def test_near_duplicates_are_one_query(split_by: str, tmp_path: Path) -> None:
    texts = [f"{text}\n\n{text.upper()}!\n\n{text.replace(' ', '  ')}" for text in (f"Tom saw cat number {i}" for i in range(8))]
    (tmp_path / "t.txt").write_text("\n\n".join(texts), encoding="utf-8")
    task = Task(query_length=24, start_text=None, end_text=None)
    found = made(tmp_path / "out", str(tmp_path / "t.txt"), task, train=4, val=2, test=2, split_by=split_by)
    assert len({normalised(r["prompt"]) for s in SPLITS for r in found[s]}) == 8
    with pytest.raises(UsageError, match=r"found 8 distinct queries \(left out: {'repeated': 16}\)"):
        made(tmp_path / "more", str(tmp_path / "t.txt"), task, train=5, val=2, test=2, split_by=split_by)


def test_references_become_demonstrations(tmp_path: Path) -> None:
    found = made(tmp_path / "out", str(posts(tmp_path)), SUMMARY)
    for split in ("train", "val"):
        lines = (tmp_path / f"out/demonstrations.{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [
            {"prompt": r["prompt"], "completion": f" {r['reference']}\n"} for r in found[split]
        ]
    assert not (tmp_path / "out/demonstrations.test.jsonl").exists()
    info = json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))
    assert info["figures"]["formats"] == ["tldr"]
    assert all(r["reference"].startswith("dog ") for s in SPLITS for r in found[s])


def test_form_of_2020(tmp_path: Path) -> None:
    """Every query fits, its fields are whole but for the post, which ends at a newline; what has no title is counted."""
    tokenizer = load_tokenizer(LM)
    file = posts(tmp_path)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps({"subreddit": "s", "title": "word " * 90, "post": "p"}) + "\n")
        handle.write(json.dumps({"subreddit": "s", "title": "t", "post": " \n"}) + "\n")
    options = dict(source=str(file), train=14, val=5, test=5, form="2020")
    build_prompts(LM, replace(SUMMARY, query_length=72, query_suffix=""), str(tmp_path / "out"), **options)
    cut = 0
    for row in (r for rows in read(tmp_path / "out").values() for r in rows):
        i = row["reference"].removeprefix("dog ")
        assert len(tokenizer(row["prompt"], add_special_tokens=False).input_ids) <= 72
        whole = f"SUBREDDIT: r/pets\n\nTITLE: Dog {i}\n\nPOST: Once there was dog {i}. It ran. It sat."
        assert row["prompt"] in (whole + "\n\nTL;DR:", whole + f"\nThe end {i}.\n\nTL;DR:")
        cut += "The end" not in row["prompt"]
    assert cut > 0
    with pytest.raises(UsageError, match=r"found 24 distinct .*(title too long|empty text).*(title too long|empty text)"):
        build_prompts(LM, replace(SUMMARY, query_length=72), str(tmp_path / "more"), **{**options, "train": 15})
    (tmp_path / "w.jsonl").write_text('{"content": "c", "summary": "s", "subreddit": "r"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"left out: {'no title': 1}"):
        build_prompts(LM, SUMMARY, str(tmp_path / "webis"), source=str(tmp_path / "w.jsonl"), form="2020")


def test_several_queries_a_text_do_not_overlap() -> None:
    """Full stop 9 opens and closes: each query begins where the one before it ended; at most so many."""
    resolved = TaskTokens(prefix=(), suffix=(), start=9, end=9, truncate=9)
    task = Task(query_length=4)
    ids = [1, 9, 2, 3, 9, 4, 9, 5, 6, 7, 9, 8, 8, 8, 8, 8, 9, 1]
    assert cut_queries(ids, task, resolved, 1) == [[2, 3, 9]]
    assert cut_queries(ids, task, resolved, 9) == [[2, 3, 9], [4, 9], [5, 6, 7, 9]]  # then no full stop within four
    assert cut_queries([1, 2, 9], task, resolved, 9) == [[1, 2, 9]]  # it is the last token: the whole text, once
    plain = TaskTokens(prefix=(), suffix=(), start=None, end=None, truncate=None)
    assert cut_queries([1, 2, 3, 4, 5], task, plain, 9) == [[1, 2, 3, 4], [5]]
    assert cut_queries([], task, plain, 9) == []


def test_options_reach_the_texts(tmp_path: Path) -> None:
    """More queries from the same paragraphs; rows of one sentence joined."""
    sentences = [f"Tom saw cat {i}. It ran away fast. Then he sat down by tree {i}. It was late there." for i in range(6)]
    (tmp_path / "t.txt").write_text("\n\n".join(sentences), encoding="utf-8")
    task = Task(query_length=16)
    with pytest.raises(UsageError, match="found [1-6] distinct queries"):
        made(tmp_path / "few", str(tmp_path / "t.txt"), task, train=6, val=1, test=1)
    build_prompts(LM, task, str(tmp_path / "more"), source=str(tmp_path / "t.txt"), train=6, val=1, test=1, queries_per_text=3)
    rows = "".join(json.dumps({"text": f"word {i}."}) + "\n" for i in range(40))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    build_prompts(LM, task, str(tmp_path / "joined"), source=str(tmp_path / "rows.jsonl"), train=2, val=1, test=1, join=60)
    assert all(r["prompt"].count("word") > 1 for rows in read(tmp_path / "joined").values() for r in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "2021"}, "form: found '2021', expected 2019 or 2020"),
        ({"split_by": "seed"}, "split_by: found 'seed', expected query or position"),
        ({"queries_per_text": 0, "join": -1}, "queries_per_text: found 0, expected at least 1\njoin: found -1, expected"),
        ({"form": "2020", "source": "self"}, "form: found 2020 with source self, expected posts with a subreddit and a title"),
        ({"join": 50, "source": "self"}, "join: found 50 with source self, expected 0"),
    ],
)
@pytest.mark.usefixtures("no_models")
def test_new_options_are_checked(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        build_prompts(LM, TASK, str(tmp_path / "out"), **options)


def test_a_query_that_ends_at_a_blank_line() -> None:
    """In GPT-2's vocabulary two tokens in the middle of a text, one at its end; half a character is still lost."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "\u010a\u010a"])}, [("\u010a", "\u010a")]))
    merged.pre_tokenizer, merged.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merged)
    newline, both = alphabet.index("\u010a"), len(alphabet)
    assert tokenizer.encode("a\n\nb")[1:3] == [newline, newline] and tokenizer.encode("a\n\n")[1:] == [both]
    task = Task(query_length=12, start_text=None, end_text="\n")

    def found(text: str, end: int | None, length: int = 12) -> list[tuple[str, str | None]]:
        resolved = TaskTokens(start=None, end=end, truncate=None, prefix=(), suffix=())
        queries = queries_of(iter([Source(text, "a:1")]), tokenizer, replace(task, query_length=length), resolved, "2019", 1)
        return [(q.prompt, q.reason) for q in queries]

    assert found("One.\n\nTwo.\n\nAnd three", newline) == [("One.\n\nTwo.\n\n", None)]
    assert [reason for _, reason in found("caf\u00e9", None, 4)] == [LOST]
