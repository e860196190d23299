"""Records: every format, every error by message, what is skipped, streaming, the way to a file and back."""

import csv
import gzip
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_rlhf import files, formats, records
from lightning_rlhf.files import content, file_sha256, members, read_jsonl, write_jsonl
from lightning_rlhf.records import (
    FORMATS,
    Comparison,
    DataError,
    Demonstration,
    Prompt,
    Rating,
    Sample,
    pairs,
    read_comparisons,
    read_demonstrations,
    read_prompts,
    read_ratings,
    read_samples,
)

PAD = 50259
USER, GOOD, BAD = (
    {"role": r, "content": c} for r, c in [("user", "hi"), ("assistant", "good"), ("assistant", "bad")]
)
BEST = {"prompt": "p", "responses": ["a", "b", "c", "d"], "best": 2}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
RANKED = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
TOKENS = {
    "query": [5, PAD, 6, PAD],
    "sample0": [1, 2],
    "sample1": [1, 3],
    "sample2": [1, PAD],
    "sample3": [4],
    "best": 3,
}
VOTES = {"prompt": "p", "responses": ["a", "b"], "votes": [1, 0, 1]}
RATINGS = ([1 / 3, 4 + 2 / 3, 3, 2], [3, 3, 3, 3], [2, 3, 4 + 2 / 3, 1 / 3])
SUMMEVAL = {
    "id": "x",
    "article": "News.",
    "systems": {
        name: {"summary": f"s{i}", "ratings": dict(zip(("coherence", "consistency", "fluency", "relevance"), row, strict=True))}
        for i, (name, row) in enumerate(zip("ABC", RATINGS, strict=True))
    },
}
TLDR = {"id": "t3", "subreddit": "cats", "title": "T", "post": "A post.", "site": None, "article": None}
SUMMARIES = [{"text": " s0", "policy": "ref"}, {"text": " s1", "policy": "sup"}]
PAIR_2020 = {"info": TLDR, "summaries": SUMMARIES, "choice": 1, "worker": "w"}
AXIS = {
    "info": {"id": "x", "article": "News."},
    "summary": {"text": "s", "policy": "ref", "axes": {"overall": 6, "accuracy": 7}},
    "split": "test",
}
SAMPLE = {"id": "1", "policy": "ppo", "prompt": "p", "response": "r"}
REDDIT = "SUBREDDIT: r/cats\n\nTITLE: T\n\nPOST: A post.\n\nTL;DR:"


def write(folder: Path, *rows: object, name: str = "labels.jsonl") -> Path:
    """Rows as JSON lines; a str row is written as it stands, bytes too."""
    path = folder / name
    lines = [
        r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in rows
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


# ------------------------------------------------------------------------------------------------- formats

FORMAT_CASES = {
    "best_of_n": (BEST | {"id": 7}, Comparison("p", ["a", "b", "c", "d"], best=2, meta={"id": 7})),
    "pair": (PAIR | {"margin": 0.5}, Comparison("p", ["a", "b"], best=0, margin=0.5)),
    "pair with ids": (
        {"prompt": [1], "chosen": [2, 3], "rejected": [4]},
        Comparison([1], [[2, 3], [4]], best=0),
    ),
    "pair with messages": (
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        Comparison([USER], [[GOOD], [BAD]], best=0),
    ),
    "pair after messages": (
        {"prompt": [USER], "chosen": "good", "rejected": "bad"},
        Comparison([USER], ["good", "bad"], best=0),
    ),
    "pair_implicit": (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "margin": None},
        Comparison([USER], [[GOOD], [BAD]], best=0),
    ),
    "pair_implicit with a prompt": (
        {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        Comparison([USER], [[GOOD], [BAD]], best=0),
    ),
    "pair_implicit of answers after a prompt": (
        {"prompt": "hi", "chosen": [GOOD], "rejected": [BAD]},
        Comparison([USER], [[GOOD], [BAD]], best=0),
    ),
    "pair with messages that stand in its sides again": (
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        Comparison([USER], [[GOOD], [BAD]], best=0),
    ),
    "best_of_n with a meta of its own": (
        BEST | {"meta": "batch 3"},
        Comparison("p", ["a", "b", "c", "d"], best=2, meta={"meta": "batch 3"}),
    ),
    # as `dataclasses.asdict` of a Comparison writes it
    "ranked with nulls": (
        {"best": None, "ratings": None, "margin": None, "meta": {"id": 7}} | RANKED,
        Comparison("p", ["a", "b", "c"], ranks=[2, 1, 2], meta={"id": 7}),
    ),
    "hh": (
        {
            side: "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: " + side
            for side in ("chosen", "rejected")
        },
        Comparison(
            "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant:", [" chosen", " rejected"], best=0
        ),
    ),
    "ranked": (RANKED, Comparison("p", ["a", "b", "c"], ranks=[2, 1, 2])),
    "votes": (VOTES, Comparison("p", ["a", "b"], best=1, meta={"votes": [1, 0, 1]})),
    # coherence + consistency + fluency + relevance: 10, 12, 10, whatever the order of the sum
    "summeval": (
        SUMMEVAL,
        Comparison(
            "News.", ["s0", "s1", "s2"], ranks=[2, 1, 2], ratings=[10, 12, 10], meta={"id": "x", "systems": ["A", "B", "C"]}
        ),
    ),
    "summeval in columns": (
        {"text": "News.", "machine_summaries": ["s0", "s1"], "id": "x"}
        | {"coherence": [1, 2], "consistency": [5, 5], "fluency": [3.5, 3], "relevance": [2, 2]},
        Comparison("News.", ["s0", "s1"], ranks=[2, 1], ratings=[11.5, 12], meta={"id": "x"}),
    ),
    # The first letters of the last words are alike too, and are no part of the prompt.
    "pair_implicit in texts": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black.", "margin": 2},
        Comparison("The sky is", [" blue.", " black."], best=0, margin=2),
    ),
    "rating": ({"query": "q", "sample": "s", "score": 3}, Comparison("q", ["s"], ratings=[3])),
    "rating as a record": (
        {"prompt": "q", "response": "s", "rating": -0.5, "by": "me"},
        Comparison("q", ["s"], ratings=[-0.5], meta={"by": "me"}),
    ),
    "scalar_compare": (
        {"query": [1, PAD], "sample0": [2], "sample1": [3, PAD], "difference": -1.5},
        Comparison([1], [[2], [3]], margin=-1.5),
    ),
    # Padding goes from the right alone: the 50259 inside the query stays.
    "openai_2019": (TOKENS, Comparison([5, PAD, 6], [[1, 2], [1, 3], [1], [4]], best=3)),
    "openai_2020": (
        PAIR_2020,
        Comparison(
            REDDIT,
            [" s1", " s0"],
            best=0,
            meta={
                "choice": 1,
                "worker": "w",
                "source": "tldr",
                "info": {"id": "t3", "subreddit": "cats", "title": "T", "site": None},
                "summaries": [{"policy": "sup"}, {"policy": "ref"}],
            },
        ),
    ),
    "openai_2020 with an empty article": (
        PAIR_2020 | {"info": TLDR | {"article": ""}, "summaries": [{"text": "s0"}, {"text": "s1"}]},
        Comparison(
            REDDIT,
            ["s1", "s0"],
            best=0,
            meta={
                "choice": 1,
                "worker": "w",
                "source": "tldr",
                "info": {"id": "t3", "subreddit": "cats", "title": "T", "site": None},
                "summaries": [{}, {}],
            },
        ),
    ),
    "openai_2020_axis": (
        AXIS,
        Comparison(
            "Article:\n\nNews.\n\nTL;DR:",
            ["s"],
            ratings=[6],
            meta={
                "split": "test",
                "source": "cnndm",
                "info": {"id": "x"},
                "summary": {"policy": "ref", "axes": {"overall": 6, "accuracy": 7}},
            },
        ),
    ),
}


