"""One report from scored samples: who beats whom, by how much, how far from the reference, and what to doubt.

`build_report` turns rows (the lines of `scores.jsonl`) into plain JSON-able data with unrounded numbers;
`render_html` (eval/html.py) and `render_markdown` show that data and add nothing. Same rows, same bytes.

A row: `{id, index, policy, prompt, response, n_tokens, found, scores: {known, learned, kl, ref_nll, …}}`.
`id` names the prompt and is the same for all policies; `found` says that the truncation token was found;
`kl` is in nats per response, summed over the sampled tokens before truncation, under the policy that
sampled them; `ref_nll` is −Σ log p_ref of the response at temperature 1. A score may be missing for all
rows of a policy at once; other scores get a mean too.
"""

import csv
import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.alarms import BASELINE, MAIN, METHODS, SECOND_DRAW, headline, warnings
from eval.copying import distinct_n, distinct_n_within, novel_ngrams, words
from eval.html import render_html
from eval.text import interval, mean_of, ordered_names, p_text, percent, score_mean, signed
from eval.winrate import mean_interval, paired_outcomes, win_rate

__all__ = ["build_report", "read_curves", "render_html", "render_markdown", "write_report"]

JUDGES = {"known": "the known reward", "learned": "the learned reward model"}
Row = Mapping[str, Any]
Report = dict[str, Any]


def build_report(
    rows: Sequence[Row],
    *,
    title: str,
    task: str,
    judge: str = "known",
    curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] | None = None,
    reward_model: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] | None = None,
    provenance: Sequence[Mapping[str, Any]] | None = None,
    methods: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
    n_samples: int = 10,
    seed: int = 0,
    command: str | None = None,
) -> Report:
    """All that a report shows, as JSON-able data with unrounded floats (NaN becomes `None`).

    Args:
        rows: scored samples as in the module's docstring; `(id, policy, index)` is unique.
        title, task: shown at the top.
        judge: the score by which pairs are won; every row must carry it.
        curves: stage → column → list of [x, y], as `read_curves` returns for one stage.
        reward_model: `accuracy`, `low`, `high`, `n`, `chance`, `labeler_accuracy`, `gain`, `bias`, … of
            held-out pairs.
        guard: what checked the reward's sign before PPO, `{kind: comparisons|pairs|overridden|none, …}`; a
            further entry that is `False`, or a dict whose `ok` is `False`, gives a warning too.
        provenance: the run.json of each stage: `stage`, `command`, `seed`, `commit`, `versions`, `data`,
            `seconds`, `peak_memory_mb`, `config`.
        methods: name → sentence; adds to and replaces entries of the default text.
        order: policies from baseline to main one; default: zero-shot, its second draw, others as they come,
            rlhf.
        n_samples: prompts shown with all policies' responses, chosen by `seed`.
        command: what made this report.

    Raises:
        ValueError: no rows, a row without its fields or with a bad score, a repeated key, an unknown policy
            in `order`.
    """
    _check_rows(rows, judge)
    names = _order(rows, order)
    by_policy = {name: [row for row in rows if row["policy"] == name] for name in names}
    policies = [_policy(name, by_policy[name]) for name in names]
    for policy in policies:
        _add_ratios(policy, policies[0])
    comparisons = _comparisons(by_policy, judge, seed)
    report: Report = {
        "version": 1,
        "title": title,
        "task": task,
        "judge": judge,
        "judge_name": JUDGES.get(judge, f"the score “{judge}”"),
        "baseline": names[0],
        "main": names[-1],
        "seed": seed,
        "command": command,
        "n_prompts": len({row["id"] for row in rows}),
        "n_rows": len(rows),
        "headline": "",
        "warnings": [],
        "policies": policies,
        "comparisons": comparisons,
        "reward_model": dict(reward_model) if reward_model else None,
        "guard": dict(guard) if guard else None,
        "curves": {
            stage: {k: [list(p) for p in v] for k, v in c.items()} for stage, c in (curves or {}).items()
        },
        "kl_target": _kl_target(provenance or []),
        "samples": _samples(by_policy, n_samples, seed),
        "methods": [{"figure": k, "how": v} for k, v in {**METHODS, **(methods or {})}.items()],
        "provenance": [dict(run) for run in provenance or []],
    }
    report["headline"] = headline(report)
    report["warnings"] = warnings(report)
    return _jsonable(report)


