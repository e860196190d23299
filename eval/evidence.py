"""What stands behind a win rate: length, agreement of other measures with the judge, the cost in KL. Plain data for the report.

A row (`eval.report`) has figures: its `scores` and, where it has them, its `measures`. A `Table` holds them by policy and
(id, index), so that pairs are of the same prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from eval.copying import count_words
from eval.frontier import Columns, Run, best_of_n, over_optimised, run_of, sqrt_kl_fit
from eval.winrate import mean_interval, paired_outcomes, win_rate

Row = Mapping[str, Any]
Figures = Mapping[str, float]
Table = Mapping[str, Mapping[tuple[Any, int], Figures]]  # policy → (id, index) → figures
BINS = 5
LONGER = "longer"  # the measure that prefers the longer response: the control


def figures(row: Row) -> dict[str, float]:
    """A row's scores and measures that are defined, by name; `words` is counted where it was not measured."""
    found = {**(row.get("measures") or {}), **row["scores"]}
    found.setdefault("words", count_words(row["response"]))
    return {name: float(value) for name, value in found.items() if value is not None}


def tabulate(by_policy: Mapping[str, Sequence[Row]]) -> dict[str, dict[tuple[Any, int], Figures]]:
    """Rows by policy → figures by policy and (id, index)."""
    return {name: {(row["id"], row.get("index", 0)): figures(row) for row in rows} for name, rows in by_policy.items()}


def changes(table: Table, a: str, b: str) -> dict[str, Any]:
    """Each figure of `a` minus that of `b` on the same prompts: {name: {mean, low, high, n}}, 95 % by prompt."""
    differences: dict[str, list[tuple[float, Any]]] = {}
    for i, x, y in _pairs(table, a, b):
        for name in x.keys() & y.keys():
            differences.setdefault(name, []).append((x[name] - y[name], i))
    return {
        name: asdict(mean_interval([v for v, _ in found], [i for _, i in found])) for name, found in sorted(differences.items())
    }


def length(table: Table, judge: str, a: str, b: str) -> dict[str, Any]:
    """Wins of `a` over `b` by how many more words it wrote: equal-count bins, and the pairs in which it wrote no more."""
    pairs = _pairs(table, a, b)
    outcome = paired_outcomes([x[judge] for _, x, _ in pairs], [y[judge] for _, _, y in pairs])
    more = np.array([x["words"] - y["words"] for _, x, y in pairs])
    ids = [i for i, _, _ in pairs]

    def rate(part: np.ndarray) -> dict[str, Any] | None:
        return asdict(win_rate(outcome[part], [ids[i] for i in part])) if part.size else None

    parts = np.array_split(np.argsort(more, kind="stable"), max(1, min(BINS, len(pairs) // 10)))
    bins = [{"more": float(more[part].mean()), **(rate(part) or {})} for part in parts]
    return {"a": a, "b": b, "bins": bins, "not_longer": rate(np.flatnonzero(more <= 0)), "longer": rate(np.flatnonzero(more > 0))}


def agreement(table: Table, judge: str, measures: Sequence[str]) -> list[dict[str, Any]]:
    """How often another measure picks the judge's winner: `{measure, rate, low, high, n}`, the best first.

    Over all pairs of policies on the same (id, index), without those tied by either; intervals by prompt; chance is ½.
    `LONGER` prefers the longer response.
    """
    hits: dict[str, list[tuple[float, Any]]] = {}
    names = list(table)
    for j, a in enumerate(names):
        for b in names[:j]:
            for i, x, y in _pairs(table, a, b):
                for measure in measures:
                    key = "words" if measure == LONGER else measure
                    if key in x and key in y and x[key] != y[key] and x[judge] != y[judge]:
                        hits.setdefault(measure, []).append((float((x[key] > y[key]) == (x[judge] > y[judge])), i))
    out = []
    for measure, found in hits.items():
        out.append({"measure": measure, **asdict(win_rate([h for h, _ in found], [i for _, i in found]))})
    return sorted(out, key=lambda row: -row["rate"])


def frontier(runs: Mapping[str, Columns], table: Table, baseline: str, judge: str) -> dict[str, Any]:
    """Checkpoints of each run with the √KL line and the turn of gold, and best-of-n from the baseline's own samples.

    Args:
        runs: Name → columns of its metrics, as `eval.curves.read_curves` gives them.
        table, baseline, judge: Best-of-n needs two or more samples a prompt of the baseline, with a learned score.
    """
    told = []
    for name, columns in runs.items():
        run = run_of(name, columns)
        if run is not None:
            told.append({**asdict(run), "line": _line(run), "turn": _turn(run)})
    return {"runs": told, "best_of": _best_of(table.get(baseline, {}), judge)}


def _line(run: Run) -> dict[str, Any] | None:
    different = len(run.kl) >= 3 and len({max(k, 0.0) for k in run.kl}) > 1
    return asdict(sqrt_kl_fit(run.kl, run.proxy)) if different else None


def _turn(run: Run) -> dict[str, Any] | None:
    turn = over_optimised(run)
    return None if turn is None else {**asdict(turn), "step": run.step[turn.at]}


def _best_of(rows: Mapping[tuple[Any, int], Figures], judge: str) -> list[dict[str, Any]]:
    """Best of 1, 2, 4, … by the learned reward, with the judge's score of the chosen one where the judge is another."""
    samples: dict[Any, list[Figures]] = {}
    for (prompt, _), found in rows.items():
        samples.setdefault(prompt, []).append(found)
    most = min((len(s) for s in samples.values()), default=0)
    if most < 2 or not all("learned" in s and judge in s for found in samples.values() for s in found):
        return []
    proxy = [[s["learned"] for s in found] for found in samples.values()]
    gold = None if judge == "learned" else [[s[judge] for s in found] for found in samples.values()]
    return [asdict(best_of_n(proxy, gold, 2**k)) for k in range(most.bit_length())]


def _pairs(table: Table, a: str, b: str) -> list[tuple[Any, Figures, Figures]]:
    """(prompt's id, figures of a, figures of b) for each (id, index) that both answered, in a's order."""
    return [(key[0], x, table[b][key]) for key, x in table[a].items() if key in table[b]]
