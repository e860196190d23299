"""Batches in an order that survives a kill; collated rows by hand."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_rlhf.data import (
    ComparisonBatch,
    DataError,
    PreferenceData,
    PromptBatch,
    PromptData,
    SFTBatch,
    SFTData,
)
from lightning_rlhf.loader import BatchLoader
from lightning_rlhf.models import load_tokenizer
from lightning_rlhf.tasks import QUERY_2020, Task
from lightning_rlhf.tokens import bos_ids, encode

TASK = Task(name="toy", query_length=12, start_text=None, response_length=4, truncate_text=None, truncate_after=0)
LM = "stories260k"


def loader(n: int, batch_size: int, num_batches: int | None = None, seed: int | None = 1, **rank: Any) -> BatchLoader:
    return BatchLoader(range(n), batch_size, list, num_batches, seed, **rank)


def write(file: Path, *records: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(file)


# ------------------------------------------------------------------------------------------------------- BatchLoader


@pytest.mark.parametrize(("n", "size"), [(10, 3), (9, 3), (1, 5), (7, 7), (5, 1)])
def test_one_pass_has_every_item_once(n: int, size: int) -> None:
    batches = list(loader(n, size))
    assert len(batches) == len(loader(n, size)) == -(-n // size)
    assert [len(b) for b in batches] == [size] * (n // size) + ([n % size] if n % size else [])
    assert sorted(i for b in batches for i in b) == list(range(n))


def test_no_seed_no_shuffle() -> None:
    plain = loader(5, 2, seed=None)
    assert list(plain) == list(plain) == [[0, 1], [2, 3], [4]]


def test_shuffle_is_the_seeds() -> None:
    assert list(loader(50, 50)) == list(loader(50, 50)) != list(loader(50, 50, seed=2))
    assert next(iter(loader(50, 50))) != list(range(50))


def test_epochs_differ() -> None:
    one = loader(50, 50)
    first, second = list(one), list(one)
    assert first != second
    assert sorted(first[0]) == sorted(second[0])
    cycling = loader(4, 8, num_batches=3)
    assert list(cycling) != list(cycling)


@pytest.mark.parametrize(("n", "size", "number"), [(7, 3, 7), (3, 8, 3), (5, 5, 2), (1, 4, 2)])
def test_cycling_covers_every_item_once_a_pass(n: int, size: int, number: int) -> None:
    """Batches are always whole; the sequence of items falls into permutations, a batch larger than the items included."""
    batches = list(loader(n, size, number))
    assert [len(b) for b in batches] == [size] * number
    items = [i for b in batches for i in b]
    passes = [items[at : at + n] for at in range(0, len(items) - n + 1, n)]
    assert all(sorted(p) == list(range(n)) for p in passes)
    if n == 7:
        assert len({tuple(p) for p in passes}) > 1  # a new order each time


@pytest.mark.parametrize("number", [None, 7])
def test_ranks_share_each_global_batch(number: int | None) -> None:
    whole = list(loader(20, 6, number))
    parts = [list(loader(20, 6, number, rank=r, world_size=2)) for r in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch[0::2] == first
        assert batch[1::2] == second


def test_even_shares_are_filled_up_with_the_batchs_first() -> None:
    """Held-out prompts: seven in batches of four over three ranks are 4 = 2 + 1 + 1 and 3 = 1 + 1 + 1; of four, 1 = 1 + 0 + 0."""
    parts = [list(loader(7, 4, seed=None, rank=r, world_size=3, even=True)) for r in range(3)]
    assert parts == [[[0, 3], [4]], [[1, 0], [5]], [[2, 0], [6]]]
    assert [list(loader(1, 4, seed=None, rank=r, world_size=3, even=True)) for r in range(3)] == [[[0]], [[0]], [[0]]]


@pytest.mark.parametrize("number", [None, 9])
@pytest.mark.parametrize("done", range(7))
def test_state_goes_on_identically(done: int, number: int | None) -> None:
    """After any number of batches, in the first epoch and over its end."""
    one = loader(10, 3, number)
    epochs = [list(one), list(one)]
    per_epoch = len(one)
    stopped = loader(10, 3, number)
    iterator = iter(stopped)
    for _ in range(min(done, per_epoch)):
        next(iterator)
    resumed = loader(10, 3, number)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    rest = epochs[0][done:] if done < per_epoch else epochs[1]
    assert list(resumed) == rest
    if done < per_epoch:
        assert list(resumed) == epochs[1]


def test_an_epoch_left_early_is_over() -> None:
    """Lightning stops at its own count of batches, and at limit_*_batches, without exhausting the loader."""
    whole = loader(10, 5)
    epochs = [list(whole) for _ in range(2)]
    one = loader(10, 5)
    iterator = iter(one)
    for expected in epochs[0]:
        assert next(iterator) == expected
    assert list(one) == epochs[1]  # although the iterator before was never exhausted
    one = loader(10, 5)
    assert next(iter(one)) == epochs[0][0]
    assert list(one) == epochs[1]


# ----------------------------------------------------------------------------------------------------------- collate


def test_sft_batch_by_hand() -> None:
    batch = SFTData.collate([([1, 2, 3], [4]), ([5], [6, 7])])
    assert isinstance(batch, SFTBatch)
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 0]]
    assert batch.mask.tolist() == [[True] * 4, [True, True, True, False]]
    assert batch.response.tolist() == [[False, False, False, True], [False, True, True, False]]


def test_comparison_batch_by_hand() -> None:
    """Three and two responses: the missing one is a row without a real token."""
    batch = PreferenceData.collate([([1, 2], [[3], [4, 5], []], 1), ([6], [[7], [8]], 0)])
    assert isinstance(batch, ComparisonBatch)
    assert batch.tokens.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5], [1, 2, 0, 0], [6, 7, 0, 0], [6, 8, 0, 0], [0, 0, 0, 0]]
    assert batch.mask.sum(1).tolist() == [3, 4, 2, 2, 2, 0]
    assert batch.best.tolist() == [1, 0]


def test_ragged_responses_from_a_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.jsonl",
        {"prompt": "Once", "responses": [" a", " b", " c"], "best": 2},
        {"prompt": "Lily", "chosen": " was", "rejected": " is"},
    )
    with pytest.raises(DataError):  # one layout a file
        PreferenceData(file, LM, TASK).read()
    file = write(
        tmp_path / "d.jsonl",
        {"prompt": "Once", "responses": [" a", " b", " c"], "best": 2},
        {"prompt": "Lily", "responses": [" was", " is"], "best": 0},
    )
    data = PreferenceData(file, LM, TASK, batch_size=2)
    data.setup()
    (batch,) = list(data.train_dataloader())
    assert batch.tokens.shape[0] == 6
    assert batch.mask.any(1).tolist().count(False) == 1
    assert sorted(batch.best.tolist()) == [0, 2]
    assert data.val_dataloader() == []


def test_affixes_are_the_policys_alone(tmp_path: Path) -> None:
    task = Task(**{**vars(TASK), "query_prefix": "Story: ", "query_suffix": " The end"})
    tokenizer = load_tokenizer(LM)
    ids = tokenizer.encode("Once upon", add_special_tokens=False)
    bos = tokenizer.bos_token_id
    prefix = tokenizer.encode("Story: ", add_special_tokens=False)
    data = PromptData(write(tmp_path / "p.jsonl", {"prompt": "Once upon"}), LM, task, batch_size=1, total_episodes=1)
    data.setup()
    (batch,) = list(data.train_dataloader())
    assert isinstance(batch, PromptBatch)
    row = batch.tokens[0].tolist()
    assert batch.mask.all()
    assert row[: 1 + len(prefix) + len(ids)] == [bos, *prefix, *ids]
    assert tokenizer.decode(row[1 + len(prefix) + len(ids) :]).strip() == "The end"
    assert batch.queries == [[bos, *ids]]
    reward = PreferenceData(write(tmp_path / "c.jsonl", {"prompt": "Once upon", "responses": [" a", " b"], "best": 0}), LM, task)
    reward.setup()
    assert reward.items["train"][0][0] == [bos, *ids]
    sft = SFTData(write(tmp_path / "d.jsonl", {"prompt": "Once upon", "completion": " a"}), LM, task)
    sft.setup()
    assert sft.items["train"][0][0] == row


def test_prompts_are_padded_on_the_left_and_keep_their_columns(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl", {"prompt": "Once upon a time", "reference": "r", "id": "x"}, {"prompt": "Lily", "genre": 3}
    )
    data = PromptData(file, LM, TASK, batch_size=2, total_episodes=2)
    data.setup()
    (batch,) = list(data.train_dataloader())
    assert bool(batch.mask[:, -1].all())
    assert (~batch.mask).sum(1).min() == 0 < (~batch.mask).sum(1).max()
    first = batch.texts.index("Lily")
    assert {k: v[first] for k, v in batch.columns.items()} == {"reference": None, "id": None, "genre": 3}
    assert batch.columns["reference"][1 - first] == "r"
    assert [len(q) for q in batch.queries] == batch.mask.sum(1).tolist()


def test_token_ids_pass_through(tmp_path: Path) -> None:
    data = PromptData(write(tmp_path / "p.jsonl", {"prompt": [403, 407]}), LM, TASK, batch_size=1, total_episodes=1)
    data.setup()
    (batch,) = list(data.train_dataloader())
    assert batch.queries[0][1:] == [403, 407]
    assert batch.texts == [load_tokenizer(LM).decode([403, 407])]


# ------------------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize("kind", [SFTData, PreferenceData, PromptData])
def test_prompt_longer_than_the_query(kind: type, tmp_path: Path) -> None:
    more = {"completion": " a", "responses": [" a", " b"], "best": 0}
    if kind is not PreferenceData:
        more = {"completion": " a"} if kind is SFTData else {}
    file = write(
        tmp_path / "long.jsonl",
        {"prompt": "a", **more},
        {"prompt": "Once upon a time there was a big dog named Tim and he", **more},
    )
    if kind is PreferenceData:
        file = write(
            tmp_path / "long.jsonl", *({"prompt": p, "responses": [" a", " b"], "best": 0} for p in ("a", "Once upon a " * 9))
        )
    data = kind(file, LM, TASK)
    with pytest.raises(DataError, match=r"long\.jsonl:2: field 'prompt': found \d+ tokens, expected at most .* = 12"):
        data.setup()


def test_a_query_of_2020_that_is_too_long_has_its_post_cut(tmp_path: Path) -> None:
    """As the prompts stage does it: whole lines off the post's end, the title never."""
    lines = ["I have a dog.", "He is big and he likes to run in the park.", "What shall I do with him?"]
    query = QUERY_2020.format(subreddit="dogs", title="My big dog", post="\n".join(lines))
    file = write(tmp_path / "c.jsonl", {"prompt": query, "responses": [" a", " b"], "best": 0})
    tokenizer = load_tokenizer(LM)
    expected = encode(tokenizer, QUERY_2020.format(subreddit="dogs", title="My big dog", post=lines[0]))
    data = PreferenceData(file, LM, replace(TASK, query_length=len(expected)))
    data.setup()
    assert data.items["train"][0].query == bos_ids(tokenizer) + expected
    data = PreferenceData(file, LM, TASK)  # not even without a post
    with pytest.raises(DataError, match=r"c\.jsonl:1: field 'prompt': found \d+ tokens, expected at most .* = 12"):
        data.setup()


