"""eval.frontier against brute force, scipy, numpy and simulated runs."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import linregress

from eval import frontier as fr


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_best_of_n_is_the_mean_over_all_sets(n: int) -> None:
    rng = np.random.default_rng(n)
    proxy, gold = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    found = fr.best_of_n(proxy.tolist(), gold.tolist(), n)
    best = [[max(s, key=lambda j: proxy[i, j]) for s in combinations(range(7), n)] for i in range(5)]
    assert found.proxy == pytest.approx(np.mean([proxy[i, b].mean() for i, b in enumerate(best)]), abs=1e-12)
    assert found.gold == pytest.approx(np.mean([gold[i, b].mean() for i, b in enumerate(best)]), abs=1e-12)
    assert found.kl == math.log(n) - (n - 1) / n


def test_best_of_n_with_ties_is_a_fair_draw() -> None:
    # n = 2 of (1, 1, 0): the sets are {1a, 1b}, {1a, 0}, {1b, 0}; each 1 is the best of 1.5 of the three.
    found = fr.best_of_n([[1.0, 1.0, 0.0]], [[10.0, 20.0, 90.0]], 2)
    assert (found.proxy, found.gold) == (pytest.approx(1.0), pytest.approx(15.0))
    assert fr.best_of_n([[0.0, 1.0, 1.0]], [[90.0, 20.0, 10.0]], 2) == found
    assert fr.best_of_n([[1.0, 2.0]], None, 1).gold is None


def test_best_of_n_kl_is_that_of_a_uniform_policy() -> None:
    """The best of n of K equally likely responses with distinct scores, by enumeration; K → ∞ gives log n − (n−1)/n."""
    for n in (2, 4, 16):
        k = np.arange(1, 200_001) / 200_000
        p = np.diff(np.concatenate([[0.0], k**n]))
        assert fr.best_of_n_kl(n) == pytest.approx(float((p * np.log(p * 200_000 + 1e-300)).sum()), abs=1e-4)


def test_line_is_linregress() -> None:
    rng = np.random.default_rng(1)
    kl = rng.uniform(0, 20, 60)
    score = 0.4 + 0.7 * np.sqrt(kl) + rng.normal(0, 0.1, 60)
    found, expected = fr.sqrt_kl_fit(kl, score), linregress(np.sqrt(kl), score)
    assert (found.slope, found.intercept) == (pytest.approx(expected.slope), pytest.approx(expected.intercept))
    assert found.r2 == pytest.approx(expected.rvalue**2)
    assert (found.high - found.low) / 2 == pytest.approx(2.0017175 * expected.stderr, rel=1e-6)  # t, 58 degrees of freedom
    assert np.array(found.residuals) == pytest.approx(score - expected.intercept - expected.slope * np.sqrt(kl))
    coefficients, covariance = np.polyfit(np.sqrt(kl), score, 2, cov=True)
    assert found.bend == pytest.approx(coefficients[0] / math.sqrt(covariance[0, 0]), rel=1e-6)


def test_the_bend_tells_which_way_the_law_fails() -> None:
    kl = np.linspace(0, 20, 50)
    noise = np.random.default_rng(0).normal(0, 0.05, (500, 50))
    assert fr.sqrt_kl_fit(kl, np.sqrt(kl) - 0.1 * kl + noise[0]).bend < -5
    assert fr.sqrt_kl_fit(kl, np.sqrt(kl) + 0.1 * kl + noise[0]).bend > 5
    beyond = sum(abs(fr.sqrt_kl_fit(kl, np.sqrt(kl) + row).bend) > 2.0117 for row in noise)  # t, 47 degrees of freedom
    assert 0.03 <= beyond / 500 <= 0.075
    assert fr.sqrt_kl_fit([-0.001, 1.0, 4.0], [0.0, 1.0, 2.0]).slope == pytest.approx(1.0)
    assert fr.sqrt_kl_fit([0.0, 1.0, 4.0], [0.0, 1.0, 2.0]).bend == 0.0


def a_run(gold_of, n: int = 60, noise: float = 0.05, seed: int = 0) -> fr.Run:
    """A run whose KL grows to 25 nats; the proxy is √KL, gold is `gold_of(√KL)`, both with noise."""
    rng = np.random.default_rng(seed)
    d = np.linspace(0, 5, n)
    gold = gold_of(d) + rng.normal(0, noise, n)
    return fr.Run("run", tuple(range(n)), tuple(d**2), tuple(d + rng.normal(0, noise, n)), tuple(gold))


def test_the_turn_is_found_where_it_is() -> None:
    for seed in range(50):
        turn = fr.over_optimised(a_run(lambda d: d * (2 - 0.4 * d), seed=seed))  # peak at d = 2.5, 6.25 nats
        assert turn is not None
        assert 4.0 < turn.kl < 9.0
        assert turn.gold > turn.gold_after
        assert turn.proxy < turn.proxy_after


def test_no_turn_is_found_where_there_is_none() -> None:
    for n in (20, 60, 200):
        flat = sum(fr.over_optimised(a_run(lambda d: 0 * d, n, seed=s)) is not None for s in range(500))
        assert flat <= 5  # at most 1 %
    assert not any(fr.over_optimised(a_run(lambda d: 0.1 * d, seed=s)) for s in range(200))


def smoothed(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Noise of standard deviation 1, a moving mean of so many."""
    return np.convolve(rng.normal(0, 1, n + width - 1), np.full(width, width**-0.5), "valid")


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("n", [20, 30, 50, 60, 200])
def test_noise_that_is_alike_from_checkpoint_to_checkpoint_is_no_turn(n: int, width: int) -> None:
    rng = np.random.default_rng(width)
    d = np.linspace(0, 5, n)
    for rise in (0.0, 2.0):
        golds = [rise * np.sqrt(d) + smoothed(rng, n, width) for _ in range(300)]
        called = sum(fr.over_optimised(fr.Run("", tuple(d), tuple(d**2), tuple(d), tuple(g))) is not None for g in golds)
        assert called <= 30  # at most 10 %


