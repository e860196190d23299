"""Win rates and means with intervals and tests by prompt: several outcomes of one prompt are a cluster.

1. `win_rate`: the interval is Wilson's score interval (Wilson 1927) with a cluster-robust effective sample
   size and the correction of its degrees of freedom (Korn & Graubard 1998; Rao & Scott 1992). A part of a pseudo-outcome,
   half won and half lost, enters the *variance* only (the centre stays put), so that 20 wins of 20 or ties
   alone still have a width. `benchmarks/coverage.py`: a 95 % interval covers 92–97.5 % at 50, 200 and 1,000
   outcomes with and without ties and clusters; with ten clusters at a rate of 0.9 up to 98 %. A percentile bootstrap over
   prompts covers less than 92 % in 15 of those 72 cells, down to 84 %, which is why it is not used.
2. The p-value is an exact sign test over prompts: it asks whether more prompts are won than lost.
3. `bradley_terry` and `length_controlled` are logistic regressions with ties as half a win, made finite by a
   game that is half won and half lost, and with cluster-robust (sandwich) intervals.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import helmert
from scipy.sparse.csgraph import connected_components
from scipy.special import bdtr, expit, ndtri, stdtrit
from scipy.stats import binom

PSEUDO_OUTCOMES = 0.15  # weight, in outcomes, of the smoothing of the variance; chosen by simulation
PSEUDO_GAMES = 0.5  # each way: Firth's (1993) correction for one proportion, half a win and half a loss
SLOPE_STD = 5.0  # of the normal prior on the slope of length: weak, and finite where length tells everything


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


@dataclass(frozen=True)
class Strength:
    """A policy's place in a Bradley–Terry ranking. Strengths are log-odds and have mean 0: a − b = logit P(a beats b)."""

    policy: str
    strength: float
    low: float
    high: float


@dataclass(frozen=True)
class LengthControlled:
    """The win rate that is left where both texts are equally long. NaN where lengths always differ by the same."""

    rate: float
    low: float
    high: float
    slope: float  # log-odds of a win per unit of tanh(length difference / its standard deviation)
    slope_low: float
    slope_high: float
    longer: float  # share of outcomes in which the first text is the longer one; near 0 or 1: `rate` is extrapolated


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
    interval is Wilson's at that size, with z · t(m−1) / t(n−1) in place of z (Korn & Graubard 1998). One
    cluster says nothing about the spread between clusters: its interval is [0, 1].

    Raises:
        ValueError: no outcome, one outside [0, 1], clusters of another length, confidence outside (0, 1).
    """
    x = _outcomes(outcomes, "outcomes")
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


def _cluster_wilson(total: np.ndarray, size: np.ndarray, rate: float, confidence: float) -> tuple[float, float]:
    """Wilson interval with the effective sample size of m clusters; `total`, `size` (m,)."""
    m = len(size)
    if m == 1:
        return 0.0, 1.0
    weight = size / size.mean()  # (m,), mean 1
    # The smoothed mean and sum of squares, as if `a` clusters more, PSEUDO_OUTCOMES of outcomes, were half won, half lost.
    a = PSEUDO_OUTCOMES / float(size.mean())
    mean = (float((total / size.mean()).sum()) + a / 2) / (m + a)
    squares = float((weight**2 * (total / size - mean) ** 2).sum()) + a / 2 * (mean**2 + (1 - mean) ** 2)
    variance = squares / (m + a) ** 2 * m / (m - 1)
    effective = mean * (1 - mean) / variance
    level = 0.5 + confidence / 2
    # Korn & Graubard: the normal quantile, wider by what t of m clusters is wider than t of as many outcomes.
    quantile = float(ndtri(level) * stdtrit(m - 1, level) / stdtrit(size.sum() - 1, level))
    low, high = _wilson(rate, effective, quantile)
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


def share_interval(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Mean of n shares in [0, 1], with the interval of `win_rate`: inside [0, 1], and of some width where all are 0.

    Raises:
        ValueError: As `win_rate`.
    """
    found = win_rate(values, clusters, confidence)
    return Interval(found.rate, found.low, found.high, found.n)


