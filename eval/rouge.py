"""ROUGE between responses and references, by the `rouge_score` package: its own numbers to the last digit.

1. Nothing is downloaded: sentences are never split here. `rougeLsum` therefore takes each *line* as one
   sentence; separate sentences by newlines yourself if you want the summary-level score, otherwise it
   equals `rougeL`.
2. With several references the one with the best F1 counts, for each ROUGE type on its own, as in
   `rouge_score`.
"""

import re
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

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

    scorer = RougeScorer(types, use_stemmer=use_stemmer)
    out = {name: np.zeros((len(predictions), 3)) for name in types}
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        texts = reference if isinstance(reference, (list, tuple)) else [reference]
        if not texts:
            raise ValueError(f"references[{i}] is an empty list, expected at least one text")
        targets = [_text(text, f"references[{i}]") for text in texts]
        scores = scorer.score_multi(targets, _text(prediction, f"predictions[{i}]"))
        for name in types:
            out[name][i] = scores[name]  # a named tuple: precision, recall, fmeasure
    return out


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
