"""Score against distance from the reference: runs, best-of-n, the √KL law, and where over-optimisation begins. Pure functions.

The proxy is the learned reward that training raises; gold is what it stands for (a known reward, a reward model trained on
other labels, human verdicts). KL is in nats a response.

1. `run_of`, `logged_run`: one run's checkpoints from its metrics (`eval.curves.read_curves` of a metrics.csv).
2. `sqrt_kl_fit`: reward against √KL with a straight line; Bai et al. 2022 (HH, arXiv 2204.05862) find it roughly linear.
3. `best_of_n`: expected proxy and gold of the best of n by proxy, from samples at hand, at KL log n − (n−1)/n.
4. `over_optimised`: the rule that names the point where gold turns while the proxy still rises.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, stdtrit

Columns = Mapping[str, Sequence[Sequence[float | None]]]
# A smaller fall from the peak is noise: in simulation flat gold is then called a turn in under 1 % of runs where its noise is
# white, and under 10 % where it is a moving mean of 5 (20 checkpoints or more; fewer cannot tell such noise from a turn).
STANDARD_ERRORS = 4.0
VALIDATED = ("val/kl", "val/score", "val/held_out")  # what PPO logs at each validation, the last with a held-out reward
TRAINED = ("objective/kl", "objective/score", "objective/gold")


@dataclass(frozen=True)
class Run:
    """Checkpoints in the order of training; all lists of the same length."""

    name: str
    step: tuple[float, ...]
    kl: tuple[float, ...]
    proxy: tuple[float, ...]
    gold: tuple[float, ...] | None  # None: none was logged


@dataclass(frozen=True)
class Line:
    """score = intercept + slope √KL, least squares; `residuals` in the order given."""

    slope: float
    low: float  # 95 % of the slope, checkpoints taken as independent (those of one run are not: read it as a lower bound)
    high: float
    intercept: float
    r2: float
    residuals: tuple[float, ...]
    bend: float  # t statistic of an added KL term: below −2 the score flattens, above 2 it steepens
    n: int


@dataclass(frozen=True)
class Turn:
    """Where gold peaks while the proxy still rises; `at` is an index into the checkpoints."""

    at: int
    kl: float
    gold: float  # mean of the window around the peak
    gold_after: float  # mean of the last window
    standard_error: float  # of their difference
    proxy: float
    proxy_after: float


@dataclass(frozen=True)
class BestOf:
    """The best of n samples by proxy."""

    n: int
    kl: float
    proxy: float
    gold: float | None


def run_of(
    name: str, columns: Columns, kl: str = "objective/kl", proxy: str = "objective/score", gold: str | None = "objective/gold"
) -> Run | None:
    """The checkpoints at which KL and proxy (and gold, where that column is there) were all logged; None: there are none."""
    wanted = [kl, proxy, *([gold] if gold is not None and gold in columns else [])]
    if not all(column in columns for column in wanted):
        return None
    found = [{p[0]: p[1] for p in columns[column] if p[0] is not None and p[1] is not None} for column in wanted]
    steps = sorted(step for step in found[0] if all(step in f for f in found))
    if not steps:
        return None
    values = [tuple(float(f[step]) for step in steps) for f in found]
    return Run(name, tuple(float(s) for s in steps), values[0], values[1], values[2] if len(values) > 2 else None)


def logged_run(name: str, columns: Columns) -> Run | None:
    """The checkpoints of a run by the columns that have gold, the validations' first; else all that were trained on."""
    validated, trained = run_of(name, columns, *VALIDATED), run_of(name, columns, *TRAINED)
    return next((run for run in (validated, trained) if run and run.gold is not None), trained or validated)


