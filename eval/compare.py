"""Scored samples → who beats whom: the inside of `python -m eval compare`.

For each judge: win rates of every policy over every baseline (ties half; intervals by prompt; sign test; Holm's correction over
the judge's table), the win rate at equal length (in characters), a Bradley–Terry ranking, the share of verdicts that went to
the response shown first, and what was not judged. Where two judges judged the same pairs of samples: how far they agree.

A pair of samples is won by the mean of its verdicts: both orders of a language model, all the people who saw it. A pair of
which a verdict is missing (unparsable, failed) is left out and counted. No torch.

`compare.json`: `judgements`, a row for each judge and pair of policies; `judges`, what was counted, ranking and position bias of
each; `agreements`, a row for each two judges; `alpha`, of all judges together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from eval.agreement import cohen_kappa, krippendorff_alpha
from eval.judges import FileJudge, Judge, Row, Sample, ScoreJudge, Verdict
from eval.outcomes import Won, key_of
from eval.winrate import bradley_terry, holm, length_controlled, sample_size, win_rate
from lightning_rlhf.files import DataError, bad
from lightning_rlhf.tasks import UsageError

DIFFERENCES = (0.05, 0.1)  # from ½: the prompts that these would need are always told
SCORE = {"a": 1.0, "tie": 0.5, "b": 0.0}
Pair = tuple[Sample, Sample]


@dataclass(frozen=True)
class Compared:
    """What `compare` found beside its file."""

    text: str  # for a terminal
    won: Mapping[str, Mapping[tuple[str, str], Won]]  # judge → two policies → who won each pair


def compare(
    rows: Sequence[Row],
    policies: Sequence[str],
    judges: Mapping[str, Judge],
    folder: Path,
    baselines: Sequence[str] | None = None,
    differences: Sequence[float] = (),
) -> Compared:
    """Write `compare.json`; returns it as a table in words, and who won each pair.

    Args:
        rows: lines of scores.jsonl: `{id, index, policy, prompt, response, scores}`.
        policies: those compared, in order.
        judges: name → judge.
        folder: where `compare.json` goes.
        baselines: those that the others are compared with; `None`: each policy with each one before it.
        differences: of a win rate from ½, beside `DIFFERENCES`: the prompts that each would need are told.

    Raises:
        UsageError, DataError: an unknown policy, policies on other prompts, a repeated sample, or what a judge cannot judge;
            before anything is asked.
    """
    samples = by_policy(rows, policies)
    pairs = policy_pairs(policies, baselines)
    for judge in judges.values():
        judge.check([r for p in policies for r in samples[p].values()])
    result: dict[str, Any] = {"judgements": [], "judges": []}
    every: list[Verdict] = []
    won: dict[str, dict[tuple[str, str], Won]] = {}
    rows_of = {(a, b): paired(samples[a], samples[b]) for a, b in pairs}
    for name, judge in judges.items():
        judge.prepare(pair for x, y in rows_of.values() for pair in zip(x, y, strict=True))
        verdicts = {names: judge(*of_both) for names, of_both in rows_of.items()}
        told = {(a, b): outcomes(given, a) for (a, b), given in verdicts.items()}
        won[name] = {pair: without_policies(found) for pair, (found, _) in told.items()}
        table, summary = judge_table(name, verdicts, told, samples, sorted({*DIFFERENCES, *differences}))
        met = {pair: found for pair, (found, _) in told.items() if found}
        if isinstance(judge, ScoreJudge):  # which says of any two policies who won
            for a, b in policy_pairs(policies, None):
                if (a, b) not in met and (b, a) not in met:
                    met[a, b] = outcomes(judge(*paired(samples[a], samples[b])), a)[0]
        summary |= ranked(met)
        if isinstance(judge, FileJudge):
            # on prompts or policies that the table does not compare
            summary["unused"] = judge.left_out + len(judge.verdicts) - summary["verdicts"]
        result["judgements"] += table
        result["judges"].append(summary)
        said = [v for given in verdicts.values() for v in given]
        taken = {v.judge for v in every}
        every += [replace(v, judge=f"{v.judge} ({name})") if v.judge in taken else v for v in said]  # two files, one name
    result["agreements"], result["alpha"] = agreement(every)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".compare.json.part"
    part.write_text(json.dumps(_jsonable(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(folder / "compare.json")
    return Compared(text_table(result), won)


def by_policy(rows: Sequence[Row], policies: Sequence[str]) -> dict[str, dict[tuple[str, int], Row]]:
    """Policy → (id, index) → row, checked: each sample once, every policy on the same prompts."""
    table: dict[str, dict[tuple[str, int], Row]] = {p: {} for p in policies}
    prompts: dict[str, Any] = {}
    for row in rows:
        if row["policy"] not in table:
            continue
        key, at = key_of(row), f"sample {row['id']!r} of policy {row['policy']!r}"
        if key in table[row["policy"]]:
            raise bad(at, "index", f"{key[1]} twice", "each (id, policy, index) once")
        if prompts.setdefault(key[0], row["prompt"]) != row["prompt"]:
            raise bad(at, "prompt", "another text than other policies have at that id", "the same prompts for every policy")
        table[row["policy"]][key] = row
    ids = {p: {k[0] for k in found} for p, found in table.items()}
    for policy in policies:
        if not ids[policy]:
            raise UsageError(f"policy {policy!r}: no samples, found those of {list(dict.fromkeys(r['policy'] for r in rows))}")
        missing = sorted(prompts.keys() - ids[policy])
        if missing:
            raise DataError(
                f"policy {policy!r}: no sample to {len(missing)} of {len(prompts)} prompts (the first is id {missing[0]!r}), "
                "expected the same prompts for every policy"
            )
    return table


def policy_pairs(policies: Sequence[str], baselines: Sequence[str] | None) -> list[tuple[str, str]]:
    """(policy, baseline) of the table, each two policies once."""
    unknown = [b for b in baselines or [] if b not in policies]
    if unknown:
        raise UsageError(f"baselines: found {unknown[0]!r}, expected some of the policies {list(policies)}")
    if baselines is None:
        return [(a, b) for b, a in combinations(policies, 2)]
    found: list[tuple[str, str]] = []
    for b in baselines:
        found += [(a, b) for a in policies if a != b and (b, a) not in found]
    return found


def paired(a: Mapping[tuple[str, int], Row], b: Mapping[tuple[str, int], Row]) -> tuple[list[Row], list[Row]]:
    """The rows of two policies with the same (id, index)."""
    keys = [k for k in a if k in b]
    if not keys and a and b:
        one, other = (next(iter(rows.values()))["policy"] for rows in (a, b))
        raise UsageError(f"policies {one!r} and {other!r}: found no sample of the same id and index, expected the same indices")
    return [a[k] for k in keys], [b[k] for k in keys]


def outcomes(verdicts: Sequence[Verdict], policy: str) -> tuple[dict[Pair, float], dict[str, int]]:
    """Pair of samples, `policy`'s first → its mean outcome; and the number of pairs left out, by what their verdict was."""
    found: dict[Pair, list[float]] = {}
    missing: dict[str, set[Pair]] = {"unparsable": set(), "failed": set()}
    for v in verdicts:
        ours = v.policy_a == policy
        pair = (v.a, v.b) if ours else (v.b, v.a)
        if v.winner in missing:
            missing[v.winner].add(pair)
        else:
            found.setdefault(pair, []).append(SCORE[v.winner] if ours else 1 - SCORE[v.winner])
    left_out = missing["unparsable"] | missing["failed"]
    counts = {"unparsable": len(missing["unparsable"]), "failed": len(missing["failed"] - missing["unparsable"])}
    return {p: sum(x) / len(x) for p, x in found.items() if p not in left_out}, counts


