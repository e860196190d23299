"""One report from scored samples: who beats whom, by how much, how far from the reference, and what to doubt.

`build_report` turns rows (the lines of `scores.jsonl`) into plain JSON-able data with unrounded numbers;
`render_html` (eval/html.py) and `render_markdown` show that data and add nothing. Same rows, same bytes.

A row: `{id, index, policy, prompt, response, reference?, n_tokens, found, scores: {known, learned, kl, ref_nll, …},
measures: {rougeL, copied, words, …}}`. `id` names the prompt and is the same for all policies; `found` says
that the truncation token was found; `kl` is in nats per response, summed over the sampled tokens before
truncation, under the policy that sampled them; `ref_nll` is −Σ log p_ref of the response at temperature 1.
A score may be missing for all rows of a policy at once; a measure for any row, or `None`; each gets a mean.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval import browser, evidence
from eval.alarms import BASELINE, COPIES, MAIN, SECOND_DRAW, SUPERVISED, headline, warnings
from eval.copying import count_words, distinct_n, distinct_n_within, novel_ngrams
from eval.html import render_html
from eval.markdown import render_markdown
from eval.measures import interval_of, no_stop
from eval.methods import METHODS
from eval.outcomes import Outcomes, Won, by_score, shared_keys
from eval.text import judge_name, mean_of
from eval.winrate import holm, mean_interval, win_rate

__all__ = ["build_report", "render_html", "render_markdown", "write_report"]

Row = Mapping[str, Any]
Report = dict[str, Any]


def build_report(
    rows: Sequence[Row],
    *,
    title: str,
    task: str,
    judge: str = "known",
    won: Mapping[tuple[str, str], Won] | None = None,
    baselines: Sequence[str] | None = None,
    curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] | None = None,
    reward_model: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    ensemble: Mapping[str, Any] | None = None,
    compared: Mapping[str, Any] | None = None,
    runs: Mapping[str, Mapping[str, Sequence[Sequence[float | None]]]] | None = None,
    guard: Mapping[str, Any] | None = None,
    provenance: Sequence[Mapping[str, Any]] | None = None,
    methods: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
    n_samples: int = 10,
    n_browse: int = 500,
    hide: Sequence[str] = (),
    seed: int = 0,
    command: str | None = None,
) -> Report:
    """All that a report shows, as JSON-able data with unrounded floats (NaN becomes `None`).

    Args:
        rows: scored samples as in the module's docstring; `(id, policy, index)` is unique.
        title, task: shown at the top; no task: an empty text.
        judge: the score or measure by which pairs are won; every row must carry it. With `won`, a name for whoever judged.
        won: two policies → (sample of the first, of the second), a sample being (id, index) → 1 where the first won, ½ tied, 0
            lost: verdicts in place of a score. Pairs without one are left out; policies may lack any.
        baselines: policies whose win rates the headline table shows; default: the first policy and `supervised`.
        curves: stage → column → list of [x, y], as `curves.read_curves` returns for one stage.
        reward_model: `accuracy`, `low`, `high`, `n`, `chance`, `labeler_accuracy`, `gain`, `bias`, … of
            held-out pairs.
        calibration, ensemble: `asdict` of `eval.calibration.calibrate` and `ensemble`.
        compared: what `compare.json` holds, each part where it is there: `judgements`, win rates of any judge (`judge`, `a`,
            `b`, `rate`, `low`, `high`, `n`, `p_holm`, `length_controlled`, and `position_bias`: how often what stood first
            was preferred); `agreements` of two judges (`a`, `b`, `share`, `kappa`, `alpha`, `n`); `judges` (`judge`,
            `ranking`, `verdicts`, `unparsable`, `failed`).
        runs: name → columns of a run's metrics, for the frontier; default: the `ppo` of `curves`.
        guard: what checked the reward's sign before PPO, `{kind: comparisons|pairs|overridden|none, …}`; a
            further entry that is `False`, or a dict whose `ok` is `False`, gives a warning too.
        provenance: the run.json of each stage: `stage`, `command`, `seed`, `commit`, `versions`, `data`,
            `seconds`, `peak_memory_mb`, `config`.
        methods: name → sentence; adds to and replaces entries of the default text.
        order: policies from baseline to main one; default: zero-shot, its second draw, what is copied (lead-3, reference),
            others as they come, rlhf.
        n_samples: prompts of those that are shown at first with all policies' responses, chosen by `seed`.
        n_browse: prompts that the sample browser holds in all.
        hide: ids of prompts that it leaves out.
        command: what made this report.

    Raises:
        ValueError: no rows, a row without its fields or with a bad score, a repeated key, an unknown policy
            in `order`.
    """
    _check_rows(rows, judge if won is None else None)
    names = _order(rows, order)
    by_policy = {name: [row for row in rows if row["policy"] == name] for name in names}
    policies = [_policy(name, by_policy[name]) for name in names]
    for policy in policies:
        _add_ratios(policy, policies[0])
    table = evidence.tabulate(by_policy)
    outcomes = by_score(table, judge) if won is None else Outcomes(table, won)
    axis = judge if won is None else _axis(rows)
    others = [k for k in ("known", "learned", "rougeL") if k != judge]
    against = [name for name in baselines or dict.fromkeys((names[0], SUPERVISED)) if name in by_policy]
    rewards = _rewards(provenance or [])
    samples = browser.choose(by_policy, outcomes, judge, n_browse, seed, hide)
    logged = runs if runs is not None else {"ppo": curves["ppo"]} if curves and "ppo" in curves else {}
    report: Report = {
        "version": 1,
        "title": title,
        "task": task,
        "judge": judge,
        "judge_name": judge_name(judge, rewards.get(judge)),
        "verdicts": won is not None,
        "axis": axis,
        "baseline": names[0],
        "baselines": list(baselines or dict.fromkeys([names[0], *(n for n in names if n == SUPERVISED)])),
        "main": names[-1],
        "seed": seed,
        "command": command,
        "n_prompts": len({row["id"] for row in rows}),
        "n_rows": len(rows),
        "headline": "",
        "warnings": [],
        "policies": policies,
        "comparisons": _comparisons(outcomes, names, seed, [b for b in baselines or [] if b in by_policy] or names),
        "by_construction": _by_construction(by_policy, judge, rewards.get(judge)) if won is None else [],
        "changes": {
            base: {name: evidence.changes(table, name, base) for name in names if name != base} for base in against
        },
        "length": [evidence.length(outcomes, names[-1], b) for b in against if b != names[-1] and outcomes.pairs(names[-1], b)],
        "agreement": evidence.agreement(outcomes, [*others, evidence.LONGER], [n for n in names if n != SECOND_DRAW]),
        "frontier": evidence.frontier(logged, table, names[0], axis),
        "calibration": dict(calibration) if calibration else None,
        "ensemble": dict(ensemble) if ensemble else None,
        "judgements": [_oriented(j, names) for j in (compared or {}).get("judgements", [])],
        "agreements": [dict(a) for a in (compared or {}).get("agreements", [])],
        "judges": [dict(j) for j in (compared or {}).get("judges", [])],
        "alpha": (compared or {}).get("alpha"),
        "reward_model": dict(reward_model) if reward_model else None,
        "guard": dict(guard) if guard else None,
        "curves": {
            stage: {k: [list(p) for p in v] for k, v in c.items()} for stage, c in (curves or {}).items()
        },
        "kl_target": _kl_target(provenance or []),
        "samples": samples[:n_samples],
        "more_samples": samples[n_samples:],
        "methods": [{"figure": k, "how": v} for k, v in {**METHODS, **(methods or {})}.items()],
        "provenance": [dict(run) for run in provenance or []],
    }
    report["headline"] = _headline(report)
    report["warnings"] = warnings(report)
    return _jsonable(report)


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


# ---- the rows ----


def _check_rows(rows: Sequence[Row], judge: str | None) -> None:
    """All problems of the rows in one error; `judge`: a score that each must have."""
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
        if judge is not None and judge not in row["scores"] and (row.get("measures") or {}).get(judge) is None:
            problems.append(
                f"row {i}: no score {judge!r} to judge by, found {', '.join(row['scores']) or 'none'}"
            )
        for name, value in (row.get("measures") or {}).items():
            if value is not None and not _finite(value):
                problems.append(f"row {i}: measure {name!r} is {value!r}, expected a finite number or null")
        for name, value in row["scores"].items():
            if not _finite(value):
                problems.append(f"row {i}: score {name!r} is {value!r}, expected a finite number")
        expected = names.setdefault(row["policy"], set(row["scores"]))
        if set(row["scores"]) != expected:
            problems.append(
                f"row {i}: scores {sorted(row['scores'])}, expected {sorted(expected)} as in other rows"
            )
    if problems:
        more = f"\n… and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError("the rows cannot be reported:\n" + "\n".join(problems[:20]) + more)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _order(rows: Sequence[Row], order: Sequence[str] | None) -> list[str]:
    """Policies from the baseline to the main one."""
    present = list(dict.fromkeys(row["policy"] for row in rows))
    if order is None:
        rank = {BASELINE: 0, SECOND_DRAW: 1, MAIN: 4}
        return sorted(present, key=lambda name: rank.get(name, 2 if COPIES.fullmatch(name) else 3))
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
    told = [no for row in rows if (no := no_stop(row)) is not None]  # others' samples need not say
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
        "words": asdict(mean_interval([count_words(text) for text in responses], ids)),
        "measures": _measures(rows),
        "missing": sum(told) / len(told) if told else None,
        "distinct_2_within": _mean_where_defined([distinct_n_within(text, 2) for text in responses], ids),
        "distinct": {str(n): distinct_n(responses, n) for n in (1, 2, 3)},
        "new_bigrams": _mean_where_defined([novel_ngrams(r["prompt"], r["response"], 2) for r in rows], ids),
        "perplexity": math.exp(min(sum(nll) / sum(tokens), 700.0)) if known_nll else None,
    }


def _measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean of each measure over the rows that have it."""
    told = [row.get("measures") or {} for row in rows]
    found = {}
    for name in dict.fromkeys(name for measures in told for name in measures):
        kept = [(m[name], row["id"]) for m, row in zip(told, rows, strict=True) if m.get(name) is not None]
        if kept:
            found[name] = asdict(interval_of(name, [v for v, _ in kept], [i for _, i in kept]))
    return found


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
        # of a corpus: more responses have fewer different ones among them
        "distinct_2": _ratio(policy["distinct"]["2"], baseline["distinct"]["2"]) if policy["n"] == baseline["n"] else None,
        "words": _ratio(mean_of(policy["words"]), mean_of(baseline["words"])),
        "perplexity": _ratio(policy["perplexity"], baseline["perplexity"]),
    }