def test_held_out_records_with_a_query_of_training_are_told_of(tmp_path: Path) -> None:
    pairs = [{"prompt": p, "responses": [" a", " b"], "best": 0} for p in ("Same query.", "other")]
    held_out = [pairs[0] | {"prompt": " same  QUERY"}, pairs[1] | {"prompt": "new"}]
    data = PreferenceData(
        write(tmp_path / "train.jsonl", *pairs), LM, TASK, val=write(tmp_path / "val.jsonl", *held_out), batch_size=1
    )
    with pytest.warns(UserWarning, match=r"data\.val: 1 of 2 held-out records have a query that data\.train has too"):
        assert data.check() == []
    apart = PreferenceData(str(tmp_path / "train.jsonl"), LM, TASK, val=write(tmp_path / "v.jsonl", held_out[1]), batch_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apart.check() == []


def test_problems_are_words_without_a_tokenizer(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": "a"})
    assert PromptData(file, "no/model", TASK, batch_size=1, total_episodes=1).check() == []
    assert SFTData("none.jsonl", LM, TASK, val="no.jsonl").check() == [
        "data.train: none.jsonl: no such file", "data.val: no.jsonl: no such file",
    ]  # fmt: skip
    assert PromptData(file, LM, TASK, batch_size=0, total_episodes=1).check() == ["data.batch_size: found 0, expected at least 1"]
    assert PromptData(file, LM, TASK, batch_size=2, total_episodes=1).check() == [
        "data.total_episodes: found 1, expected at least data.batch_size = 2"
    ]
    three = {"prompt": "p", "responses": [" a", " b", " c"], "margin": 1}
    (problem,) = PreferenceData(write(tmp_path / "c.jsonl", three), LM, TASK).check()
    assert "c.jsonl:1: field 'margin': found it beside 3 responses, expected 2" in problem


@pytest.mark.parametrize(("episodes", "size", "expected"), [(10, 4, 3), (8, 4, 2), (4, 4, 1)])
def test_iterations(episodes: int, size: int, expected: int, tmp_path: Path) -> None:
    data = PromptData(write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"}), LM, TASK, size, episodes)
    data.setup()
    assert data.batches == len(data.train_dataloader()) == expected
    assert all(len(b.tokens) == size for b in data.train_dataloader())


def test_position_is_the_data_modules(tmp_path: Path) -> None:
    """What a checkpoint stores of the data module puts a new one's loader where the old one stood."""
    file = write(tmp_path / "p.jsonl", *({"prompt": p} for p in ("a", "b", "c", "d", "e")))
    old = PromptData(file, LM, TASK, batch_size=2, total_episodes=10)
    assert old.state_dict() == {"train": None}
    old.setup()
    iterator = iter(old.train_dataloader())
    for _ in range(2):
        next(iterator)
    new = PromptData(file, LM, TASK, batch_size=2, total_episodes=10)
    new.setup()
    new.load_state_dict(old.state_dict())
    rest, resumed = list(iterator), list(new.train_dataloader())
    assert len(rest) == 3
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(rest, resumed, strict=True))


def test_what_is_left_out_is_listed_or_refused(tmp_path: Path) -> None:
    """By reason and line; places of the others are lines of the file too, not their number among the usable ones."""
    rows = [{"prompt": f"q {i}", "chosen": "a", "rejected": "" if i == 1 else "b"} for i in range(150)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    data = PreferenceData(str(file), LM, TASK)
    with pytest.warns(UserWarning, match=r"pairs\.jsonl: of 150 records were left out: 1 empty .*\(at 2\)"):
        assert data.check() == []
    assert [where for where, _ in data.records["train"]][:2] == [f"{file}:1", f"{file}:3"]
    (problem,) = PreferenceData(str(file), LM, TASK, strict=True).check()
    assert f"{file}:2: found an unusable record: empty" in problem


def test_ids_that_the_tokenizer_does_not_have(tmp_path: Path) -> None:
    """GPT-2's on a model of 512 pieces: named before a model is loaded, not an index out of range in its first pass."""
    file = tmp_path / "ids.jsonl"
    file.write_text(json.dumps({"prompt": [5, 6], "chosen": [7], "rejected": [50000]}) + "\n", encoding="utf-8")
    data = PreferenceData(str(file), LM, TASK)
    with pytest.raises(DataError, match=r"ids\.jsonl:1: field 'responses.1.': found the token id 50000, .*below 512"):
        data.setup()


def test_records_of_too_many_tokens(tmp_path: Path) -> None:
    """One in a hundred is left out and named; more of them, or `strict`, and the file is refused with their number."""
    fits, long = {"prompt": "She ran.", "completion": " Off."}, {"prompt": "She ran." * 9, "completion": " Off."}
    file = write(tmp_path / "a.jsonl", *[fits] * 60, long, *[fits] * 39)
    data = SFTData(file, LM, TASK)
    with pytest.warns(UserWarning, match=r"1 of 100 records .* the longest 44; they were left out: .*a.jsonl:61: field 'prompt'"):
        data.setup()
    assert len(data.items["train"]) == len(data.records["train"]) == 99 == len(data.train_dataloader()) * 32 - 29
    with pytest.raises(DataError, match=r"a.jsonl:61: field 'prompt': found 44 tokens, .* = 12\ndata.train: 1 of 100"):
        SFTData(file, LM, TASK, strict=True).setup()
    many = write(tmp_path / "b.jsonl", *[fits] * 60, long, long)
    with pytest.raises(DataError, match="data.train: 2 of 62 records"):
        SFTData(many, LM, TASK).setup()