def paired_outcomes(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n,), (n,) scores of the same prompts → (n,) outcomes of `a`: 1 higher, ½ equal, 0 lower.

    Raises:
        ValueError: lengths differ, no score, or one that is not finite.
    """
    left, right = _values(a, "a"), _values(b, "b")
    if len(left) != len(right):
        raise ValueError(f"a and b must have the same length, found {len(left)} and {len(right)}")
    return (np.sign(left - right) + 1) / 2


def holm(p_values: Sequence[float] | np.ndarray) -> list[float]:
    """p-values of k tests → adjusted for all of them: the i-th smallest times k − i, i from 0, made monotone (Holm 1979).

    Raises:
        ValueError: a value outside [0, 1].
    """
    if not len(p_values):
        return []
    p = _values(p_values, "p_values")
    outside = np.flatnonzero((p < 0) | (p > 1))
    if outside.size:
        raise ValueError(f"p_values[{int(outside[0])}] is {p[outside[0]]:g}, expected a value in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(x) for x in adjusted]


def sample_size(difference: float, power: float = 0.8, ties: float = 0.0, confidence: float = 0.95) -> int:
    """Prompts needed, one outcome each, for the sign test to find a win rate of ½ ± difference with this power.

    Args:
        difference: of the win rate from ½, in (0, ½]; 0.05 is 55 % against 45 %.
        power: chance of finding it, in (0, 1).
        ties: share of prompts that are tied, in [0, 1); they tell nothing.
        confidence: 1 − the level of the two-sided test.

    Of the prompts that are not tied a share p = ½ + difference / (1 − ties) is won. The answer is the number
    from which on the exact test's power stays above the wanted one (it goes up and down as n grows, since the
    test's level can only be met in steps), searched around the normal approximation
    n = ((z_{1−α/2} ½ + z_power √(p(1−p))) / (p − ½))², and divided by 1 − ties.

    Raises:
        ValueError: an argument outside its range, or a difference above (1 − ties) / 2.
    """
    _check_confidence(confidence)
    if not 0 < power < 1:
        raise ValueError(f"power is {power!r}, expected a number between 0 and 1, such as 0.8")
    if not 0 <= ties < 1:
        raise ValueError(f"ties is {ties!r}, expected a share from 0 to below 1")
    if not 0 < difference <= (1 - ties) / 2:
        raise ValueError(f"difference is {difference!r}, expected above 0 and at most (1 - ties) / 2 = {(1 - ties) / 2:g}")
    d = difference / (1 - ties)
    p = 0.5 + d
    alpha = 1 - confidence
    near = ((ndtri(1 - alpha / 2) / 2 + ndtri(power) * math.sqrt(p * (1 - p))) / d) ** 2
    n = np.arange(max(1, int(near - 2 / d)), int(near + 6 / d) + 20)
    k = binom.ppf(alpha / 2, n, 0.5)  # the test rejects at up to k losses (or wins) of n, where P(X <= k) <= α/2
    k = np.where(binom.cdf(k, n, 0.5) > alpha / 2, k - 1, k)
    reached = binom.cdf(k, n, p) + binom.sf(n - k - 1, n, p) >= power
    missed = np.flatnonzero(~reached)
    return math.ceil((n[missed[-1]] + 1 if missed.size else n[0]) / (1 - ties))


def bradley_terry(
    games: Sequence[tuple[str, str, float]],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> list[Strength]:
    """Rank policies by strengths θ with P(a beats b) = σ(θ_a − θ_b)  (Bradley & Terry 1952), the strongest first.

    Args:
        games: (a, b, outcome of a): 1, ½ (a tie counts as half a win) or 0, or a mean of such.
        clusters: the prompt of each game; `None`: each game is its own cluster.
        confidence: of the intervals.

    To each pair that met as many games are added as it has in a cluster, half won and half lost, so that a policy
    that never loses has a finite strength (perfect separation) with a wide interval. Intervals: Wald, t quantile,
    cluster-robust covariance to which the added games contribute too.

    Raises:
        ValueError: no game, an outcome outside [0, 1], a policy against itself, or groups of policies that never met.
    """
    outcome = _outcomes([g[2] for g in games], "outcomes")
    _check_confidence(confidence)
    names = list(dict.fromkeys(name for game in games for name in game[:2]))
    at = {name: i for i, name in enumerate(names)}
    pairs = sorted({(min(at[a], at[b]), max(at[a], at[b])) for a, b, _ in games})
    alone = next((names[i] for i, j in pairs if i == j), None)
    if alone is not None:
        raise ValueError(f"policy {alone!r} plays against itself, expected two policies")
    met = np.zeros((len(names), len(names)))
    met[tuple(np.array(pairs).T)] = 1
    groups, group = connected_components(met, directed=False)
    if groups > 1:
        parts = [[n for n, g in zip(names, group, strict=True) if g == i] for i in range(groups)]
        raise ValueError(f"no game between {' and '.join(map(str, parts))}, expected policies that all can be compared")
    rows = np.array([(at[a], at[b]) for a, b, _ in games] + [pair for pair in pairs for _ in (0, 1)])
    x = np.zeros((len(rows), len(names)))
    x[np.arange(len(rows)), rows[:, 0]], x[np.arange(len(rows)), rows[:, 1]] = 1, -1
    basis = helmert(len(names)).T  # (k, k − 1): strengths of mean 0
    _by_cluster(outcome, clusters)  # checks their number
    labels = range(len(games)) if clusters is None else clusters
    each = len(games) / len({(c, frozenset(g[:2])) for c, g in zip(labels, games, strict=True)})  # games of a pair in a cluster
    fit, covariance, quantile = _fit(x @ basis, outcome, clusters, each, np.zeros(len(names) - 1), confidence)
    fit, half = basis @ fit, quantile * np.sqrt(np.diag(basis @ covariance @ basis.T))
    found = [Strength(name, float(s), float(s - h), float(s + h)) for name, s, h in zip(names, fit, half, strict=True)]
    return sorted(found, key=lambda s: -s.strength)


def length_controlled(
    outcomes: Sequence[float] | np.ndarray,
    length_differences: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> LengthControlled:
    """The win rate at equal length: a logistic regression of outcomes on length differences, read at difference 0.

    P(win) = σ(θ + φ tanh(Δ / sd(Δ))), Δ the length of the first text minus that of the second; the rate is σ(θ).
    After Length-Controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475), whose regression fits many
    models at once. Deviations: (1) one pair of policies, so there is no term for a prompt's difficulty;
    (2) instead of their regularisation, one cluster's worth of games at Δ = 0, half won and half lost, and a
    normal prior with standard deviation 5 on φ; (3) an interval: Wald on the log-odds, by cluster.

    Args:
        outcomes: n values in [0, 1].
        length_differences: n values, any unit.
        clusters, confidence: as in `win_rate`.

    Raises:
        ValueError: as `win_rate`; length_differences of another length or not finite.
    """
    y, delta = _outcomes(outcomes, "outcomes"), _values(length_differences, "length_differences")
    _check_confidence(confidence)
    if len(delta) != len(y):
        raise ValueError(f"length_differences has {len(delta)} values, expected one for each of the {len(y)} outcomes")
    longer, spread = float(((np.sign(delta) + 1) / 2).mean()), float(delta.std())
    if spread < 1e-9 * float(abs(delta).max()):
        return LengthControlled(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, longer)
    scaled = np.tanh(delta / spread) if spread else delta
    x = np.column_stack([np.ones(len(y) + 2), np.append(scaled, [0, 0])])
    each = len(y) / len(_by_cluster(y, clusters)[1])
    (theta, phi), covariance, quantile = _fit(x, y, clusters, each, np.array([0, SLOPE_STD**-2]), confidence)
    if not spread:  # no lengths differ: there is no slope
        phi, covariance = math.nan, covariance + np.diag([0, math.nan])
    half, slope_half = (float(h) for h in quantile * np.sqrt(np.diag(covariance)))
    rate, low, high = (float(expit(t)) for t in (theta, theta - half, theta + half))
    return LengthControlled(rate, low, high, float(phi), float(phi) - slope_half, float(phi) + slope_half, longer)


def _fit(
    x: np.ndarray, y: np.ndarray, clusters: Sequence[Hashable] | None, each: float, ridge: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Logistic regression with fractional outcomes and pseudo-games: coefficients (k,), covariance (k, k), t quantile.

    x: (n + 2 j, k), the last rows for j pseudo-games of weight `each`, half of it won, half lost; y: (n,);
    ridge: (k,) inverse variances of a normal prior. Newton's method, its steps halved until the penalised
    likelihood grows; then the sandwich H⁻¹ Σ_c s_c s_cᵀ H⁻¹ · m/(m−1) over m clusters (Liang & Zeger 1986).
    """
    _, size = _by_cluster(y, clusters)
    pseudo = len(x) - len(y)
    weight = np.append(np.ones(len(y)), np.full(pseudo, PSEUDO_GAMES * each))
    labels = np.arange(len(y)) if clusters is None else numbers(clusters)
    labels = np.append(labels, labels.max() + 1 + np.arange(pseudo))
    y = np.append(y, [1.0, 0.0] * (pseudo // 2))

    def loss(beta: np.ndarray) -> float:
        z = x @ beta
        return float((weight * (np.logaddexp(0, z) - y * z)).sum() + (ridge * beta**2).sum() / 2)

    beta = np.zeros(x.shape[1])
    for _ in range(100):
        p = expit(x @ beta)
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(hessian, x.T @ (weight * (y - p)) - ridge * beta)
        now = loss(beta)
        while loss(beta + step) > now + 1e-12 * abs(now):
            step = step / 2
        beta = beta + step
        if abs(step).max() < 1e-10:
            break
    score = np.zeros((labels.max() + 1, x.shape[1]))
    np.add.at(score, labels, x * (weight * (y - p))[:, None])
    inverse = np.linalg.inv(hessian)
    m = max(len(size), 2)
    covariance = inverse @ (score.T @ score) @ inverse * m / (m - 1)
    for k in np.flatnonzero(ridge):  # where the data leave it to the prior, residuals say nothing of how sure one is
        covariance[k, k] = max(covariance[k, k], inverse[k, k])
    return beta, covariance, float(stdtrit(m - 1, 0.5 + confidence / 2))


def numbers(labels: Sequence[Hashable]) -> np.ndarray:
    """Labels → whole numbers from 0 in order of first appearance."""
    number: dict[Hashable, int] = {}
    plain = (label.item() if hasattr(label, "item") else label for label in labels)  # a tensor's elements are never equal as keys
    return np.array([number.setdefault(label, len(number)) for label in plain], dtype=int)


def _by_cluster(x: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values in each cluster: (m,), (m,), in order of first appearance."""
    if clusters is None:
        return x, np.ones(len(x))
    labels = list(clusters)
    if len(labels) != len(x):
        raise ValueError(f"clusters has {len(labels)} labels, expected one for each of the {len(x)} values")
    index = numbers(labels)
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


def _outcomes(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    """`values` as outcomes in [0, 1]."""
    x = _values(values, name)
    outside = np.flatnonzero((x < 0) | (x > 1))
    if outside.size:
        i = int(outside[0])
        raise ValueError(f"{name}[{i}] is {x[i]:g}, expected a value in [0, 1]: 1 a win, 0.5 a tie, 0 a loss")
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}, expected a number between 0 and 1, such as 0.95")
