"""How often the 95 % intervals of eval/winrate.py cover the truth, and how often its sign test is wrong: a simulation.

    python benchmarks/coverage.py [SIMULATIONS]        (default 2,000 a cell; minutes on one core)

Outcomes of one prompt are correlated: each is a threshold of √icc · u + √(1 − icc) · e with u shared by the prompt, both normal,
so that rate and share of ties are exactly what a cell says; the correlation is that of the normals. Beside it the coverage of the
percentile bootstrap over prompts (Efron 1979), which `win_rate` does not use.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
from scipy.special import expit, ndtri
from scipy.stats import binom

from eval.winrate import bradley_terry, length_controlled, win_rate

CLUSTERS = ((2, 0.5), (5, 0.0), (5, 0.5))  # outcomes a prompt, correlation within a prompt
SIZES = [  # outcomes, so many a prompt, correlation
    *((n, size, icc) for n in (50, 200, 1000) for size, icc in ((1, 0.0), *CLUSTERS)),
    *((n * size, size, icc) for n in (50, 200) for size, icc in CLUSTERS),  # n counted in prompts
]
CELLS = [(n, size, rate, ties, icc) for n, size, icc in SIZES for rate in (0.5, 0.7, 0.9) for ties in (0.0, 0.15)]
RESAMPLES = 1000  # of the bootstrap; all simulations of a cell have the same ones
STRENGTHS = {"a": 1.0, "b": 0.5, "c": 0.0, "d": -1.5}


def draw(rng: np.random.Generator, repeats: int, prompts: int, size: int, rate: float, ties: float, icc: float) -> np.ndarray:
    """(repeats, prompts · size) outcomes 1, ½, 0; the outcomes of one prompt stand together."""
    shared, own = rng.standard_normal((repeats, prompts, 1)), rng.standard_normal((repeats, prompts, size))
    z = np.sqrt(icc) * shared + np.sqrt(1 - icc) * own
    won, lost = ndtri(1 - rate + ties / 2), ndtri(1 - rate - ties / 2)
    return np.where(z > won, 1.0, np.where(z > lost, 0.5, 0.0)).reshape(repeats, prompts * size)


def bootstrap_covers(found: np.ndarray, prompts: int, rate: float, rng: np.random.Generator) -> float:
    """Coverage of the percentile bootstrap over prompts; `found` (repeats, outcomes)."""
    means = found.reshape(len(found), prompts, -1).mean(2)  # prompts are of one size
    weight = rng.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES) / prompts  # (resamples, prompts)
    low, high = np.quantile(weight @ means.T, [0.025, 0.975], axis=0)
    return float(np.mean((low <= rate) & (rate <= high)))


def win_rate_cell(n: int, size: int, rate: float, ties: float, icc: float, repeats: int, seed: int = 0) -> dict[str, float]:
    """Coverage and mean width; with rate ½ also the sign test's share of p ≤ .05, and what is attainable."""
    prompts = n // size
    found = draw(np.random.default_rng(seed), repeats, prompts, size, rate, ties, icc)
    labels = None if size == 1 else np.repeat(np.arange(prompts), size).tolist()
    got = [win_rate(x, labels) for x in found]
    cell = {
        "covered": float(np.mean([g.low <= rate <= g.high for g in got])),
        "width": float(np.mean([g.high - g.low for g in got])),
        "bootstrap": bootstrap_covers(found, prompts, rate, np.random.default_rng(seed + 1)),
    }
    if rate == 0.5:
        means = found.reshape(repeats, prompts, size).mean(2)
        untied = (np.abs(means - 0.5) > 1e-9).sum(1)
        k = binom.ppf(0.025, untied, 0.5)
        k = np.where(binom.cdf(k, untied, 0.5) > 0.025, k - 1, k)
        cell["false_positives"] = float(np.mean([g.p_value <= 0.05 for g in got]))
        cell["attainable"] = float(np.mean(2 * binom.cdf(k, untied, 0.5)))  # the exact test's level, at most .05
    return cell


def length_cell(prompts: int, size: int, theta: float, phi: float, repeats: int, seed: int = 0) -> float:
    """Coverage of the length-controlled rate σ(θ); half of the prompts hold `size` outcomes decided by one draw."""
    rng, labels, covered = np.random.default_rng(seed), np.repeat(np.arange(prompts), size).tolist(), 0
    for _ in range(repeats):
        delta, u = rng.normal(3, 10, (prompts, size)), rng.random((prompts, size))
        u = np.where(rng.random((prompts, 1)) < 0.5, u[:, :1], u)
        won = (u < expit(theta + phi * np.tanh(delta / 10))).astype(float)
        got = length_controlled(won.ravel(), delta.ravel(), labels)
        covered += got.low <= expit(theta) <= got.high
    return covered / repeats


def ranking_cell(prompts: int, repeats: int, seed: int = 0) -> list[float]:
    """Coverage of the four strengths; in half of the prompts one draw decides all six games."""
    pairs = list(itertools.combinations(STRENGTHS, 2))
    chance = np.array([expit(STRENGTHS[a] - STRENGTHS[b]) for a, b in pairs])
    centre, rng = np.mean(list(STRENGTHS.values())), np.random.default_rng(seed)
    labels, covered = np.repeat(np.arange(prompts), len(pairs)).tolist(), np.zeros(len(STRENGTHS))
    for _ in range(repeats):
        u = rng.random((prompts, len(pairs)))
        u = np.where(rng.random((prompts, 1)) < 0.5, u[:, :1], u)
        games = [(a, b, float(x)) for row in u < chance for (a, b), x in zip(pairs, row, strict=True)]
        got = {s.policy: s for s in bradley_terry(games, labels)}
        covered += [got[p].low <= theta - centre <= got[p].high for p, theta in STRENGTHS.items()]
    return [float(x) for x in covered / repeats]


def main(repeats: int) -> None:
    """Print the tables as Markdown."""
    print(f"{repeats} simulations a cell\n")
    head = "outcomes | a prompt | correlation | rate | ties | covered | mean width | bootstrap covers"
    print(f"| {head} | false positives (attainable) |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for n, size, rate, ties, icc in CELLS:
        cell = win_rate_cell(n, size, rate, ties, icc, repeats)
        test = f"{cell['false_positives']:.3f} ({cell['attainable']:.3f})" if rate == 0.5 else ""
        head = f"| {n} | {size} | {icc:g} | {rate:g} | {ties:g} |"
        print(f"{head} {cell['covered']:.3f} | {cell['width']:.3f} | {cell['bootstrap']:.3f} | {test} |", flush=True)
    got = win_rate([1] * 20)
    print(f"\n20 wins of 20: {got.rate:.3f} ({got.low:.3f} to {got.high:.3f})")
    print("\n| length-controlled rate: prompts | a prompt | θ | φ | covered |\n|--:|--:|--:|--:|--:|")
    for prompts, size in ((50, 1), (50, 4), (200, 1), (1000, 1)):
        for theta, phi in ((0.0, 0.0), (0.0, 1.5), (1.0, 1.0), (2.0, -1.0)):
            covered = length_cell(prompts, size, theta, phi, repeats)
            print(f"| {prompts} | {size} | {theta:g} | {phi:g} | {covered:.3f} |", flush=True)
    print(f"\n| Bradley–Terry: prompts | {' | '.join(f'{t:+g}' for t in STRENGTHS.values())} |\n|--:|--:|--:|--:|--:|")
    for prompts in (20, 50, 200):
        print(f"| {prompts} | {' | '.join(f'{c:.3f}' for c in ranking_cell(prompts, repeats))} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
