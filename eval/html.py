"""The report as one self-contained HTML page: no request, no script, light and dark, phone to print.

Everything that comes from data passes `html.escape`. The page is built from small functions, one a section.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval import plots
from eval.style import CSS
from eval.text import NOTHING, interval, ordered_names, p_text, percent, short, signed

Report = Mapping[str, Any]

COLUMNS = {"known": "Known score", "learned": "Learned score", "kl": "KL, nats"}
CURVES = {  # drawn first, with these names; the others stand behind “more curves”
    "objective/score": "Score",
    "objective/kl": "KL, nats",
    "objective/kl_coef": "KL coefficient β",
    "objective/entropy": "Entropy, nats",
    "loss": "Loss",
    "accuracy": "Accuracy",
}
RUN_FIELDS = {
    "stage": "Stage",
    "commit": "Commit",
    "seed": "Seed",
    "seconds": "Time",
    "peak_memory_mb": "Peak memory",
}


def render_html(report: Report) -> str:
    """A whole HTML page from `eval.report.build_report`'s dict; the same dict gives the same text."""
    sections = [
        _header(report),
        _warnings(report),
        _policies(report),
        _win_rates(report),
        _frontier(report),
        _curves(report),
        _samples(report),
        _methods(report),
        _provenance(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report['title'])}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    facts = [
        f"Task {report['task']}",
        _count(report["n_prompts"], "prompt"),
        f"{report['n_rows']:,} responses",
    ]
    line = " · ".join(escape(fact) for fact in facts)
    return (
        f'<header>\n<p class="eyebrow">{line}</p>\n<h1>{escape(report["title"])}</h1>\n'
        f'<p class="headline">{escape(report["headline"])}</p>\n</header>'
    )


def _warnings(report: Report) -> str:
    if not report["warnings"]:
        return (
            '<p class="calm">No warning: the number of prompts, control draw, KL, repetition, likeness of '
            "responses, missing stops, perplexity, length and learned against known score were checked.</p>"
        )
    items = "\n".join(f"<li>{escape(warning['text'])}</li>" for warning in report["warnings"])
    return (
        '<section class="warnings" aria-labelledby="warnings">\n'
        f'<h2 id="warnings">Before you rely on this</h2>\n<ul>\n{items}\n</ul>\n</section>'
    )


def _policies(report: Report) -> str:
    """The headline table, a row for each policy."""
    names = ordered_names(report)
    head = ["Policy", *(COLUMNS.get(name, name) for name in names), "No stop", "Tokens", "Words"]
    body = []
    for p in report["policies"]:
        cells = [_measure(p["scores"].get(name)) for name in names]
        cells += [percent(p["missing"]), _measure(p["tokens"], 1), _measure(p["words"], 1)]
        body.append((_policy_name(p["name"], report, f"{p['n']:,} responses"), cells))
    scores = _table(head, body, "Scores and length of each policy")
    head = [
        "Policy",
        "Distinct-2 within",
        "Distinct-1",
        "Distinct-2",
        "Distinct-3",
        "New bigrams",
        "Perplexity",
    ]
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
    diversity = _table(head, body, "Diversity, copying and perplexity of each policy")
    note = f"Below a number: its 95 % interval by prompt, or × its ratio to {escape(report['baseline'])}."
    body_html = f'{scores}\n<h3>Diversity and copying</h3>\n{diversity}\n<p class="note">{note}</p>'
    return _section("policies", "The policies", body_html)


