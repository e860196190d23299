"""Label files as they are met in the wild: printed by other tools, with columns of other names, or half in another format."""

from __future__ import annotations

import csv
import json
import os
import threading
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_rlhf.files import DataError, read_rows, write_jsonl
from lightning_rlhf.records import Comparison, read_comparisons, read_demonstrations, read_prompts
from lightning_rlhf.splits import normalised, split_records

USER, YES, NO = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "yes"), ("assistant", "no")))
HH = "\n\nHuman: hi\n\nAssistant:"


def lines(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def cells(file: Path, *rows: dict[str, Any]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def printed(*messages: dict[str, str]) -> str:
    """As pandas and `datasets` write a column of messages to CSV: NumPy prints no comma between objects."""
    return str(np.array(messages, dtype=object))


def test_messages_in_csv_without_commas_between_them(tmp_path: Path) -> None:
    tricky = {"role": "assistant", "content": "a} {'b': 1} \"c\"\nd"}
    assert "} {" in printed(USER, YES)
    file = cells(tmp_path / "a.csv", {"chosen": printed(USER, YES), "rejected": printed(USER, tricky)})
    (found,) = read_comparisons(file)
    assert (found.prompt, found.responses) == ([USER], [[YES], [tricky]])
    file = cells(tmp_path / "b.csv", {"prompt": "q", "chosen": printed(USER, YES), "rejected": printed(USER, NO)})
    (found,) = read_comparisons(file)
    assert (found.prompt, found.responses) == ([USER], [[YES], [NO]])
    file = cells(tmp_path / "c.csv", {"prompt": printed({"role": "system", "content": "s"}, USER)})
    assert [prompt.prompt for prompt in read_prompts(file)] == [[{"role": "system", "content": "s"}, USER]]
    file = cells(tmp_path / "d.csv", {"prompt": "q", "chosen": printed(USER, YES)[:-4], "rejected": printed(USER, NO)})
    with pytest.raises(DataError, match=r"d.csv:2: field 'chosen': found \"\[\{'role'.*expected a list of \{role, content\}"):
        list(read_comparisons(file))


def test_token_ids_in_csv_with_an_empty_side_or_cut_by_numpy(tmp_path: Path) -> None:
    row = {"query": "[1, 2]", "sample0": "[3]", "sample1": "[4]", "best": 0}
    reader = read_comparisons(cells(tmp_path / "a.csv", row, {**row, "sample1": "[]"}), max_skipped=0.5)
    assert [(found.prompt, found.responses) for found in reader] == [([1, 2], [[3], [4]])]
    assert reader.skipped == {"empty response": [3]}
    cut = str(np.arange(1200))
    assert "..." in cut
    with pytest.raises(DataError, match=r"b.csv:2: field 'query': found .* expected all of its numbers, not '...'"):
        list(read_comparisons(cells(tmp_path / "b.csv", {**row, "query": cut})))


@pytest.mark.parametrize(
    "name",
    ["question", "input", "instruction", "query", "trajectory", "post", "article", "context", "history", "document", "text",
      "problem", "system", "conversation", "conversations"],
)  # fmt: skip
def test_a_prompt_of_another_name_is_not_made_up(tmp_path: Path, name: str) -> None:
    rows = [{name: f"q{i}?", "chosen": f"Sure, yes {i}", "rejected": "Sure, no"} for i in range(5)]
    with pytest.raises(DataError, match=rf"a.jsonl:1: .*is '{name}' meant to be 'prompt'\?"):
        read_comparisons(lines(tmp_path / "a.jsonl", *rows))


def test_a_source_is_where_a_record_is_from_and_a_system_of_one_word_its_maker(tmp_path: Path) -> None:
    more = {"source": "Stack Exchange", "system": "gpt-4"}
    (found,) = read_comparisons(lines(tmp_path / "a.jsonl", {**more, "chosen": "Q: is it? Yes", "rejected": "Q: is it? No"}))
    assert (found.prompt, found.meta) == ("Q: is it?", more)


@pytest.mark.parametrize("asked", ["What is it?", [{"role": "user", "content": "What is it?"}]])
def test_dialogues_of_hh_beside_the_users_message(tmp_path: Path, asked: Any) -> None:
    whole = "\n\nHuman: What is it?\n\nAssistant:"
    dialogues = {"prompt": asked, "chosen": f"{whole} a", "rejected": f"{whole} b"}
    reader = read_comparisons(lines(tmp_path / "a.jsonl", dialogues))
    assert (reader.format, [(found.prompt, found.responses) for found in reader]) == ("hh", [(whole, [" a", " b"])])
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"b.jsonl:2: field 'chosen': found a dialogue of the format hh, expected answers alone"):
        list(read_comparisons(lines(tmp_path / "b.jsonl", pair, dialogues)))


def test_a_prompt_that_stands_in_one_side_again(tmp_path: Path) -> None:
    asked = "What is the capital of France?"
    sides = {"chosen": f"{asked} Paris", "rejected": "Rome"}, {"chosen": "Paris", "rejected": asked}
    first, echo = read_comparisons(lines(tmp_path / "a.jsonl", *({"prompt": asked, **row} for row in sides)))
    assert first.responses == [" Paris", "Rome"]
    assert echo.responses == ["Paris", asked]  # an answer of its own, though a bad one


def test_a_prompt_that_stands_in_both_sides_again(tmp_path: Path) -> None:
    sides = {"chosen": f"{HH} hello", "rejected": f"{HH} go away"}
    reader = read_comparisons(lines(tmp_path / "hh.jsonl", {"prompt": HH, **sides}))
    assert reader.format == "hh"
    assert [(found.prompt, found.responses) for found in reader] == [(HH, [" hello", " go away"])]
    question = "Question: what is the capital of France?\nAnswer:"
    sides = {"chosen": f"{question} Paris", "rejected": f"{question} Rome"}
    (found,) = read_comparisons(lines(tmp_path / "plain.jsonl", {"prompt": question, **sides}))
    assert (found.prompt, found.responses) == (question, [" Paris", " Rome"])
    (found,) = read_comparisons(lines(tmp_path / "short.jsonl", {"prompt": "Say A", "chosen": "Say A", "rejected": "Say A no"}))
    assert found.responses == ["Say A", "Say A no"]  # so short that an answer may begin with it


def test_a_prompt_that_is_derived_ends_with_its_last_label(tmp_path: Path) -> None:
    """So that one question is one query, whatever words its answers share."""
    rows = []
    for i in range(100):
        asked = f"Question: what is the capital of country {i}?\n\nAnswer:"
        rows += [{"chosen": f"{asked} It is town{i}", "rejected": f"{asked} {no}"} for no in ("It is unknown", "Who cares")]
        rows += [{"chosen": f"{asked} Surely town{i}", "rejected": f"{asked} Who cares"}]
    found = list(read_comparisons(lines(tmp_path / "a.jsonl", *rows)))
    assert len({comparison.prompt for comparison in found}) == 100
    assert found[0].responses == [" It is town0", " It is unknown"]
    parts = split_records(found)
    assert not {row.prompt for row in parts.train} & {row.prompt for row in parts.held_out}


@pytest.mark.parametrize(
    "prompt",
    [
        "Which barks?\nA: cats\nB: dogs\nC: fish\n", "Review: X\nSummary: a good film\nSentiment:",
        "Output: chien\nInput: cat\nFrench:", "Product: phone\nModel: X200\nWrite an ad.\n\n",
    ],
)  # fmt: skip
def test_labels_inside_a_prompt_do_not_end_it(tmp_path: Path, prompt: str) -> None:
    (found,) = read_comparisons(lines(tmp_path / "a.jsonl", {"chosen": f"{prompt} It is so.", "rejected": f"{prompt} Not so."}))
    assert found.prompt == prompt


def test_a_prompt_of_another_name_that_both_sides_repeat(tmp_path: Path) -> None:
    asked = "Question: What is it?\nAnswer:"
    row = {"question": "What is it?", "chosen": f"{asked} a cat", "rejected": f"{asked} a dog"}
    (found,) = read_comparisons(lines(tmp_path / "a.jsonl", row))
    assert (found.prompt, found.responses) == (asked, [" a cat", " a dog"])
    row = {"question": "q?", "chosen": "Sure, yes", "rejected": "Sure, no"}
    (found,) = read_comparisons(lines(tmp_path / "b.jsonl", row), format="pair_implicit")  # as it was asked to
    assert found.prompt == "Sure,"


def test_texts_that_only_look_like_messages_or_ids(tmp_path: Path) -> None:
    tricky = json.dumps([USER, {"role": "assistant", "content": "[{'role': 1} {'role': 2}]"}])
    file = cells(tmp_path / "a.csv", {"chosen": json.dumps([USER, YES]), "rejected": tricky})
    (found,) = read_comparisons(file)
    assert found.responses[1][0]["content"] == "[{'role': 1} {'role': 2}]"
    texts = {"prompt": "p", "chosen": "[1 ... 10]", "rejected": "[{'role': 'user'}] what does this mean?"}
    (found,) = read_comparisons(cells(tmp_path / "b.csv", texts))
    assert found.responses == ["[1 ... 10]", "[{'role': 'user'}] what does this mean?"]


def test_a_dialogue_quoted_in_a_plain_text(tmp_path: Path) -> None:
    quoted = "User: what? Bot: a log:\n\nAssistant: hm"
    row = {"chosen": quoted, "rejected": "User: what? Bot: no"}
    (found,) = read_comparisons(lines(tmp_path / "a.jsonl", row), "pair_implicit")
    assert found.prompt == "User: what? Bot:"
    sides = {"chosen": f"{HH} I do", "rejected": f"{HH} I don't"}
    (found,) = read_comparisons(lines(tmp_path / "b.jsonl", sides), format="pair_implicit")  # as it was asked to
    assert found.responses == [" I do", " I don't"]


def test_an_explicit_pair_is_not_overruled_by_other_columns(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    labels = ({"margin": 1.0}, {"ratings": [2, 4]}, {"best": 0}, {"ranks": [2, 1]}, {"votes": [1]})
    others = {"query": "q", "sample": "s", "score": 1}, {"query": "q", "sample0": "s", "sample1": "t", "best": 1}
    for more in (*({"responses": ["good", "bad"], **label} for label in labels), {"response": "good", "rating": 9}, *others):
        reader = read_comparisons(lines(tmp_path / "a.jsonl", {**pair, **more}))
        assert reader.format == "pair"
        (found,) = reader
        assert (found.responses, found.best) == (["good", "bad"], 0)
        write_jsonl(tmp_path / "b.jsonl", [found])
        assert list(read_comparisons(tmp_path / "b.jsonl")) == [found]
    (found,) = read_comparisons(tmp_path / "a.jsonl", "best_of_N")  # as it was asked to
    assert found.best == 1


@pytest.mark.parametrize("label", [{"best": 1}, {"ratings": [4, 2]}, {"ranks": [2, 1]}])
def test_a_label_beside_the_same_two_sides_comes_back(tmp_path: Path, label: dict[str, Any]) -> None:
    written = Comparison("p", ["a", "b"], **label, meta={"chosen": "a", "rejected": "b", "note": 1})
    write_jsonl(tmp_path / "a.jsonl", [written])
    assert list(read_comparisons(tmp_path / "a.jsonl")) == [written]


def test_responses_that_are_no_list_beside_a_pair(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": 5, "margin": 1, "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"a.jsonl:1: field 'responses': found 5, expected a list"):
        list(read_comparisons(lines(tmp_path / "a.jsonl", row)))


def test_a_dialogue_of_hh_after_a_pair_of_texts(tmp_path: Path) -> None:
    plain, dialogue = {"chosen": "Yes it", "rejected": "Yes no"}, {"chosen": f"{HH} I do", "rejected": f"{HH} I don't"}
    with pytest.raises(DataError, match=r"a.jsonl:2: field 'chosen': found a dialogue of the format hh, .*pair_implicit"):
        list(read_comparisons(lines(tmp_path / "a.jsonl", plain, dialogue)))


def test_dialogues_in_messages_that_end_with_the_user(tmp_path: Path) -> None:
    thanks = {"role": "user", "content": "thanks"}
    good = {"chosen": [USER, YES], "rejected": [USER, NO]}
    bad = {"chosen": [USER, YES, thanks], "rejected": [USER, NO, thanks]}
    explicit = {"prompt": [USER], "chosen": [YES, thanks], "rejected": [NO, thanks]}
    for first, second in ((good, bad), ({**explicit, "chosen": [YES], "rejected": [NO]}, explicit)):
        reader = read_comparisons(lines(tmp_path / "a.jsonl", first, second), max_skipped=0.5)
        assert len(list(reader)) == 1
        assert reader.skipped == {"no answer at the end": [2]}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([YES, {"role": "human", "content": "thanks"}], "no answer at the end"),
        ([YES, USER, {"role": "assistant", "content": " "}], "empty response"),
        ([{**NO, "score": 2}], "identical responses"),
    ],
)
def test_answers_in_messages_that_say_nothing(tmp_path: Path, turns: list[dict[str, Any]], reason: str) -> None:
    good, odd = ({"prompt": [USER], "chosen": chosen, "rejected": [NO]} for chosen in ([YES], turns))
    reader = read_comparisons(lines(tmp_path / "a.jsonl", good, odd), max_skipped=0.5)
    assert len(list(reader)) == 1
    assert reader.skipped == {reason: [2]}


