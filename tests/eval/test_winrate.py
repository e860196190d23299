"""eval.winrate against scipy, hand arithmetic and simulated coverage."""

import importlib.util
import itertools
import math
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from eval.winrate import (
    bradley_terry,
    holm,
    length_controlled,
    mean_interval,
    paired_outcomes,
    sample_size,
    share_interval,
    wilson,
    win_rate,
)


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
    # Copies never narrow the interval; Korn & Graubard's degrees of freedom widen it by a hair.
    assert once.low - 2e-3 < thrice.low <= once.low
    assert once.high <= thrice.high < once.high + 2e-3
    assert thrice.p_value == once.p_value


def test_order_and_labels_do_not_matter() -> None:
    rng = np.random.default_rng(4)
    x, c = rng.choice([0, 0.5, 1], size=90), rng.integers(0, 30, size=90)
    order = rng.permutation(90)
    a, b = win_rate(x, c), win_rate(x[order], [f"prompt {i}" for i in c[order]], seed=9)
    assert (a.low, a.high, a.p_value) == pytest.approx((b.low, b.high, b.p_value), abs=1e-12)


def test_clusters_of_a_tensor_are_those_of_its_list() -> None:
    import torch

    outcomes, clusters = [1, 1, 1, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 2, 2, 2]
    expected = win_rate(outcomes, clusters=clusters)
    assert win_rate(torch.tensor(outcomes), clusters=torch.tensor(clusters)) == expected
    assert win_rate(outcomes, clusters=list(torch.tensor(clusters))) == expected
    assert win_rate(outcomes, clusters=np.array(clusters)) == expected


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


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """benchmarks/coverage.py."""
    spec = importlib.util.spec_from_file_location("coverage_simulation", Path(__file__).parents[2] / "benchmarks" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "cell",
    [(50, 1, 0.5, 0.2, 0.0), (50, 2, 0.7, 0.2, 0.5), (200, 1, 0.5, 0.0, 0.0), (200, 5, 0.5, 0.2, 0.5), (1000, 5, 0.7, 0.2, 0.5)],
)
def test_simulated_coverage(simulation: ModuleType, cell: tuple) -> None:
    got = simulation.win_rate_cell(*cell, repeats=2000)
    assert 0.92 <= got["covered"] <= 0.975, got
    if cell[2] == 0.5:
        assert got["false_positives"] == pytest.approx(got["attainable"], abs=0.015)  # 3 standard errors at .05: .0146
        assert got["attainable"] <= 0.05


def test_coverage_of_the_regressions(simulation: ModuleType) -> None:
    assert 0.92 <= simulation.length_cell(50, 2, 0.5, 1.0, repeats=400) <= 0.985  # 3 standard errors of 400: .033
    assert all(0.917 <= c <= 0.983 for c in simulation.ranking_cell(50, repeats=400))


def test_simulation_draws_what_it_says(simulation: ModuleType) -> None:
    x = simulation.draw(np.random.default_rng(0), 200, 100, 5, rate=0.7, ties=0.2, icc=0.5)
    assert x.mean() == pytest.approx(0.7, abs=0.01)
    assert (x == 0.5).mean() == pytest.approx(0.2, abs=0.01)
    prompts = x.reshape(-1, 5)
    assert np.corrcoef(prompts[:, 0], prompts[:, 1])[0, 1] > 0.25


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, the last raised to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_familywise_error() -> None:
    p = np.random.default_rng(1).random((4000, 6))
    wrong = np.mean([min(holm(row)) <= 0.05 for row in p])
    assert wrong == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=0.01)


def test_holm_errors() -> None:
    with pytest.raises(ValueError, match=r"p_values\[1\] is 1.5, expected a value in \[0, 1\]"):
        holm([0.1, 1.5])


def exact_power(n: int, p: float) -> float:
    """Of the two-sided sign test at .05, by scipy's own test of every outcome."""
    rejected = [w for w in range(n + 1) if stats.binomtest(w, n, 0.5).pvalue <= 0.05]
    return float(stats.binom.pmf(rejected, n, p).sum())


@pytest.mark.parametrize(("difference", "power"), [(0.2, 0.8), (0.1, 0.8), (0.15, 0.9), (0.3, 0.5)])
def test_sample_size_is_where_the_power_stays(difference: float, power: float) -> None:
    n = sample_size(difference, power)
    assert exact_power(n - 1, 0.5 + difference) < power
    assert all(exact_power(m, 0.5 + difference) >= power for m in range(n, n + 12))


