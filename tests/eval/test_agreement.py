"""eval.agreement against scikit-learn, published examples, hand arithmetic and simulated coverage."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import cohen_kappa_score

from eval.agreement import cohen_kappa, krippendorff_alpha, summary_tau, system_tau, tau_table

N = None
# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", example C: 4 observers, 12 units, 7 values missing
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
# the example of three coders and 15 units in the encyclopaedic article on alpha
CODERS = [
    [N, N, N, N, N, 3, 4, 1, 2, 1, 1, 3, 3, N, 3],
    [1, N, 2, 1, 3, 3, 4, 3, N, N, N, N, N, N, N],
    [N, N, 2, 1, 3, 4, 4, N, 2, 1, 1, 3, 3, N, 4],
]


def units(by_judge: list) -> list:
    return [list(x) for x in zip(*by_judge, strict=True)]


@pytest.mark.parametrize("kinds", [2, 3, 5])
def test_kappa_against_sklearn(kinds: int) -> None:
    rng = np.random.default_rng(kinds)
    a = rng.integers(kinds, size=80)
    b = np.where(rng.random(80) < 0.6, a, rng.integers(kinds, size=80))
    got = cohen_kappa(a.tolist(), b.tolist())
    assert got.value == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    assert got.low < got.value < got.high
    assert got.n == 80


def test_kappa_by_hand() -> None:
    # 20 both yes, 15 both no, 5 yes/no, 10 no/yes: p_o = .7, p_e = .5 · .6 + .5 · .4 = .5, κ = .4
    a, b = ["y"] * 25 + ["n"] * 25, ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(a, b).value == pytest.approx(0.4)
    codes = [np.array([ord(x[0]) for x in labels]) for labels in (a, b)]
    assert cohen_kappa(*codes).value == pytest.approx(0.4)


def test_kappa_interval_covers() -> None:
    rng, covered = np.random.default_rng(1), 0
    for i in range(300):
        truth = rng.random(100) < 0.5
        a, b = truth ^ (rng.random(100) < 0.1), truth ^ (rng.random(100) < 0.1)
        got = cohen_kappa(a.tolist(), b.tolist(), resamples=400, seed=i)
        covered += got.low <= 0.64 <= got.high  # agree in .9² + .1² = .82, half by chance: .64
    assert 0.91 <= covered / 300 <= 0.985


def test_clusters_widen() -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(2, size=50)
    b = np.where(rng.random(50) < 0.8, a, 1 - a)
    prompts = np.repeat(np.arange(50), 4).tolist()
    once, copies = cohen_kappa(a.tolist(), b.tolist()), cohen_kappa(np.repeat(a, 4).tolist(), np.repeat(b, 4).tolist(), prompts)
    assert (copies.value, copies.low, copies.high) == pytest.approx((once.value, once.low, once.high), abs=1e-12)


def test_agreeing_everywhere_still_has_width() -> None:
    for got in (cohen_kappa("abab", "abab"), krippendorff_alpha([[1, 1], [2, 2], [3, 3]], "interval")):
        assert got.value == got.high == pytest.approx(1)
        assert got.low < 0.6
    assert cohen_kappa("ab" * 100, "ab" * 100).low > 0.95


def test_one_category_says_nothing() -> None:
    assert math.isnan(cohen_kappa("aaa", "aaa").value)
    assert math.isnan(krippendorff_alpha([["a", "a"], ["a", "a"]]).low)


def test_kappa_errors() -> None:
    with pytest.raises(ValueError, match="a and b must have the same length, found 1 and 2"):
        cohen_kappa("a", "ab")
    with pytest.raises(ValueError, match="found no item"):
        cohen_kappa([], [])
    with pytest.raises(ValueError, match="clusters has 1 labels, expected one for each of the 2 items"):
        cohen_kappa("ab", "ab", ["p"])


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_published(level: str, expected: float) -> None:
    got = krippendorff_alpha(units(PUBLISHED), level)
    assert round(got.value, 3) == expected
    assert got.low < got.value <= got.high <= 1
    assert got.n == 11  # the last unit has one value


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.691), ("interval", 0.811)])
def test_alpha_of_three_coders(level: str, expected: float) -> None:
    assert round(krippendorff_alpha(units(CODERS), level).value, 3) == expected


def test_alpha_by_hand() -> None:
    # units (1,1) (1,2) (2,2): D_o·n = o_12 + o_21 = 2; n_1 = n_2 = 3, n = 6: D_e·n = 2 · 3 · 3 / 5 = 3.6; α = 1 − 2/3.6
    got = krippendorff_alpha([[1, 1], [1, 2], [2, 2], [1, N], [N, N], [1, math.nan]])
    assert got.value == pytest.approx(1 - 2 / 3.6)
    assert got.n == 3


def test_alpha_of_words() -> None:
    assert krippendorff_alpha([["x", "x"], ["x", "y"], ["y", "y"]]).value == pytest.approx(1 - 2 / 3.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], "ratio"), "level is 'ratio', expected one of nominal, ordinal, interval"),
        (([[1, 2], [1]],), "rows of unequal length"),
        (([["a", "b"]], "interval"), "ratings holds 'a', expected numbers at level 'interval'"),
        (([[1, N], [N, 2]],), "no item with values of two judges"),
        (([[1, 2], [2, 2]], "nominal", ["p"]), "clusters has 1 labels, expected one for each of the 2 items"),
    ],
)
def test_alpha_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        krippendorff_alpha(*arguments)


def test_tau_by_hand() -> None:
    # One document. Measure 1 2 3 4 against 1 3 2 4: five pairs in order, one not: (5 − 1)/6
    measure, ratings = np.array([[1.0, 2, 3, 4]]), np.array([[1.0, 3, 2, 4]])
    assert system_tau(measure, ratings).value == pytest.approx(4 / 6)
    assert summary_tau(measure, ratings).value == pytest.approx(4 / 6)
    # a second document in reverse: summaries 4/6 and −1; the systems' means are all 2.5 against 2.5 3 2 2.5: not defined
    both = summary_tau(np.vstack([measure, measure]), np.vstack([ratings, [[4.0, 3, 2, 1]]]))
    assert both.value == pytest.approx((4 / 6 - 1) / 2)
    assert both.n == 2


def test_levels_differ() -> None:
    rng = np.random.default_rng(3)
    systems, documents = np.arange(6) * 0.5, rng.normal(0, 5, size=(40, 1))
    ratings = documents + systems + rng.normal(size=(40, 6))
    measure = -documents + systems + rng.normal(size=(40, 6))
    system, summary = system_tau(measure, ratings), summary_tau(measure, ratings)
    assert system.value == pytest.approx(kendalltau(measure.mean(0), ratings.mean(0)).statistic)
    assert summary.value == pytest.approx(np.mean([kendalltau(a, b).statistic for a, b in zip(measure, ratings, strict=True)]))
    assert system.value > summary.value > 0.2
    assert system.low <= system.value <= system.high
    assert summary.low < summary.value < summary.high


def test_summary_interval_covers() -> None:
    rng, covered = np.random.default_rng(4), 0
    r = 0.5
    for i in range(300):  # bivariate normal: τ = 2/π · arcsin ρ
        z = rng.normal(size=(2, 50, 8))
        got = summary_tau(z[0], r * z[0] + math.sqrt(1 - r * r) * z[1], resamples=300, seed=i)
        covered += got.low <= 2 / math.pi * math.asin(r) <= got.high
    assert 0.91 <= covered / 300 <= 0.985


def test_missing_values_are_left_out() -> None:
    measure = np.array([[1.0, 2, 3], [3, 2, math.nan], [5, 5, 5]])
    ratings = np.array([[1.0, 2, 3], [1, 2, 3], [1, 2, 3]])
    got = summary_tau(measure, ratings)  # 1; −1 over the two that are there; not defined where all are the same
    assert (got.value, got.n) == (0, 2)
    assert math.isfinite(system_tau(measure, ratings).value)


def test_tau_table() -> None:
    x = np.arange(12.0).reshape(3, 4)
    rows = tau_table({"m": x, "minus": -x}, {"r": x}, resamples=20)
    got = [(r["measure"], r["axis"], r["system"].value, r["summary"].value) for r in rows]
    assert got == [("m", "r", 1, 1), ("minus", "r", -1, -1)]


def test_constant_measure() -> None:
    got = summary_tau(np.ones((3, 4)), np.arange(12.0).reshape(3, 4))
    assert math.isnan(got.value)
    assert got.n == 0


def test_tau_errors() -> None:
    with pytest.raises(ValueError, match=r"measure has shape \(2, 3\), ratings \(3, 2\)"):
        system_tau(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="expected the same"):
        summary_tau(np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="ratings has no value for system 1"):
        system_tau(np.ones((2, 2)), np.array([[1.0, math.nan], [2, math.nan]]))


def test_no_interval_has_zero_width() -> None:
    apart = krippendorff_alpha([["a", "b"]] * 20)
    assert apart.low == apart.value < 0 < apart.high + 1 and apart.high > apart.value + 0.1
    total = cohen_kappa([0, 1] * 10, [1, 0] * 10)
    assert total.value == pytest.approx(-1.0) and total.high > -0.9
    alone = cohen_kappa([0, 1, 0, 1], [0, 1, 1, 1], clusters=[0] * 4)
    assert (alone.low, alone.value, alone.high) == (-1.0, 0.5, 1.0)  # one prompt says nothing of others
