"""Win rates and means with intervals and tests by prompt: several outcomes of one prompt are a cluster.

1. `win_rate`: the interval is Wilson's score interval (Wilson 1927) with a cluster-robust effective sample
   size (Korn & Graubard 1998; Rao & Scott 1992) and a t quantile. A quarter of a pseudo-cluster, half won
   and half lost, enters the *variance* only (the centre stays put), so that 20 wins of 20 or ties alone
   still have a width. In simulation a 95 % interval covers 93–98 % at 50, 200 and 1,000 outcomes, rates .05
   to .95, with and without ties and clusters; with 10 clusters or fewer, or nearly all ties, it errs on the
   wide side.
2. The p-value is an exact sign test over prompts: it asks whether more prompts are won than lost.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtri, stdtrit

PSEUDO_CLUSTERS = 0.25  # weight, in clusters, of the smoothing of the variance; chosen by simulation


@dataclass(frozen=True)
class WinRate:
    """Win rate with its interval, counts and test; all rates in [0, 1]."""

    rate: float  # mean over outcomes, a tie is ½
    low: float
    high: float
    n: int  # outcomes
    wins: int  # outcomes above ½
    ties: int  # outcomes of exactly ½
    losses: int  # outcomes below ½
    p_value: float  # two-sided exact sign test over clusters; 1 where every cluster is tied


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, in the unit of the values."""

    mean: float
    low: float
    high: float
    n: int  # values


def win_rate(
    outcomes: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> WinRate:
    """Mean outcome with an interval by cluster and an exact sign test.

    Args:
        outcomes: n values in [0, 1]: 1 a win, ½ a tie, 0 a loss.
        clusters: n labels, the prompt of each outcome; `None`: each outcome is its own cluster.
        confidence: of the interval, in (0, 1).
        seed: accepted so that callers need not care how the interval is made; it uses no random numbers.

    With m clusters of sizes n_i and means x_i, N = Σ n_i, rate p = Σ n_i x_i / N, the variance of p is
    V = m/(m−1) · Σ (n_i/N)² (x_i − p)² (linearised ratio estimator), the effective size p(1−p)/V, and the
    interval is Wilson's at that size. One cluster says nothing about the spread between clusters: its
    interval is [0, 1].

    Raises:
        ValueError: no outcome, one outside [0, 1], clusters of another length, confidence outside (0, 1).
    """
    x = _values(outcomes, "outcomes")
    outside = np.flatnonzero((x < 0) | (x > 1))
    if outside.size:
        i = int(outside[0])
        raise ValueError(
            f"outcomes[{i}] is {x[i]:g}, expected a value in [0, 1]: 1 a win, 0.5 a tie, 0 a loss"
        )
    _check_confidence(confidence)
    total, size = _by_cluster(x, clusters)
    rate = float(x.mean())
    low, high = _cluster_wilson(total, size, rate, confidence)
    # Exact sign test over the clusters that are not tied (1e-12: a mean of thirds may miss ½ by a rounding).
    difference = total / size - 0.5
    won, lost = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
    # At ½ the binomial is symmetric: two sides are twice the smaller tail, P(X <= min(won, lost)).
    p_value = min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5))) if won + lost else 1.0
    return WinRate(
        rate=rate,
        low=low,
        high=high,
        n=len(x),
        wins=int((x > 0.5).sum()),
        ties=int((x == 0.5).sum()),
        losses=int((x < 0.5).sum()),
        p_value=p_value,
    )


def _cluster_wilson(
    total: np.ndarray, size: np.ndarray, rate: float, confidence: float
) -> tuple[float, float]:
    """Wilson interval with the effective sample size of m clusters; `total`, `size` (m,)."""
    m = len(size)
    if m == 1:
        return 0.0, 1.0
    weight = size / size.mean()  # (m,), mean 1
    # The smoothed mean and sum of squares, as if PSEUDO_CLUSTERS more were half won, half lost.
    a = PSEUDO_CLUSTERS
    mean = (float((total / size.mean()).sum()) + a / 2) / (m + a)
    squares = float((weight**2 * (total / size - mean) ** 2).sum()) + a / 2 * (mean**2 + (1 - mean) ** 2)
    variance = squares / (m + a) ** 2 * m / (m - 1)
    effective = mean * (1 - mean) / variance
    low, high = _wilson(rate, effective, float(stdtrit(m - 1, 0.5 + confidence / 2)))
    return min(low, rate), max(high, rate)


def _wilson(rate: float, n: float, quantile: float) -> tuple[float, float]:
    """Score interval: all p with |rate − p| ≤ quantile · √(p(1−p)/n)  (Wilson 1927)."""
    q2 = quantile**2 / n
    centre = (rate + q2 / 2) / (1 + q2)
    half = math.sqrt(rate * (1 - rate) * q2 + q2**2 / 4) / (1 + q2)
    return max(0.0, centre - half), min(1.0, centre + half)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share of independent yes/no trials: `successes` of `n`.

    Raises:
        ValueError: n below 1, successes outside 0 … n, confidence outside (0, 1).
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"found {successes} successes of {n}, expected 0 <= successes <= n and n >= 1")
    rate = successes / n
    low, high = _wilson(rate, n, float(ndtri(0.5 + confidence / 2)))
    return Interval(rate, min(low, rate), max(high, rate), int(n))


def mean_interval(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Mean of n values with a t interval by cluster (m − 1 degrees of freedom; variance as in `win_rate`).

    Without clusters it is the ordinary one-sample t interval. With a single cluster `low` and `high` are
    NaN: there is nothing to tell the spread from.

    Raises:
        ValueError: no value, one that is not finite, clusters of another length, confidence outside (0, 1).
    """
    x = _values(values, "values")
    _check_confidence(confidence)
    total, size = _by_cluster(x, clusters)
    mean, m = float(x.mean()), len(size)
    if m == 1:
        return Interval(mean, math.nan, math.nan, len(x))
    variance = m / (m - 1) * float(((total - size * mean) ** 2).sum()) / len(x) ** 2
    half = float(stdtrit(m - 1, 0.5 + confidence / 2)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, len(x))


def paired_outcomes(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n,), (n,) scores of the same prompts → (n,) outcomes of `a`: 1 higher, ½ equal, 0 lower.

    Raises:
        ValueError: lengths differ, no score, or one that is not finite.
    """
    left, right = _values(a, "a"), _values(b, "b")
    if len(left) != len(right):
        raise ValueError(f"a and b must have the same length, found {len(left)} and {len(right)}")
    return (np.sign(left - right) + 1) / 2


def _by_cluster(x: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values in each cluster: (m,), (m,), in order of first appearance."""
    if clusters is None:
        return x, np.ones(len(x))
    labels = list(clusters)
    if len(labels) != len(x):
        raise ValueError(f"clusters has {len(labels)} labels, expected one for each of the {len(x)} values")
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(label, len(number)) for label in labels])
    return np.bincount(index, weights=x), np.bincount(index).astype(float)


def _values(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    """`values` as a non-empty, finite float64 vector."""
    try:
        x = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} holds something that is not a number, expected a list of numbers") from None
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} has shape {x.shape}, expected a non-empty list of numbers")
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise ValueError(f"{name}[{int(bad[0])}] is {x[bad[0]]}, expected a finite number")
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}, expected a number between 0 and 1, such as 0.95")