def test_sample_size_scales() -> None:
    # n = ((1.96 · ½ + .8416 · √(.55 · .45)) / .05)² = 783 by the normal approximation; the exact test needs a few more
    assert 783 < sample_size(0.05) < 1.06 * 783
    assert sample_size(0.5) == 6  # 6 of 6 is the first p-value below .05: 2/64
    # with 40 % ties the others are won with ½ + .06/.6 = .6, and 60 % of the prompts tell
    assert sample_size(0.06, ties=0.4) == math.ceil(sample_size(0.1) / 0.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), r"difference is 0.0, expected above 0 and at most \(1 - ties\) / 2 = 0.5"),
        ((0.3, 0.8, 0.5), r"at most \(1 - ties\) / 2 = 0.25"),
        ((0.1, 1.0), "power is 1.0, expected a number between 0 and 1"),
        ((0.1, 0.8, 1.0), "ties is 1.0, expected a share from 0 to below 1"),
        ((0.1, 0.8, 0.0, 95), "confidence is 95"),
    ],
)
def test_sample_size_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_size(*arguments)


def test_bradley_terry_of_two_is_the_log_odds() -> None:
    # 13 won, 2 tied, 5 lost, and half a game each way: 14.5 against 6.5
    got = bradley_terry([("a", "b", x) for x in [1.0] * 13 + [0.5] * 2 + [0.0] * 5])
    assert [s.policy for s in got] == ["a", "b"]
    assert got[0].strength - got[1].strength == pytest.approx(math.log(14.5 / 6.5), abs=1e-9)
    assert got[0].strength + got[1].strength == pytest.approx(0, abs=1e-9)


def test_bradley_terry_against_sklearn() -> None:
    rng, names = np.random.default_rng(7), "abcd"
    games = []
    for _ in range(120):
        i, j = rng.choice(4, size=2, replace=False)
        games.append((names[i], names[j], float(rng.random() < expit((j - i) / 2))))
    rows = [(a, b, y, 1.0) for a, b, y in games]
    rows += [(a, b, y, 0.5) for a, b in itertools.combinations(names, 2) for y in (0.0, 1.0)]
    x = np.array([[(n == a) - (n == b) for n in names[1:]] for a, b, _, _ in rows], dtype=float)
    fit = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10, max_iter=10_000)
    fit.fit(x, [r[2] for r in rows], sample_weight=[r[3] for r in rows])
    own = np.append(0, fit.coef_[0])
    got = {s.policy: s.strength for s in bradley_terry(games)}
    assert [got[n] for n in names] == pytest.approx((own - own.mean()).tolist(), abs=1e-4)


def test_bradley_terry_perfect_separation() -> None:
    got = bradley_terry([("a", "b", 1.0)] * 20 + [("b", "c", 1.0)] * 20)
    assert [s.policy for s in got] == ["a", "b", "c"]
    for s in got:
        assert all(map(math.isfinite, (s.strength, s.low, s.high)))
        assert s.high - s.low > 1


def test_bradley_terry_copies_of_a_prompt_add_nothing() -> None:
    rng = np.random.default_rng(8)
    games = [("a", "b", float(x)) for x in rng.choice([0, 0.5, 1], size=40)]
    games += [("b", "c", float(x)) for x in rng.choice([0, 0.5, 1], size=40)]
    prompts = [*range(40), *range(40)]
    once, twice = bradley_terry(games, prompts), bradley_terry(games * 2, prompts * 2)
    for s, t in zip(once, twice, strict=True):
        assert (s.strength, s.low, s.high) == pytest.approx((t.strength, t.low, t.high), abs=1e-8)


