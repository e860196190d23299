"""eval.rouge against rouge_score's own scorer and a hand-worked case."""

import random
import subprocess
import sys

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text import rouge_score as torchmetrics_rouge

from eval.rouge import ROUGE_TYPES, reads_little, rouge_scores

PREDICTIONS = [
    "the cat sat on the mat",
    "running dogs jumped\nover lazily sleeping cats",
    "",
    "Ünïcode, and 42!",
]
REFERENCES = ["a cat sat on a mat", "the runner's dog jumps\nover sleepy cats", "something", "unicode and 42"]


@pytest.mark.parametrize("stem", [True, False])
def test_equal_to_rouge_score(stem: bool) -> None:
    got = rouge_scores(PREDICTIONS, REFERENCES, use_stemmer=stem)
    own = RougeScorer(list(ROUGE_TYPES), use_stemmer=stem)
    assert list(got) == list(ROUGE_TYPES)
    for i, (prediction, reference) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        for name, score in own.score(reference, prediction).items():
            assert got[name].shape == (4, 3)
            assert got[name].dtype == np.float64
            assert got[name][i].tolist() == [score.precision, score.recall, score.fmeasure]


def drawn_text(rng: random.Random, letters: str = "aaabbbccd..\n\n") -> str:
    """Few different words, so that subsequences overlap in many ways; lines, some of them empty."""
    return "".join(rng.choice(letters) + " " * (rng.random() < 0.8) for _ in range(rng.randrange(40)))


@pytest.mark.parametrize("stem", [True, False])
def test_equal_to_rouge_score_on_overlapping_lines_and_several_references(stem: bool) -> None:
    rng = random.Random(1)
    predictions = [drawn_text(rng) for _ in range(2000)]
    references = [[drawn_text(rng) for _ in range(rng.randrange(1, 4))] for _ in predictions]
    got = rouge_scores(predictions, references, use_stemmer=stem)
    own = RougeScorer(list(ROUGE_TYPES), use_stemmer=stem)
    for i, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
        for name, score in own.score_multi(several, prediction).items():
            assert got[name][i].tolist() == list(score), (name, several, prediction)


def test_equal_to_torchmetrics() -> None:
    rng = random.Random(2)
    words = ["running", "dogs", "dog", "the", "happily", "happy", "cat", "cats", "sat", "2"]
    texts = [" ".join(rng.choices(words, k=rng.randrange(1, 20))) for _ in range(200)]
    predictions, references = texts[:100], texts[100:]
    keys = ("rouge1", "rouge2", "rougeL")
    got = rouge_scores(predictions, references, keys)
    theirs = torchmetrics_rouge(predictions, references, use_stemmer=True, rouge_keys=keys)
    for name in keys:
        for column, part in enumerate(("precision", "recall", "fmeasure")):
            assert got[name][:, column].mean() == pytest.approx(float(theirs[f"{name}_{part}"]), abs=1e-6)  # theirs: float32


def test_long_texts_end() -> None:
    """A response of half a million words is scored, in seconds: the table is not built entry by entry."""
    got = rouge_scores(["far too long " * 160_000], ["it is too long\nfar too far"])
    assert got["rouge1"][0, 1] == pytest.approx(5 / 7)  # all but it, is
    assert 0 < got["rougeLsum"][0, 2] < 1e-4


def test_hand_worked() -> None:
    # "a b c" against "a b d e": shared unigrams a, b → P 2/3, R 2/4, F 2·(2/3)(1/2)/(7/6) = 4/7.
    got = rouge_scores(["a b c"], ["a b d e"], ("rouge1", "rouge2"), use_stemmer=False)
    assert got["rouge1"][0] == pytest.approx([2 / 3, 1 / 2, 4 / 7], abs=1e-15)
    # shared bigram "a b": P 1/2, R 1/3, F 2·(1/6)/(5/6) = 2/5.
    assert got["rouge2"][0] == pytest.approx([1 / 2, 1 / 3, 2 / 5], abs=1e-15)


def test_best_of_several_references() -> None:
    single = [rouge_scores(["a b c d"], [r])["rouge1"][0] for r in ("a x y z", "a b c q", "b")]
    got = rouge_scores(["a b c d"], [["a x y z", "a b c q", "b"]])["rouge1"][0]
    assert got.tolist() == max(single, key=lambda row: row[2]).tolist() == single[1].tolist()


def test_lsum_takes_lines_as_sentences() -> None:
    flat = rouge_scores(["a b c d"], ["c d a b"], ("rougeL", "rougeLsum"))
    assert flat["rougeL"].tolist() == flat["rougeLsum"].tolist()
    lines = rouge_scores(["a b\nc d"], ["c d\na b"], ("rougeL", "rougeLsum"))
    assert lines["rougeLsum"][0, 2] == 1.0 > lines["rougeL"][0, 2]


HEBREW, CHINESE = "החתול ישב על השטיח ואז הלך הביתה.", "猫坐在垫子上,然后回家了。"


@pytest.mark.parametrize(
    ("text", "little"),
    [
        (HEBREW, True), (CHINESE, True), ("قطة على السجادة", True), ("Кошка сидела на ковре.", True), ("१२३ बिल्ली", True),
        (f"{HEBREW} GPT-2, 2023", True), (f"{CHINESE} (OK)", True),
        ("The cat sat.", False), ("", False), (" \n…—!?", False), ("🙂", False), ("2023", False), ("THE CAT — “sat”", False),
        ("Le café où Zoë a mangé une crème brûlée, déjà élevée à Noël.", False), ("Größe übermäßig, Żółć", False),
        ("The cat said " + CHINESE[:3] + " and went home.", False),
    ],
)  # fmt: skip
def test_texts_of_which_little_is_read(text: str, little: bool) -> None:
    assert reads_little(text) is little


def test_a_text_of_another_script_scores_as_in_rouge_score() -> None:
    """0 against itself, and so there is a warning."""
    for text in (HEBREW, CHINESE):
        assert rouge_scores([text], [text])["rougeL"][0, 2] == 0.0
        assert RougeScorer(["rougeL"], use_stemmer=True).score(text, text)["rougeL"].fmeasure == 0.0


def test_empty_lists() -> None:
    assert rouge_scores([], [])["rouge1"].shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["a", "b"]), "same length, found 1 and 2"),
        (("abc", ["a"]), "predictions is str, expected a list"),
        ((["a"], 3), "references is int, expected a list"),
        (([None], ["a"]), r"predictions\[0\] holds NoneType, expected a text"),
        ((["a"], [5]), r"references\[0\] holds int"),
        ((["a"], [[]]), r"references\[0\] is an empty list"),
        ((["a"], [["b", 1]]), r"references\[0\] holds int"),
        ((["a"], ["a"], ("rouge0",)), "unknown ROUGE type 'rouge0'"),
        ((["a"], ["a"], "rouge1"), "rouge_types is str"),
        ((["a"], ["a"], ()), "rouge_types is empty"),
    ],
)
def test_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rouge_scores(*arguments)


def test_light_imports() -> None:
    code = (
        "import sys, eval.rouge, eval.winrate, eval.copying, eval.report\n"
        "print([m for m in ('torch', 'torchmetrics', 'lightning', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
