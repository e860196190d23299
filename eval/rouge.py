"""ROUGE between responses and references: the numbers of the `rouge_score` package to the last digit, in a fraction of its time.

Its tokenizer (each word is stemmed once), its n-gram counts and its F measure are called; the longest common subsequences
are found here with whole rows of the table as bits of one integer (Hyyrö 2004; the table is the same, so are its ends).

1. Nothing is downloaded: sentences are never split here. `rougeLsum` therefore takes each *line* as one
   sentence; separate sentences by newlines yourself if you want the summary-level score, otherwise it
   equals `rougeL`.
2. With several references the one with the best F1 counts, for each ROUGE type on its own, as in
   `rouge_score`.
3. Its tokenizer keeps [a-z0-9] alone: a text in Hebrew or Chinese has no token and scores 0, even against itself. `reads_little`
   tells such texts, so that a report can say so.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from nltk.stem.porter import PorterStemmer
from rouge_score import scoring
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge_scores(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    rouge_types: Sequence[str] = ROUGE_TYPES,
    use_stemmer: bool = True,
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each prediction against its reference (Lin 2004).

    Args:
        predictions: n texts.
        references: n references, each a text or a non-empty list of texts of which the best F1 counts.
        rouge_types: any of rouge1 … rouge9, rougeL, rougeLsum (each line is a sentence).
        use_stemmer: reduce words of more than three letters to their Porter stem first.

    Returns:
        `{type: float64 array (n, 3)}`, columns precision, recall, F1, each in [0, 1].

    Raises:
        ValueError: lengths differ, an entry is not a text, or a type is unknown; the message says which.
    """
    predictions = _as_list(predictions, "predictions")
    references = _as_list(references, "references")
    if len(predictions) != len(references):
        raise ValueError(
            "predictions and references must have the same length, "
            f"found {len(predictions)} and {len(references)}"
        )
    types = _as_list(rouge_types, "rouge_types")
    if not types:
        raise ValueError("rouge_types is empty, expected at least one of rouge1 … rouge9, rougeL, rougeLsum")
    for name in types:
        if not (isinstance(name, str) and re.fullmatch(r"rouge([1-9]|L|Lsum)", name)):
            raise ValueError(f"unknown ROUGE type {name!r}, expected rouge1 … rouge9, rougeL or rougeLsum")

    tokenizer = _Tokenizer(use_stemmer)
    counted = [name for name in types if name[5:].isdigit()]
    scorer = RougeScorer(counted, tokenizer=tokenizer)
    out = {name: np.zeros((len(predictions), 3)) for name in types}
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        texts = reference if isinstance(reference, (list, tuple)) else [reference]
        if not texts:
            raise ValueError(f"references[{i}] is an empty list, expected at least one text")
        targets = [_text(text, f"references[{i}]") for text in texts]
        scores = scorer.score_multi(targets, _text(prediction, f"predictions[{i}]"))
        for name in types:
            if name not in counted:
                found = [_score_lcs(target, prediction, tokenizer, by_line=name == "rougeLsum") for target in targets]
                scores[name] = max(found, key=lambda score: score.fmeasure)  # the first of equals, as in `score_multi`
            out[name][i] = scores[name]  # a named tuple: precision, recall, fmeasure
    return out


def reads_little(text: str) -> bool:
    """Whether most letters and digits of a text are none that ROUGE reads: of another script, or with accents."""
    if text.isascii():
        return False
    letters = [c for c in text.lower() if c.isalnum()]
    return 2 * sum(c.isascii() for c in letters) < len(letters)


class _Tokenizer:
    """rouge_score's tokenizer, which remembers stems, and the texts of the pair at hand."""

    def __init__(self, use_stemmer: bool) -> None:
        self.stem = lru_cache(maxsize=100_000)(PorterStemmer().stem)
        self.tokenize = lru_cache(maxsize=64)(lambda text: tokenize(text, self if use_stemmer else None))


def _score_lcs(target: str, prediction: str, tokenizer: _Tokenizer, by_line: bool) -> scoring.Score:
    """ROUGE-L of two texts, or (by line) the summary-level ROUGE-L: Lin 2004, §3.1 and §3.2."""
    of_target, of_prediction = (
        [tokenizer.tokenize(line) for line in (text.split("\n") if by_line else [text]) if line] for text in (target, prediction)
    )
    m, n = (sum(map(len, lines)) for lines in (of_target, of_prediction))
    if not m or not n:
        return scoring.Score(precision=0, recall=0, fmeasure=0)
    if not by_line:
        hits = deque(_lcs_rows(of_target[0], of_prediction[0]), maxlen=1)[0].bit_count()  # of the last row
    else:
        hits, left = 0, [Counter(token for line in lines for token in line) for lines in (of_target, of_prediction)]
        for line in of_target:
            union = set().union(*(_lcs_places(line, other) for other in of_prediction))
            for token in (line[i] for i in sorted(union)):
                if all(count[token] > 0 for count in left):  # no token counts more often than either text has it
                    hits += 1
                    for count in left:
                        count[token] -= 1
    precision, recall = hits / n, hits / m
    return scoring.Score(precision, recall, scoring.fmeasure(precision, recall))


def _lcs_rows(a: Sequence[str], b: Sequence[str]) -> Iterator[int]:
    """The table of the longest common subsequence of a[:i] and b[:j], row by row from i = 0: the lowest j bits of row i hold
    as many ones as entry (i, j) says."""
    places = dict.fromkeys(a, 0)
    for j, token in enumerate(b):
        if token in places:
            places[token] |= 1 << j
    full = (1 << len(b)) - 1
    zeros = full
    yield 0
    for token in a:
        match = zeros & places[token]
        zeros = (zeros + match | zeros - match) & full
        yield full ^ zeros


def _lcs_places(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """Indices into `a` of one longest common subsequence: of several, the one that rouge_score reads from the table."""
    rows = list(_lcs_rows(a, b))
    i, j, found = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1]:
            found.append(i - 1)
            i, j = i - 1, j - 1
        elif _count(rows[i], j) > _count(rows[i - 1], j):  # then the entry to the left is the larger
            j -= 1
        else:
            i -= 1
    return found


def _count(row: int, j: int) -> int:
    return (row & ((1 << j) - 1)).bit_count()


def _text(value: object, where: str) -> str:
    """`value`, if it is a text."""
    if isinstance(value, str):
        return value
    raise ValueError(f"{where} holds {type(value).__name__}, expected a text")


def _as_list(values: object, name: str) -> list:
    """`values` as a list; a single text is refused, since it would be read letter by letter."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name} is {type(values).__name__}, expected a list of texts")
    return list(values)