@pytest.mark.parametrize("name", FORMAT_CASES)
def test_each_format_is_detected_and_can_be_forced(tmp_path, name):
    record, expected = FORMAT_CASES[name]
    path = write(tmp_path, record)
    format = name.split()[0]
    reader = read_comparisons(path)
    assert reader.format == format
    assert list(reader) == [expected] == list(read_comparisons(path, format))
    assert reader.skipped == {}


@pytest.mark.parametrize("name", ["openai_2019", "scalar_compare", "rating"])
def test_a_label_file_of_2019_has_any_of_its_three_types(tmp_path, name):
    record, expected = FORMAT_CASES[name]
    assert list(read_comparisons(write(tmp_path, record), "openai_2019")) == [expected]
    if name == "rating":
        assert list(read_comparisons(write(tmp_path, record), "scalar_rating")) == [expected]


@pytest.mark.parametrize("printed", [json.dumps, repr])
@pytest.mark.parametrize("name", FORMAT_CASES)
def test_each_format_in_csv(tmp_path, name, printed):
    """Cells that hold token ids, messages or objects as JSON, or as Python prints them, are those; other texts stay texts."""
    record, expected = FORMAT_CASES[name]
    record = {k: v for k, v in record.items() if v is not None and k not in ("worker", "split", "by", "id")}
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(record))
        writer.writeheader()
        writer.writerow({k: v if isinstance(v, str) else printed(v) for k, v in record.items()})
    (found,) = read_comparisons(tmp_path / "labels.csv")
    kept = {k: v for k, v in expected.meta.items() if k not in ("worker", "split", "by", "id") or k in record.get("meta", {})}
    assert replace(found, meta={}) == replace(expected, meta={})
    assert name == "votes" or found.meta == kept


def test_texts_in_csv_that_look_like_json_stay_texts(tmp_path):
    rows = [("[note]", '[1, "b"]', "{x}"), ("[]", "[true]", '["a"]'), ("As JSON?", '{"name": "x"}', "[1, 2, 3]")]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("prompt", "chosen", "rejected"), *rows])
    assert [(c.prompt, *c.responses) for c in read_comparisons(tmp_path / "a.csv")] == rows
    (tmp_path / "mac.csv").write_bytes((tmp_path / "a.csv").read_bytes().replace(b"\r\n", b"\r"))
    assert [(c.prompt, *c.responses) for c in read_comparisons(tmp_path / "mac.csv")] == rows


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({k: v for k, v in TOKENS.items() if k != "sample2"}, ":1: field 'sample2': found only sample0, sample1, sample3"),
        ({"prompt": "p", "responses": ["a", "b", "c"], "margin": 1.0}, ":1: field 'margin': found it beside 3 responses"),
        ({"chosen": 5, "rejected": HH["rejected"]}, ":1: field 'chosen': found 5, expected a string, a list of token ids"),
        ({"chosen": None, "rejected": "b"}, "whose 'chosen' is null"),
    ],
)
def test_a_first_record_that_is_wrong_names_the_field(tmp_path, record, message):
    with pytest.raises(DataError) as error:
        list(read_comparisons(write(tmp_path, record)))
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "place"), [("a.csv", "702"), ("a.json", "item 701")])
def test_a_bad_byte_is_told_of_where_it_stands(tmp_path, name, place):
    rows = [PAIR | {"prompt": f"p{i}é"} for i in range(1000)]
    text = json.dumps(rows, ensure_ascii=False)
    if name == "a.csv":
        text = "prompt,chosen,rejected\n" + "".join(f"{r['prompt']},a,b\n" for r in rows)
    (tmp_path / name).write_bytes(text.encode().replace("p700é".encode(), b"p700\xff"))
    with pytest.raises(DataError, match=rf"{name}:{place}: found byte 0xff.*expected UTF-8 text"):
        list(read_comparisons(tmp_path / name))


def test_unusable_records_of_several_files_are_listed_with_their_file(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path, PAIR, PAIR | {"chosen": " "}, name=name)
    reader = read_comparisons(tmp_path)
    with pytest.raises(DataError, match=r"2 empty response \(at \S*a\.jsonl:2, \S*b\.jsonl:2\)"):
        list(reader)
    assert reader.skipped == {"empty response": [2, 2]}


def test_demonstrations_and_prompts_in_messages(tmp_path):
    path = write(tmp_path, {"messages": [USER, GOOD], "id": 3})
    assert list(read_demonstrations(path)) == [Demonstration([USER], [GOOD], {"id": 3})]
    assert list(read_prompts(path)) == [Prompt([USER], "good", {"id": 3})]
    path = write(tmp_path, {"messages": [USER]})
    assert list(read_prompts(path)) == [Prompt([USER])]
    with pytest.raises(DataError, match=r":1: field 'messages': found \"user\", expected a last message of the role assistant"):
        list(read_demonstrations(path))


def test_every_format_has_a_case_and_a_layout():
    assert (
        set(FORMATS) == {name.split()[0] for name in FORMAT_CASES} == {x.format for x in formats.COMPARISONS}
    )


