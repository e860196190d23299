"""Agreement: between judges (Cohen's κ, Krippendorff's α), and of a measure with people's ratings (Kendall's τ).

All intervals are percentile bootstraps over items (or their clusters, the prompts; or documents), seeded. Where every judge
agrees on every item, resampling knows no disagreement: the lower end is then what Wilson's bound on the share of items in
disagreement allows, so that no interval has zero width. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from eval.winrate import numbers, wilson

LEVELS = ("nominal", "ordinal", "interval")


@dataclass(frozen=True)
class Agreement:
    """A coefficient with its interval; NaN where it is not defined (all judges used one and the same category)."""

    value: float
    low: float
    high: float
    n: int  # items


def cohen_kappa(
    a: Sequence[Hashable],
    b: Sequence[Hashable],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """κ = (p_o − p_e) / (1 − p_e) of two judges' categories for n items (Cohen 1960).

    p_o is the share of items on which they agree, p_e = Σ_c p_a(c) p_b(c) what their own shares of each category give by chance.

    Args:
        a, b: n categories each.
        clusters: n labels of what is resampled together, the prompts; `None`: each item alone.
        confidence, resamples, seed: of the bootstrap.

    Raises:
        ValueError: no item, or lengths that differ.
    """
    if len(a) != len(b):
        raise ValueError(f"a and b must have the same length, found {len(a)} and {len(b)}")
    found = numbers([*a, *b])
    table = np.zeros((len(a), *[found.max(initial=-1) + 1] * 2))
    table[np.arange(len(a)), found[: len(a)], found[len(a) :]] = 1

    def kappa(total: np.ndarray) -> tuple[float, float]:
        p = total / total.sum()
        chance = 1 - float(p.sum(1) @ p.sum(0))
        return (1 - (1 - float(np.trace(p))) / chance if chance > 1e-12 else math.nan), chance

    return _bootstrapped(table, clusters, kappa, confidence, resamples, seed)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Any]],
    level: str = "nominal",
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """α = 1 − D_o / D_e of any number of judges, some of whom may not have judged an item (Krippendorff 2011).

    With coincidences o_ck (each ordered pair of values in an item of m values counts 1/(m − 1)), n_c = Σ_k o_ck and
    n = Σ n_c: D_o = Σ o_ck δ²_ck / n, D_e = Σ n_c n_k δ²_ck / (n (n − 1)) over c ≠ k. δ² is 1 (nominal), (c − k)² (interval),
    (Σ_{g=c..k} n_g − (n_c + n_k)/2)² (ordinal).

    Args:
        ratings: items × judges; `None` or NaN where a judge gave none. Items with fewer than two values do not count.
        level: nominal, ordinal or interval; the last two need numbers.
        clusters, confidence, resamples, seed: as in `cohen_kappa`.

    Raises:
        ValueError: an unknown level, rows of unequal length, text at a level that needs numbers, or no item with two values.
    """
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}, expected one of {', '.join(LEVELS)}")
    if len({len(row) for row in ratings}) > 1:
        raise ValueError("ratings has rows of unequal length, expected a value or None for each judge")
    given = [[v for v in row if not (v is None or (isinstance(v, float) and math.isnan(v)))] for row in ratings]
    kept = [i for i, row in enumerate(given) if len(row) > 1]
    if not kept:
        raise ValueError("ratings has no item with values of two judges, expected at least one")
    if clusters is not None and len(clusters) != len(ratings):
        raise ValueError(f"clusters has {len(clusters)} labels, expected one for each of the {len(ratings)} items")
    values: list[Any] = list(dict.fromkeys(v for i in kept for v in given[i]))
    if level != "nominal":
        text = next((v for v in values if isinstance(v, (str, bytes))), None)
        if text is not None:
            raise ValueError(f"ratings holds {text!r}, expected numbers at level {level!r}")
        values.sort()
    at = {v: i for i, v in enumerate(values)}
    table = np.zeros((len(kept), len(values), len(values)))
    for row, i in enumerate(kept):
        count = np.bincount([at[v] for v in given[i]], minlength=len(values)).astype(float)
        table[row] = (np.outer(count, count) - np.diag(count)) / (len(given[i]) - 1)
    places = np.array(values, dtype=float) if level == "interval" else np.arange(len(values), dtype=float)

    def alpha(o: np.ndarray) -> tuple[float, float]:
        each = o.sum(1)
        n = each.sum()
        scale = places
        if level == "ordinal":  # Σ_{g=c..k} n_g − (n_c + n_k)/2 is the distance of the mid-ranks
            scale = np.cumsum(each) - each / 2
        delta = 1.0 - np.eye(len(o)) if level == "nominal" else (scale[:, None] - scale) ** 2
        expected = float((np.outer(each, each) * delta).sum()) / (n - 1)
        chance = 1 - float((each * (each - 1)).sum()) / (n * (n - 1))  # two values picked at random differ
        return (1 - float((o * delta).sum()) / expected if expected > 1e-12 else math.nan), chance

    labels = None if clusters is None else [clusters[i] for i in kept]
    return _bootstrapped(table, labels, alpha, confidence, resamples, seed)


def _bootstrapped(
    table: np.ndarray,
    clusters: Sequence[Hashable] | None,
    coefficient: Callable[[np.ndarray], tuple[float, float]],
    confidence: float,
    resamples: int,
    seed: int,
) -> Agreement:
    """A coefficient of the summed tables with its percentile interval; `table` (items, categories, categories)."""
    if not len(table):
        raise ValueError("found no item, expected at least one that two judges judged")
    if clusters is not None and len(clusters) != len(table):
        raise ValueError(f"clusters has {len(clusters)} labels, expected one for each of the {len(table)} items")
    group = np.arange(len(table)) if clusters is None else numbers(clusters)
    parts = np.zeros((group.max() + 1, *table.shape[1:]))
    np.add.at(parts, group, table)
    total = parts.sum(0)
    value, chance = coefficient(total)
    if math.isnan(value):
        return Agreement(math.nan, math.nan, math.nan, len(table))
    if total.trace() == total.sum():  # nobody disagrees
        disagree = 1 - wilson(len(parts), len(parts), confidence).low
        return Agreement(value, max(-1.0, 1 - disagree / chance), value, len(table))
    if len(parts) == 1:  # says nothing of others
        return Agreement(value, -1.0, 1.0, len(table))
    draws = np.random.default_rng(seed).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), resamples)
    drawn = np.tensordot(draws.astype(float), parts, axes=1)
    low, high = _percentiles([coefficient(t)[0] for t in drawn], confidence)
    if total.trace() == 0:  # everybody disagrees, in each resample too
        high = min(1.0, 1 - (1 - wilson(0, len(parts), confidence).high) / chance)
    return Agreement(value, min(low, value), max(high, value), len(table))


def _percentiles(values: Sequence[float] | np.ndarray, confidence: float) -> tuple[float, float]:
    """The interval between the tails of bootstrap values; undefined ones are left out."""
    defined = np.asarray(values, dtype=float)
    defined = defined[~np.isnan(defined)]
    if not defined.size:
        return math.nan, math.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ------------------------------------------------------------------------------------------- a measure against ratings


def system_tau(
    measure: np.ndarray, ratings: np.ndarray, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Kendall's τ-b between systems' mean measure and mean rating: does the measure rank *systems* as people do?

    Args:
        measure, ratings: (documents, systems); NaN where a value is missing, which the means leave out.
        confidence, resamples, seed: of the bootstrap over documents; the systems stay.

    Returns:
        τ in [−1, 1] with its interval; `n` is the number of systems.

    Raises:
        ValueError: shapes that differ, fewer than two systems, or a system without any value.
    """
    x, y = _pair(measure, ratings)
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    taus = [_tau(_means(x[d]), _means(y[d])) for d in draws]
    return Agreement(_tau(_means(x), _means(y)), *_percentiles(taus, confidence), x.shape[1])


