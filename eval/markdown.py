"""The report in Markdown: the short version of what `eval.html` draws, from the same data."""

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.text import (
    NOTHING,
    figure_text,
    interval,
    mean_of,
    name_of,
    ordered_names,
    p_text,
    percent,
    result_columns,
    score_mean,
    signed,
    summary_of,
    versus,
)

Report = Mapping[str, Any]


def render_markdown(report: Report) -> str:
    """The short version: headline, warnings, the tables, where it came from."""
    names = ordered_names(report)
    titles = [_cell(name) for name in names]
    lines = [f"# {_cell(report['title'])}", "", _cell(report["headline"]), ""]
    lines += [f"- **Warning:** {_cell(warning['text'])}" for warning in report["warnings"]] or ["No warning was raised."]
    bases, shown = result_columns(report)
    heads = [*(f"win rate vs {_cell(b)}, %" for b in bases), *(_cell(name_of(k)) for k in shown)]
    lines += ["", f"| policy | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for p in report["policies"]:
        wins = [versus(report, p["name"], b) for b in bases]
        row = [f"{100 * w['rate']:.1f} ({100 * w['low']:.1f}–{100 * w['high']:.1f})" if w else NOTHING for w in wins]
        row += [figure_text(k, mean_of(summary_of(p, k))) for k in shown]
        lines.append(f"| {_cell(p['name'])} | {' | '.join(row)} |")
    heads = ["n", *titles, "no stop", "distinct-2 within / corpus", "perplexity"]
    body = []
    for p in report["policies"]:
        scores = [f"{signed(score_mean(p, k))} ({interval(p['scores'].get(k))})" for k in names]
        diversity = f"{signed(mean_of(p['distinct_2_within']))} / {signed(p['distinct']['2'])}"
        cells = [str(p["n"]), *scores, percent(p["missing"]), diversity, signed(p["perplexity"])]
        body.append(cells)
    kept = [i for i in range(len(heads)) if any(cells[i] != NOTHING for cells in body)]
    lines += ["", f"| policy | {' | '.join(heads[i] for i in kept)} |", "|---|" + "--:|" * len(kept)]
    for p, cells in zip(report["policies"], body, strict=True):
        lines.append(f"| {_cell(p['name'])} | {' | '.join(cells[i] for i in kept)} |")
    judged = f"judged by {_cell(report['judge_name'])}"
    lines += ["", f"| win rate, {judged} | % | 95 % interval | wins / ties / losses | p | p (Holm) |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for c in report["comparisons"]:
        counts = f"{c['wins']} / {c['ties']} / {c['losses']}"
        bounds = f"{100 * c['low']:.1f}–{100 * c['high']:.1f}"
        pair = f"{_cell(c['a'])} vs {_cell(c['b'])}"
        p = f"{p_text(c['p_value'])} | {NOTHING if c['p_holm'] is None else p_text(c['p_holm'])}"
        lines.append(f"| {pair} | {100 * c['rate']:.1f} | {bounds} | {counts} | {p} |")
    others = [j for j in report["judgements"] if j["judge"] != report["judge"]]
    if others:
        lines += ["", "| win rate by another judge | judge | % | 95 % interval | at equal length, % | n | p (Holm) |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for j in others:
        controlled = j.get("length_controlled") or {}
        equal = None if controlled.get("rate") is None else f"{100 * controlled['rate']:.1f}"
        if equal is not None and controlled.get("low") is not None:
            equal += f" ({100 * controlled['low']:.1f}–{100 * controlled['high']:.1f})"
        told = [f"{_cell(j['a'])} vs {_cell(j['b'])}", _cell(j["judge"]), f"{100 * j['rate']:.1f}"]
        told += [f"{100 * j['low']:.1f}–{100 * j['high']:.1f}", equal or NOTHING, str(j["n"])]
        lines.append(f"| {' | '.join(told)} | {NOTHING if j.get('p_holm') is None else p_text(j['p_holm'])} |")
    for a in report["agreements"]:
        kappa = f"κ {signed(a.get('kappa'))} ({_ends(a, 'kappa')}), α {signed(a.get('alpha'))} ({_ends(a, 'alpha')})"
        both = f"{_cell(a['a'])} and {_cell(a['b'])}"
        lines += ["", f"{both} say the same of {percent(a.get('share'))}: {kappa}, n = {a.get('n')}."]
    if report["alpha"] and report["alpha"].get("value") is not None:
        lines += ["", f"All judges together: α {signed(report['alpha']['value'])} ({interval(report['alpha'])})."]
    if report["agreement"]:
        picks = ", ".join(f"{_cell(name_of(r['measure']))} {percent(r['rate'])}" for r in report["agreement"])
        lines += ["", f"Picks the judge's winner (chance 50 %): {picks}."]
    model = report["reward_model"]
    if model and model.get("accuracy") is not None:
        of = " of pairs" if model.get("of") == "pairs" else ""
        lines += ["", f"Reward model: held-out accuracy {percent(model['accuracy'])}{of}."]
    found = report["calibration"]
    if found:
        by_chance = f"{signed(found['error_by_chance'], 3)} would come from chance alone"
        lines += ["", f"Calibration error of the reward model: {signed(found['error'], 3)} ({by_chance})."]
    for run in report["provenance"]:
        commit = _cell(str(run.get("commit") or "unknown"))
        lines += ["", f"- {_cell(str(run.get('stage', 'run')))}: {_code(run.get('command', ''))} (commit {commit})"]
    if report["command"]:
        lines += ["", f"Made by {_code(report['command'])}."]
    return "\n".join(lines) + "\n"


def _ends(row: Mapping[str, Any], name: str) -> str:
    """The interval of one of several figures in a row."""
    return interval({"low": row.get(f"{name}_low"), "high": row.get(f"{name}_high")})


def _cell(text: str) -> str:
    """Text that can neither break a Markdown table nor bring markup of its own."""
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """Text as code of one line."""
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"
