"""Is a reward model's confidence right? Pure functions of scores, choices, lengths and labeler ids; no model is loaded.

A comparison is N ≥ 2 scores and the index of the response that the labeler chose; comparisons may differ in N. The model's
probability of choice i is softmax(scores / T)_i, the model that the best-of-N loss fits (Ziegler et al. 2019, eq. 1); for
pairs it is σ(Δ / T), Δ the difference of the two scores.

1. `events`: what was predicted and what happened. Of a pair only the favourite's side is kept, since the other says the same.
2. `reliability`, `calibration_error`: equal-count bins of the prediction, observed rate with an interval by prompt.
3. `fit_temperature`: maximum likelihood on one half of the prompts; `calibrate` tests it on the other half.
4. `accuracy_by_value`, `accuracy_by_label`: where the model is right: by margin, by length difference, by labeler.
5. `ensemble`: several seeds of a model on the same comparisons: where they disagree, and whether they are right where they agree.

    from eval.calibration import calibrate
    found = calibrate(scores, choices, lengths=words, labelers=workers, prompts=prompts)
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from eval.winrate import WinRate, win_rate

Scores = Sequence[Sequence[float]] | Sequence[np.ndarray]
FEWEST_IN_BIN = 10  # fewer comparisons than this say nothing about a rate
SHARPEST = 1e6  # largest 1/T that is looked for


@dataclass(frozen=True)
class Bin:
    """Events of about equal predicted probability."""

    predicted: float  # mean prediction
    observed: float  # share that happened
    low: float  # 95 %, by cluster
    high: float
    n: int


@dataclass(frozen=True)
class Group:
    """Accuracy of a group of comparisons; a tied top score is no hit."""

    label: str
    accuracy: float
    low: float  # 95 %, by cluster
    high: float
    n: int
    chance: float | None = None  # mean 1/N, where it is known


@dataclass(frozen=True)
class Temperature:
    """T > 1: the model is too sure; T < 1: not sure enough; low and high: 95 % (observed information, on 1/T)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Half:
    """The half that did not fit the temperature: nats a comparison and calibration error, before (T = 1) and after."""

    n: int
    loss_before: float
    loss_after: float
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Ensemble:
    """Members score the same comparisons; shares in [0, 1]."""

    members: tuple[float, ...]  # accuracy of each
    accuracy: float  # of the mean of the members' probabilities
    error: float  # calibration error of that mean
    disagree: float  # share of pairs of members that pick different responses, mean over comparisons
    spread: float  # standard deviation over members of the probability of the labeler's choice, mean over comparisons
    by_agreement: tuple[Group, ...]  # accuracy of the mean by how many members share its pick


@dataclass(frozen=True)
class Calibration:
    """All of the above for one reward model; `asdict` of it is the report's `calibration`."""

    n: int  # comparisons
    accuracy: Group
    loss: float  # nats a comparison, T = 1
    chance_loss: float  # mean log N
    bins: tuple[Bin, ...]
    error: float  # calibration error
    error_by_chance: float  # what a perfectly calibrated model would show on average
    temperature: Temperature | None  # None: no half could be told apart
    tested: Half | None
    by_margin: tuple[Group, ...]  # best score − second best
    by_length: tuple[Group, ...]  # chosen length − mean length of the others
    longest: Group | None  # accuracy of picking the longest response: the control
    by_labeler: tuple[Group, ...]


def check(scores: Scores, choices: Sequence[int]) -> list[np.ndarray]:
    """The scores as float arrays, one a comparison.

    Raises:
        ValueError: no comparison, lengths differ, fewer than two scores, one that is not finite, a choice out of range.
    """
    if len(scores) != len(choices) or not len(scores):
        raise ValueError(f"found {len(scores)} comparisons and {len(choices)} choices, expected the same number, at least 1")
    arrays = [np.asarray(s, dtype=float) for s in scores]
    for i, (row, choice) in enumerate(zip(arrays, choices, strict=True)):
        if row.ndim != 1 or len(row) < 2 or not np.isfinite(row).all():
            raise ValueError(f"scores[{i}] is {row.tolist()}, expected at least two finite numbers")
        if not 0 <= choice < len(row):
            raise ValueError(f"choices[{i}] is {choice}, expected 0 … {len(row) - 1}")
    return arrays


