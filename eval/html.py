"""The report as one self-contained HTML page: no request, light and dark, phone to print.

Everything that comes from data passes `html.escape`; the page's content security policy lets a browser run the sample
browser's script, known by its hash, and nothing else, and fetch nothing. Built from small functions, one a section.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval import browser, plots, sections
from eval.pieces import bounds, count, facts, figure, pair, pair_name, section, table, unbroken
from eval.style import CSS
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
    short,
    short_names,
    signed,
    summary_of,
    versus,
)

Report = Mapping[str, Any]

POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{browser.SCRIPT_HASH}'"
CURVES = {  # drawn first, with these names; the others stand behind “more curves”
    "objective/score": "Score",
    "objective/kl": "KL, nats",
    "objective/kl_coef": "KL coefficient β",
    "objective/entropy": "Entropy, nats",
    "loss": "Loss",
    "accuracy": "Accuracy",
}
HEAD = 20  # characters of a policy's name in a table's head and in the plot of pairs
BESIDE_PLOT = 4  # more policies: the matrix stands below the plot
RUN_FIELDS = {
    "stage": "Stage",
    "commit": "Commit",
    "seed": "Seed",
    "seconds": "Time",
    "peak_memory_mb": "Peak memory",
}


def render_html(report: Report) -> str:
    """A whole HTML page from `eval.report.build_report`'s dict; the same dict gives the same text."""
    parts = [
        _header(report),
        _warnings(report),
        _result(report),
        sections.cost(report),
        sections.length(report),
        sections.judges(report),
        sections.reward_model(report),
        _curves(report),
        _samples(report),
        _policies(report),
        _pairs(report),
        _methods(report),
        _provenance(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(report['title'])}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    facts = [
        *([f"Task {report['task']}"] if report["task"] else []),
        count(report["n_prompts"], "prompt"),
        f"{report['n_rows']:,} responses",
    ]
    line = " · ".join(escape(fact) for fact in facts)
    return (
        f'<header>\n<p class="eyebrow">{line}</p>\n<h1>{escape(report["title"])}</h1>\n'
        f'<p class="headline">{_flowing(report["headline"])}</p>\n</header>'
    )


def _flowing(text: str) -> str:
    """Text whose short words break at spaces only, and whose long names break where they must."""
    return " ".join(unbroken(word) if len(word) <= HEAD else escape(word) for word in text.split())


def _warnings(report: Report) -> str:
    if not report["warnings"]:
        return (
            '<p class="calm">No warning was raised: none of the checks that this report makes of the comparison, the judges, '
            "length, the responses, the scores and the training found something to doubt.</p>"
        )
    items = "\n".join(f"<li>{escape(warning['text'])}</li>" for warning in report["warnings"])
    return (
        '<section class="warnings" aria-labelledby="warnings">\n'
        f'<h2 id="warnings">Before you rely on this</h2>\n<ul>\n{items}\n</ul>\n</section>'
    )


def _result(report: Report) -> str:
    """The headline table, a row for each policy, and the forest plot of the main one and the baseline."""
    bases, shown = result_columns(report)
    told = [p["name"] for p in report["policies"]]
    short_of = short_names(told, HEAD)
    head = ["Policy", *(f"Win rate vs {short_of[name]}" for name in bases), *(name_of(name) for name in shown)]
    best = {name: _best(report, name) for name in shown if name.startswith("rouge")}
    body = []
    for p in report["policies"]:
        cells = []
        for base in bases:
            won = versus(report, p["name"], base)
            bounds = "" if won is None else f"<small>{100 * won['low']:.1f}–{100 * won['high']:.1f}</small>"
            cells.append(NOTHING if won is None else percent(won["rate"]) + bounds)
        for name in shown:
            text = figure_text(name, mean_of(summary_of(p, name)))
            cells.append(f"<b>{text}</b>" if best.get(name) == p["name"] else text)
        body.append((_policy_name(p["name"], report), cells))
    rows_html = table(head, body, "The result: a row for each policy")
    for name in bases:  # the head's names in full
        if short_of[name] != name:
            shown_name = unbroken(short_of[name])
            rows_html = rows_html.replace(shown_name, f'<span title="{escape(name)}">{shown_name}</span>')
    note = "Below a win rate: its 95 % interval by prompt. "
    if best:
        note += "ROUGE is F1 × 100; the best in bold. "
    note += "Every figure with its interval stands under “All figures”."
    ends = {report["main"], report["baseline"]}
    rows = [
        {
            **c,
            "label": f"{short_of[c['a']]} vs {short_of[c['b']]}",
            "title": f"{c['a']} vs {c['b']}",
            "main": c["a"] == report["main"],
        }
        for c in report["comparisons"]
        if ends & {c["a"], c["b"]}
    ]
    intro = f"Judged by {escape(report['judge_name'])}, on the same prompts; a tie counts half."
    if report["by_construction"]:
        which = " and ".join(escape(name) for name in report["by_construction"])
        intro += (
            f" This judge compares with the reference, and the responses of {which} are the reference: what that policy wins is "
            "true by construction, and the headline leaves it out."
        )
    plot = ""
    if rows:
        caption = "Share of pairs won, 95 % interval by prompt. One that crosses the line at 50 % shows no difference."
        forest = figure(plots.forest_plot(rows, "Win rates with 95 % intervals"), caption)
        plot = pair([forest, f"<div>{_matrix(report)}</div>"]) if len(told) <= BESIDE_PLOT else f"{forest}\n{_matrix(report)}"
    return section("result", "The result", f'<p>{intro}</p>\n{rows_html}\n<p class="note">{note}</p>\n{plot}')


def _best(report: Report, name: str) -> str | None:
    """The policy with the highest mean."""
    means = [(mean_of(summary_of(p, name)), p["name"]) for p in report["policies"]]
    told = [(mean, policy) for mean, policy in means if mean is not None]
    return max(told, key=lambda mean: mean[0])[1] if told else None


def _policies(report: Report) -> str:
    """Every figure of every policy, with its interval."""
    names = ordered_names(report)
    head = ["Policy", *(name_of(name) for name in names), "No stop", "Tokens", "Words"]
    body = []
    for p in report["policies"]:
        cells = [_measure(p["scores"].get(name)) for name in names]
        cells += [percent(p["missing"]), _measure(p["tokens"], 1), _measure(p["words"], 1)]
        body.append((_policy_name(p["name"], report, f"{p['n']:,} responses"), cells))
    parts = [table(head, body, "Scores and length of each policy")]
    measures = list(dict.fromkeys(name for p in report["policies"] for name in p["measures"]))
    for group in (measures[i : i + 7] for i in range(0, len(measures), 7)):
        head = ["Policy", *(name_of(name) for name in group)]
        body = []
        for p in report["policies"]:
            cells = [_with_bounds(name, p["measures"].get(name)) for name in group]
            body.append((_policy_name(p["name"], report), cells))
        parts.append(table(head, body, f"Measures of each policy: {', '.join(map(name_of, group))}"))
    head = ["Policy", "Distinct-2 within", "Distinct-1", "Distinct-2", "Distinct-3", name_of("new_bigrams"), "Perplexity"]
    body = []
    for p in report["policies"]:
        ratio = p["ratio"]
        first = p["name"] == report["baseline"]
        cells = [
            _measure(p["distinct_2_within"], 3, None if first else ratio["distinct_2_within"]),
            signed(p["distinct"]["1"], 3),
            _with_ratio(signed(p["distinct"]["2"], 3), None if first else ratio["distinct_2"]),
            signed(p["distinct"]["3"], 3),
            _measure(p["new_bigrams"], 3),
            _with_ratio(signed(p["perplexity"], 1), None if first else ratio["perplexity"]),
        ]
        body.append((_policy_name(p["name"], report), cells))
    parts.append(f"<h3>Diversity and copying</h3>\n{table(head, body, 'Diversity, copying and perplexity of each policy')}")
    note = f"Below a number: its 95 % interval by prompt, or × its ratio to {escape(report['baseline'])}."
    return section("policies", "All figures", "\n".join(parts) + f'\n<p class="note">{note}</p>')


def _pairs(report: Report) -> str:
    """Every pair of policies, and what other judges say."""
    parts = []
    if report["comparisons"]:
        head = ["Comparison", "Win rate", "95 % interval", "Won", "Tied", "Lost", "p", "p, Holm"]
        body = []
        for c in report["comparisons"]:
            counts = [f"{c[key]:,}" for key in ("wins", "ties", "losses")]
            adjusted = NOTHING if c["p_holm"] is None else p_text(c["p_holm"])
            cells = [percent(c["rate"]), bounds(c), *counts, p_text(c["p_value"]), adjusted]
            body.append((pair_name(c), [escape(cell) for cell in cells]))
        parts.append(table(head, body, "Every pair of policies"))
        asked = [c["p_holm"] for c in report["comparisons"] if c["p_holm"] is not None]
        family = f"Holm’s correction is over {count(len(asked), 'comparison')} of this judge"
        if len(asked) < len(report["comparisons"]):
            family += ": those with a baseline that was asked for. The others were not asked for, and have no corrected p"
        parts.append(f'<p class="note">{family}.</p>')
    others = [j for j in report["judgements"] if report["main"] not in (j["a"], j["b"])]
    if others:
        parts.append(f"<h3>By every judge</h3>\n{sections.judgements(others, 'Win rates of the other policies by judge')}")
    return section("pairs", "All comparisons", "\n".join(parts)) if parts else ""


def _matrix(report: Report) -> str:
    """Win rate of the row's policy against the column's, in %; bold where Holm's p < .05."""
    rates: dict[tuple[str, str], tuple[float, float | None]] = {}
    for c in report["comparisons"]:
        rates[c["a"], c["b"]] = (c["rate"], c["p_holm"])
        rates[c["b"], c["a"]] = (1 - c["rate"], c["p_holm"])
    names = [p["name"] for p in report["policies"]]
    short_of = short_names(names)
    rows = []
    for a in names:
        cells = []
        for b in names:
            if a == b:
                cells.append('<td class="self">·</td>')
                continue
            if (a, b) not in rates:  # nobody compared them
                cells.append(f"<td>{NOTHING}</td>")
                continue
            rate, p = rates[a, b]
            side = "won" if rate > 0.5 else "lost"
            tint = round(70 * abs(rate - 0.5) * 2)
            text = f"<b>{100 * rate:.1f}</b>" if p is not None and p < 0.05 else f"{100 * rate:.1f}"
            tested = "" if p is not None else " untested"
            cells.append(f'<td class="{side}{tested}" style="--tint:{tint}%">{text}</td>')
        rows.append(f'<tr><th scope="row" title="{escape(a)}">{_flowing(short_of[a])}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col" title="{escape(b)}"><span>{escape(short_of[b])}</span></th>' for b in names)
    untested = any(c["p_holm"] is None for c in report["comparisons"])
    over = ", over the comparisons with a baseline; the others, in italics, were not tested" if untested else ""
    note = f"Win rate of the row against the column, %. Bold: p &lt; .05 after Holm’s correction{over}."
    if len(names) > BESIDE_PLOT:
        note += " On a narrow window the table scrolls sideways."
    return (
        '<div class="scroll" role="region" aria-label="Win rates of every pair of policies" tabindex="0"><table class="matrix">\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
        f'<p class="note">{note}</p>'
    )


def _curves(report: Report) -> str:
    """Small multiples of all stages; `train/x` and `val/x` share a plot; the others behind a click."""
    shown, more = [], []
    for stage, columns in report["curves"].items():
        groups: dict[str, list[tuple[str, Any]]] = {}
        for column, points in columns.items():
            split, _, rest = column.partition("/")
            groups.setdefault(rest if split in ("train", "val") and rest else column, []).append(
                (column, points)
            )
        first = [key for key in CURVES if key in groups] or list(groups)[:4]
        shown += [_curve(stage, key, groups[key], report) for key in first]
        more += [_curve(stage, key, lines, report) for key, lines in groups.items() if key not in first]
    if not shown:
        return ""
    body = f'<div class="multiples">\n{"".join(shown)}\n</div>'
    if more:
        summary = f"<summary>{count(len(more), 'more curve')}</summary>"
        body += f'\n<details>{summary}\n<div class="multiples">\n{"".join(more)}\n</div></details>'
    return section("curves", "How training went", body)


def _curve(stage: str, key: str, lines: Sequence[tuple[str, Any]], report: Report) -> str:
    """One plot with its stage, name and last value, or the names of its lines."""
    target = report["kl_target"] if key == "objective/kl" else None
    title = CURVES.get(key, key)
    lines = sorted(lines, key=lambda line: line[0].startswith("val/"))
    if len(lines) > 1:
        marks = [
            f'<span class="key {"second" if i else "main"}"></span>{escape(n.partition("/")[0])}'
            for i, (n, _) in enumerate(lines)
        ]
        aside = f'<span class="legend">{" ".join(marks)}</span>'
    else:
        values = [p[1] for p in lines[0][1] if p[1] is not None]
        aside = f'<span class="last">{short(float(values[-1])) if values else NOTHING}</span>'
    goal = "" if target is None else f" · target {short(target)}"
    caption = f'<span class="stage">{escape(stage)}{goal}</span><b>{escape(title)}</b>{aside}'
    plot = plots.line_chart(lines, f"{stage}: {title}", "step", target)
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{plot}\n</figure>"


def _samples(report: Report) -> str:
    if not report["samples"]:
        return ""
    intro = (
        f"<p>In an order drawn by chance (seed {report['seed']}), not by result: the first response of every policy. "
        f"<mark>Marked</mark> are {browser.COPIED_WORDS} or more words in a row that stand in the source; "
        f"in the source, what {escape(report['main'])} took.</p>"
    )
    return section("samples", "Samples side by side", intro + "\n" + browser.render(report))


def _methods(report: Report) -> str:
    items = "\n".join(f"<dt>{escape(m['figure'])}</dt><dd>{escape(m['how'])}</dd>" for m in report["methods"])
    return section("methods", "How each figure is computed", f"<dl>\n{items}\n</dl>")


def _provenance(report: Report) -> str:
    """A row for each stage, its command, versions, data and config behind a click."""
    parts = []
    if report["provenance"]:
        head = list(RUN_FIELDS.values())
        body = []
        for run in report["provenance"]:
            memory = run.get("peak_memory_mb")
            cells = [
                f"<code>{escape(str(run.get('commit') or NOTHING)[:12])}</code>",
                escape(str(run.get("seed", NOTHING))),
                _duration(run.get("seconds")),
                NOTHING if memory is None else f"{memory:,.0f} MB",
            ]
            body.append((escape(str(run.get("stage", "run"))), cells))
        parts.append(table(head, body, "Runs behind this report"))
        parts += [_run_details(run) for run in report["provenance"]]
    if report["guard"]:
        parts.append(f"<h3>Checks made in training</h3>\n{facts(report['guard'])}")
    if report["command"]:
        parts.append(f"<p>This report was made by</p>\n<pre>{escape(report['command'])}</pre>")
    return section("provenance", "Where it came from", "\n".join(parts)) if parts else ""


def _run_details(run: Mapping[str, Any]) -> str:
    stage = escape(str(run.get("stage", "run")))
    parts = []
    if run.get("command"):
        parts.append(f"<h4>Command</h4><pre>{escape(str(run['command']))}</pre>")
    for key, title in (("data", "Data, SHA-256"), ("versions", "Versions"), ("config", "Config")):
        value = run.get(key)
        if value:
            text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
            parts.append(f"<h4>{title}</h4><pre>{escape(text)}</pre>")
    return (
        f"<details><summary>{stage}: command, data, versions, config</summary>\n{''.join(parts)}\n</details>"
        if parts
        else ""
    )


# ---- cells ----


def _policy_name(name: str, report: Report, small: str = "") -> str:
    shown = f"<b>{_flowing(name)}</b>" if name == report["main"] else _flowing(name)
    return shown + (f"<small>{escape(small)}</small>" if small else "")


def _measure(summary: Mapping[str, Any] | None, digits: int = 2, ratio: float | None = None) -> str:
    """A mean with its interval, or its ratio to the baseline, in small print below."""
    if summary is None:
        return NOTHING
    if ratio is not None:
        return _with_ratio(signed(summary["mean"], digits), ratio)
    bounds = interval(summary, digits)
    same = summary["low"] == summary["high"]
    return signed(summary["mean"], digits) + ("" if same or bounds == NOTHING else f"<small>{bounds}</small>")


def _with_bounds(name: str, summary: Mapping[str, Any] | None) -> str:
    """A measure's mean as it is written, with its interval in small print below."""
    if summary is None:
        return NOTHING
    text = figure_text(name, summary["mean"])
    if summary["low"] is None or summary["low"] == summary["high"]:
        return text
    return f"{text}<small>{figure_text(name, summary['low'])} to {figure_text(name, summary['high'])}</small>"


def _with_ratio(text: str, ratio: float | None) -> str:
    return text if ratio is None else f"{text}<small>× {ratio:.2f}</small>"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return (
        f"{hours} h {minutes:02d} min"
        if hours
        else f"{minutes} min {whole % 60:02d} s"
        if minutes
        else f"{seconds:.1f} s"
    )
