"""eval.winrate against scipy, hand arithmetic and simulated coverage."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from eval.winrate import mean_interval, paired_outcomes, wilson, win_rate


def test_counts_and_sign_test() -> None:
    got = win_rate([1, 1, 1, 0.5, 0, 1])
    assert (got.n, got.wins, got.ties, got.losses) == (6, 4, 1, 1)
    assert got.rate == 4.5 / 6
    # 4 won, 1 lost, the tie dropped: 2 · (1 + 5)/2⁵ = .375.
    assert got.p_value == pytest.approx(0.375, abs=1e-12)


def test_clusters_are_the_unit_of_the_test() -> None:
    # means: a 1, b ½ (dropped), c ¾, d 0 → 2 won, 1 lost: p = 1. Rate over outcomes: 5.5/9.
    outcomes = [1, 1, 1, 1, 0, 1, 0.5, 0, 0]
    clusters = ["a", "a", "a", "b", "b", "c", "c", "d", "d"]
    got = win_rate(outcomes, clusters)
    assert got.rate == pytest.approx(5.5 / 9)
    assert got.p_value == 1.0
    assert got.n == 9


@pytest.mark.parametrize(("won", "lost"), [(0, 1), (3, 3), (20, 0), (41, 62), (530, 470), (800, 200)])
def test_sign_test_against_scipy(won: int, lost: int) -> None:
    own = stats.binomtest(won, won + lost, 0.5).pvalue
    assert win_rate([1] * won + [0] * lost + [0.5] * 7).p_value == pytest.approx(own, rel=1e-11)


def test_all_tied() -> None:
    got = win_rate([0.5] * 40)
    assert got.p_value == 1.0
    assert got.low < 0.5 < got.high


@pytest.mark.parametrize("outcomes", [[1] * 20, [0] * 20, [0.5] * 20, [1], [1, 1]])
def test_never_of_zero_width(outcomes: list[float]) -> None:
    got = win_rate(outcomes)
    assert 0 <= got.low <= got.rate <= got.high <= 1
    assert got.high - got.low > 0.001


def test_twenty_of_twenty_is_near_wilson() -> None:
    got = win_rate([1] * 20)
    assert got.high == 1.0
    assert 0.75 < got.low < 0.85
    assert wilson(20, 20).low == pytest.approx(20 / (20 + stats.norm.ppf(0.975) ** 2), abs=1e-12)


def test_single_cluster_says_nothing() -> None:
    got = win_rate([1, 1, 0, 1], ["p"] * 4)
    assert (got.low, got.high) == (0.0, 1.0)


def test_copies_of_a_prompt_add_nothing() -> None:
    rng = np.random.default_rng(3)
    x = rng.choice([0, 0.5, 1], size=60)
    once, thrice = win_rate(x), win_rate(np.repeat(x, 3), np.repeat(np.arange(60), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert thrice.p_value == once.p_value


def test_order_and_labels_do_not_matter() -> None:
    rng = np.random.default_rng(4)
    x, c = rng.choice([0, 0.5, 1], size=90), rng.integers(0, 30, size=90)
    order = rng.permutation(90)
    a, b = win_rate(x, c), win_rate(x[order], [f"prompt {i}" for i in c[order]], seed=9)
    assert (a.low, a.high, a.p_value) == pytest.approx((b.low, b.high, b.p_value), abs=1e-12)


def test_mirror() -> None:
    rng = np.random.default_rng(5)
    x, c = rng.choice([0, 0.5, 1], size=80, p=[0.2, 0.1, 0.7]), np.arange(80) // 2
    a, b = win_rate(x, c), win_rate(1 - x, c)
    assert (a.low, a.high, a.p_value) == pytest.approx((1 - b.high, 1 - b.low, b.p_value), abs=1e-12)


COVERAGE_CASES = [  # prompts, outcomes per prompt, rate, share of ties, correlation within a prompt
    (50, 1, 0.5, 0.0, 0.0),
    (50, 1, 0.95, 0.0, 0.0),
    (50, 1, 0.05, 0.06, 0.0),
    (25, 2, 0.6, 0.2, 0.5),
    (200, 1, 0.7, 0.3, 0.0),
    (200, 1, 0.05, 0.0, 0.0),
    (100, 2, 0.9, 0.1, 0.3),
    (1000, 1, 0.95, 0.02, 0.0),
    (250, 4, 0.6, 0.2, 0.5),
]


@pytest.mark.parametrize("case", range(len(COVERAGE_CASES)))
def test_coverage(case: int) -> None:
    m, size, rate, tie, icc = COVERAGE_CASES[case]
    rng, repeats = np.random.default_rng(case), 2000
    free = rng.random((repeats, m, size))
    free = np.where(free < rate - tie / 2, 1.0, np.where(free < rate + tie / 2, 0.5, 0.0))
    copies = rng.random((repeats, m, 1)) < icc  # with this chance a prompt holds `size` copies of one outcome
    outcomes = np.where(copies, free[:, :, :1], free).reshape(repeats, m * size)
    labels = np.repeat(np.arange(m), size).tolist() if size > 1 else None
    intervals = [win_rate(row, labels) for row in outcomes]
    covered = sum(got.low <= rate <= got.high for got in intervals) / repeats
    assert 0.92 <= covered <= 0.975, (COVERAGE_CASES[case], covered)


def test_fast_enough() -> None:
    rng = np.random.default_rng(0)
    x, c = rng.choice([0, 0.5, 1], size=1000), [f"prompt-{i % 250}" for i in range(1000)]
    win_rate(x, c)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        win_rate(x, c)
        best = min(best, time.perf_counter() - start)
    assert best < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "expected a non-empty list"),
        (([[1, 0]],), "has shape"),
        (([1, 2],), r"outcomes\[1\] is 2, expected a value in \[0, 1\]"),
        (([1, -0.5],), r"outcomes\[1\] is -0.5"),
        (([float("nan")],), r"outcomes\[0\] is nan, expected a finite number"),
        ((["win"],), "not a number"),
        (([1, 0], ["a"]), "clusters has 1 labels, expected one for each of the 2 values"),
        (([1, 0], None, 1.0), "confidence is 1.0, expected a number between 0 and 1"),
    ],
)
def test_win_rate_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        win_rate(*arguments)


def test_mean_interval_is_the_t_interval() -> None:
    x = np.random.default_rng(2).normal(3, 2, size=17)
    got = mean_interval(x, confidence=0.9)
    low, high = stats.t.interval(0.9, 16, loc=x.mean(), scale=stats.sem(x))
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((x.mean(), low, high, 17), abs=1e-12)


def test_mean_interval_by_cluster() -> None:
    # Equal clusters: the t interval of the cluster means.
    x = np.random.default_rng(6).normal(size=(12, 4))
    got = mean_interval(x.ravel(), np.repeat(np.arange(12), 4))
    means = x.mean(axis=1)
    low, high = stats.t.interval(0.95, 11, loc=means.mean(), scale=stats.sem(means))
    assert (got.low, got.high, got.n) == pytest.approx((low, high, 48), abs=1e-12)


def test_mean_interval_of_one_cluster() -> None:
    got = mean_interval([1.5])
    assert got.mean == 1.5
    assert math.isnan(got.low)
    assert math.isnan(got.high)


def test_mean_interval_errors() -> None:
    with pytest.raises(ValueError, match=r"values\[1\] is inf"):
        mean_interval([0.0, math.inf])


@pytest.mark.parametrize(
    ("k", "n", "confidence"), [(0, 10, 0.95), (7, 10, 0.9), (50, 50, 0.99), (312, 1000, 0.95)]
)
def test_wilson_against_scipy(k: int, n: int, confidence: float) -> None:
    got, own = wilson(k, n, confidence), stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (got.low, got.high) == pytest.approx((own.low, own.high), abs=1e-12)


def test_wilson_errors() -> None:
    with pytest.raises(ValueError, match="found 5 successes of 4"):
        wilson(5, 4)
    with pytest.raises(ValueError, match="found 0 successes of 0"):
        wilson(0, 0)


def test_paired_outcomes() -> None:
    assert paired_outcomes([1, 2, 3], [0, 2, 4]).tolist() == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="same length, found 1 and 2"):
        paired_outcomes([1], [1, 2])
    with pytest.raises(ValueError, match=r"b\[0\] is nan"):
        paired_outcomes([1], [math.nan])
