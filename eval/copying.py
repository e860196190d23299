"""How much a text copies from its source, and how much it repeats itself. Plain functions of texts.

A word is a maximal run of [a-z0-9] after lower-casing, so punctuation and other letters only separate words.

1. `novel_ngrams`: See et al. 2017 (arXiv 1704.04368, figure 6) and Ziegler et al. 2019 (arXiv 1909.08593,
   §4.2) show that summarisers copy; here a summary's n-grams count as often as they occur.
2. `distinct_n`: Li et al. 2016 (arXiv 1510.03055): different n-grams over all n-grams. It falls as a corpus
   grows, so compare only sets of about the same size.
"""

import re
from collections.abc import Sequence

Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    """The words of a text: maximal runs of [a-z0-9] after lower-casing."""
    if isinstance(text, str):
        return re.findall(r"[a-z0-9]+", text.lower())
    raise ValueError(f"found {type(text).__name__}, expected a text")


def ngrams(text: str, n: int) -> list[Ngram]:
    """All n-grams of a text's words in order, with repetition; empty where it has fewer than n words."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is {n!r}, expected a whole number of at least 1")
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def novel_ngrams(source: str, summary: str, n: int) -> float:
    """Share in [0, 1] of the summary's n-grams (with repetition) that do not occur in the source.

    0: every n-gram is copied; 1: none is. NaN where the summary has fewer than n words.
    """
    grams = ngrams(summary, n)
    known = set(ngrams(source, n))
    if not grams:
        return float("nan")
    return sum(gram not in known for gram in grams) / len(grams)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of a set of texts, in (0, 1]; n-grams never cross from text to text.

    NaN where no text has n words.
    """
    single = isinstance(texts, str)
    if single:  # a single text would be read letter by letter
        raise ValueError(
            "texts is a single text, expected a list of texts (distinct_n_within takes one text)"
        )
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def distinct_n_within(text: str, n: int) -> float:
    """Different n-grams over all n-grams of one response, in (0, 1]: low where a response repeats itself.

    NaN where it has fewer than n words.
    """
    return distinct_n([text], n)