def _comparisons(outcomes: Outcomes, names: Sequence[str], seed: int, baselines: Sequence[str]) -> list[dict[str, Any]]:
    """Each pair of policies that was judged once, the later one first; the main policy's first.

    Holm's correction is over the pairs with a baseline, as `eval.compare`'s is; the others have none.
    """
    out = []
    for j in range(len(names) - 1, 0, -1):
        for i in range(j):
            pairs = outcomes.pairs(names[j], names[i])
            if not pairs:
                continue
            result = win_rate([p.outcome for p in pairs], [p.prompt for p in pairs], seed=seed)
            a, b = outcomes.table[names[j]], outcomes.table[names[i]]
            both, judged = shared_keys(outcomes.table, names[j], names[i]), {p.prompt for p in pairs}
            pair = {
                "a": names[j],
                "b": names[i],
                "prompts": len(judged),
                "unpaired": len(a) + len(b) - 2 * len(both),
                "same_prompts": {key[0] for key in a} == {key[0] for key in b},
                "unjudged": len({key[0] for key in both} - judged),
            }
            out.append({**pair, **asdict(result)})
    asked = [c for c in out if c["a"] in baselines or c["b"] in baselines]
    for c, p in zip(asked, holm([c["p_value"] for c in asked]), strict=True):
        c["p_holm"] = p
    return [{**c, "p_holm": c.get("p_holm")} for c in out]


