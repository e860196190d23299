"""eval.measures: each figure by hand, and what is not defined left out rather than made up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from eval.measures import measure, other_scripts, perplexity, summarise, table
from eval.rouge import rouge_scores

SOURCE = "The cat sat on the mat. It was happy there. Then the dog came in and barked."


def one(response: str, source: str = SOURCE, **fields: Any) -> dict[str, Any]:
    return measure([{"policy": "p", "response": response, **fields}], [source])[0]


def test_measures_by_hand() -> None:
    got = one(" It was happy there. A cat barked.", reference="The cat was happy.", found=False)
    assert got["words"] == 7
    assert got["compression"] == 17 / 7
    assert got["novel_1"] == 1 / 7  # a
    assert got["novel_2"] == 3 / 6  # there-a, a-cat, cat-barked
    assert got["copied"] == 1 / 2
    assert got["copied_at"] == 6 / 17
    assert got["distinct_1"] == 1.0
    assert got["repeated_bigrams"] == 0.0
    assert (got["refusal"], got["empty"], got["truncated"], got["no_stop"]) == (0, 0, 0, 1)
    assert one("It sat.", found=True)["no_stop"] == 0 and one("It sat.")["no_stop"] is None
    assert one("It sat.", found=True, draws=2)["no_stop"] == 1  # of the policy: what it drew first did not
    assert [one("It sat.", found=True, draws=d)["no_stop"] for d in (None, "2", 1)] == [0, 0, 0]  # of others' files
    # "it was happy there a cat barked" against "the cat was happy": was, happy, cat → P 3/7, R 3/4
    assert got["rouge1"] == pytest.approx(2 * (3 / 7) * (3 / 4) / (3 / 7 + 3 / 4), abs=1e-15)


def test_each_sentence_is_a_line_of_rouge_lsum_alone() -> None:
    response, reference = "One two three. Four five.", "Four five. One two three."
    got = one(response, reference=reference)
    assert got["rougeLsum"] == 1.0
    flat = rouge_scores([response], [reference])
    assert {k: got[k] for k in ("rouge1", "rouge2", "rougeL")} == {k: flat[k][0, 2] for k in ("rouge1", "rouge2", "rougeL")}
    assert got["rougeL"] < 1.0


@pytest.mark.parametrize("reference", [None, "", "  \n", [], ["", " "]])
def test_no_reference_no_rouge(reference: Any) -> None:
    got = one("A cat.", reference=reference)
    assert [got[k] for k in ("rouge1", "rouge2", "rougeL", "rougeLsum")] == [None] * 4


def test_best_of_several_references() -> None:
    assert one("A cat.", reference=["A dog.", "A cat."])["rouge1"] == 1.0


def test_rows_keep_their_own_rouge() -> None:
    """Rows without a reference stand between rows with one."""
    rows: list[dict[str, Any]] = [{"response": f"word{i} same", "reference": "same thing" if i % 3 else None} for i in range(200)]
    rows[100]["reference"] = "word100 same"
    got = measure(rows, [SOURCE] * 200)
    assert got[100]["rouge1"] == 1.0
    assert got[0]["rouge1"] is None
    assert got[1]["rouge1"] == 0.5


@pytest.mark.parametrize("response", ["", " \n\t", "…"])
def test_nothing_to_count(response: str) -> None:
    got = one(response, reference="A cat.")
    assert got["words"] == 0
    assert got["rouge1"] == 0.0
    assert [got[k] for k in ("compression", "distinct_1", "novel_4", "repeated_bigrams", "copied", "copied_at")] == [None] * 6
    assert got["empty"] == int(not response.strip())


def test_other_scripts_have_a_length_too() -> None:
    got = one("مرحبا بالعالم", reference="A cat.")
    assert got["words"] == 2 and got["compression"] == len(SOURCE.replace(".", " ").split()) / 2
    assert got["rouge1"] == 0.0 and got["copied"] is None
    assert got["other_script"] == 1 and one("A cat.", reference="A cat.")["other_script"] == 0
    assert one("A cat.", reference="猫坐在垫子上。")["other_script"] == 1
    assert one("A cat.", reference=["猫坐在垫子上。", "A cat."])["other_script"] == 0  # the better one is read
    assert one("A cat.", reference=["猫坐在垫子上。", " "])["other_script"] == 1


def test_the_warning_of_other_scripts() -> None:
    def share(n: int, of: int) -> dict[str, Any]:
        return {"mean": n / of, "n": of}

    assert other_scripts({"a": share(0, 50), "b": None, "c": share(5, 50)}) is None
    assert other_scripts({"a": share(0, 50), "b": share(6, 50)}) == (
        "ROUGE and the measures of copying and repetition see only the letters a–z and digits, and in 6 of 50 texts of b, or in "
        "their references, most are others: those figures say little."
    )
    assert "in 6 of 50 texts of a, 50 of 50 of b, 7 of 10 of c, or" in str(
        other_scripts({"a": share(6, 50), "b": share(50, 50), "c": share(7, 10)})
    )


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        (" I am sorry, I cannot write this summary.", 1),
        ("As an AI language model, I have no opinion.", 1),
        ("I’m sorry, I can’t", 1),
        ("I cannot summarise this post.", 1),
        ("I am unable to assist with this request.", 1),
        ("I'm unable to help with this request.", 1),
        ("I cannot provide a summary of this article.", 1),
        ("I can’t give you a short TL;DR.", 1),
        ("Sorry, I can't do that.", 1),
        ("Sorry, but I cannot help.", 1),
        ("I apologize, but I am not able to write about this topic.", 1),
        ("I am not able to write about this topic.", 1),
        ("I do not feel comfortable summarizing this.", 1),
        ("I don't feel comfortable writing a summary of that.", 1),
        ("I'm sorry, but I cannot.", 1),
        ("I'm sorry I can't help with that", 1),
        ("I must decline to summarize this.", 1),
        ("I'm sorry I can't make it to the wedding", 0),
        ("I must decline his offer", 0),
        ("I can't sleep because my neighbour plays drums", 0),
        ("Sorry I cheated on my boyfriend", 0),
        ("Sorry I can't do that to my boyfriend any more.", 0),
        ("I cannot find a job", 0),
        ("I cannot provide a home for my dog, how do I tell my wife?", 0),
        ("I can't write to my ex, I can't give him an answer.", 0),
        ("I don't feel comfortable talking to my boss.", 0),
        ("I'm unable to help my sister with her rent.", 0),
        ("I apologized, but I can't make her forgive me.", 0),
        ("I can't do that. I want to leave him.", 0),
        ("I can't stop thinking about my ex. I'm sorry that it ended.", 0),
        ("I'm afraid of dogs. Can't leave the house.", 0),
        ("I will not help my sister move.", 0),
        ("x" * 300 + " As an AI", 0),
    ],
)
def test_refusals(text: str, refused: int) -> None:
    assert one(text)["refusal"] == refused


@pytest.mark.parametrize(
    ("text", "truncated"),
    [("It ends.", 0), ('"It ends!"', 0), ("It ends?)\n", 0), ("انتهى؟", 0), ("It goes on and", 1), ("Hello,", 1), ("", 0)],
)
def test_truncated(text: str, truncated: int) -> None:
    assert one(text)["truncated"] == truncated


def test_perplexity() -> None:
    assert perplexity(3 * math.log(5), 3) == pytest.approx(5)
    assert perplexity(0.0, 0) is None
    assert perplexity(1e6, 1) == math.exp(700)


def scored(id_: str, policy: str, words: int, nll: float | None = None, **measures: Any) -> dict[str, Any]:
    scores = {} if nll is None else {"ref_nll": nll}
    row = {"id": id_, "policy": policy, "response": "a b" * words, "n_tokens": 2 * words, "scores": scores}
    return {**row, "measures": {"words": words, **measures}}


def test_summary_is_over_what_is_defined() -> None:
    rows = [scored("1", "p", 1, 2.0, copied=None), scored("2", "p", 3, 4.0, copied=1.0), scored("1", "q", 5)]
    got = summarise(rows)
    assert got["p"]["means"]["words"]["mean"] == 2.0
    assert got["p"]["means"]["words"]["low"] < 2.0 < got["p"]["means"]["words"]["high"]
    assert got["p"]["means"]["copied"] == {"mean": 1.0, "low": 0.0, "high": 1.0, "n": 1}  # one prompt says nothing
    assert got["p"]["perplexity"] == pytest.approx(math.exp(6 / 8))
    assert got["q"]["perplexity"] is None
    assert "copied" not in got["q"]["means"]
    assert (got["p"]["n"], got["p"]["prompts"]) == (2, 2)


def test_table_shows_what_went_wrong_and_leaves_out_what_did_not() -> None:
    rows = [scored("1", "p", 1, 2.0, empty=0, refusal=0), scored("2", "p", 3, 4.0, empty=1, refusal=0), scored("1", "other", 5)]
    head, first, second = table(summarise(rows)).splitlines()
    assert head.split() == ["policy", "n", "words", "perplexity", "empty"]
    assert first.split() == ["p", "2", "2.00", "2.12", "50.0", "%"]
    assert second.split() == ["other", "1", "5.00", "—", "—"]
    assert len(head) == len(first) == len(second)