@pytest.mark.parametrize("prompt", [None, []])
def test_no_prompt_beside_dialogues_in_messages(tmp_path: Path, prompt: Any) -> None:
    (found,) = read_comparisons(lines(tmp_path / "a.jsonl", {"prompt": prompt, "chosen": [USER, YES], "rejected": [USER, NO]}))
    assert (found.prompt, found.responses) == ([USER], [[YES], [NO]])


def test_messages_in_texts_of_json_lines_and_parquet(tmp_path: Path) -> None:
    pair = {"chosen": json.dumps([USER, YES]), "rejected": json.dumps([USER, NO])}
    from datasets import Dataset

    Dataset.from_list([pair]).to_parquet(str(tmp_path / "a.parquet"))
    for file in (lines(tmp_path / "a.jsonl", pair), tmp_path / "a.parquet", lines(tmp_path / "b.jsonl", {"prompt": "q", **pair})):
        (found,) = read_comparisons(file)
        assert (found.prompt, found.responses) == ([USER], [[YES], [NO]])
    for row in ({"prompt": json.dumps([USER]), "completion": json.dumps([YES])}, {"messages": json.dumps([USER, YES])}):
        (shown,) = read_demonstrations(lines(tmp_path / "d.jsonl", row))
        assert (shown.prompt, shown.completion) == ([USER], [YES])
    (shown,) = read_demonstrations(lines(tmp_path / "e.jsonl", {"prompt": "As JSON?", "completion": json.dumps([YES])}))
    assert shown.completion == json.dumps([YES])  # an answer that is text