@pytest.mark.parametrize("name", FORMAT_CASES)
def test_comparisons_survive_a_file(tmp_path, name):
    expected = FORMAT_CASES[name][1]
    assert write_jsonl(tmp_path / "out.jsonl.gz", [expected] * 3) == 3
    assert list(read_comparisons(tmp_path / "out.jsonl.gz")) == [expected] * 3


def test_array_is_streamed_item_by_item_at_every_chunk_size(tmp_path):
    items = [TOKENS | {"best": i % 4, "note": 'brackets ] } , and "quotes" \\ é \u2028'} for i in range(7)]
    path = tmp_path / "offline_5k.json"
    for text in (
        json.dumps(items),
        json.dumps(items, indent=2, ensure_ascii=False),
        f"\ufeff \n{json.dumps(items)}\n\n",
    ):
        path.write_text(text, encoding="utf-8")
        assert [c.best for c in read_comparisons(path)] == [0, 1, 2, 3, 0, 1, 2]
        for chunk in (1, 2, 3, 17, 1000):
            assert [item for _, item in files._json_array(str(path), chunk)] == items


def test_skipped_numbers_are_items_in_an_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([PAIR, PAIR | {"chosen": " "}]))
    reader = read_comparisons(path, max_skipped=0.5)
    assert len(list(reader)) == 1 and reader.skipped == {"empty response": [2]}


LINE = {
    "id": "x", "model_id": "M1", "decoded": "s1", "text": "News.", "references": ["r"], "filepath": "x.story",
    "expert_annotations": [dict.fromkeys(("coherence", "consistency", "fluency", "relevance"), n) for n in (3, 4)],
    "turker_annotations": [{"coherence": 1}],
}  # fmt: skip


def rated(line: dict[str, Any], *numbers: int) -> dict[str, Any]:
    axes = ("coherence", "consistency", "fluency", "relevance")
    return line | {"expert_annotations": [dict(zip(axes, numbers, strict=True))]}


