"""eval.calibration against simulated truths, scipy and hand-worked examples."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax

from eval import calibration as cal


def simulated(n: int, size: int = 2, truth: float = 1.0, seed: int = 0, spread: float = 1.5):
    """(n, size) scores, and choices drawn from softmax(scores / truth)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, spread, (n, size))
    drawn = scores / truth + rng.gumbel(size=(n, size))  # the largest of softmax's logits plus Gumbel noise is a draw from it
    return scores.tolist(), drawn.argmax(1).tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_a_calibrated_model_has_no_error_but_chance(size: int) -> None:
    found = cal.calibrate(*simulated(20_000, size, seed=4), seed=1)
    assert found.error < 0.01
    assert found.error < 2.5 * found.error_by_chance
    assert found.temperature is not None
    assert found.temperature.low < 1 < found.temperature.high
    assert sum(b.low <= b.predicted <= b.high for b in found.bins) >= 8  # of 10, at 95 % each
    assert [b.n for b in found.bins] == [(20_000 if size == 2 else 80_000) // 10] * 10


def test_error_by_chance_is_the_mean_error_of_a_calibrated_model() -> None:
    errors, expected = [], []
    for seed in range(100):
        p, happened, _ = cal.events(*simulated(400, seed=seed))
        errors.append(cal.calibration_error(cal.reliability(p, happened)))
        expected.append(cal.error_by_chance(p))
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.05)


@pytest.mark.parametrize(("truth", "size"), [(0.5, 2), (2.5, 2), (2.5, 4)])
def test_a_known_temperature_is_recovered(truth: float, size: int) -> None:
    scores, choices = simulated(6_000, size, truth, seed=3)
    found = cal.fit_temperature(scores, choices)
    assert found.low < truth < found.high
    assert found.high / found.low < 1.25
    loss = minimize_scalar(
        lambda t: -np.mean([log_softmax(np.array(s) / t)[c] for s, c in zip(scores[:500], choices[:500], strict=True)]),
        bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    assert cal.fit_temperature(scores[:500], choices[:500]).value == pytest.approx(loss.x, rel=1e-4)
    tested = cal.calibrate(scores, choices).tested
    assert tested is not None
    assert (tested.n, tested.loss_after < tested.loss_before, tested.error_after < tested.error_before) == (3000, True, True)


def test_the_half_that_is_tested_did_not_fit() -> None:
    scores, choices = simulated(101, truth=2.0)
    found = cal.calibrate(scores, choices, prompts=[f"p{i}" for i in range(101)])
    assert found.tested is not None
    assert found.tested.n == 51  # of 101 prompts 50 fit
    # Prompts are not torn apart: with two of them, each half is one.
    by_prompt = cal.calibrate(scores, choices, prompts=["a"] * 40 + ["b"] * 61)
    assert by_prompt.tested is not None
    of_a, of_b = cal.fit_temperature(scores[:40], choices[:40]), cal.fit_temperature(scores[40:], choices[40:])
    assert (by_prompt.temperature, by_prompt.tested.n) in ((of_a, 61), (of_b, 40))


def test_interval_of_the_temperature_covers() -> None:
    covered = 0
    for seed in range(300):
        found = cal.fit_temperature(*simulated(300, truth=1.5, seed=seed))
        covered += found.low <= 1.5 <= found.high
    assert 0.92 <= covered / 300 <= 0.98


def test_temperatures_without_an_end() -> None:
    right = cal.fit_temperature([[1.0, 0.0], [0.0, 3.0]], [0, 1])
    assert (right.value, right.low) == (0.0, 0.0)
    assert cal.fit_temperature([[1.0, 0.0], [0.0, 3.0]], [1, 0]).value == math.inf
    assert cal.calibrate([[1.0, 0.0], [0.0, 3.0]], [0, 1]).tested is None
    assert cal.calibrate([[1.0, 0.0]], [0]).temperature is None


def test_events_by_hand() -> None:
    p, happened, where = cal.events([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0, math.log(2)]], [0, 0, 0, 2])
    # σ(2) right; σ(1) wrong; a tie is half; (¼, ¼, ½) with the third chosen.
    assert p == pytest.approx([expit(2), expit(1), 0.5, 0.25, 0.25, 0.5], abs=1e-15)
    assert happened.tolist() == [1, 0, 0.5, 0, 0, 1]
    assert where.tolist() == [0, 1, 2, 3, 3, 3]
    p, _, _ = cal.events([[2.0, 0.0]], [0], temperature=2.0)
    assert p == pytest.approx([expit(1)], abs=1e-15)


def test_bins_and_error_by_hand() -> None:
    bins = cal.reliability([0.9, 0.6, 0.7, 0.8], [1, 0, 1, 1], bins=2)
    assert [(b.predicted, b.observed, b.n) for b in bins] == [(pytest.approx(0.65), 0.5, 2), (pytest.approx(0.85), 1.0, 2)]
    # ½ · |½ − .65| + ½ · |1 − .85| = .15
    assert cal.calibration_error(bins) == pytest.approx(0.15, abs=1e-12)
    assert all(b.low < b.observed or b.high > b.observed for b in bins)