def sqrt_kl_fit(kl: Sequence[float] | np.ndarray, score: Sequence[float] | np.ndarray) -> Line:
    """(n,) KL in nats and (n,) scores → the line in √KL; a KL below 0 counts as 0.

    Raises:
        ValueError: lengths differ, under three points, a value that is not finite, or all at one KL.
    """
    k, y = _vector(kl, "kl"), _vector(score, "score")
    if len(k) != len(y) or len(k) < 3:
        raise ValueError(f"found {len(k)} values of kl and {len(y)} of score, expected the same number, at least 3")
    d = np.sqrt(np.maximum(k, 0.0))
    if np.ptp(d) == 0:
        raise ValueError(f"every kl is {k[0]:g}, expected at least two different values")
    n = len(d)
    centred = d - d.mean()
    slope = float(centred @ y / (centred @ centred))
    intercept = float(y.mean() - slope * d.mean())
    residuals = y - intercept - slope * d
    rest, whole = float(residuals @ residuals), float(((y - y.mean()) ** 2).sum())
    half = float(stdtrit(n - 2, 0.975)) * math.sqrt(rest / (n - 2) / float(centred @ centred))
    r2 = 1 - rest / whole if whole > 0 else 1.0
    return Line(slope, slope - half, slope + half, intercept, r2, tuple(residuals.tolist()), _bend(d, y), n)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the policy that it draws from, in nats: log n − (n−1)/n, for scores without ties.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: Sequence[Sequence[float]], gold: Sequence[Sequence[float]] | None, n: int) -> BestOf:
    """Expected scores of the best of n by proxy, from m ≥ n samples of each prompt, without drawing again.

    Of all C(m, n) sets of n samples, the one at rank i from below (1 … m) is the best of C(i−1, n−1). Equal proxies share
    their weight, which makes the order of the samples irrelevant.

    Args:
        proxy: Prompts × m scores; m may differ by prompt.
        gold: The same shape; None: only the proxy is wanted.

    Raises:
        ValueError: a prompt with fewer than n samples, shapes that differ, no prompt.
    """
    kl = best_of_n_kl(n)
    if not len(proxy) or (gold is not None and [len(g) for g in gold] != [len(p) for p in proxy]):
        raise ValueError("proxy and gold must have the same non-empty shape, prompts × samples")
    tops, golds = [], []
    for i, row in enumerate(proxy):
        p = _vector(row, f"proxy[{i}]")
        if len(p) < n:
            raise ValueError(f"proxy[{i}] has {len(p)} samples, expected at least n = {n}")
        order = np.argsort(p, kind="stable")
        rank = np.arange(1, len(p) + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_weight = np.where(rank >= n, _log_choose(rank - 1, n - 1), -np.inf) - _log_choose(np.array(len(p)), n)
        weight = np.exp(log_weight)  # (m,), sums to 1
        _, group = np.unique(p[order], return_inverse=True)
        weight = (np.bincount(group, weights=weight) / np.bincount(group))[group]
        tops.append(float(weight @ p[order]))
        if gold is not None:
            golds.append(float(weight @ _vector(gold[i], f"gold[{i}]")[order]))
    return BestOf(n, kl, float(np.mean(tops)), float(np.mean(golds)) if golds else None)


def over_optimised(run: Run, window: int | None = None) -> Turn | None:
    """The point from which gold falls while the proxy still rises, or None; checkpoints in the order of training (or of n).

    The rule, with running means over windows of w checkpoints (a tenth of them, at least 3):
    1. The turn is at the middle of the window with the highest mean gold.
    2. It counts only if the last window's mean gold is lower by more than four standard errors of that difference, s √2, where
       s = 1.4826 median |difference at lag w of the running means| is the noise of a window without trend and without jumps,
       whatever checkpoints close to one another have in common: the third difference over √20, of windows of under 5 the second
       one over √6 (of which there are more); at least what second differences of single checkpoints give, over √w, which is all
       that there is of few,
    3. and the last window's mean proxy is higher than at the turn.
    """
    if run.gold is None:
        return None
    gold, proxy = np.array(run.gold), np.array(run.proxy)
    w = window or max(3, len(gold) // 10)
    if len(gold) < 2 * w:
        return None
    means = np.convolve(gold, np.ones(w) / w, "valid")  # (n − w + 1,)
    start = int(means.argmax())
    noise = _spread(gold, 1) / math.sqrt(w)
    if len(means) > 2 * w + 2:
        noise = max(noise, _spread(means, w, 3 if w >= 5 and len(means) > 3 * w + 4 else 2))
    error = noise * math.sqrt(2)
    before, after = float(proxy[start : start + w].mean()), float(proxy[-w:].mean())
    if means[start] - means[-1] <= STANDARD_ERRORS * error or after <= before:
        return None
    at = start + w // 2
    return Turn(at, float(run.kl[at]), float(means[start]), float(means[-1]), error, before, after)


def _spread(x: np.ndarray, lag: int, order: int = 2) -> float:
    """The standard deviation of values of which those at that lag are independent, without their trend and without jumps."""
    for _ in range(order):
        x = x[lag:] - x[:-lag]
    return 1.4826 * float(np.median(np.abs(x))) / math.sqrt(math.comb(2 * order, order))


def _bend(d: np.ndarray, y: np.ndarray) -> float:
    """t statistic of the KL term in score = a + b √KL + c KL; 0 where it cannot be told."""
    design = np.stack([np.ones_like(d), d, d**2], axis=1)
    if len(d) < 5 or np.linalg.matrix_rank(design) < 3:
        return 0.0
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    rest = y - design @ coefficients
    variance = float(rest @ rest) / (len(d) - 3) * float(np.linalg.inv(design.T @ design)[2, 2])
    return float(coefficients[2]) / math.sqrt(variance) if variance > 1e-24 else 0.0


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _vector(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError(f"{name} is not a list of finite numbers")
    return x