def test_summeval_with_a_line_a_summary(tmp_path: Path) -> None:
    """An article's lines stand anywhere; the means over the experts are ranked."""
    other = {"id": "y", "text": "Else."}
    lines = [
        LINE, rated(LINE | other | {"decoded": "t1"}, 1, 2, 3, 4), rated(LINE | {"model_id": "M2", "decoded": "s2"}, 5, 5, 5, 4),
        rated(LINE | other | {"model_id": "M9", "decoded": "t2"}, 4, 3, 2, 1),
        rated(LINE | {"model_id": "M0", "decoded": "s0"}, 3, 4, 4, 3),
        rated(LINE | other | {"decoded": "t3", "model_id": "M2"}, 1, 1, 1, 1),
    ]  # fmt: skip
    reader = read_comparisons(write(tmp_path, *lines))
    assert reader.format == "summeval"
    meta = {"references": ["r"], "filepath": "x.story"}
    assert list(reader) == [
        Comparison("News.", ["s1", "s2", "s0"], ranks=[2, 1, 2], ratings=[14, 19, 14],
                   meta={"id": "x", **meta, "systems": ["M1", "M2", "M0"]}),
        Comparison("Else.", ["t1", "t2", "t3"], ranks=[1, 1, 3], ratings=[10, 10, 4],
                   meta={"id": "y", **meta, "systems": ["M1", "M9", "M2"]}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({k: v for k, v in LINE.items() if k != "text"} | {"model_id": "M2"}, ":2: field 'text': found only id, model_id"),
        (LINE, ":2: field 'model_id': found \"M1\", expected each system once for an article (id 'x')"),
        (LINE | {"model_id": "M2", "text": "Other."}, ":2: field 'text': found \"Other.\", expected the same article as at"),
        (LINE | {"model_id": "M2", "expert_annotations": []}, ":2: field 'expert_annotations': found [], expected at least one"),
        (
            LINE | {"model_id": "M2", "expert_annotations": [{"coherence": 1}]},
            ":2: field 'expert_annotations[0]': found {\"coherence\": 1}, expected an object with coherence, consistency",
        ),
        (LINE | {"model_id": "M2", "decoded": 3}, ":2: field 'decoded': found 3, expected a string"),
        (LINE | {"id": "y", "model_id": "M2"}, ":1: field 'systems': found 1 summaries, expected at least 2"),
    ],
)
def test_a_bad_line_of_summeval(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        list(read_comparisons(write(tmp_path, LINE, second)))
    assert message in str(error.value)


# --------------------------------------------------------------------------------------------- bad records

BAD_RECORDS = [
    # what is wrong with line 2 (line 1 is `good`), and all of what the message must say
    (
        BEST,
        BEST | {"best": 4},
        [":2: field 'best': found 4, expected an integer from 0 to 3 (there are 4 responses)"],
    ),
    (BEST, BEST | {"best": -1}, [":2: field 'best': found -1, expected an integer from 0 to 3"]),
    (BEST, BEST | {"best": True}, [":2: field 'best': found true, expected an integer from 0 to 3"]),
    (BEST, BEST | {"best": "2"}, [":2: field 'best': found \"2\", expected an integer"]),
    (BEST, BEST | {"best": 2.0}, [":2: field 'best': found 2.0, expected an integer"]),
    (BEST, BEST | {"best": None}, [":2: field 'best': found null, expected a value"]),
    (BEST, BEST | {"responses": []}, [":2: field 'responses': found 0 responses, expected at least 2"]),
    (BEST, BEST | {"responses": ["a"]}, [":2: field 'responses': found 1 responses, expected at least 2"]),
    (BEST, BEST | {"responses": "abcd"}, [":2: field 'responses': found \"abcd\", expected a list"]),
    (
        BEST,
        BEST | {"responses": ["a", 3, "c", "d"]},
        [":2: field 'responses[1]': found 3, expected a string, a list"],
    ),
    (
        BEST,
        BEST | {"responses": ["a", [1], "c", "d"]},
        [":2: field 'responses': found a string and ids", "one kind"],
    ),
    (BEST, BEST | {"prompt": 3}, [":2: field 'prompt': found 3, expected a string, a list of token ids"]),
    (
        BEST,
        BEST | {"prompt": [1, True]},
        [":2: field 'prompt': found [1, true]", "token ids (integers from 0)"],
    ),
    (BEST, BEST | {"prompt": [1, -1]}, [":2: field 'prompt': found [1, -1]"]),
    (BEST, BEST | {"prompt": [1]}, [":2: field 'responses': found a string after a prompt that is ids"]),
    (
        BEST,
        BEST | {"prompt": [{"role": "user"}]},
        ['\'prompt[0]\': found {"role": "user"}', "role and content"],
    ),
    (
        BEST,
        BEST | {"prompt": [USER | {"content": None}]},
        ["'prompt[0].content': found null, expected a string"],
    ),
    (
        BEST,
        {"prompt": "p", "responses": ["a", "b"], "bset": 1},
        [":2: field 'best'", "is 'bset' meant to be 'best'?"],
    ),
    (
        BEST,
        {},
        [":2: field 'prompt': found only an empty object, expected the fields prompt, responses, best"],
    ),
    (BEST, BEST | {"ranks": [1, 2, 3, 4]}, [":2: field 'best': found 2, expected a response of rank 1"]),
    (BEST, BEST | {"margin": "big"}, [":2: field 'margin': found \"big\", expected a finite number"]),
    (RANKED, RANKED | {"ranks": [1, 2]}, [":2: field 'ranks': found 2 entries, expected 3 entries"]),
    (
        RANKED,
        RANKED | {"ranks": [0, 1, 2]},
        [":2: field 'ranks': found [0, 1, 2], expected integers from 1 (best) to 3"],
    ),
    (RANKED, RANKED | {"ranks": [2, 2, 3]}, [":2: field 'ranks': found [2, 2, 3]", "one of them 1"]),
    (RANKED, RANKED | {"ranks": [1, True, 3]}, [":2: field 'ranks': found [1, true, 3]"]),
    (
        PAIR,
        {"prompt": "p", "chosen": "a", "reject": "b"},
        [":2: field 'rejected'", "is 'reject' meant to be 'rejected'"],
    ),
    (PAIR, PAIR | {"margin": True}, [":2: field 'margin': found true, expected a finite number"]),
    (
        PAIR,
        '{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e999}',
        [":2: field 'margin': found Infinity"],
    ),
    (PAIR, PAIR | {"margin": 10**400}, [":2: field 'margin': found 1000", "expected a finite number"]),
    (PAIR, PAIR | {"chosen": "x" * 500}, None),  # long, but good
    (
        PAIR,
        PAIR | {"chosen": [0.5] * 500},
        [":2: field 'chosen': found [0.5, 0.5, ", "..., expected a string"],
    ),
    (HH, HH | {"chosen": "no marker"}, [":2: field 'chosen': found \"no marker\", expected a dialogue with"]),
    (HH, HH | {"chosen": ["list"]}, [":2: field 'chosen': found [\"list\"], expected a string"]),
    (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": "bad"},
        [":2: field 'rejected': found \"bad\", expected a list of {role, content}"],
    ),
    (TOKENS, TOKENS | {"best": 4}, [":2: field 'best': found 4, expected an integer from 0 to 3"]),
    (TOKENS, TOKENS | {"sample2": "text"}, [":2: field 'sample2': found a string and ids after a prompt that is ids"]),
    (TOKENS, TOKENS | {"query": "text"}, [":2: field 'sample0': found ids after a prompt that is a string"]),
    ({"prompt": [1], "chosen": [2], "rejected": [3]}, {"prompt": [1], "chosen": [2], "rejected": "b"}, [":2: field 'rejected'"]),
    (
        {"prompt": [USER], "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": "a", "rejected": [3]},
        [":2: field 'rejected': found a string and ids after a prompt that is messages"],
    ),
    (PAIR_2020, PAIR_2020 | {"choice": 2}, [":2: field 'choice': found 2, expected an integer from 0 to 1"]),
    (
        PAIR_2020,
        PAIR_2020 | {"summaries": SUMMARIES[:1]},
        [":2: field 'summaries': found 1 entries, expected 2 entries"],
    ),
    (
        PAIR_2020,
        PAIR_2020 | {"summaries": ["a", "b"]},
        ["field 'summaries[0]': found \"a\", expected an object with text"],
    ),
    (
        PAIR_2020,
        PAIR_2020 | {"info": {"post": "x"}},
        [":2: field 'info'", "an object with subreddit, title, post"],
    ),
    (PAIR_2020, PAIR_2020 | {"info": "x"}, [":2: field 'info': found \"x\", expected an object"]),
    (AXIS, AXIS | {"summary": {"text": "s"}}, [":2: field 'summary'", "expected an object with text, axes"]),
    (AXIS, AXIS | {"summary": {"text": "s", "axes": {"overall": 8}}}, ["axes.overall': found 8, expected a number from 1 to 7"]),
    (
        AXIS,
        AXIS | {"summary": {"text": "s", "axes": {"overall": "6"}}},
        [":2: field 'summary.axes.overall': found \"6\", expected a finite number"],
    ),
    (VOTES, VOTES | {"votes": [2]}, [":2: field 'votes[0]': found 2, expected an integer from 0 to 1"]),
    (VOTES, VOTES | {"votes": "1"}, [":2: field 'votes': found \"1\", expected a list"]),
    (SUMMEVAL, SUMMEVAL | {"systems": ["s"]}, [":2: field 'systems': found [\"s\"], expected an object"]),
    (SUMMEVAL, SUMMEVAL | {"systems": {"A": {"summary": "s"}}}, [":2: field 'systems.A'", "an object with summary, ratings"]),
    (
        SUMMEVAL,
        SUMMEVAL | {"systems": {"A": {"summary": "s", "ratings": {"coherence": 1}}}},
        [":2: field 'systems.A.ratings'", "expected an object with coherence, consistency, fluency, relevance"],
    ),
    (SUMMEVAL, SUMMEVAL | {"article": 3}, [":2: field 'article': found 3, expected a string"]),
    (
        SUMMEVAL,
        SUMMEVAL | {"systems": {"A": SUMMEVAL["systems"]["A"]}},
        [":2: field 'systems': found 1 summaries, expected at least 2"],
    ),
    (
        FORMAT_CASES["summeval in columns"][0],
        FORMAT_CASES["summeval in columns"][0] | {"fluency": [1]},
        [":2: field 'fluency': found 1 entries, expected 2 entries"],
    ),
    (PAIR, "[1, 2]", [":2: found [1, 2], expected a JSON object"]),
    (PAIR, "null", [":2: found null, expected a JSON object"]),
    (PAIR, '{"prompt": "p", ', [":2: found broken JSON (", " at column ", "expected a JSON object"]),
    (PAIR, '{"prompt": NaN}', [":2: ", "NaN is not JSON"]),
    (PAIR, '{"prompt": -Infinity}', [":2: ", "-Infinity is not JSON"]),
    (PAIR, '{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "c"}', [":2: ", "the name 'chosen' twice in one object"]),
    (PAIR, '{"a": ' * 100_000, [":2: found unreadable data (maximum recursion"]),
    (PAIR, b'{"prompt": "\xff"}', [":2: found byte 0xff at byte offset 12 of the line, expected UTF-8 text"]),
    (PAIR, '{"prompt": "\\ud800"}', [":2: found half a surrogate pair in an escape"]),
]


@pytest.mark.parametrize(("good", "bad", "message"), BAD_RECORDS, ids=range(len(BAD_RECORDS)))
def test_a_malformed_line_raises_whatever_is_allowed_to_be_skipped(tmp_path, good, bad, message):
    reader = read_comparisons(write(tmp_path, good, bad), max_skipped=1.0)
    next(reader)
    if message is None:
        next(reader)
        return
    with pytest.raises(DataError) as error:
        next(reader)
    assert str(error.value).startswith(str(tmp_path / "labels.jsonl"))
    for part in message:
        assert part in str(error.value)


def test_unknown_fields_and_unknown_formats_list_what_is_known(tmp_path):
    with pytest.raises(
        DataError, match="labels.jsonl:1: found the fields question, answer, expected one of the formats"
    ) as e:
        read_comparisons(write(tmp_path, {"question": 1, "answer": 2}))
    assert all(name in str(e.value) for name in FORMATS)
    hint = r"nearest to best_of_n, without 'best' \(is 'bset' meant to be 'best'\?\)\), expected the format best_of_n [^;]*$"
    with pytest.raises(DataError, match=hint):
        read_comparisons(write(tmp_path, {"prompt": "p", "responses": ["a", "b"], "bset": 1}))
    with pytest.raises(
        DataError, match="labels.jsonl: field 'format': found 'pairs', expected one of .*pair_implicit"
    ):
        read_comparisons(write(tmp_path, PAIR), "pairs")
    with pytest.raises(
        DataError, match=":1: field 'best': found only prompt, responses, ranks.* expected the fields"
    ):
        next(read_comparisons(write(tmp_path, RANKED), "best_of_n"))
    with pytest.raises(
        DataError, match=":1: found the fields chosen, rejected, expected one of"
    ):  # not in HH's form
        read_comparisons(write(tmp_path, {"chosen": "a", "rejected": "b"}))


# --------------------------------------------------------------------------------------------------- files


def test_unreadable_files_say_where(tmp_path):
    whole = gzip.compress(
        b"".join(json.dumps(PAIR | {"i": os.urandom(9).hex()}).encode() + b"\n" for _ in range(3000))
    )
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.jsonl.gz").write_bytes(b'{"prompt": "p"}\n')
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "cut.json").write_text(json.dumps([PAIR, PAIR])[:-8])
    (tmp_path / "tail.json").write_text(json.dumps([PAIR]) + " x")
    (tmp_path / "comma.json").write_text(json.dumps([PAIR, PAIR]).replace("}, {", "} {"))
    (tmp_path / "number.json").write_text(json.dumps([PAIR, 3]))
    (tmp_path / "nan.json").write_text('[{"prompt": NaN}]')
    (tmp_path / "twice.json").write_text('[{"prompt": "p", "prompt": "q"}]')
    (tmp_path / "folder").mkdir()
    for name, message in {
        "absent.jsonl": "absent.jsonl:1: found no such file, expected a file, a directory or a glob",
        "empty.jsonl": "empty.jsonl:1: found an empty file, expected at least one record",
        "blank.jsonl": "blank.jsonl:1: found an empty file",
        "not.jsonl.gz": r"not.jsonl.gz:1: found a truncated or damaged gzip file \(Not a gzipped file",
        "cut.jsonl.gz": r"cut.jsonl.gz:\d{2,}: found a truncated or damaged gzip file \(Compressed",
        "none.json": "none.json:item 1: found an empty file",
        "cut.json": "cut.json:item 2: found broken JSON",
        "tail.json": r"tail.json:item 2: found unreadable data \(text after the end of the array",
        "comma.json": r"comma.json:item 2: found broken JSON \(Expecting ',' or ']'",
        "number.json": "number.json:item 2: found 3, expected a JSON object",
        "nan.json": r"nan.json:item 1: found unreadable data \(NaN is not JSON",
        "twice.json": r"twice.json:item 1: found unreadable data \(the name 'prompt' twice in one object",
        "folder": "folder: found no file, expected a directory with",
        "*.nothing": "nothing: found no file, expected a directory with .* or a glob that matches",
    }.items():
        with pytest.raises(DataError, match=message):
            list(read_comparisons(tmp_path / name))
    for name in ("absent.jsonl", "empty.jsonl", "blank.jsonl", "not.jsonl.gz", "cut.jsonl.gz", "folder"):
        with pytest.raises(DataError, match=name):
            list(read_jsonl(tmp_path / name))
    with pytest.raises(DataError, match=r"none.json:1: found \[\], expected a JSON object"):
        list(read_jsonl(tmp_path / "none.json"))


