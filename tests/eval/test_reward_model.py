"""The learned reward in a report, on held-out labels of each type; its scores are what the responses say."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import eval.reward_model as module
from eval.reward_model import judge_reward, labeler_accuracy
from lightning_rlhf.records import Comparison

N = 60


class Said:
    """A reward whose score of a response is the number in it, times a spread."""

    def __init__(self, directory: str) -> None:
        std, to, scale = json.loads(directory)
        self.info = {"gain": 1.0, "normalisations": [{"when": "after training", "std": std, "target_std": to}]}
        self.tokenizer, self.scale = None, scale

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return [self.scale * float(c) for c in completions]


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The same order of three responses, which the reward mostly has too, as each type of label."""
    monkeypatch.setattr(module, "LearnedReward", Said)
    draw, rows = random.Random(1), []
    for i in range(N):
        scores = [draw.gauss(0, 1) for _ in range(3)]
        liked = [s + draw.gauss(0, 1) for s in scores]
        ranks = [1 + sum(other > one for other in liked) for one in liked]
        rows.append(({"prompt": f"p{i}", "responses": [f"{s:.4f}" for s in scores]}, ranks, liked))
    made = {
        "best": [{**row, "best": ranks.index(1)} for row, ranks, _ in rows],
        "both": [{**row, "best": ranks.index(1), "ranks": ranks} for row, ranks, _ in rows],
        "ranks": [{**row, "ranks": ranks} for row, ranks, _ in rows],
        "ratings": [{**row, "ratings": liked} for row, _, liked in rows],
    }
    for name, own in made.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in own), encoding="utf-8")
    return {name: tmp_path / f"{name}.jsonl" for name in made}


def test_labels_of_each_type(labels: dict[str, Path]) -> None:
    """One figure beside the labels' own chance, and one calibration, of what the labels put first."""
    plain, other = json.dumps([1.0, 1.0, 1.0]), json.dumps([1.0, 1.0, -1.0])
    found = {name: judge_reward(plain, None, str(file), [other]) for name, file in labels.items()}
    assert {name: (f[0]["of"], f[0]["chance"]) for name, f in found.items()} == {
        "best": ("choices", pytest.approx(1 / 3)), "both": ("pairs", 0.5), "ranks": ("pairs", 0.5), "ratings": ("pairs", 0.5),
    }  # fmt: skip
    assert all(f[0]["n"] == N and f[0]["low"] > f[0]["chance"] for f in found.values())
    calibrated = [json.dumps(f[1], sort_keys=True) for f in found.values()]
    assert len(set(calibrated)) == 1 and found["ranks"][1]["n"] == N
    assert found["ratings"][2]["members"] == found["best"][2]["members"] and len(found["best"][2]["members"]) == 2


@pytest.mark.parametrize(("std", "to", "scale"), [(5.0, 1.0, 0.2), (5.0, None, 1.0), (5.0, 2.0, 0.4), (1.0, 1.0, 1.0)])
def test_probabilities_are_of_the_scale_that_was_trained(
    labels: dict[str, Path], std: float, to: float | None, scale: float
) -> None:
    """The last normalisation divided by the spread, to a spread, or only shifted (2020)."""
    plain = judge_reward(json.dumps([1.0, 1.0, 1.0]), None, str(labels["best"]), [])[1]
    found = judge_reward(json.dumps([std, to, scale]), None, str(labels["best"]), [])[1]
    assert found["error"] == pytest.approx(plain["error"]) and found["temperature"] == pytest.approx(plain["temperature"])


def test_a_known_reward_that_cannot_score_the_labels(tmp_path: Path) -> None:
    """It was known:rouge without references, or wants a column that labels do not have: the report is written all the same."""
    (tmp_path / "topical.py").write_text("def f(prompts, completions, topic):\n    return [0.0] * len(topic)\n", encoding="utf-8")
    held_out = [Comparison("p", ["a b", "c"], best=0)]
    for known, said in (("known:rouge", "reference"), (f"{tmp_path}/topical.py:f", "topic")):
        with pytest.warns(UserWarning, match=f"is left out of the report: .*{said}"):
            assert labeler_accuracy(known, held_out, None) is None