def events(scores: Scores, choices: Sequence[int], temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What was predicted and what happened.

    Returns:
        (E,) predicted probability of being chosen, (E,) 1.0 where it was, (E,) number of the comparison. A pair gives its
        favourite alone (with equal scores there is none: a half happened); N > 2 responses give N events.
    """
    predicted, happened, where = [], [], []
    for i, (row, choice) in enumerate(zip(check(scores, choices), choices, strict=True)):
        p = _softmax(row / temperature)
        if len(row) == 2:
            favourite = int(row.argmax())
            predicted.append(float(p[favourite]))
            happened.append(0.5 if row[0] == row[1] else float(favourite == choice))
        else:
            predicted += p.tolist()
            happened += [float(k == choice) for k in range(len(row))]
        where += [i] * (1 if len(row) == 2 else len(row))
    return np.array(predicted), np.array(happened), np.array(where)


def reliability(
    predicted: Sequence[float] | np.ndarray,
    happened: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    bins: int = 10,
) -> list[Bin]:
    """(E,) probabilities and (E,) outcomes → equal-count bins in order of the prediction, intervals by cluster.

    Raises:
        ValueError: lengths differ, no event, a probability outside [0, 1], bins below 1.
    """
    p, y = np.asarray(predicted, dtype=float), np.asarray(happened, dtype=float)
    if p.shape != y.shape or p.ndim != 1 or not p.size:
        raise ValueError(f"predicted has shape {p.shape} and happened {y.shape}, expected the same non-empty list")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("predicted holds a value outside [0, 1], expected probabilities")
    labels = list(range(len(p))) if clusters is None else list(clusters)
    out = []
    for part in _equal_parts(p, bins):
        rate = win_rate(y[part], [labels[i] for i in part])
        out.append(Bin(float(p[part].mean()), rate.rate, rate.low, rate.high, rate.n))
    return out


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: Σ n_b / n |observed_b − predicted_b|  (Guo et al. 2017, arXiv 1706.04599)."""
    return sum(b.n * abs(b.observed - b.predicted) for b in bins) / sum(b.n for b in bins)


def error_by_chance(predicted: Sequence[float] | np.ndarray, bins: int = 10) -> float:
    """The calibration error that a perfectly calibrated model shows on average, from the finite number of events alone.

    In each bin the observed rate has variance Σ p(1−p) / n_b², and E|x| = √(2/π) σ for a normal x. Events are taken as
    independent; those of one comparison of N > 2 are weakly negative, so the figure is then slightly too large.
    """
    p = np.asarray(predicted, dtype=float)
    return sum(math.sqrt(2 / math.pi * float((p[part] * (1 - p[part])).sum())) for part in _equal_parts(p, bins)) / len(p)


def nats(scores: Scores, choices: Sequence[int], temperature: float = 1.0) -> float:
    """Mean −log softmax(scores / T)[choice] over the comparisons."""
    rows = check(scores, choices)
    return float(np.mean([np.logaddexp.reduce((row - row[c]) / temperature) for row, c in zip(rows, choices, strict=True)]))


def fit_temperature(scores: Scores, choices: Sequence[int]) -> Temperature:
    """The T that makes the choices likeliest.

    The loss is convex in x = 1/T with slope Σ (E_p s − s_choice) and curvature Σ Var_p s, p = softmax(x s). Where a model
    is always right (or no better than its reverse) no finite T > 0 is best: T is then 0 (or infinite), with no interval.
    """
    by_size: dict[int, list[np.ndarray]] = {}
    for row, choice in zip(check(scores, choices), choices, strict=True):
        by_size.setdefault(len(row), []).append(row - row[choice])  # the choice has score 0
    blocks = [np.stack(rows) for rows in by_size.values()]  # (n, N) each

    def slope(x: float) -> float:
        return sum(float((_softmax(x * block) * block).sum()) for block in blocks)

    if slope(0.0) >= 0:
        return Temperature(math.inf, math.nan, math.inf)
    if slope(SHARPEST) <= 0:
        return Temperature(0.0, 0.0, math.nan)
    x = float(brentq(slope, 0.0, SHARPEST))
    curvature = 0.0
    for block in blocks:
        p = _softmax(x * block)
        curvature += float(((p * block**2).sum(1) - (p * block).sum(1) ** 2).sum())
    half = 1.959964 / math.sqrt(curvature)
    return Temperature(1 / x, 1 / (x + half), 1 / (x - half) if x > half else math.inf)


def hits(scores: Scores, choices: Sequence[int]) -> np.ndarray:
    """(n,) 1.0 where the chosen response alone has the top score."""
    rows = check(scores, choices)
    found = [row[c] > np.delete(row, c).max() for row, c in zip(rows, choices, strict=True)]
    return np.array(found, dtype=float)


def margins(scores: Scores) -> np.ndarray:
    """(n,) best score minus second best: how sure the model is, whether right or wrong."""
    return np.array([float(np.diff(np.sort(np.asarray(s, dtype=float))[-2:])[0]) for s in scores])


def length_differences(lengths: Scores, choices: Sequence[int]) -> np.ndarray:
    """(n,) length of the chosen response minus the mean length of the others."""
    rows = check(lengths, choices)
    return np.array([float(row[c] - np.delete(row, c).mean()) for row, c in zip(rows, choices, strict=True)])


def accuracy_by_value(
    hit: np.ndarray, value: np.ndarray, clusters: Sequence[Hashable] | None = None, bins: int = 5, unit: str = ""
) -> list[Group]:
    """Accuracy in equal-count bins of a value; a bin is named by its least and largest value."""
    labels = list(range(len(hit))) if clusters is None else list(clusters)
    out = []
    for part in _equal_parts(np.asarray(value, dtype=float), bins):
        name = f"{_short(value[part].min())} to {_short(value[part].max())}{unit}"
        out.append(_group(name, hit[part], [labels[i] for i in part]))
    return out


def accuracy_by_label(
    hit: np.ndarray, names: Sequence[str], clusters: Sequence[Hashable] | None = None, at_least: int = FEWEST_IN_BIN
) -> list[Group]:
    """Accuracy for each name that stands at least so often, the most frequent first."""
    labels = list(range(len(hit))) if clusters is None else list(clusters)
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(str(name), []).append(i)
    kept = sorted((m for m in members.items() if len(m[1]) >= at_least), key=lambda m: (-len(m[1]), m[0]))
    return [_group(name, hit[part], [labels[i] for i in part]) for name, part in kept]


def ensemble(scores: Sequence[Scores], choices: Sequence[int], clusters: Sequence[Hashable] | None = None) -> Ensemble:
    """Members' scores of the same comparisons, (members, comparisons, N).

    Raises:
        ValueError: fewer than two members, or members that scored other comparisons.
    """
    if len(scores) < 2:
        raise ValueError(f"found {len(scores)} members, expected at least two")
    members = [check(s, choices) for s in scores]
    sizes = [len(row) for row in members[0]]
    for k, member in enumerate(members):
        if [len(row) for row in member] != sizes:
            raise ValueError(f"member {k} scored other comparisons than member 0, expected the same numbers of responses")
    spread, disagree, agreeing, mean_scores = [], [], [], []
    m = len(members)
    for i, choice in enumerate(choices):
        p = np.stack([_softmax(member[i]) for member in members])  # (members, N)
        votes = np.bincount(p.argmax(1), minlength=p.shape[1])
        mean = p.mean(0)
        mean_scores.append(np.log(np.maximum(mean, 1e-300)))  # softmax of these gives the mean back
        spread.append(float(p[:, choice].std()))
        disagree.append(1 - float((votes * (votes - 1)).sum()) / (m * (m - 1)))
        agreeing.append(int(votes[mean.argmax()]))
    hit = hits(mean_scores, choices)
    predicted, happened, _ = events(mean_scores, choices)
    groups = accuracy_by_label(hit, [f"{k} of {m} agree" for k in agreeing], clusters, at_least=1)
    return Ensemble(
        members=tuple(float(hits(member, choices).mean()) for member in members),
        accuracy=float(hit.mean()),
        error=calibration_error(reliability(predicted, happened)),
        disagree=float(np.mean(disagree)),
        spread=float(np.mean(spread)),
        by_agreement=tuple(sorted(groups, key=lambda g: int(g.label.split()[0]))),
    )


def calibrate(
    scores: Scores,
    choices: Sequence[int],
    lengths: Scores | None = None,
    labelers: Sequence[str | None] | None = None,
    prompts: Sequence[Hashable] | None = None,
    bins: int = 10,
    seed: int = 0,
) -> Calibration:
    """Everything about one reward model on n held-out comparisons.

    Args:
        scores: n lists of N scores, in the order of the responses.
        choices: n indices of the labeler's choice.
        lengths: n lists of N lengths (words); None: nothing is said about length.
        labelers: n names; None: nothing is said by labeler.
        prompts: n prompts, the clusters of the intervals; None: each comparison is its own.
        bins: of the calibration plot; fewer where there are not FEWEST_IN_BIN events for each.
        seed: of the split into halves, by prompt.
    """
    rows = check(scores, choices)
    names: list[Hashable] = list(range(len(rows))) if prompts is None else list(prompts)
    for what, values in (("lengths", lengths), ("labelers", labelers), ("prompts", prompts)):
        if values is not None and len(values) != len(rows):
            raise ValueError(f"{what} has {len(values)} entries, expected one for each of the {len(rows)} comparisons")
    hit = hits(rows, choices)
    predicted, happened, where = events(rows, choices)
    few = max(1, min(bins, len(predicted) // FEWEST_IN_BIN))
    curve = reliability(predicted, happened, [names[i] for i in where], few)
    parts = max(1, min(5, len(rows) // FEWEST_IN_BIN))
    by_length: list[Group] = []
    longest = None
    if lengths is not None:
        by_length = accuracy_by_value(hit, length_differences(lengths, choices), names, parts)
        longest = _group("longest", hits(lengths, choices), names)
    temperature, tested = _halves(rows, choices, names, few, seed)
    return Calibration(
        n=len(rows),
        accuracy=_group("all", hit, names, float(np.mean([1 / len(row) for row in rows]))),
        loss=nats(rows, choices),
        chance_loss=float(np.mean([math.log(len(row)) for row in rows])),
        bins=tuple(curve),
        error=calibration_error(curve),
        error_by_chance=error_by_chance(predicted, few),
        temperature=temperature,
        tested=tested,
        by_margin=tuple(accuracy_by_value(hit, margins(rows), names, parts)),
        by_length=tuple(by_length),
        longest=longest,
        by_labeler=tuple(accuracy_by_label(hit, ["unknown" if x is None else x for x in labelers or []], names)),
    )


def _halves(
    rows: Sequence[np.ndarray], choices: Sequence[int], names: Sequence[Hashable], bins: int, seed: int
) -> tuple[Temperature | None, Half | None]:
    """Temperature from a seeded half of the prompts, tried on the others; None where there are under two prompts."""
    distinct = list(dict.fromkeys(names))
    if len(distinct) < 2:
        return None, None
    order = np.random.default_rng(seed).permutation(len(distinct))
    fitting = {distinct[i] for i in order[: len(distinct) // 2]}
    first = [i for i, name in enumerate(names) if name in fitting]
    second = [i for i, name in enumerate(names) if name not in fitting]
    fit = fit_temperature([rows[i] for i in first], [choices[i] for i in first])
    if not 0 < fit.value < math.inf:
        return fit, None
    tried = [rows[i] for i in second], [choices[i] for i in second]
    errors = []
    for value in (1.0, fit.value):
        predicted, happened, _ = events(*tried, value)
        errors.append(calibration_error(reliability(predicted, happened, bins=bins)))
    return fit, Half(len(second), nats(*tried), nats(*tried, fit.value), errors[0], errors[1])


def _group(label: str, hit: np.ndarray, clusters: Sequence[Hashable], chance: float | None = None) -> Group:
    rate: WinRate = win_rate(hit, clusters)
    return Group(label, rate.rate, rate.low, rate.high, rate.n, chance)


def _equal_parts(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Indices in at most `count` parts of about equal size, by value; equal values are in one part."""
    if count < 1:
        raise ValueError(f"bins is {count}, expected at least 1")
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    ends = np.linspace(0, len(order), count + 1).round().astype(int)[1:-1]
    ends = ends[ends < len(order)]
    first, last = (np.searchsorted(ordered, ordered[ends], side=side) for side in ("left", "right"))  # of the equal values
    ends = np.where(ends - first <= last - ends, first, last)
    return [part for part in np.split(order, np.unique(ends)) if part.size]


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis; scipy's is ten times slower on a short row."""
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def _short(value: float) -> str:
    text = f"{round(float(value), 2):g}" if abs(value) >= 0.1 else f"{value:.2g}"
    return text.replace("-", "−")