def test_lines_of_directories_globs_gzip_and_a_byte_order_mark(tmp_path):
    write(
        tmp_path,
        b"\xef\xbb\xbf" + json.dumps({"n": 1}).encode(),
        "",
        '{"n": "\u2028\u0085"}\r',
        name="b.jsonl",
    )
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 0}'))
    write(tmp_path, {"n": -1}, name="c.txt")
    write(tmp_path, {"n": 9}, name="odd[1].jsonl")
    a, b, odd = (str(tmp_path / name) for name in ("a.jsonl.gz", "b.jsonl", "odd[1].jsonl"))
    both = [(a, 1, {"n": 0}), (b, 1, {"n": 1}), (b, 3, {"n": "\u2028\u0085"})]
    assert list(read_jsonl(tmp_path)) == [*both, (odd, 1, {"n": 9})]
    assert list(read_jsonl(str(tmp_path / "[ab].jsonl*"))) == both
    assert list(read_jsonl(odd)) == [(odd, 1, {"n": 9})]
    deep = tmp_path / "above" / "deeper"
    deep.mkdir(parents=True)
    write(deep, {"n": 2}, name="d.jsonl")
    with pytest.raises(DataError, match=r"above/deeper/d\.jsonl stands deeper: .*above/\*\*/\*\.jsonl reads subfolders"):
        list(read_jsonl(deep.parent))
    assert len(list(read_jsonl(f"{deep.parent}/**/*.jsonl"))) == 1