def _win_rates(report: Report) -> str:
    """Forest plot of the comparisons with the main policy and the baseline, and the matrix of all."""
    comparisons = report["comparisons"]
    if not comparisons:
        return ""
    ends = {report["main"], report["baseline"]}
    rows = [
        {**c, "label": f"{c['a']} vs {c['b']}", "main": c["a"] == report["main"]}
        for c in comparisons
        if ends & {c["a"], c["b"]}
    ]
    forest = _figure(
        plots.forest_plot(rows, "Win rates with 95 % intervals"),
        "Share of pairs won, 95 % interval by prompt. One that crosses the line at 50 % shows no difference.",
    )
    head = ["Comparison", "Win rate", "95 % interval", "Won", "Tied", "Lost", "p", "p, Holm"]
    body = []
    for c in comparisons:
        bounds = f"{100 * c['low']:.1f}–{100 * c['high']:.1f}"
        counts = [f"{c[key]:,}" for key in ("wins", "ties", "losses")]
        cells = [percent(c["rate"]), bounds, *counts, p_text(c["p_value"]), p_text(c["p_holm"])]
        body.append(
            (f"{escape(c['a'])} <span class=dim>vs</span> {escape(c['b'])}", [escape(cell) for cell in cells])
        )
    table = _table(head, body, "Every pair of policies")
    intro = f"Judged by {escape(report['judge_name'])}, on the same prompts; a tie counts half."
    pair = f'<div class="pair">\n{forest}\n<div>{_matrix(report)}</div>\n</div>'
    return _section("win-rates", "Who beats whom", f"<p>{intro}</p>\n{pair}\n{table}")


def _matrix(report: Report) -> str:
    """Win rate of the row's policy against the column's, in %; bold where Holm's p < .05."""
    rates: dict[tuple[str, str], tuple[float, float]] = {}
    for c in report["comparisons"]:
        rates[c["a"], c["b"]] = (c["rate"], c["p_holm"])
        rates[c["b"], c["a"]] = (1 - c["rate"], c["p_holm"])
    names = [p["name"] for p in report["policies"]]
    rows = []
    for a in names:
        cells = []
        for b in names:
            if a == b:
                cells.append('<td class="self">·</td>')
                continue
            rate, p = rates[a, b]
            side = "won" if rate > 0.5 else "lost"
            tint = round(70 * abs(rate - 0.5) * 2)
            text = f"<b>{100 * rate:.1f}</b>" if p < 0.05 else f"{100 * rate:.1f}"
            cells.append(f'<td class="{side}" style="--tint:{tint}%">{text}</td>')
        rows.append(f'<tr><th scope="row">{_unbroken(a)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{_unbroken(name)}</th>' for name in names)
    caption = "Win rate of the row against the column, %. Bold: p &lt; .05 after Holm’s correction."
    return (
        '<div class="scroll" tabindex="0"><table class="matrix">'
        f"<caption>{caption}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _frontier(report: Report) -> str:
    """Judge's score against KL, a point for each policy; the reward model beside it."""
    judge = report["judge"]
    points = [
        {
            "label": p["name"],
            "x": p["scores"]["kl"],
            "y": p["scores"][judge],
            "main": p["name"] == report["main"],
        }
        for p in report["policies"]
        if "kl" in p["scores"] and judge in p["scores"]
    ]
    sections = []
    if points and judge != "kl":
        name = str(COLUMNS.get(judge, judge))
        plot = plots.scatter(points, f"{name} against KL", "KL to the reference, nats")
        caption = (
            f"{escape(name)} against distance from the reference, with 95 % intervals. Up and left is better."
        )
        sections.append(_section("frontier", "What the score cost", _figure(plot, caption)))
    sections.append(_reward_model(report))
    return '<div class="pair">\n' + "\n".join(section for section in sections if section) + "\n</div>"


def _reward_model(report: Report) -> str:
    """Accuracy against chance and the labeler, then whatever else was said of the model."""
    model = report["reward_model"]
    if not model:
        return ""
    parts = []
    drawn: set[str] = set()
    if model.get("accuracy") is not None:
        drawn = {"accuracy", "low", "high", "n", "chance", "labeler_accuracy"}
        n = f"{model['n']:,} " if isinstance(model.get("n"), int) else ""
        caption = f"Share of {n}held-out comparisons in which the reward model picks the labeler’s choice."
        parts.append(_figure(plots.accuracy_bar(model, "Reward model accuracy"), caption))
    others = {name: value for name, value in model.items() if name not in drawn}
    if others:
        parts.append(_facts(others))
    return _section("reward-model", "The reward model", "\n".join(parts))


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
        summary = f"<summary>{_count(len(more), 'more curve')}</summary>"
        body += f'\n<details>{summary}\n<div class="multiples">\n{"".join(more)}\n</div></details>'
    return _section("curves", "How training went", body)


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
        f"<p>Chosen by chance (seed {report['seed']}), not by result: the first response of every policy.</p>"
    )
    blocks = [_sample(number, sample, report["main"]) for number, sample in enumerate(report["samples"], 1)]
    return _section("samples", "Samples side by side", intro + "\n" + "\n".join(blocks))


