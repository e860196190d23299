"""eval.evidence on rows worked by hand."""

import pytest

from eval import evidence
from eval.calibration import calibrate
from eval.outcomes import by_score


def row(prompt: str, policy: str, known: float, words: int, index: int = 0, **more: float) -> dict:
    text = " ".join(["word"] * words)
    return {"id": prompt, "index": index, "policy": policy, "prompt": "p", "response": text, "scores": {"known": known, **more}}


def test_figures_are_scores_and_measures_that_are_defined() -> None:
    found = evidence.figures({**row("p", "a", 1.0, 3), "measures": {"rougeL": None, "copied": 0.5}})
    assert found == {"copied": 0.5, "known": 1.0, "words": 3.0}
    assert evidence.figures({**row("p", "a", 1.0, 3), "measures": {"words": 7}})["words"] == 7.0


def table():
    rows = {
        "a": [row("p1", "a", 3.0, 5), row("p2", "a", 1.0, 4), row("p3", "a", 2.0, 9), row("p4", "a", 0.0, 1)],
        "b": [row("p1", "b", 1.0, 2), row("p2", "b", 2.0, 4), row("p3", "b", 1.0, 3), row("p5", "b", 9.0, 9)],
    }
    return evidence.tabulate(rows)


def test_changes_are_paired() -> None:
    found = evidence.changes(table(), "a", "b")
    # known: 2, −1, 1 on p1, p2, p3; p4 and p5 are alone.
    assert (found["known"]["mean"], found["known"]["n"]) == (pytest.approx(2 / 3), 3)
    assert found["words"]["mean"] == pytest.approx((3 + 0 + 6) / 3)


def test_wins_by_length() -> None:
    found = evidence.length(by_score(table(), "known"), "a", "b")
    assert (found["not_longer"]["rate"], found["not_longer"]["n"]) == (0.0, 1)  # p2: as long, lost
    assert (found["longer"]["rate"], found["longer"]["n"]) == (1.0, 2)
    assert [(b["more"], b["n"]) for b in found["bins"]] == [(3.0, 3)]  # three pairs fill no second bin
    many = {
        "a": {(str(i), 0): {"known": float(i % 2), "words": float(i)} for i in range(50)},
        "b": {(str(i), 0): {"known": 0.5, "words": 0.0} for i in range(50)},
    }
    bins = evidence.length(by_score(many, "known"), "a", "b")["bins"]
    assert [(b["more"], b["n"], b["rate"]) for b in bins] == [(4.5 + 10 * k, 10, 0.5) for k in range(5)]


def test_agreement_with_the_judge() -> None:
    found = evidence.agreement(by_score(table(), "known"), ["learned", "longer"], ["a", "b"])
    # p2 is equally long, so told by p1 and p3 alone, where the longer one won; nobody has a learned score.
    assert [(r["measure"], r["rate"], r["n"]) for r in found] == [("longer", 1.0, 2)]


def test_frontier_of_a_run_and_best_of_n() -> None:
    columns = {"objective/kl": [[i, float(i * i)] for i in range(5)], "objective/score": [[i, 2.0 * i] for i in range(5)]}
    draws = {(p, i): {"known": -float(i), "learned": float(i), "words": 1.0} for p in ("p1", "p2") for i in range(4)}
    found = evidence.frontier({"ppo": columns, "sft": {"train/loss": [[0, 1.0]]}}, {"zero-shot": draws}, "zero-shot", "known")
    assert [(r["name"], r["line"]["slope"], r["turn"]) for r in found["runs"]] == [("ppo", pytest.approx(2.0), None)]
    # best of 4 of 0 … 3 is 3; of 2: (1·1 + 2·2 + 3·3) / 6; gold is its negative.
    assert [(b["n"], b["proxy"], b["gold"]) for b in found["best_of"]] == [
        (1, pytest.approx(1.5), pytest.approx(-1.5)), (2, pytest.approx(14 / 6), pytest.approx(-14 / 6)),
        (4, pytest.approx(3.0), pytest.approx(-3.0)),
    ]  # fmt: skip
    single = {key: value for key, value in draws.items() if key[1] == 0}
    assert evidence.frontier({}, {"zero-shot": single}, "zero-shot", "known") == {"runs": [], "best_of": []}
    flat = {**columns, "objective/kl": [[i, 0.0] for i in range(5)]}
    assert evidence.frontier({"ppo": flat}, {}, "zero-shot", "known")["runs"][0]["line"] is None


def test_the_turn_of_the_projects_own_runs() -> None:
    """What PPO logs: the held-out reward at validations alone."""
    at = range(0, 400, 10)
    columns = {
        "objective/kl": [[i, i / 20] for i in range(400)], "objective/score": [[i, i / 90] for i in range(400)],
        "val/kl": [[i, i / 20] for i in at], "val/score": [[i, i / 90] for i in at],
        "val/held_out": [[i, -abs(i - 150) / 100] for i in at],
    }  # fmt: skip
    (run,) = evidence.frontier({"ppo": columns}, {}, "zero-shot", "known")["runs"]
    assert run["turn"]["step"] == pytest.approx(150, abs=10)


def test_calibration_of_few_comparisons_can_be_shown() -> None:
    assert calibrate([[1.0, 0.0]] * 3, [0, 0, 1]).by_margin[0].label == "1 to 1"
