"""A known reward: log p(positive) of a text under a small sentiment classifier, in NumPy alone.

The r_s of the mock study of Ziegler et al. 2019: a reward known exactly stands in for the human, so that a
learned reward, a policy trained on it, and a policy trained on r_s itself can be compared on one scale, in
nats.

Deviation from the paper:

1. The classifier is logistic regression on tf-idf of words and word pairs, small enough to ship, fitted on
   SST-2 (accuracy in `card.json` beside the weights). It reads the completion alone; an empty one, or one
   without a known term, gets the bias alone.

    python scripts/fit_sentiment.py FOLDER        # fits and writes the shipped weights
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ASSETS = Path(__file__).parent / "assets" / "sentiment"


class SentimentReward:
    """log p(positive | completion), a float of at most 0, in nats.

    Args:
        path: directory with `model.npz` (`idf` (V,), `coef` (V,), `bias` ()), `vocabulary.json` (V terms in
            the order of the arrays) and `card.json`; None for the shipped one.

    Raises:
        FileNotFoundError: one of the three files is absent.
        ValueError: the arrays and the vocabulary differ in length.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        folder = ASSETS if path is None else Path(path)
        self.card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        terms = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        with np.load(folder / "model.npz", allow_pickle=False) as arrays:
            self.idf = arrays["idf"].astype(np.float64)  # (V,)
            self.coef = arrays["coef"].astype(np.float64)  # (V,)
            self.bias = float(arrays["bias"])
        if not len(terms) == len(self.idf) == len(self.coef):
            raise ValueError(
                f"{folder}: found {len(terms)} terms, {len(self.idf)} idf and {len(self.coef)} coefficients, "
                "expected the same number of each"
            )
        self.index = {term: i for i, term in enumerate(terms)}
        self.token = re.compile(self.card["hyperparameters"]["token_pattern"])
        self.sublinear = bool(self.card["hyperparameters"]["sublinear_tf"])

    def logit(self, text: str) -> float:
        """Log-odds of positive: coef · x + bias, with x the tf-idf vector of `text`, scaled to length 1."""
        words = self.token.findall(text.lower())
        terms = words + [f"{first} {second}" for first, second in itertools.pairwise(words)]
        counts = Counter(self.index[term] for term in terms if term in self.index)
        if not counts:
            return self.bias
        at = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
        tf = np.fromiter(counts.values(), dtype=np.float64, count=len(counts))
        x = (1 + np.log(tf) if self.sublinear else tf) * self.idf[at]
        return float(x @ self.coef[at] / np.sqrt(x @ x)) + self.bias

    def log_p_positive(self, texts: Sequence[str]) -> list[float]:
        """log p(positive) of each text, in nats (float64).

        Raises:
            ValueError: `texts` is not a list of strings.
        """
        require_strings("texts", texts)
        logits = np.array([self.logit(text) for text in texts], dtype=np.float64)
        return (-np.logaddexp(0.0, -logits)).tolist()  # log sigmoid, without overflow on either side

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        """The reward of each completion: n prompts, n completions → n floats; only completions are read.

        Raises:
            ValueError: `completions` is not a list of strings, or not as long as `prompts`.
        """
        require_strings("completions", completions)
        if not is_list(prompts):
            raise ValueError(f"prompts: found {type(prompts).__name__}, expected a list")
        if len(prompts) != len(completions):
            raise ValueError(
                f"completions: found {len(completions)}, expected {len(prompts)}, one for each prompt"
            )
        return self.log_p_positive(completions)


def require_strings(name: str, values: Any) -> None:
    """Raise a ValueError with the argument, position and type unless `values` is a list of strings."""
    if not is_list(values):
        raise ValueError(f"{name}: found {type(values).__name__}, expected a list of strings")
    wrong = [i for i, value in enumerate(values) if not isinstance(value, str)]
    if wrong:
        found = type(values[wrong[0]]).__name__
        raise ValueError(f"{name}[{wrong[0]}]: found {found}, expected a string")


def is_list(values: Any) -> bool:
    """Whether `values` is a list or tuple; a lone string is a sequence too, but not a list of texts."""
    return isinstance(values, (list, tuple))