@pytest.mark.parametrize(("n", "width", "fall"), [(60, 1, 6.0), (60, 5, 10.0), (200, 1, 4.0), (200, 5, 6.0)])
def test_a_turn_within_such_noise_is_found(n: int, width: int, fall: float) -> None:
    """A rise, then a fall of `fall` standard deviations of the noise."""
    rng = np.random.default_rng(0)
    d = np.linspace(0, 5, n)
    golds = [fall * (1 - np.abs(d - 2.5) / 2.5) + smoothed(rng, n, width) for _ in range(200)]
    found = sum(fr.over_optimised(fr.Run("", tuple(d), tuple(d**2), tuple(d), tuple(g))) is not None for g in golds)
    assert found >= 180


def test_a_turn_of_a_curved_run_is_found() -> None:
    """√KL − c KL, which falls by four standard deviations of the noise from its peak."""
    rng = np.random.default_rng(0)
    kl = np.linspace(0.1, 30, 60)
    golds = [np.sqrt(kl) - 0.12 * kl + rng.normal(0, 0.05, 60) for _ in range(200)]
    runs = [fr.Run("", tuple(kl), tuple(kl), tuple(np.sqrt(kl)), tuple(g)) for g in golds]
    assert sum(fr.over_optimised(run) is not None for run in runs) >= 160


def test_a_run_that_falls_apart_is_not_over_optimised() -> None:
    run = a_run(lambda d: d * (2 - 0.4 * d))
    both = fr.Run(run.name, run.step, run.kl, run.gold or (), run.gold)  # the proxy falls with gold: it broke, it was not gamed
    assert fr.over_optimised(both) is None
    assert fr.over_optimised(fr.Run(run.name, run.step, run.kl, run.proxy, None)) is None
    assert fr.over_optimised(fr.Run("short", (0, 1), (0, 1), (0, 1), (0, 1))) is None


def test_checkpoints_from_metrics() -> None:
    columns = {
        "objective/kl": [[0, 0.0], [1, 1.0], [2, None], [3, 3.0]],
        "objective/score": [[0, -1.0], [1, 0.0], [2, 1.0], [3, 2.0]],
        "objective/gold": [[1, 5.0], [3, 6.0]],
    }
    run = fr.run_of("ppo", columns)
    assert run == fr.Run("ppo", (1.0, 3.0), (1.0, 3.0), (0.0, 2.0), (5.0, 6.0))
    alone = fr.run_of("ppo", columns, gold=None)
    assert alone is not None
    assert (alone.step, alone.gold) == ((0.0, 1.0, 3.0), None)
    assert fr.run_of("sft", {"train/loss": [[0, 1.0]]}) is None
    assert fr.run_of("ppo", {"objective/kl": [[0, 0.0]], "objective/score": [[1, 0.0]]}) is None


def test_the_validations_of_a_run_have_its_gold() -> None:
    """PPO logs the held-out reward beside what it trains on; what it logs at each step has none."""
    steps = {"objective/kl": [[i, 9.0] for i in range(9)], "objective/score": [[i, 8.0] for i in range(9)]}
    kl, score = {"val/kl": [[0, 0.0], [4, 2.0]]}, {"val/score": [[0, 1.0], [4, 3.0]]}
    validated = {**steps, **kl, **score, "val/held_out": [[0, 5.0], [4, 4.0]]}
    assert fr.logged_run("ppo", validated) == fr.Run("ppo", (0.0, 4.0), (0.0, 2.0), (1.0, 3.0), (5.0, 4.0))
    trained = fr.logged_run("ppo", {**steps, **kl, **score})
    assert trained is not None and (len(trained.step), trained.gold) == (9, None)
    assert fr.logged_run("ppo", {**kl, **score}) == fr.Run("ppo", (0.0, 4.0), (0.0, 2.0), (1.0, 3.0), None)
    assert fr.logged_run("sft", {"train/loss": [[0, 1.0]]}) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fr.best_of_n_kl(0), "n is 0, expected at least 1"),
        (lambda: fr.best_of_n([[1.0]], None, 2), r"proxy\[0\] has 1 samples, expected at least n = 2"),
        (lambda: fr.best_of_n([[1.0]], [[1.0, 2.0]], 1), "must have the same non-empty shape"),
        (lambda: fr.best_of_n([], None, 1), "must have the same non-empty shape"),
        (lambda: fr.sqrt_kl_fit([1.0, 2.0], [1.0, 2.0]), "found 2 values of kl and 2 of score, expected .* at least 3"),
        (lambda: fr.sqrt_kl_fit([1.0] * 3, [1.0, 2.0, 3.0]), "every kl is 1, expected at least two different values"),
        (lambda: fr.sqrt_kl_fit([1.0, math.nan, 2.0], [1.0] * 3), "kl is not a list of finite numbers"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