def test_clusters_widen_the_bins() -> None:
    p, y = np.full(400, 0.7), np.tile([1.0, 1, 1, 1, 0, 0, 0, 0], 50)
    alone = cal.reliability(p, y, bins=1)[0]
    together = cal.reliability(p, y, [i // 4 for i in range(400)], bins=1)[0]
    assert together.high - together.low > 1.8 * (alone.high - alone.low)  # four copies of each outcome: √4 times


def test_equal_predictions_are_in_one_bin_whatever_their_order() -> None:
    p, y = np.full(1000, 0.731), np.array([1.0] * 731 + [0.0] * 269)
    (only,) = cal.reliability(p, y)
    assert cal.calibration_error([only]) == pytest.approx(0.0, abs=1e-9)
    mixed = np.concatenate([np.full(30, 0.6), np.linspace(0.61, 0.9, 70)])
    assert [b.n for b in cal.reliability(mixed, np.ones(100), bins=5)] == [30, 10, 20, 20, 20]


def test_groups_by_hand() -> None:
    scores = [[3.0, 1.0], [0.0, 0.5], [2.0, 2.0], [1.0, 0.0, 0.3]]
    choices = [0, 0, 0, 2]
    hit = cal.hits(scores, choices)
    assert hit.tolist() == [1, 0, 0, 0]  # a tie is no hit
    assert cal.margins(scores).tolist() == [2.0, 0.5, 0.0, 0.7]
    assert cal.length_differences([[5, 7], [4, 1], [2, 2], [1, 3, 8]], choices).tolist() == [-2, 3, 0, 6]
    found = cal.accuracy_by_value(hit, cal.margins(scores), bins=2, unit=" nats")
    assert [(g.label, g.accuracy, g.n) for g in found] == [("0 to 0.5 nats", 0.0, 2), ("0.7 to 2 nats", 0.5, 2)]
    by = cal.accuracy_by_label(hit, ["b", "a", "b", "c"], at_least=1)
    assert [(g.label, g.accuracy, g.n) for g in by] == [("b", 0.5, 2), ("a", 0.0, 1), ("c", 0.0, 1)]
    assert cal.accuracy_by_label(hit, ["b", "a", "b", "c"]) == []


def test_all_of_it_over_one_model() -> None:
    scores, choices = simulated(3_000, seed=5)
    lengths = [[10 + (1 + i % 7) * (k == c) for k in range(2)] for i, c in enumerate(choices)]
    workers = ["ann" if i % 3 else "bob" for i in range(3_000)]
    found = cal.calibrate(scores, choices, lengths, workers, [i // 2 for i in range(3_000)])
    assert found.longest is not None
    assert found.longest.accuracy == 1.0  # the longer one is always chosen here
    assert [g.label for g in found.by_labeler] == ["ann", "bob"]
    rises = [g.accuracy for g in found.by_margin]
    assert rises == sorted(rises)  # the surer, the righter
    assert len(found.by_length) == 5
    assert found.loss == pytest.approx(float(np.mean(np.log1p(np.exp(-signed(scores, choices))))), abs=1e-12)
    assert found.chance_loss == pytest.approx(math.log(2), abs=1e-12)
    json.dumps(asdict(found))
    small = cal.calibrate(scores[:7], choices[:7])
    assert (len(small.bins), small.by_labeler, small.longest) == (1, (), None)


def signed(scores, choices) -> np.ndarray:
    return np.array([s[c] - s[1 - c] for s, c in zip(scores, choices, strict=True)])


def test_ensemble_by_hand() -> None:
    a = [[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]
    b = [[1.0, 0.0], [0.0, 3.0], [0.0, 2.0]]
    c = [[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]
    found = cal.ensemble([a, b, c], [0, 0, 0])
    assert found.members == pytest.approx((2 / 3, 1 / 3, 2 / 3))
    # comparison 2: two of the three pairs of members differ; mean p = (2σ(1) + σ(−3)) / 3 = .503: right.
    assert found.disagree == pytest.approx((2 / 3) / 3)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.spread == pytest.approx(float(np.std([expit(1), expit(1), expit(-3)])) / 3)
    assert [(g.label, g.accuracy, g.n) for g in found.by_agreement] == [("2 of 3 agree", 1.0, 1), ("3 of 3 agree", 0.5, 2)]


def test_ensemble_is_right_where_its_members_agree() -> None:
    rng = np.random.default_rng(0)
    true, choices = simulated(2_000, seed=9)
    members = [(np.array(true) + rng.normal(0, 1.5, (2_000, 2))).tolist() for _ in range(4)]
    found = cal.ensemble(members, choices)
    assert found.accuracy > max(found.members)
    last, before = found.by_agreement[-1], found.by_agreement[-2]
    assert (last.label, before.label) == ("4 of 4 agree", "3 of 4 agree")
    assert last.low > before.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cal.calibrate([], []), "found 0 comparisons and 0 choices, expected the same number, at least 1"),
        (lambda: cal.hits([[1.0, 2.0]], [0, 1]), "found 1 comparisons and 2 choices"),
        (lambda: cal.hits([[1.0, math.nan]], [0]), r"scores\[0\] is .*, expected at least two finite numbers"),
        (lambda: cal.hits([[1.0]], [0]), r"scores\[0\] is \[1.0\], expected at least two finite numbers"),
        (lambda: cal.hits([[1.0, 2.0]], [2]), r"choices\[0\] is 2, expected 0 … 1"),
        (lambda: cal.reliability([0.5], [1, 0]), "expected the same non-empty list"),
        (lambda: cal.reliability([1.5], [1]), "predicted holds a value outside"),
        (lambda: cal.reliability([0.5], [1], bins=0), "bins is 0, expected at least 1"),
        (lambda: cal.calibrate([[1.0, 2.0]], [0], labelers=["a", "b"]), "labelers has 2 entries, expected one for each of the 1"),
        (lambda: cal.ensemble([[[1.0, 2.0]]], [0]), "found 1 members, expected at least two"),
        (lambda: cal.ensemble([[[1.0, 2.0]], [[1.0, 2.0, 3.0]]], [0]), "member 1 scored other comparisons than member 0"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
