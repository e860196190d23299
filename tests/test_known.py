"""SentimentReward: against scikit-learn's scores, against a plain loop, and against common sense."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_rlhf.known import ASSETS, SentimentReward

FIXTURE = Path(__file__).parent / "fixtures/sentiment_scores.json"


@pytest.fixture(scope="module")
def reward() -> SentimentReward:
    return SentimentReward()


def test_equals_the_scores_of_scikit_learn(reward: SentimentReward) -> None:
    stored = json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert len(stored) >= 50
    scores = reward.log_p_positive([entry["text"] for entry in stored])
    np.testing.assert_allclose(scores, [entry["log_p_positive"] for entry in stored], rtol=0, atol=1e-12)


def test_equals_a_plain_loop(reward: SentimentReward) -> None:
    text = "A good film, a very good film!"
    words = re.findall(r"\w+", text.lower())
    assert words == ["a", "good", "film", "a", "very", "good", "film"]
    # Words: a 2, good 2, film 2, very 1. Pairs: a good, good film 2, film a, a very, very good.
    counts: dict[str, int] = {}
    for term in words + [words[i] + " " + words[i + 1] for i in range(len(words) - 1)]:
        counts[term] = counts.get(term, 0) + 1
    assert counts["good film"] == 2
    assert counts["a good"] == 1
    assert len(counts) == 9

    vocabulary = json.loads((ASSETS / "vocabulary.json").read_text(encoding="utf-8"))
    arrays = np.load(ASSETS / "model.npz", allow_pickle=False)
    square, dot = 0.0, 0.0
    for term, count in counts.items():
        if term in vocabulary:
            i = vocabulary.index(term)
            weight = (1 + math.log(count)) * float(arrays["idf"][i])  # sublinear tf times idf
            square += weight**2
            dot += weight * float(arrays["coef"][i])
    logit = dot / math.sqrt(square) + float(arrays["bias"])
    assert reward.sublinear
    assert reward.log_p_positive([text])[0] == pytest.approx(-math.log(1 + math.exp(-logit)), abs=1e-12)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("A warm, funny and moving film.", "A dull, lifeless and tedious film."),
        ("I loved it.", "I hated it."),
        ("It was wonderful.", "It was terrible."),
        ("The best day of my life.", "The worst day of my life."),
        ("The dog was happy.", "The dog was sad."),
        ("Beautiful music, brilliant acting.", "Ugly music, stupid acting."),
        ("Bad, but very beautiful.", "Bad, but very boring."),
        ("A great, great, wonderful story.", "A story."),
        ("A story.", "A stupid, boring story."),
    ],
)
def test_better_texts_score_higher(reward: SentimentReward, better: str, worse: str) -> None:
    high, low = reward([""] * 2, [better, worse])
    assert low < high < 0


def test_a_text_without_known_terms_gets_the_bias(reward: SentimentReward) -> None:
    expected = -math.log1p(math.exp(-reward.bias))
    for score in reward.log_p_positive(["", " ", "...", "zzxqv qqzzk"]):
        assert score == pytest.approx(expected, abs=1e-12)


def test_only_the_completion_counts(reward: SentimentReward) -> None:
    texts = ["It was terrible.", "It was wonderful."]
    assert reward(["wonderful"] * 2, texts, reference=["x", "y"]) == reward.log_p_positive(texts)
    assert reward([], []) == []


def test_stable_far_from_zero(reward: SentimentReward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "logit", float)
    assert reward.log_p_positive(["-2000", "2000", "0"]) == [-2000.0, 0.0, -math.log(2)]


def test_the_card_tells_what_ships(reward: SentimentReward) -> None:
    assert reward.card["accuracy"]["test"] >= 0.80
    assert reward.card["n"] == {"train": 6920, "dev": 872, "test": 1821}
    assert reward.card["terms"] == len(reward.index) == len(reward.coef)
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) < 1_000_000


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        (["a"], ["x", "y"], "completions: found 2, expected 1, one for each prompt"),
        (["a"], "x", "completions: found str, expected a list of strings"),
        ("a", ["x"], "prompts: found str, expected a list"),
        (["a", "b"], ["x", None], r"completions\[1\]: found NoneType, expected a string"),
    ],
)
def test_wrong_arguments(reward: SentimentReward, prompts: Any, completions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward(prompts, completions)


def test_wrong_texts(reward: SentimentReward) -> None:
    with pytest.raises(ValueError, match=r"texts\[0\]: found int, expected a string"):
        reward.log_p_positive([3])  # type: ignore[list-item]


def test_a_damaged_or_absent_folder(tmp_path: Path) -> None:
    shutil.copytree(ASSETS, tmp_path / "copy")
    (tmp_path / "copy/vocabulary.json").write_text('["good"]')
    with pytest.raises(ValueError, match=r"found 1 terms, \d+ idf and \d+ coefficients, expected the same"):
        SentimentReward(tmp_path / "copy")
    with pytest.raises(FileNotFoundError):
        SentimentReward(tmp_path / "absent")


def test_a_wrong_label_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path = Path(__file__).resolve().parents[1] / "scripts/fit_sentiment.py"
    spec = importlib.util.spec_from_file_location("fit_sentiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "train.csv").write_text("label,sentence\n1,Fine.\n2,Odd.\n")
    with pytest.raises(ValueError, match=r"train.csv:3: label: found '2', expected 0 or 1"):
        module.read(tmp_path / "train.csv")


def test_no_scikit_learn_at_run_time() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None; "
        "from lightning_rlhf.known import SentimentReward; SentimentReward()([''], ['fine'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
