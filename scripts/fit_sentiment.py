"""Fit the sentiment classifier behind `lightning_rlhf.known.SentimentReward`, and the fixture of its test.

    python scripts/fit_sentiment.py FOLDER [--output lightning_rlhf/assets/sentiment]

FOLDER holds `train.csv`, `dev.csv`, `test.csv` of SST-2 (columns `label` 0 or 1, `sentence`). Needs
scikit-learn; the fitted classifier needs NumPy alone.

1. tf-idf of words and word pairs seen in two training sentences or more; L2-penalised logistic regression.
2. Whether tf is sublinear, and C: by log loss on dev, since the reward is a log-probability; test has no say.
3. Everything is rounded to float32 before test and fixture are scored: what is shipped is what was measured.
"""

import argparse
import csv
import datetime
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

TOKEN_PATTERN = r"(?u)\b\w+\b"
MIN_DF = 2
SUBLINEAR = (True, False)
CS = (1.0, 2.0, 4.0, 8.0, 16.0)

FIXTURE_TEXTS = [
    "",
    " ",
    "...",
    "zzxqv",
    "good",
    "bad",
    "Not bad.",
    "not good at all",
    "It was wonderful!",
    "It was terrible!",
    "A warm, funny and moving film.",
    "A dull, lifeless and tedious film.",
    "I loved every minute of it.",
    "I hated every minute of it.",
    "The dog was happy and they played in the park all day.",
    "The dog was sad and nobody came to help.",
    "They lived happily ever after.",
    "She cried, and the rain did not stop.",
    "He was very, very, very good.",
    "good good good good bad",
    "The best day of my life.",
    "The worst day of my life.",
    "An awful mess from start to finish.",
    "A joy from start to finish.",
    "The house stood at the end of the road.",
    "It is what it is.",
    "There are three chairs and a table in the room.",
    "Beautiful music, brilliant acting, a perfect evening.",
    "Ugly, stupid, boring, and far too long.",
    "He didn't like it, and I don't blame him.",
    "You won't regret it.",
    "I can't recommend this.",
    "I can recommend this.",
    "Her smile was charming; his was cruel.",
    "\tTabs\nand line breaks\n\nchange nothing.",
    "UPPER CASE IS LOWERED: GREAT FUN",
    "Numbers such as 1939 and 42 are words too.",
    "Le café était délicieux, naïve as I am.",
    "“Curly quotes” – and dashes — are no words…",
    "under_score counts as one word",
    "The plot makes no sense, yet the heart of it is true.",
    "Clever at first, tiresome in the end.",
    "Tiresome at first, clever in the end.",
    "The captain never returned from that voyage.",
    "What a delightful surprise, said the old lady, and laughed.",
    "What a nasty surprise, said the old lady, and left.",
    "Fresh, honest and full of life.",
    "Stale, false and without a spark of life.",
    "To be, or not to be, that is the question.",
    "A story that stays with you. " * 20,
]


def read(path: Path) -> tuple[list[str], list[int]]:
    """Sentences and labels of one CSV file.

    Raises:
        ValueError: a label is neither 0 nor 1.
    """
    sentences, labels = [], []
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            if row["label"] not in ("0", "1"):
                raise ValueError(f"{path}:{line}: label: found {row['label']!r}, expected 0 or 1")
            sentences.append(row["sentence"])
            labels.append(int(row["label"]))
    return sentences, labels