def test_csv(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('prompt,chosen,rejected,margin\np,None,"4\n2",\np,NA,b,1.5\n', encoding="utf-8-sig")
    pairs = list(read_comparisons(path))
    assert pairs == [
        Comparison("p", ["None", "4\n2"], best=0),
        Comparison("p", ["NA", "b"], best=0, margin=1.5),
    ]
    path.write_text('prompt,responses,best\np,"[""a"", ""b""]",1\n')
    assert list(read_comparisons(path)) == [Comparison("p", ["a", "b"], best=1)]
    for text, message in {
        'prompt,responses,best\np,"[""a"", ""b""]",x\n': ":2: field 'best': found \"x\", expected",
        "prompt,chosen,rejected\np,a,b\np,a\n": ":3: found unreadable data .more or fewer cells",
        'prompt,chosen,rejected\np,a,"b\n': ":2: found unreadable data .unexpected end of data",
        "prompt,chosen,rejected\n": ":1: found an empty file",
        "prompt,chosen,rejected,chosen\np,a,b,c\n": ":1: field 'chosen': found two columns of that name, expected one",
        # a row is told of by the line that it begins with
        'prompt,chosen,rejected,margin\np,"a\n\nb",c,1\n\np,"a\nb",c,x\n': ":6: field 'margin': found \"x\"",
        'prompt,chosen,rejected,"x\ny"\n\np,"a\n\nb",c,d\np,"a\nb"\n': ":7: found unreadable data .more or fewer cells",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match="pairs.csv" + message):
            list(read_comparisons(path))


def test_parquet(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "odd[1].parquet"
    parquet.write_table(
        pyarrow.Table.from_pylist([PAIR | {"margin": None}, PAIR | {"margin": 2.0}, PAIR | {"chosen": ""}]),
        path,
    )
    reader = read_comparisons(path, max_skipped=0.5)
    assert [c.margin for c in reader] == [None, 2.0] and reader.skipped == {"empty response": [3]}
    parquet.write_table(pyarrow.Table.from_pylist([BEST, BEST | {"best": 4}]), path)
    with pytest.raises(DataError, match=r"parquet:row 2: field 'best': found 4"):
        list(read_comparisons(path))
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"parquet:row 1: found unreadable data"):
        list(read_comparisons(path))
    with pytest.raises(DataError, match=r"absent.parquet:row 1: found no such file"):
        list(read_comparisons(tmp_path / "absent.parquet"))


# ------------------------------------------------------------------------------------------------ skipping

UNUSABLE = [
    (PAIR, PAIR | {"chosen": ""}, "empty response"),
    (PAIR, PAIR | {"rejected": " \n"}, "empty response"),
    (PAIR, PAIR | {"prompt": " "}, "empty prompt"),
    (PAIR, PAIR | {"chosen": "b"}, "identical responses"),
    (
        PAIR,
        PAIR | {"prompt": [USER], "chosen": [GOOD | {"content": ""}], "rejected": [BAD]},
        "empty response",
    ),
    (BEST, BEST | {"responses": ["a"] * 4}, "identical responses"),
    (RANKED, RANKED | {"ranks": [1, 1, 1]}, "all ranks tied"),
    (TOKENS, TOKENS | {"sample1": [PAD, PAD]}, "empty response"),
    (TOKENS, TOKENS | {"query": [PAD]}, "empty prompt"),
    (HH, HH | {"chosen": "\n\nHuman: other\n\nAssistant: a"}, "prompts differ"),
    (HH, HH | {"chosen": "\n\nHuman: q\n\nAssistant:"}, "empty response"),
    (HH, HH | {"chosen": HH["rejected"]}, "identical responses"),
    (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER | {"content": "?"}, GOOD], "rejected": [USER, BAD]},
        "prompts differ",
    ),
    (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD]} | {"rejected": [USER]},
        "empty response",
    ),
    ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, {"chosen": [], "rejected": [USER]}, "empty response"),
    (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD]},
        "identical responses",
    ),
    (AXIS, AXIS | {"summary": {"text": "s", "axes": {"overall": None}}}, "no overall rating"),
    (PAIR_2020, PAIR_2020 | {"info": TLDR | {"title": "", "post": " "}}, "empty prompt"),
    (AXIS, AXIS | {"info": {"article": " "}}, "empty prompt"),
    (HH, {side: f"\n\nHuman: \n\nAssistant: {side}" for side in HH}, "empty prompt"),
    (VOTES, VOTES | {"votes": [0, 1]}, "no majority"),
    (VOTES, VOTES | {"votes": []}, "no majority"),
    (
        SUMMEVAL,
        SUMMEVAL | {"systems": {"A": SUMMEVAL["systems"]["B"], "B": SUMMEVAL["systems"]["B"] | {"summary": "t"}}},
        "all ranks tied",
    ),
    ({"chosen": "a b", "rejected": "a c"}, {"chosen": "ab", "rejected": "ac"}, "prompts differ"),
    ({"chosen": "a b", "rejected": "a c"}, {"chosen": "a", "rejected": "a c"}, "empty response"),
    ({"chosen": "a b", "rejected": "a c"}, {"chosen": "a b", "rejected": "a b"}, "identical responses"),
]