def _oriented(judgement: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A judge's row on two policies with the later one first, as in the comparisons: rates and counts are turned round."""
    j = dict(judgement)
    if j.get("a") not in names or j.get("b") not in names or names.index(j["a"]) >= names.index(j["b"]):
        return j
    turned = {**j, "a": j["b"], "b": j["a"], **_turned(j)}
    if "wins" in j and "losses" in j:
        turned |= {"wins": j["losses"], "losses": j["wins"]}
    controlled = j.get("length_controlled")
    if controlled:  # the slope of length is the same from both sides
        longer = controlled.get("longer")
        turned["length_controlled"] = {**controlled, **_turned(controlled), "longer": None if longer is None else 1 - longer}
    return turned


def _turned(rate: Mapping[str, Any]) -> dict[str, float | None]:
    """A rate and its interval as the other side sees them."""
    ends = {"rate": rate.get("rate"), "low": rate.get("high"), "high": rate.get("low")}
    return {key: None if value is None else 1 - value for key, value in ends.items()}


def _by_construction(by_policy: Mapping[str, Sequence[Row]], judge: str, reward: str | None) -> list[str]:
    """Policies that answer with each prompt's reference (`reference` by its name), where the judge compares with that."""
    if not (judge.startswith("rouge") or reward == "known:rouge"):
        return []
    known: dict[Any, set[str]] = {}  # prompt → its references; the reference's own rows may have none
    for row in (row for rows in by_policy.values() for row in rows):
        reference = row.get("reference")
        texts = [reference] if isinstance(reference, str) else reference or []
        known.setdefault(row["id"], set()).update(text.strip() for text in texts)
    return [
        name
        for name, rows in by_policy.items()
        if name == "reference" or all(row["response"].strip() in known[row["id"]] for row in rows)
    ]


def _headline(report: Report) -> str:
    """`eval.alarms.headline`, without policies that win by construction unless there are no others."""
    out = set(report["by_construction"])
    policies = [p for p in report["policies"] if p["name"] not in out]
    if not out or not policies:
        return headline(report)
    ends = {"main": policies[-1]["name"], "baseline": policies[0]["name"], "policies": policies}
    return headline({**report, **ends, "comparisons": [c for c in report["comparisons"] if not out & {c["a"], c["b"]}]})


def _rewards(provenance: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The names of the known and learned reward, as the last run's config has them."""
    configs = [run["config"] for run in provenance if isinstance(run.get("config"), Mapping)]
    last = configs[-1] if configs else {}
    return {kind: str(last[f"{kind}_reward"]) for kind in ("known", "learned") if last.get(f"{kind}_reward")}


# ---- small helpers ----


def _axis(rows: Sequence[Row]) -> str:
    """Where pairs are won by verdicts: the score in the headline table, and drawn against KL; one that all rows have."""
    own = [name for name in rows[0]["scores"] if name not in ("kl", "ref_nll")]
    return next((name for name in ("known", "learned", *own) if all(name in row["scores"] for row in rows)), "rougeL")


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


def _clean(text: str) -> str:
    """Text that every reader of UTF-8 and HTML takes: lone surrogates and control characters become U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text)


def _jsonable(value: Any) -> Any:
    """Plain JSON types; a float that is not finite becomes `None`."""
    if isinstance(value, Mapping):
        return {_clean(str(k)): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, str):
        return _clean(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) or hasattr(value, "__float__"):
        return float(value) if math.isfinite(value) else None
    return _clean(str(value))