def test_messages_that_are_not_text_are_counted(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    good = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
    rows = [good, {**good, "chosen": [call]}, {**good, "rejected": [parts]}]
    reader = read_comparisons(lines(tmp_path / "a.jsonl", *rows), max_skipped=0.7)
    assert len(list(reader)) == 1
    assert reader.skipped == {"a message that is not text": [2, 3]}
    with pytest.raises(DataError, match=r"field 'chosen\[0\].content': found null, expected a string"):
        list(read_comparisons(lines(tmp_path / "b.jsonl", {**good, "chosen": [{**call, "tool_calls": None}]})))


@pytest.mark.parametrize("label", [False, 0, 0.0, "False", "0", "0.0", " false"])
def test_a_label_of_unpaired_preferences_that_is_false(tmp_path: Path, label: Any) -> None:
    good, bad = ({"prompt": "p", "completion": text, "label": x} for text, x in (("good", True), ("bad", label)))
    assert [found.completion for found in read_demonstrations(lines(tmp_path / "a.jsonl", good, bad))] == ["good"]


@pytest.mark.parametrize(("a", "b"), [("天空是什么颜色？蓝色", "天空是什么颜色？绿色"), ("空の色は青い", "空の色は赤い")])
def test_texts_without_spaces_that_begin_alike(tmp_path: Path, a: str, b: str) -> None:
    (found,) = read_comparisons(lines(tmp_path / "a.jsonl", {"chosen": a, "rejected": b}))
    assert found.prompt == a[:-2] and found.responses == [a[-2:], b[-2:]]


def test_a_null_where_the_format_is_decided(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nearest to openai_2019, whose 'best' is null"):
        read_comparisons(lines(tmp_path / "a.jsonl", {"query": [1], "sample0": [1], "sample1": [2], "best": None}))


def test_padding_of_2019_on_either_side(tmp_path: Path) -> None:
    row = {"query": [50259, 50259, 5, 6, 50259], "sample0": [1, 50259], "sample1": [2], "best": 0}
    (found,) = read_comparisons(lines(tmp_path / "a.jsonl", row))
    assert (found.prompt, found.responses) == ([5, 6], [[1], [2]])


def test_the_name_that_the_paper_gives_its_labels(tmp_path: Path) -> None:
    row = {"query": [5], "sample0": [1], "sample1": [2], "best": 0}
    (found,) = read_comparisons(lines(tmp_path / "a.jsonl", row), format="best_of_N")
    assert found.best == 0


def test_whether_a_csv_holds_ids_is_decided_once(tmp_path: Path) -> None:
    text, ids = ({"prompt": prompt, "completion": "[3]"} for prompt in ("add 1 2", "[3, 1, 2]"))
    assert [found.prompt for found in read_demonstrations(cells(tmp_path / "a.csv", text, ids))] == ["add 1 2", "[3, 1, 2]"]
    with pytest.raises(DataError, match=r"b.csv:3: field 'prompt': found \"add 1 2\", expected token ids, as in the file's"):
        list(read_demonstrations(cells(tmp_path / "b.csv", ids, text)))


def test_a_pipe_is_not_read_in_half(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n"
    threading.Thread(target=lambda: pipe.write_text(text * 2000), daemon=True).start()
    with pytest.raises(DataError, match=r"pipe: found a pipe or device, expected a file"):
        read_comparisons(pipe)


def test_a_label_with_sides_of_its_own_beside_it_comes_back(tmp_path: Path) -> None:
    meta = {"chosen": "zz", "rejected": "yy", "meta": {"k": 1}, "best": 3}
    write_jsonl(tmp_path / "a.jsonl", [Comparison("the prompt", ["a b", "c d"], margin=0.5, meta=meta)])
    written = json.loads((tmp_path / "a.jsonl").read_text())
    assert written["meta"] == {"best": 3, "meta": {"k": 1}}
    (again,) = read_comparisons(tmp_path / "a.jsonl")
    assert (again.responses, again.margin, again.best) == (["a b", "c d"], 0.5, None)


def test_what_is_beside_a_record_is_written(tmp_path: Path) -> None:
    meta = {"ratings": [1], "decimal": Decimal("1.5"), "took": timedelta(seconds=3)}
    meta |= {"score": float("nan"), "kept": {"x": [1e400]}}
    found = Comparison("p", ["a", "b"], best=0, meta=meta)
    write_jsonl(tmp_path / "a.jsonl", [found])
    (again,) = read_comparisons(tmp_path / "a.jsonl")
    assert (again.prompt, again.responses, again.best, again.ratings) == ("p", ["a", "b"], 0, None)
    assert again.meta == {"ratings": [1], "decimal": 1.5, "took": 3.0, "kept": {"x": [None]}, "score": None}
    with pytest.raises(DataError, match=r"b.jsonl:1: found a row that JSON cannot hold"):
        write_jsonl(tmp_path / "b.jsonl", [Comparison("p", ["a", "b"], margin=float("nan"))])


@pytest.mark.parametrize("of", ["date32", "timestamp", "duration"])
def test_a_date_in_parquet_that_python_cannot_hold(tmp_path: Path, of: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    kinds = {"date32": pyarrow.date32(), "timestamp": pyarrow.timestamp("us"), "duration": pyarrow.duration("ms")}
    plain, value = (pyarrow.int32(), 2**31 - 1) if of == "date32" else (pyarrow.int64(), 2**62)
    row = {name: [name] for name in ("prompt", "chosen", "rejected")}
    parquet.write_table(pyarrow.table({**row, "made": pyarrow.array([value], plain).cast(kinds[of])}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet:row 1: found unreadable data"):
        list(read_comparisons(tmp_path / "a.parquet"))


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(600)])
    rows.save_to_disk(tmp_path / "one")
    assert [found.prompt for found in read_comparisons(tmp_path / "one")] == rows["prompt"][:]
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "parts")
    with pytest.raises(DataError, match=r"parts/train/data-\S+\.arrow stands deeper: \S+/\*\*/\*\.arrow reads subfolders"):
        read_comparisons(tmp_path / "parts")


def test_a_glob_leaves_out_what_stands_beside_records(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    lines(tmp_path / "sub/run.json", {"command": "x"})
    lines(tmp_path / "sub/a.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"})
    assert len(list(read_comparisons(f"{tmp_path}/**/*.json*"))) == 1


def test_parquet_as_others_write_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "image": {"bytes": b"\xff", "path": None}}]
    image = {"info": {"features": {"image": {"_type": "Image"}, "prompt": {"dtype": "string"}}}}
    for name, features in (("image", image), ("odd", {"info": 1})):
        table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        (found,) = read_comparisons(tmp_path / f"{name}.parquet")
        assert found.responses == ["a", "b"]
    parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], "string")}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none.parquet:row 1: found an empty file"):
        list(read_rows(tmp_path / "none.parquet"))
    (tmp_path / "a::b").mkdir()
    (tmp_path / "image.parquet").rename(tmp_path / "a::b/image.parquet")
    assert len(list(read_comparisons(tmp_path / "a::b/image.parquet"))) == 1


@pytest.mark.parametrize(("a", "b"), [("What is 2+2?", "What is 2 + 2?"), ("οὐΐ 1", "οὐΐ 1".upper()), ("1+1=2", "1 + 1 = 2")])
def test_near_duplicates(a: str, b: str) -> None:
    assert normalised(a) == normalised(b)


def test_c_plus_plus_is_not_c() -> None:
    assert normalised("Foo\n\n## Context\nbar") == normalised("Foo\n\nContext\nbar")
    assert normalised("one\n+ two, item # 5, see ##tag") == normalised("one\n- two, item 5, see #tag")
    assert len({normalised(text) for text in ("Write C", "Write C++", "Write C#")}) == 3
    assert normalised("C++, not C") == normalised("c++ not c") != normalised("C not C")