@pytest.mark.parametrize(("good", "bad", "reason"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_unusable_records_are_counted_by_reason(tmp_path, good, bad, reason):
    path = write(tmp_path, good, "", bad, good)
    reader = read_comparisons(path, max_skipped=0.34)
    assert len(list(reader)) == 2
    assert reader.skipped == {reason: [3]}
    strict = read_comparisons(path, strict=True)
    next(strict)
    with pytest.raises(
        DataError, match=f"labels.jsonl:3: found an unusable record: {reason}, expected usable ones"
    ):
        next(strict)


def test_more_than_one_percent_unusable_raises_at_the_end(tmp_path):
    empty = PAIR | {"chosen": ""}
    reader = read_comparisons(write(tmp_path, *[PAIR] * 99, empty))
    assert len(list(reader)) == 99  # exactly 1 % is allowed
    reader = read_comparisons(write(tmp_path, *[PAIR] * 98, empty, empty))
    for _ in range(98):
        next(reader)
    message = r"labels.jsonl: found 2 of 100 records unusable: 2 empty response \(at 99, 100\), expected at"
    with pytest.raises(DataError, match=message):
        next(reader)
    assert reader.skipped == {"empty response": [99, 100]}
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(DataError, match=rf"field 'max_skipped': found {share}, expected a share from 0 to 1"):
            read_comparisons(write(tmp_path, PAIR), max_skipped=share)
    with pytest.raises(DataError, match="found 1 of 1 records unusable.* and one usable"):
        list(read_comparisons(write(tmp_path, empty), max_skipped=1.0))


def test_real_dialogues():
    folder = os.environ.get("LIGHTNING_RLHF_DATA", "")
    path = Path(folder, "hh_harmless", "comparisons.jsonl.gz")
    if not folder or not path.exists():
        pytest.skip("LIGHTNING_RLHF_DATA does not name a folder with hh_harmless/comparisons.jsonl.gz")
    reader = read_comparisons(path)
    comparisons = list(reader)
    assert reader.format == "hh" and reader.count == 2000 and len(comparisons) == 1992
    assert reader.skipped == {
        "empty response": [87, 517, 926, 1104],
        "prompts differ": [1255, 1689, 1951, 1953],
    }
    assert all(c.prompt.endswith("\n\nAssistant:") and c.best == 0 for c in comparisons)


def test_real_ratings():
    path = Path(os.environ.get("LIGHTNING_RLHF_DATA", ""), "summeval", "ratings.jsonl.gz")
    if not os.environ.get("LIGHTNING_RLHF_DATA") or not path.exists():
        pytest.skip("LIGHTNING_RLHF_DATA does not name a folder with summeval/ratings.jsonl.gz")
    comparisons = list(read_comparisons(path))
    assert len(comparisons) == 100 and {len(c.responses) for c in comparisons} == {16}
    assert sum(1 for c in comparisons for _ in pairs(c)) == 11_342  # of 100 · 120; 11,514 were equal sums not rounded


def test_pairs():
    ranked = Comparison("p", ["a", "b", "c"], ranks=[2, 1, 2], ratings=[1, 3.5, 1], meta={"id": 1})
    assert list(pairs(ranked)) == [
        Comparison("p", ["b", "a"], best=0, margin=2.5, meta={"id": 1}),
        Comparison("p", ["b", "c"], best=0, margin=2.5, meta={"id": 1}),
    ]
    rated = Comparison("p", ["a", "b", "c"], ratings=[2, 1, 3])
    assert [c.responses for c in pairs(rated)] == [["a", "b"], ["c", "a"], ["c", "b"]]
    assert [c.responses for c in pairs(Comparison("p", ["a", "b", "c"], best=1))] == [["b", "a"], ["b", "c"]]
    pair = Comparison("p", ["a", "b"], best=0, margin=2)
    assert list(pairs(pair)) == [pair]


def test_directories_hold_one_kind(tmp_path):
    """batch*.json of 2020 side by side, Parquet and CSV too; run.json is no record; several kinds are not guessed among."""
    write(tmp_path, PAIR_2020, name="batch1.json")
    (tmp_path / "batch2.json.gz").write_bytes(gzip.compress(json.dumps(PAIR_2020).encode()))
    write(tmp_path, {"stage": "labels"}, name="run.json")
    write(tmp_path, "notes", name="README.md")
    reader = read_comparisons(tmp_path)
    assert len(list(reader)) == 2 and reader.format == "openai_2020"
    write(tmp_path, PAIR, name="c.csv")
    with pytest.raises(DataError, match=r"found files of several kinds \(.csv, .json\), expected one kind; name it by a glob"):
        read_comparisons(tmp_path)


def test_a_dataset_on_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*args, **options):
        asked.append((*args, options["split"], options["streaming"]))
        return iter([PAIR | {"margin": None}, PAIR, PAIR | {"chosen": ""}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("owner/name", "owner/name:test", "owner/name:config:test"):
        reader = read_comparisons(name, max_skipped=0.5)
        assert len(list(reader)) == 2 and reader.skipped == {"empty response": [3]}
    assert asked == [
        ("owner/name", "train", True),
        ("owner/name", "test", True),
        ("owner/name", "config", "test", True),
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: iter([PAIR, PAIR | {"margin": "x"}]))
    with pytest.raises(DataError, match="owner/name:row 2: field 'margin': found \"x\""):
        list(read_comparisons("owner/name"))


def test_no_dataset_on_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(error):
        def load_dataset(*args, **options):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    refuse(ConnectionError("offline"))
    with pytest.raises(DataError, match=r"owner/name:row 1: found no such file, and no way to the Hub \(offline\)"):
        read_comparisons("owner/name")
    refuse(FileNotFoundError("gone"))
    with pytest.raises(DataError, match=r"owner/name:row 1: found no such file, and no such dataset \(gone\)"):
        read_comparisons("owner/name")
    refuse(AssertionError("asked the Hub for a file"))
    for path in ("owner/name.jsonl", "./owner/name", "lightning_rlhf/nothing"):  # a folder of that name is there
        with pytest.raises(DataError, match="found no such file"):
            read_comparisons(path)


def test_memory_and_time_do_not_grow_with_the_file(tmp_path):
    """40 MB in lines and 40 MB in one array, each in a process of its own, which imports nothing heavy."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc: a child's own peak memory is not to be had")
    pair = json.dumps({"prompt": "é" * 500, "chosen": "a" * 700, "rejected": "b" * 700}, ensure_ascii=False)
    (tmp_path / "lines.jsonl").write_text((pair + "\n") * 16_000, encoding="utf-8")
    (tmp_path / "array.json").write_text("[" + ",\n".join([pair] * 16_000) + "]", encoding="utf-8")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from lightning_rlhf.records import read_comparisons\n"
        "from lightning_rlhf.machine import peak_resident\n"
        "peak = lambda: peak_resident() // 1024  # in KB\n"
        "start = peak(); n = sum(1 for _ in read_comparisons(sys.argv[2])); grown = peak() - start\n"
        "print(n, grown, sum(m in sys.modules for m in ('torch', 'transformers', 'lightning', 'datasets')))"
    )
    for name in ("lines.jsonl", "array.json"):
        assert os.path.getsize(tmp_path / name) > 38e6
        command = [sys.executable, "-c", code, str(Path(records.__file__).parent.parent), str(tmp_path / name)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
        count, grown, heavy = map(int, out.stdout.split())  # 1 s; a quadratic reader would take minutes
        assert count == 16_000 and grown < 30_000 and heavy == 0, out.stdout


# ------------------------------------------------------------------------------------------- other records


def test_demonstrations_prompts_and_ratings(tmp_path):
    rows = [Demonstration("p", "c", {"id": 1}), Demonstration([USER], [GOOD])]
    write_jsonl(tmp_path / "d.jsonl", rows)
    assert list(read_demonstrations(tmp_path / "d.jsonl")) == rows
    assert list(read_prompts(write(tmp_path, {"prompt": "p", "reference": ""}))) == [Prompt("p")]
    prompts = [Prompt("p"), Prompt([1, 2], [3], {"id": "x"}), Prompt("p", ["one reference", "another"])]
    write_jsonl(tmp_path / "p.jsonl", prompts)
    assert list(read_prompts(tmp_path / "p.jsonl")) == prompts
    ratings = [Rating("p", "r", 4, {"by": "w"})]
    write_jsonl(tmp_path / "r.jsonl", ratings)
    assert list(read_ratings(tmp_path / "r.jsonl")) == ratings
    assert list(read_ratings(write(tmp_path, {"query": [1, PAD], "sample": [2], "score": 0.5}))) == [
        Rating([1], [2], 0.5)
    ]
    skipping = read_demonstrations(
        write(tmp_path, {"prompt": "p", "completion": ""}, rows[0].__dict__), max_skipped=0.5
    )
    assert len(list(skipping)) == 1 and skipping.skipped == {"empty response": [1]}


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (read_demonstrations, {"prompt": "p", "complete": "c"}, "field 'completion'.*is 'complete' meant"),
        (
            read_demonstrations,
            {"prompt": "p", "completion": 3},
            "field 'completion': found 3, expected a string",
        ),
        (
            read_demonstrations,
            {"prompt": "p", "completion": [3]},
            "field 'completion': found ids after a prompt that",
        ),
        (read_demonstrations, {"text": "p"}, "field .* expected the fields messages, or prompt, completion"),
        (read_prompts, {"text": "p"}, "field 'prompt': found only text, expected the fields prompt"),
        (read_prompts, {"prompt": "p", "reference": 3}, "field 'reference': found 3, expected a string"),
        (
            read_ratings,
            {"prompt": "p", "response": "r", "rating": "4"},
            "field 'rating': found \"4\", expected a finite",
        ),
        (read_ratings, {"prompt": "p", "response": "r"}, "field 'rating': found only prompt, response"),
        (read_samples, SAMPLE | {"id": None}, "field 'id': found null, expected a value"),
        (read_samples, SAMPLE | {"id": 1.5}, "field 'id': found 1.5, expected a string or an integer"),
        (read_samples, SAMPLE | {"index": -1}, "field 'index': found -1, expected an integer from 0"),
        (read_samples, SAMPLE | {"seed": True}, "field 'seed': found true, expected an integer from 0"),
        (read_samples, SAMPLE | {"policy": 3}, "field 'policy': found 3, expected a string"),
        (read_samples, SAMPLE | {"task": 3}, "field 'task': found 3, expected a string"),
        (read_samples, SAMPLE | {"scores": [1]}, r"field 'scores': found \[1\], expected an object"),
        (
            read_samples,
            SAMPLE | {"scores": {"rm": "1"}},
            "field 'scores.rm': found \"1\", expected a finite number",
        ),
    ],
)
def test_other_records_name_line_and_field(tmp_path, read, row, message):
    with pytest.raises(DataError, match="labels.jsonl:1: " + message):
        list(read(write(tmp_path, row)))


def test_samples(tmp_path):
    rows = [
        Sample("1", 0, "tldr", "ppo", "p", "r", "ref", 7, {"rm": 0.5}, {"note": "n"}),
        Sample("1", 1, None, "ppo", "p", ""),  # an empty answer is a sample too
        Sample("1", 0, None, "sft", [USER], "r"),
    ]
    write_jsonl(tmp_path / "s.jsonl", rows)
    assert list(read_samples(tmp_path / "s.jsonl")) == rows
    path = write(tmp_path, SAMPLE, SAMPLE | {"index": 1}, SAMPLE | {"id": 1, "index": 0})
    message = r"labels.jsonl:3: field 'id': found '1' with policy 'ppo' and index 0, as at .*:1, expected"
    with pytest.raises(DataError, match=message):
        list(read_samples(path))


# ------------------------------------------------------------------------------------------------- writing


def test_writing_is_atomic_and_repeatable(tmp_path):
    path = tmp_path / "out.jsonl.gz"
    rows = [{"text": "é \u2028 \n"}, Prompt("p", meta={"id": 1})]
    assert write_jsonl(path, rows) == 2
    assert (
        gzip.decompress(path.read_bytes()).decode() == '{"text": "é \u2028 \\n"}\n{"prompt": "p", "id": 1}\n'
    )
    before = file_sha256(path)
    time.sleep(1.1)  # gzip's own time stamp has a resolution of one second
    assert write_jsonl(path, iter(rows)) == 2 and file_sha256(path) == before

    def interrupted():
        yield rows[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, interrupted())
    assert file_sha256(path) == before and os.listdir(tmp_path) == ["out.jsonl.gz"]
    assert write_jsonl(tmp_path / "none.jsonl", []) == 0 and (tmp_path / "none.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"x": float("nan")}, r"a row that JSON cannot hold \(Out of range float values"),
        ({"x": {1, 2}}, r"a row that JSON cannot hold \(Object of type set"),
        ({"x": "\ud800"}, r"a row that JSON cannot hold \('utf-8' codec can't encode"),
        ([1], "a list, expected a dict or a dataclass"),
        (Prompt, "a type, expected a dict or a dataclass"),
    ],
)
def test_rows_that_cannot_be_written(tmp_path, row, message):
    with pytest.raises(DataError, match=r"out.jsonl:2: .*found " + message):
        write_jsonl(tmp_path / "out.jsonl", [{}, row])
    assert os.listdir(tmp_path) == []


def test_file_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the first test vector of FIPS 180-2
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_a_path_holds(tmp_path: Path) -> None:
    """A file, a folder and a glob by what is in them, wherever they stand; what is not there by its name."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("1.jsonl", "2.jsonl"):
            (tmp_path / folder / name).write_text(name, encoding="utf-8")
    assert members(tmp_path / "a") == members(f"{tmp_path}/a/*.jsonl") == [f"{tmp_path}/a/1.jsonl", f"{tmp_path}/a/2.jsonl"]
    (tmp_path / "b/run.json").write_text("{}", encoding="utf-8")  # no data
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(f"{tmp_path}/b/*.jsonl")
    assert content(tmp_path / "a/1.jsonl") == f"sha256 {file_sha256(tmp_path / 'a/1.jsonl')[:16]}" != content(tmp_path / "a")
    (tmp_path / "b/2.jsonl").write_text("other", encoding="utf-8")
    assert content(tmp_path / "b") != content(tmp_path / "a")
    assert (members("owner/set"), content("owner/set"), content("none/*.jsonl")) == ([], "owner/set", "none/*.jsonl")


def test_samples_without_a_policy_are_of_their_files(tmp_path):
    rows = [{k: v for k, v in SAMPLE.items() if k != "policy"}]
    (tmp_path / "ppo_1.3b.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "lead.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert [s.policy for s in read_samples(tmp_path)] == ["lead", "ppo_1.3b"]