def summary_tau(
    measure: np.ndarray, ratings: np.ndarray, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Mean over documents of Kendall's τ-b between the measure and the ratings of that document's summaries.

    Documents whose τ is not defined (one value for all systems) do not count; `n` is the number of those that do.
    Arguments and errors as in `system_tau`.
    """
    x, y = _pair(measure, ratings)
    taus = []
    for a, b in zip(x, y, strict=True):
        both = ~(np.isnan(a) | np.isnan(b))
        taus.append(_tau(a[both], b[both]) if both.sum() > 1 else math.nan)
    defined = np.array(taus)[~np.isnan(taus)]
    if not defined.size:
        return Agreement(math.nan, math.nan, math.nan, 0)
    draws = np.random.default_rng(seed).integers(len(defined), size=(resamples, len(defined)))
    return Agreement(float(defined.mean()), *_percentiles(defined[draws].mean(1), confidence), len(defined))


def tau_table(
    measures: Mapping[str, np.ndarray], ratings: Mapping[str, np.ndarray], resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Every measure against every axis of the ratings: rows `{measure, axis, system: Agreement, summary: Agreement}`."""
    return [
        {
            "measure": m,
            "axis": r,
            "system": system_tau(x, y, resamples=resamples, seed=seed),
            "summary": summary_tau(x, y, resamples=resamples, seed=seed),
        }
        for m, x in measures.items()
        for r, y in ratings.items()
    ]


def _tau(x: np.ndarray, y: np.ndarray) -> float:
    return float(kendalltau(x, y).statistic)


def _means(x: np.ndarray) -> np.ndarray:
    """Means by system over the documents that have a value."""
    with np.errstate(invalid="ignore"):  # a resample may hold no value of a system: NaN
        return np.nansum(x, axis=0) / (~np.isnan(x)).sum(0)


def _pair(measure: np.ndarray, ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two (documents, systems) tables of floats."""
    x, y = np.asarray(measure, dtype=float), np.asarray(ratings, dtype=float)
    if x.ndim != 2 or x.shape != y.shape or x.shape[1] < 2:
        raise ValueError(f"measure has shape {x.shape}, ratings {y.shape}, expected the same (documents, at least 2 systems)")
    for name, table in (("measure", x), ("ratings", y)):
        empty = np.flatnonzero(np.isnan(table).all(0))
        if empty.size:
            raise ValueError(f"{name} has no value for system {int(empty[0])}, expected at least one")
    return x, y
