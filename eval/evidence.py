"""What stands behind a win rate: length, agreement of other measures with the judge, the cost in KL. Plain data for the report.

A row (`eval.report`) has figures: its `scores` and, where it has them, its `measures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from eval.copying import count_words
from eval.frontier import Columns, Run, best_of_n, logged_run, over_optimised, sqrt_kl_fit
from eval.outcomes import Figures, Key, Outcomes, Table, key_of, shared_keys
from eval.winrate import mean_interval, win_rate

Row = Mapping[str, Any]
BINS = 5
LONGER = "longer"  # the measure that prefers the longer response: the control


def figures(row: Row) -> dict[str, float]:
    """A row's scores and measures that are defined, by name; `words` is counted where it was not measured."""
    found = {**(row.get("measures") or {}), **row["scores"]}
    found.setdefault("words", count_words(row["response"]))
    return {name: float(value) for name, value in found.items() if value is not None}


def tabulate(by_policy: Mapping[str, Sequence[Row]]) -> dict[str, dict[Key, Figures]]:
    """Rows by policy → figures by policy and (id, index)."""
    return {name: {key_of(row): figures(row) for row in rows} for name, rows in by_policy.items()}


def changes(table: Table, a: str, b: str) -> dict[str, Any]:
    """Each figure of `a` minus that of `b` on the same prompts: {name: {mean, low, high, n}}, 95 % by prompt."""
    differences: dict[str, list[tuple[float, str]]] = {}
    for key in shared_keys(table, a, b):
        x, y = table[a][key], table[b][key]
        for name in x.keys() & y.keys():
            differences.setdefault(name, []).append((x[name] - y[name], key[0]))
    return {
        name: asdict(mean_interval([v for v, _ in found], [i for _, i in found])) for name, found in sorted(differences.items())
    }


def length(outcomes: Outcomes, a: str, b: str) -> dict[str, Any]:
    """Wins of `a` over `b` by how many more words it wrote: equal-count bins, and the pairs in which it wrote no more."""
    pairs = outcomes.pairs(a, b)
    outcome = np.array([p.outcome for p in pairs])
    more = np.array([p.a["words"] - p.b["words"] for p in pairs])
    ids = [p.prompt for p in pairs]

    def rate(part: np.ndarray) -> dict[str, Any] | None:
        return asdict(win_rate(outcome[part], [ids[i] for i in part])) if part.size else None

    parts = np.array_split(np.argsort(more, kind="stable"), max(1, min(BINS, len(pairs) // 10)))
    bins = [{"more": float(more[part].mean()), **(rate(part) or {})} for part in parts]
    return {"a": a, "b": b, "bins": bins, "not_longer": rate(np.flatnonzero(more <= 0)), "longer": rate(np.flatnonzero(more > 0))}


def agreement(outcomes: Outcomes, measures: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """How often another measure picks the judge's winner: `{measure, rate, low, high, n}`, the best first.

    Over all pairs that were judged of these policies, without those tied by either; intervals by prompt; chance is ½.
    `LONGER` prefers the longer response.
    """
    hits: dict[str, list[tuple[float, str]]] = {}
    for b, a in combinations(names, 2):
        for pair in outcomes.pairs(a, b):
            for measure in measures:
                key = "words" if measure == LONGER else measure
                if key in pair.a and key in pair.b and pair.a[key] != pair.b[key] and pair.outcome != 0.5:
                    hit = (pair.a[key] > pair.b[key]) == (pair.outcome > 0.5)
                    hits.setdefault(measure, []).append((float(hit), pair.prompt))
    out = []
    for measure, found in hits.items():
        out.append({"measure": measure, **asdict(win_rate([h for h, _ in found], [i for _, i in found]))})
    return sorted(out, key=lambda row: -row["rate"])


def frontier(runs: Mapping[str, Columns], table: Table, baseline: str, gold: str) -> dict[str, Any]:
    """Checkpoints of each run with the √KL line and the turn of gold, and best-of-n from the baseline's own samples.

    Args:
        runs: Name → columns of its metrics, as `eval.curves.read_curves` gives them.
        table, baseline, gold: Best-of-n needs two or more samples a prompt of the baseline, with a learned score and `gold`.
    """
    told = []
    for name, columns in runs.items():
        run = logged_run(name, columns)
        if run is not None:
            told.append({**asdict(run), "line": _line(run), "turn": _turn(run)})
    return {"runs": told, "best_of": _best_of(table.get(baseline, {}), gold)}


def _line(run: Run) -> dict[str, Any] | None:
    different = len(run.kl) >= 3 and len({max(k, 0.0) for k in run.kl}) > 1
    return asdict(sqrt_kl_fit(run.kl, run.proxy)) if different else None


def _turn(run: Run) -> dict[str, Any] | None:
    turn = over_optimised(run)
    return None if turn is None else {**asdict(turn), "step": run.step[turn.at]}


def _best_of(rows: Mapping[Key, Figures], gold: str) -> list[dict[str, Any]]:
    """Best of 1, 2, 4, … by the learned reward, with the gold score of the chosen one where that is another."""
    samples: dict[str, list[Figures]] = {}
    for (prompt, _), found in rows.items():
        samples.setdefault(prompt, []).append(found)
    most = min((len(s) for s in samples.values()), default=0)
    if most < 2 or not all("learned" in s and gold in s for found in samples.values() for s in found):
        return []
    proxy = [[s["learned"] for s in found] for found in samples.values()]
    golden = None if gold == "learned" else [[s[gold] for s in found] for found in samples.values()]
    return [asdict(best_of_n(proxy, golden, 2**k)) for k in range(most.bit_length())]