def _sample(number: int, sample: Mapping[str, Any], main: str) -> str:
    """One prompt and a card for each policy's response."""
    cards = []
    for response in sample["responses"]:
        scores = response["scores"]
        said = [f"{name} {signed(scores[name])}" for name in ("known", "learned") if name in scores]
        said += [] if response["found"] else ["no stop"]
        said = [f'<span class="unbroken">{escape(part)}</span>' for part in said]
        style = "card main" if response["policy"] == main else "card"
        text = escape(response["text"].strip()) or '<span class="dim">(empty)</span>'
        cards.append(
            f'<div class="{style}"><h4>{escape(response["policy"])}</h4><p class="text">{text}</p>'
            f'<p class="scores">{" ".join(said)}</p></div>'
        )
    name = f'<span class="number">{number}</span> <span class="dim">{escape(str(sample["id"]))}</span>'
    prompt = escape(sample["prompt"].strip())
    return (
        f'<article class="sample"><h3>{name}</h3>\n<p class="prompt">{prompt}</p>\n'
        f'<div class="cards">{"".join(cards)}</div></article>'
    )


def _methods(report: Report) -> str:
    items = "\n".join(f"<dt>{escape(m['figure'])}</dt><dd>{escape(m['how'])}</dd>" for m in report["methods"])
    return _section("methods", "How each figure is computed", f"<dl>\n{items}\n</dl>")


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
        parts.append(_table(head, body, "Runs behind this report"))
        parts += [_run_details(run) for run in report["provenance"]]
    if report["guard"]:
        parts.append(f"<h3>Checks made in training</h3>\n{_facts(report['guard'])}")
    if report["command"]:
        parts.append(f"<p>This report was made by</p>\n<pre>{escape(report['command'])}</pre>")
    return _section("provenance", "Where it came from", "\n".join(parts)) if parts else ""


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


# ---- pieces ----


def _section(key: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{key}">\n<h2 id="{key}">{title}</h2>\n{body}\n</section>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def _table(head: Sequence[str], body: Sequence[tuple[str, Sequence[str]]], label: str) -> str:
    """A table that scrolls in its own container; cells are HTML, the first of each row its header."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, cells in body
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _policy_name(name: str, report: Report, small: str = "") -> str:
    shown = f"<b>{escape(name)}</b>" if name == report["main"] else escape(name)
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


def _with_ratio(text: str, ratio: float | None) -> str:
    return text if ratio is None else f"{text}<small>× {ratio:.2f}</small>"


def _facts(values: Mapping[str, Any]) -> str:
    """Names and values as a two-column table."""
    rows = []
    for name, value in values.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else short(value)
        rows.append((escape(str(name).replace("_", " ")), [escape(text)]))
    body = "\n".join(f'<tr><th scope="row">{a}</th><td>{cells[0]}</td></tr>' for a, cells in rows)
    return f'<div class="scroll" tabindex="0"><table class="facts"><tbody>\n{body}\n</tbody></table></div>'


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


def _unbroken(name: str) -> str:
    """A name that breaks at spaces only, not at its hyphens."""
    return " ".join(f'<span class="unbroken">{escape(word)}</span>' for word in name.split())


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