def fit(
    sentences: list[str], labels: list[int], sublinear: bool, c: float
) -> tuple[TfidfVectorizer, LogisticRegression]:
    """A fitted vectorizer and classifier, their parameters rounded to float32."""
    vectorizer = TfidfVectorizer(
        token_pattern=TOKEN_PATTERN, ngram_range=(1, 2), min_df=MIN_DF, sublinear_tf=sublinear
    )
    classifier = LogisticRegression(C=c, max_iter=1000)
    classifier.fit(vectorizer.fit_transform(sentences), labels)
    vectorizer.idf_ = vectorizer.idf_.astype(np.float32).astype(np.float64)
    classifier.coef_ = classifier.coef_.astype(np.float32).astype(np.float64)
    classifier.intercept_ = classifier.intercept_.astype(np.float32).astype(np.float64)
    return vectorizer, classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with train.csv, dev.csv and test.csv of SST-2")
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--output", type=Path, default=root / "lightning_rlhf/assets/sentiment")
    parser.add_argument("--fixture", type=Path, default=root / "tests/fixtures/sentiment_scores.json")
    args = parser.parse_args()
    data = {split: read(args.folder / f"{split}.csv") for split in ("train", "dev", "test")}

    tried = []
    for sublinear, c in itertools.product(SUBLINEAR, CS):
        vectorizer, classifier = fit(*data["train"], sublinear, c)
        dev = vectorizer.transform(data["dev"][0])
        loss = log_loss(data["dev"][1], classifier.predict_proba(dev))
        tried.append((loss, sublinear, c, vectorizer, classifier))
        print(
            f"sublinear {sublinear!s:5} C {c:4g}: dev log loss {loss:.4f}, "
            f"accuracy {classifier.score(dev, data['dev'][1]):.4f}"
        )
    dev_loss, sublinear, c, vectorizer, classifier = min(tried, key=lambda entry: entry[0])
    accuracy = {
        split: round(float(classifier.score(vectorizer.transform(texts), labels)), 4)
        for split, (texts, labels) in data.items()
    }
    print(f"chosen: sublinear {sublinear}, C {c:g}; accuracy {accuracy}")

    args.output.mkdir(parents=True, exist_ok=True)
    terms = vectorizer.get_feature_names_out().tolist()
    np.savez_compressed(
        args.output / "model.npz",
        idf=vectorizer.idf_.astype(np.float32),
        coef=classifier.coef_[0].astype(np.float32),
        bias=np.float32(classifier.intercept_[0]),
    )
    listed = json.dumps(terms, ensure_ascii=False) + "\n"
    (args.output / "vocabulary.json").write_text(listed, encoding="utf-8")
    card = {
        "what": "logistic regression on tf-idf of words and word pairs; p(positive) of an English text",
        "accuracy": accuracy,
        "dev_log_loss": round(float(dev_loss), 4),
        "n": {split: len(labels) for split, (_, labels) in data.items()},
        "terms": len(terms),
        "date": datetime.date.today().isoformat(),
        "hyperparameters": {
            "token_pattern": TOKEN_PATTERN,
            "lowercase": True,
            "ngram_range": [1, 2],
            "min_df": MIN_DF,
            "sublinear_tf": sublinear,
            "norm": "l2",
            "C": c,
        },
        "chosen_by": f"dev log loss over sublinear_tf {list(SUBLINEAR)} and C {list(CS)}; before that, the "
        "token pattern by dev accuracy (against one with apostrophes, ! and ?) and min_df 2, not 1, for size",
        "versions": {"scikit-learn": sklearn.__version__, "numpy": np.__version__},
        "data_sha256": {
            split: hashlib.sha256((args.folder / f"{split}.csv").read_bytes()).hexdigest() for split in data
        },
        "command": "python scripts/fit_sentiment.py FOLDER",
        "licence": "Fitted on SST-2 (Stanford Sentiment Treebank, Socher et al. 2013) as published in "
        "openai/generating-reviews-discovering-sentiment (MIT). The sentences are not shipped, only fitted "
        "weights and the terms they belong to.",
    }
    (args.output / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    scores = classifier.predict_log_proba(vectorizer.transform(FIXTURE_TEXTS))[:, 1].tolist()
    pairs = zip(FIXTURE_TEXTS, scores, strict=True)
    fixture = [{"text": text, "log_p_positive": score} for text, score in pairs]
    args.fixture.write_text(json.dumps(fixture, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in (*sorted(args.output.iterdir()), args.fixture):
        print(f"{file.name:24} {file.stat().st_size:>9,} bytes")


if __name__ == "__main__":
    main()