def without_policies(found: Mapping[Pair, float]) -> Won:
    """Pair → outcome, by (id, index) alone."""
    return {((x[0], x[2]), (y[0], y[2])): value for (x, y), value in found.items()}


def judge_table(
    name: str,
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
    told: Mapping[tuple[str, str], tuple[dict[Pair, float], dict[str, int]]],
    samples: Mapping[str, Mapping[tuple[str, int], Row]],
    differences: Sequence[float],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One judge's rows, of the pairs of policies that it judged, and what is known of the judge.

    Args:
        name: The judge's.
        verdicts, told: Of each two policies: all of them, and their `outcomes`.
        samples: Policy → (id, index) → row.
        differences: From ½, for the prompts that each would need.
    """
    every = [v for given in verdicts.values() for v in given]
    place = position(every)
    bias = {k: place["first"][k] for k in ("rate", "low", "high")} if place else None
    table: list[dict[str, Any]] = []
    not_judged = []
    for (a, b), (found, missing) in told.items():
        if not found:
            not_judged.append({"a": a, "b": b, **missing})
            continue
        ids, values = [pair[0][0] for pair in found], list(found.values())
        lengths = [len(samples[a][x[0], x[2]]["response"]) - len(samples[b][y[0], y[2]]["response"]) for x, y in found]
        result = win_rate(values, ids)
        tied = result.ties / result.n
        needed = {f"{d:g}": sample_size(d, ties=tied) if d <= (1 - tied) / 2 else None for d in differences}
        even = asdict(length_controlled(values, lengths, ids))
        row = {"judge": name, "a": a, "b": b, **asdict(result), "prompts": len(set(ids)), **missing, "length_controlled": even}
        table.append({**row, "needed": needed, "position_bias": bias})
    for row, p in zip(table, holm([row["p_value"] for row in table]), strict=True):
        row["p_holm"] = p
    counts = {"verdicts": len(every), **{k: sum(v.winner == k for v in every) for k in ("unparsable", "failed")}}
    return table, {"judge": name, **counts, "not_judged": not_judged, "position": place}


def ranked(met: Mapping[tuple[str, str], Mapping[Pair, float]]) -> dict[str, Any]:
    """The Bradley–Terry `ranking` of policies that met, `no_ranking`: why there is none, `ranked`: how many pairs of policies."""
    ranking, note = None, None
    games = [(a, b, x) for (a, b), found in met.items() for x in found.values()]
    if games:
        try:
            ranking = [asdict(s) for s in bradley_terry(games, [x[0] for found in met.values() for x, _ in found])]
        except ValueError as error:  # policies that never met
            note = str(error)
    return {"ranking": ranking, "no_ranking": note, "ranked": len(met)}


def position(verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
    """How often the response shown first wins, of the pairs that one judge judged in both orders; `None` where there is none.

    `first`: a win rate of the place (½ without bias, whatever the policies); `consistent`: the share of such pairs with the same
    winner (or a tie) in both orders.
    """
    by_key = {(v.a, v.b, v.judge): v for v in verdicts if v.winner in SCORE}
    first, consistent, prompts = [], [], []
    for (a, b, judge), v in by_key.items():
        other = by_key.get((b, a, judge))
        if other is None or a > b:
            continue
        first.append((SCORE[v.winner] + SCORE[other.winner]) / 2)
        consistent.append(float(SCORE[v.winner] == 1 - SCORE[other.winner]))
        prompts.append(v.id)
    if not first:
        return None
    same = win_rate(consistent, prompts)
    return {"first": asdict(win_rate(first, prompts)), "consistent": {k: getattr(same, k) for k in ("rate", "low", "high", "n")}}


def agreement(verdicts: Sequence[Verdict]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Cohen's κ and Krippendorff's α of each two judges, and α of all, over the pairs of samples that two or more judged.

    A judge's category for a pair is the sample that it prefers (the mean over both orders, where it judged both), or a tie.
    """
    sums: dict[Pair, dict[str, list[float]]] = {}
    for v in verdicts:
        if v.winner in SCORE:
            forward = v.a < v.b
            value = SCORE[v.winner] if forward else 1 - SCORE[v.winner]
            sums.setdefault((v.a, v.b) if forward else (v.b, v.a), {}).setdefault(v.judge, []).append(value)
    said = {
        pair: {judge: (m > 0.5) - (m < 0.5) for judge, x in by_judge.items() for m in [sum(x) / len(x)]}
        for pair, by_judge in sums.items()
        if len(by_judge) > 1
    }
    if not said:
        return [], None
    names = list(dict.fromkeys(v.judge for v in verdicts))
    table = []
    for one, two in combinations(names, 2):
        both = [(pair[0][0], x[one], x[two]) for pair, x in said.items() if one in x and two in x]
        if both:
            ids, left, right = zip(*both, strict=True)
            kappa, alpha = cohen_kappa(left, right, ids), krippendorff_alpha([x[1:] for x in both], clusters=ids)
            share = sum(x == y for x, y in zip(left, right, strict=True)) / len(both)
            row = {"a": one, "b": two, "n": len(both), "share": share}
            row.update(kappa=kappa.value, kappa_low=kappa.low, kappa_high=kappa.high)
            table.append({**row, "alpha": alpha.value, "alpha_low": alpha.low, "alpha_high": alpha.high})
    ratings = [[x.get(name) for name in names] for x in said.values()]
    whole = krippendorff_alpha(ratings, clusters=[pair[0][0] for pair in said])
    return table, {"judges": names, **asdict(whole)}


# ------------------------------------------------------------------------------------------------------------- in words


def text_table(result: Mapping[str, Any]) -> str:
    """The figures of `compare.json` as text for a terminal."""
    lines = ["win rates (95 % intervals by prompt)"]
    for judge in result["judges"]:
        lines += ["", f"judge {judge['judge']}: {judge['verdicts']} verdicts"]
        if judge["unparsable"] or judge["failed"]:
            lines[-1] += f", of which {judge['unparsable']} unparsable and {judge['failed']} without an answer (pairs left out)"
        if judge.get("unused"):
            lines[-1] += f"; {judge['unused']} more in the file are on prompts or pairs of policies that are not in this table"
        for row in result["judgements"]:
            if row["judge"] == judge["judge"]:
                needed = ", ".join(f"{50 + 100 * float(d):g} %: {n or '—'}" for d, n in row["needed"].items())
                lines.append(
                    f"  {row['a']:>24} over {row['b']:<24} {_bounds(row, 'rate')}, n = {row['n']}, p = {row['p_value']:.3g}, "
                    f"Holm {row['p_holm']:.3g}; at equal length {_bounds(row['length_controlled'], 'rate')}; "
                    f"prompts to tell {needed}"
                )
        lines += [f"  {pair['a']:>24} over {pair['b']:<24} no verdict" for pair in judge["not_judged"]]
        for place, s in enumerate(judge["ranking"] or [], 1):
            lines.append(f"  {place:>3}. {s['policy']:<24} {_bounds(s, 'strength')} log-odds")
        if judge["no_ranking"]:
            lines.append(f"  no ranking: {judge['no_ranking']}")
        if judge["position"]:
            first, same = judge["position"]["first"], judge["position"]["consistent"]
            lines.append(f"  shown first wins {_bounds(first, 'rate')}; both orders agree in {_bounds(same, 'rate')}")
    for row in result["agreements"]:
        kappa = f"{row['kappa']:.3f} ({row['kappa_low']:.3f} to {row['kappa_high']:.3f})"
        lines += ["", f"{row['a']} and {row['b']}: the same in {row['share']:.3f} of {row['n']}, kappa {kappa}"]
    if result["alpha"]:
        lines += ["", f"agreement of all judges: alpha {_bounds(result['alpha'], 'value')}, n = {result['alpha']['n']}"]
    return "\n".join(lines)


def _bounds(found: Mapping[str, Any], key: str) -> str:
    return f"{found[key]:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _jsonable(value: Any) -> Any:
    """NaN as `None`, as JSON wants it."""
    if isinstance(value, Mapping):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
