"""eval.copying by hand arithmetic and plain loops."""

import math
import random

import pytest

from eval.copying import distinct_n, distinct_n_within, ngrams, novel_ngrams, words


def test_words_are_runs_of_letters_and_digits() -> None:
    assert words("Don't stop, R2-D2! Ünder_score…") == ["don", "t", "stop", "r2", "d2", "nder", "score"]


def test_novel_ngrams_by_hand() -> None:
    source, summary = "The cat sat on the mat.", "the CAT sat; on a mat on a"
    # words: the cat sat on a mat on a; absent from the source: a, a → 2 of 8.
    assert novel_ngrams(source, summary, 1) == 2 / 8
    # bigrams: the-cat cat-sat sat-on | on-a a-mat mat-on on-a: 4 absent (on-a counts twice) of 7.
    assert novel_ngrams(source, summary, 2) == 4 / 7
    assert novel_ngrams(source, source, 3) == 0.0
    assert novel_ngrams("", "two words", 2) == 1.0


def test_too_short_is_nan() -> None:
    assert math.isnan(novel_ngrams("a b c", "a b", 3))
    assert math.isnan(novel_ngrams("a b c", "…", 1))
    assert math.isnan(distinct_n(["a", "b"], 2))
    assert math.isnan(distinct_n([], 1))
    assert math.isnan(distinct_n_within("a", 2))


def test_distinct_by_hand() -> None:
    # bigrams: a-b b-a a-b | a-b → 2 different of 4; none crosses from the first text to the second.
    assert distinct_n(["a b a b", "a b"], 2) == 2 / 4
    assert distinct_n_within("a b a b", 2) == 2 / 3
    assert distinct_n_within("go go go go", 1) == 1 / 4


def test_against_a_plain_loop() -> None:
    random.seed(1)
    for _ in range(50):
        source = [random.choice("abcd") for _ in range(12)]
        summary = [random.choice("abcde") for _ in range(9)]
        for n in (1, 2, 3):
            absent = total = 0
            seen: list[list[str]] = []
            for i in range(len(summary) - n + 1):
                gram = summary[i : i + n]
                total += 1
                if gram not in seen:
                    seen.append(gram)
                if not any(source[j : j + n] == gram for j in range(len(source) - n + 1)):
                    absent += 1
            assert novel_ngrams(" ".join(source), " ".join(summary), n) == absent / total
            assert distinct_n_within(" ".join(summary), n) == len(seen) / total


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_bad_n(n: object) -> None:
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        ngrams("a b", n)  # type: ignore[arg-type]


def test_bad_texts() -> None:
    with pytest.raises(ValueError, match="found NoneType, expected a text"):
        words(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="texts is a single text"):
        distinct_n("a b", 1)