@pytest.mark.parametrize(
    ("games", "message"),
    [
        ([], "expected a non-empty list"),
        ([("a", "b", 2.0)], r"outcomes\[0\] is 2, expected a value in \[0, 1\]"),
        ([("a", "a", 1.0)], "policy 'a' plays against itself"),
        ([("a", "b", 1.0), ("c", "d", 0.0)], r"no game between \['a', 'b'\] and \['c', 'd'\]"),
    ],
)
def test_bradley_terry_errors(games: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bradley_terry(games)


def test_bradley_terry_wrong_clusters() -> None:
    with pytest.raises(ValueError, match="clusters has 1 labels, expected one for each of the 2 values"):
        bradley_terry([("a", "b", 1.0), ("a", "b", 0.0)], ["p"])


def test_length_controlled_against_sklearn() -> None:
    rng = np.random.default_rng(9)
    delta = rng.normal(20, 40, size=500)
    y = (rng.random(500) < expit(0.4 + 0.8 * np.tanh(delta / 40))).astype(float)
    x = np.append(np.tanh(delta / delta.std()), [0, 0])[:, None]
    # scikit-learn's penalty is b²/(2C): C = 5² is a normal prior with standard deviation 5; the intercept is not penalised
    fit = LogisticRegression(C=25, tol=1e-10, max_iter=10_000)
    fit.fit(x, [*y, 1, 0], sample_weight=[1.0] * 500 + [0.5, 0.5])
    got = length_controlled(y, delta)
    assert got.rate == pytest.approx(expit(fit.intercept_[0]), abs=1e-5)
    assert got.slope == pytest.approx(fit.coef_[0, 0], abs=1e-4)
    assert got.low < got.rate < got.high
    assert got.longer == (delta > 0).mean()


def test_length_controlled_takes_length_away() -> None:
    rng = np.random.default_rng(10)
    delta = rng.normal(10, 10, size=1000)
    won = (rng.random(1000) < expit(delta / 5)).astype(float)  # a judge that looks at nothing but length
    got = length_controlled(won, delta)
    assert win_rate(won).low > 0.7
    assert got.low < 0.5 < got.high
    assert got.slope_low > 0


def test_length_controlled_without_lengths_is_the_win_rate() -> None:
    y = [1.0] * 14 + [0.5] * 2 + [0.0] * 4
    got = length_controlled(y, [0.0] * 20)
    assert logit(got.rate) == pytest.approx(math.log(15.5 / 5.5), abs=1e-9)  # 15 and 5, and half a game each way
    assert math.isnan(got.slope) and math.isnan(got.slope_low)  # there is none


def test_length_controlled_slope_is_unsure_where_length_separates() -> None:
    got = length_controlled([1.0] * 50 + [0.0] * 50, [5.0] * 50 + [-5.0] * 50)
    assert got.slope_high - got.slope_low > 2  # the data only say that it is large


def test_length_controlled_mirror() -> None:
    rng = np.random.default_rng(11)
    y, delta, prompts = rng.choice([0, 0.5, 1], size=60), rng.normal(3, 5, size=60), np.arange(60) // 3
    a, b = length_controlled(y, delta, prompts), length_controlled(1 - y, -delta, prompts)
    assert (a.rate, a.low, a.high) == pytest.approx((1 - b.rate, 1 - b.high, 1 - b.low), abs=1e-9)
    assert a.slope == pytest.approx(b.slope, abs=1e-9)


def test_length_controlled_cannot_tell() -> None:
    got = length_controlled([1, 0, 1], [7, 7, 7])
    assert math.isnan(got.rate)
    assert math.isnan(got.low)
    assert got.longer == 1


def test_length_controlled_all_won_has_width() -> None:
    got = length_controlled([1.0] * 20, [3, -2, 1, 5] * 5)
    assert 0.9 < got.rate < got.high < 1
    assert got.low < got.rate - 0.02


def test_length_controlled_errors() -> None:
    with pytest.raises(ValueError, match="length_differences has 1 values, expected one for each of the 2 outcomes"):
        length_controlled([1, 0], [3])
    with pytest.raises(ValueError, match=r"length_differences\[1\] is nan"):
        length_controlled([1, 0], [3, math.nan])
    with pytest.raises(ValueError, match=r"outcomes\[0\] is 3"):
        length_controlled([3, 0], [3, 2])


def test_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, eval.winrate, eval.agreement, eval.judges, eval.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_share_has_an_interval_within_zero_and_one() -> None:
    """3 % of 50: a t interval covers 78 % of the time and begins below 0; of none at all it has no width."""
    none = share_interval([0.0] * 50)
    assert none.low == 0 and 0.02 < none.high < 0.12
    few = share_interval([1.0] * 2 + [0.0] * 48)
    assert 0 < few.low < 0.04 < few.high < 0.16
    rng = np.random.default_rng(0)
    covered = [i.low <= 0.03 <= i.high for i in (share_interval(rng.random(50) < 0.03) for _ in range(1000))]
    assert 0.92 <= np.mean(covered) <= 0.99