def read_curves(
    metrics_csv_path: str | os.PathLike[str], x: str = "step"
) -> dict[str, list[list[float | None]]]:
    """Column → list of [x, y] from the metrics.csv of Lightning's CSVLogger.

    Cells may be empty: each column keeps only the rows in which both it and `x` have a value. A value that
    is not finite becomes `None`, so that a plot shows a gap where a run broke.

    Raises:
        ValueError: no column `x`, or a cell that is not a number; names the file, line and column.
    """
    path = Path(metrics_csv_path)
    curves: dict[str, list[list[float | None]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        if x not in columns:
            raise ValueError(f"{path}: no column {x!r}, found {', '.join(columns) or 'an empty file'}")
        for cells in reader:
            if not cells[x]:
                continue
            for column in columns:
                if column == x or not cells[column]:
                    continue
                try:
                    point = [float(cells[x]), float(cells[column])]
                except ValueError:
                    raise ValueError(
                        f"{path}:{reader.line_num}: column {column!r}: found {cells[column]!r} at "
                        f"{x} {cells[x]!r}, expected numbers"
                    ) from None
                curves.setdefault(column, []).append(
                    [point[0], point[1] if math.isfinite(point[1]) else None]
                )
    return curves


def write_report(report: Report, out_dir: str | os.PathLike[str]) -> dict[str, Path]:
    """Write report.html, report.json and report.md into `out_dir`, each by a rename; `{kind: path}`."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "html": render_html(report),
        "json": json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "md": render_markdown(report),
    }
    paths = {}
    for kind, text in texts.items():
        path = out / f"report.{kind}"
        part = out / f".report.{kind}.part"
        part.write_bytes(text.encode())
        os.replace(part, path)
        paths[kind] = path
    return paths


def render_markdown(report: Report) -> str:
    """The short version: headline, warnings, the two tables, where it came from."""
    names = ordered_names(report)
    lines = [f"# {report['title']}", "", report["headline"], ""]
    lines += [f"- **Warning:** {warning['text']}" for warning in report["warnings"]] or [
        "No warning was raised."
    ]
    lines += ["", f"| policy | n | {' | '.join(names)} | no stop | distinct-2 within / corpus | perplexity |"]
    lines += ["|---|--:|" + "--:|" * (len(names) + 3)]
    for p in report["policies"]:
        scores = " | ".join(f"{signed(score_mean(p, k))} ({interval(p['scores'].get(k))})" for k in names)
        diversity = f"{signed(mean_of(p['distinct_2_within']))} / {signed(p['distinct']['2'])}"
        cells = f"{p['n']} | {scores} | {percent(p['missing'])} | {diversity} | {signed(p['perplexity'])}"
        lines.append(f"| {_cell(p['name'])} | {cells} |")
    judged = f"judged by {report['judge_name']}"
    lines += ["", f"| win rate, {judged} | % | 95 % interval | wins / ties / losses | p | p (Holm) |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for c in report["comparisons"]:
        counts = f"{c['wins']} / {c['ties']} / {c['losses']}"
        bounds = f"{100 * c['low']:.1f}–{100 * c['high']:.1f}"
        pair = f"{_cell(c['a'])} vs {_cell(c['b'])}"
        p = f"{p_text(c['p_value'])} | {p_text(c['p_holm'])}"
        lines.append(f"| {pair} | {100 * c['rate']:.1f} | {bounds} | {counts} | {p} |")
    model = report["reward_model"]
    if model and model.get("accuracy") is not None:
        lines += ["", f"Reward model: held-out accuracy {percent(model['accuracy'])}."]
    for run in report["provenance"]:
        commit = run.get("commit", "unknown")
        lines += ["", f"- {run.get('stage', 'run')}: `{run.get('command', '')}` (commit {commit})"]
    if report["command"]:
        lines += ["", f"Made by `{report['command']}`."]
    return "\n".join(lines) + "\n"


# ---- the rows ----


def _check_rows(rows: Sequence[Row], judge: str) -> None:
    """All problems of the rows in one error."""
    if not rows:
        raise ValueError("rows is empty, expected scored samples")
    problems: list[str] = []
    seen: set[tuple] = set()
    names: dict[str, set[str]] = {}
    for i, row in enumerate(rows):
        missing = [field for field in ("id", "policy", "prompt", "response", "scores") if field not in row]
        if missing:
            problems.append(f"row {i}: no field {', '.join(missing)}")
            continue
        key = (row["id"], row["policy"], row.get("index", 0))
        if key in seen:
            problems.append(f"row {i}: id {key[0]!r}, policy {key[1]!r}, index {key[2]!r} occurs twice")
        seen.add(key)
        if judge not in row["scores"]:
            problems.append(
                f"row {i}: no score {judge!r} to judge by, found {', '.join(row['scores']) or 'none'}"
            )
        for name, value in row["scores"].items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                problems.append(f"row {i}: score {name!r} is {value!r}, expected a finite number")
        expected = names.setdefault(row["policy"], set(row["scores"]))
        if set(row["scores"]) != expected:
            problems.append(
                f"row {i}: scores {sorted(row['scores'])}, expected {sorted(expected)} as in other rows"
            )
    if problems:
        more = f"\n… and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError("the rows cannot be reported:\n" + "\n".join(problems[:20]) + more)


def _order(rows: Sequence[Row], order: Sequence[str] | None) -> list[str]:
    """Policies from the baseline to the main one."""
    present = list(dict.fromkeys(row["policy"] for row in rows))
    if order is None:
        rank = {BASELINE: 0, SECOND_DRAW: 1, MAIN: 3}
        return sorted(present, key=lambda name: rank.get(name, 2))
    if sorted(order) != sorted(present):
        raise ValueError(f"order is {list(order)}, expected each of {present} once")
    return list(order)


def _policy(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Every figure of one policy."""
    ids = [row["id"] for row in rows]
    responses = [row["response"] for row in rows]
    counts = [row.get("n_tokens") for row in rows]
    tokens = [n for n in counts if isinstance(n, int)]
    counted = len(tokens) == len(rows)
    nll = [row["scores"]["ref_nll"] for row in rows if "ref_nll" in row["scores"]]
    known_nll = counted and sum(tokens) > 0 and len(nll) == len(rows)
    return {
        "name": name,
        "n": len(rows),
        "scores": {
            key: asdict(mean_interval([row["scores"][key] for row in rows], ids))
            for key in rows[0]["scores"]
            if key != "ref_nll"
        },
        "tokens": asdict(mean_interval(tokens, ids)) if counted else None,
        "words": asdict(mean_interval([len(words(text)) for text in responses], ids)),
        "missing": sum(not row.get("found", True) for row in rows) / len(rows),
        "distinct_2_within": _mean_where_defined([distinct_n_within(text, 2) for text in responses], ids),
        "distinct": {str(n): distinct_n(responses, n) for n in (1, 2, 3)},
        "new_bigrams": _mean_where_defined([novel_ngrams(r["prompt"], r["response"], 2) for r in rows], ids),
        "perplexity": math.exp(min(sum(nll) / sum(tokens), 700.0)) if known_nll else None,
    }


def _mean_where_defined(values: Sequence[float], ids: Sequence[Any]) -> dict[str, Any] | None:
    """Mean over the values that are not NaN (responses long enough), or `None` where there is none."""
    kept = [(value, i) for value, i in zip(values, ids, strict=True) if not math.isnan(value)]
    return asdict(mean_interval([v for v, _ in kept], [i for _, i in kept])) if kept else None


def _add_ratios(policy: dict[str, Any], baseline: Mapping[str, Any]) -> None:
    """Diversity, length and perplexity relative to the baseline."""
    policy["ratio"] = {
        "distinct_2_within": _ratio(
            mean_of(policy["distinct_2_within"]), mean_of(baseline["distinct_2_within"])
        ),
        "distinct_2": _ratio(policy["distinct"]["2"], baseline["distinct"]["2"]),
        "words": _ratio(mean_of(policy["words"]), mean_of(baseline["words"])),
        "perplexity": _ratio(policy["perplexity"], baseline["perplexity"]),
    }


def _comparisons(by_policy: Mapping[str, Sequence[Row]], judge: str, seed: int) -> list[dict[str, Any]]:
    """Each pair of policies once, the later one first, on shared (id, index); the main policy's first."""
    names = list(by_policy)
    table = {
        name: {(r["id"], r.get("index", 0)): r["scores"][judge] for r in rows}
        for name, rows in by_policy.items()
    }
    out = []
    for j in range(len(names) - 1, 0, -1):
        for i in range(j):
            a, b = table[names[j]], table[names[i]]
            keys = [key for key in a if key in b]
            if not keys:
                raise ValueError(
                    f"policies {names[j]!r} and {names[i]!r} share no (id, index), expected the same prompts"
                )
            outcomes = paired_outcomes([a[key] for key in keys], [b[key] for key in keys])
            result = win_rate(outcomes, [key[0] for key in keys], seed=seed)
            prompts = len({key[0] for key in keys})
            unpaired = len(a) + len(b) - 2 * len(keys)
            out.append(
                {"a": names[j], "b": names[i], "prompts": prompts, "unpaired": unpaired, **asdict(result)}
            )
    # Holm (1979): the i-th smallest of k p-values times k − i (i from 0), made non-decreasing.
    running = 0.0
    for rank, c in enumerate(sorted(out, key=lambda c: c["p_value"])):
        running = max(running, min(1.0, c["p_value"] * (len(out) - rank)))
        c["p_holm"] = running
    return out


def _samples(by_policy: Mapping[str, Sequence[Row]], n_samples: int, seed: int) -> list[dict[str, Any]]:
    """The first response of every policy to a seeded choice of prompts, in the order of the rows."""
    first: dict[Any, dict[str, Row]] = {}
    for name, rows in by_policy.items():
        for row in sorted(rows, key=lambda row: row.get("index", 0)):
            first.setdefault(row["id"], {}).setdefault(name, row)
    shared = [key for key, found in first.items() if len(found) == len(by_policy)] or list(first)
    chosen = sorted(random.Random(seed).sample(range(len(shared)), min(n_samples, len(shared))))
    return [
        {
            "id": shared[i],
            "prompt": next(iter(first[shared[i]].values()))["prompt"],
            "responses": [
                {
                    "policy": name,
                    "text": row["response"],
                    "found": bool(row.get("found", True)),
                    "scores": {k: v for k, v in row["scores"].items() if k != "ref_nll"},
                }
                for name, row in first[shared[i]].items()
            ],
        }
        for i in chosen
    ]


# ---- small helpers ----


def _kl_target(provenance: Sequence[Mapping[str, Any]]) -> float | None:
    """The first number called `kl_target` in a run's config, drawn into the KL curve."""

    def find(value: Any) -> float | None:
        if isinstance(value, Mapping):
            target = value.get("kl_target")
            if isinstance(target, (int, float)) and not isinstance(target, bool):
                return float(target)
            return next((t for t in map(find, value.values()) if t is not None), None)
        return None

    return next((t for t in (find(run.get("config")) for run in provenance) if t is not None), None)


def _ratio(value: float | None, base: float | None) -> float | None:
    if value is None or base is None or not base > 0 or math.isnan(value):
        return None
    return value / base


def _cell(text: str) -> str:
    """Text that cannot break a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _jsonable(value: Any) -> Any:
    """Plain JSON types; a float that is not finite becomes `None`."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) or hasattr(value, "__float__"):
        return float(value) if math.isfinite(value) else None
    return str(value)
