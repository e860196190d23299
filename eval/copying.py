"""How much a text copies from its source, and how much it repeats itself. Plain functions of texts.

A word is a maximal run of [a-z0-9] after lower-casing, so punctuation and other letters only separate words.

1. `novel_ngrams`: See et al. 2017 (arXiv 1704.04368, figure 6) and Ziegler et al. 2019 (arXiv 1909.08593,
   §4.2) show that summarisers copy; here a summary's n-grams count as often as they occur.
2. `distinct_n`: Li et al. 2016 (arXiv 1510.03055): different n-grams over all n-grams. It falls as a corpus
   grows, so compare only sets of about the same size.
3. `copied_sentences`: which sentences stand word for word in the source, and where: the summarisers of Ziegler et al.
   2019 (§4.2) turned out to copy whole sentences and to skip the preamble.
4. `sentences` is a rule of thumb without data: no download, the same on every machine. It splits at line breaks and after
   `.`, `!`, `?` (and their Arabic, Hindi and Chinese forms) before a space, but not after an initial or an abbreviation.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

Ngram = tuple[str, ...]
CLOSING = "[\"'”’»)\\]]*"  # may follow the end of a sentence and still belong to it
STOPS = ".!?…؟۔।"  # a run of them is looked at once, from its first: from each, it would take the square of its length
SENTENCE_END = re.compile(rf"(?:(?<![{STOPS}])[{STOPS}]+{CLOSING}(?=\s)|(?<![。！？])[。！？]+{CLOSING})")
TITLES = "Mrs?|Ms|Dr|Prof|Rev|Gen|Sen|Rep|Gov|Col|Lt|Sgt|Capt|St|Jr|Sr|Mt|vs|etc|approx"
ABBREVIATION = re.compile(rf"(?:^|[\s(\"'“‘])(?:[A-HJ-Z]|(?:[A-Za-z]\.)+[A-Za-z]|{TITLES})\.$")


def words(text: str) -> list[str]:
    """The words of a text: maximal runs of [a-z0-9] after lower-casing."""
    if isinstance(text, str):
        return list(_words(text))
    raise ValueError(f"found {type(text).__name__}, expected a text")


@lru_cache(maxsize=8)  # a source and its summary are looked at again and again
def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def count_words(text: str) -> int:
    """How long a text is: its words of any script (`words` knows Latin letters without accents alone)."""
    return len(re.findall(r"\w+", text))


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


def repeated_bigrams(text: str) -> float:
    """Share in [0, 1] of a text's bigrams that occur more than once in it; NaN where it has fewer than two words."""
    counts = Counter(ngrams(text, 2))
    return sum(n for n in counts.values() if n > 1) / counts.total() if counts else float("nan")


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, stripped of surrounding white space; blank ones are left out.

    An abbreviation (`Mr.`, `J.`, `U.S.`, `etc.`) ends no sentence, unless a line ends there too.
    """
    found = []
    for line in text.splitlines():
        start = 0
        for end in SENTENCE_END.finditer(line):
            if not ABBREVIATION.search(line[max(start, end.end() - 24) : end.end()]):
                found.append(line[start : end.end()])
                start = end.end()
        found.append(line[start:])
    return [sentence.strip() for sentence in found if sentence.strip()]


def copied_sentences(source: str, summary: str, min_words: int = 3) -> list[float | None]:
    """Where each sentence of a summary stands word for word in its source.

    Case and punctuation do not count; the words must follow one another, but may be part of a longer sentence there.

    Args:
        source, summary: Texts.
        min_words: Shorter sentences are left out: they stand in most texts by chance.

    Returns:
        For each sentence of at least `min_words` words: None where it is not in the source, else the place of its first
        occurrence, the number of words before it over the number of words in the source, in [0, 1).
    """
    told = words(source)
    text = f" {' '.join(told)} "
    places: list[float | None] = []
    for sentence in sentences(summary):
        said = words(sentence)
        if len(said) < max(min_words, 1):
            continue
        at = text.find(f" {' '.join(said)} ")
        places.append(text.count(" ", 0, at) / len(told) if at >= 0 else None)
    return places
