"""Small SVG plots as text: no dependency, no request, coloured by the page's CSS for light and dark alike.

Each function returns one `<svg>` with a `<title>` and an `aria-label`. Sizes are in pixels of the
`viewBox`; the page scales it. Classes: `grid`, `axis`, `ref` (reference line), `line`, `bar` (interval),
`dot`, `main`, `second`, `name`; several runs have the page's colours in turn. Coordinates are rounded to a
tenth of a pixel, so the same data give the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.text import short_names, shortened, signed

Points = Sequence[Sequence[float | None]]
BESIDE, ALONE = 38, 56  # characters of a label that fit beside its numbers, and on a line of their own, on a phone too
MAX_POINTS = 400  # drawn per line; the data stay whole in report.json
PROXY, GOLD = "Proxy: the score trained on", "Gold: a score not trained on"
PANELS = (("proxy", PROXY, 190), ("gold", GOLD, 130), ("rest", "Residuals: proxy minus its line", 72))  # heights in pixels
COLOURS = ("--accent", "--lost", "--ink")  # of runs in turn; every other three have hollow dots


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`; a range of rounding errors counts as none."""
    if high - low < 1e-9:
        half = (abs(low) if abs(low) > 1e-9 else 1.0) / 2
        low, high = low - half, low + half
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def tick_text(value: float, marks: Sequence[float]) -> str:
    """A tick's label with the decimals that its step needs; thousands and millions are shortened."""
    step = abs(marks[1] - marks[0]) if len(marks) > 1 else abs(value) or 1.0
    top = max(abs(m) for m in marks)
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if top >= 10 * size or (top >= size and step >= size / 10):
            return f"{value / size:g}{unit if value else ''}".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != round(step, 12):
        decimals += 1
    return f"{value:.{decimals}f}".replace("-", "−")


def line_chart(
    lines: Sequence[tuple[str, Points]],
    title: str,
    x_label: str = "step",
    target: float | None = None,
    size: tuple[int, int] = (250, 168),
) -> str:
    """Lines over x, the first in the accent colour, the others grey; `target` is a dashed horizontal line.

    A point is [x, y]; `None` in y leaves a gap.
    """
    shown = [(name, _thin(points)) for name, points in lines]
    finite = [(x, y) for _, points in shown for x, y, *_ in points if x is not None and y is not None]
    xs = [x for x, _ in finite] or [0.0, 1.0]
    low, high, y_marks = _span([y for _, y in finite] + ([] if target is None else [target]) or [0.0, 1.0])
    width, height = size
    box = _Box(40, 6, width - 12, height - 34, min(xs), max(xs), low, high)
    x_marks = [x for x in ticks(box.x0, box.x1, 2) if box.x0 <= x <= box.x1 * (1 + 1e-9)]
    parts = [_axes(box, x_marks, y_marks, x_label, height)]
    if target is not None:
        y = box.y(target)
        parts.append(f'<line class="ref" x1="{box.left}" x2="{box.right}" y1="{y}" y2="{y}"/>')
    for i, (_, points) in reversed(list(enumerate(shown))):
        style = "second" if i else "main"
        parts.append(f'<path class="line {style}" d="{_path(box, points)}"/>')
        parts += [f'<circle class="dot {style}" cx="{box.x(x)}" cy="{box.y(y)}" r="3.2"/>' for x, y in _alone(points)]
    ends = [f"{name} {_trend(points)}" for name, points in shown]
    return _svg(title, f"{title}: " + "; ".join(ends), size, parts)


def frontier_plot(
    runs: Sequence[Mapping[str, Any]], title: str, best_of: Sequence[Mapping[str, Any]] = (), width: int = 460
) -> str:
    """Runs (`eval.evidence.frontier`'s) over √KL, in panels on one axis: proxy with its straight lines, gold, proxy − line.

    The axis is linear in √KL and labelled in nats. An upright line, named at the top, stands where over-optimisation begins;
    a dotted line is best-of-n (`n`, `kl`, `proxy`, `gold`).
    """
    roots = [_root(k) for run in runs for k in run["kl"]] + [_root(b["kl"]) for b in best_of]
    x1 = max(roots) * 1.03 or 1.0
    legend, y = _legend(runs, width)
    turns = [(i, run) for i, run in enumerate(runs) if run["turn"]]
    first, y = y, y + 18 * len(turns)
    panels: list[str] = []
    for key, label, height in PANELS:
        of_run = [(i, run, list(zip(map(_root, run["kl"]), _values(run, key), strict=False))) for i, run in enumerate(runs)]
        best = [(b["n"], _root(b["kl"]), b[key]) for b in best_of if b.get(key) is not None]
        values = [v for *_, points in of_run for _, v in points]
        if not values:
            continue
        fits = [(i, _fit(run)) for i, run, _ in of_run if run["line"] and key == "proxy"]
        values += [v for _, _, v in best] + [v for _, fit in fits for _, v in fit]
        low, high, y_marks = _span([*values, *(-v for v in values)] if key == "rest" else values)
        top = y + (30 if panels or turns else 20)
        y = top + height
        box = _Box(46, top, width - 14, y, 0.0, x1, low, high)
        parts = [f'<text class="note halo" x="{box.left}" y="{box.top - 8}">{label}</text>', _levels(box, y_marks)]
        if key == "rest":
            parts.append(f'<line class="ref" x1="{box.left}" x2="{box.right}" y1="{box.y(0.0)}" y2="{box.y(0.0)}"/>')
        parts += [_dots(box, points, i, opacity=0.7) for i, _, points in of_run]
        parts += [f'<path class="line" style="stroke:{_colour(i)}" d="{_path(box, fit)}"/>' for i, fit in fits]
        parts += [_best_of(box, best, [p for *_, points in of_run for p in points])[0]] if best else []
        parts += [_ring(box, _root(run["turn"]["kl"]), run["turn"]["gold"], i) for i, run in turns if key == "gold"]
        panels.append(f'<g class="{key}">{"".join(parts)}</g>')
    scale = next(s for s in (10.0**k * m for k in range(-6, 9) for m in (1, 2, 5)) if 6 * s >= x1**2)
    marks = [0.0, *(k for k in (scale / 4, scale, 2 * scale, 4 * scale, 6 * scale) if k <= x1**2)]
    axis = _axes(box, [_root(k) for k in marks], [], "KL to the reference, nats (√ scale)", y + 40, [f"{k:g}" for k in marks])
    uprights, names = [], []
    shown = short_names([run["name"] for run in runs], 16)
    for row, (i, run) in enumerate(turns):
        x, text_y = box.x(_root(run["turn"]["kl"])), first + 18 * row + 12
        text = f"over-optimisation begins, {run['turn']['kl']:.1f} nats"
        text = f"{shown[run['name']]}: {text}" if len(runs) > 1 else text
        half = 3.7 * len(text)  # of its width, on a phone too
        middle = round(min(max(x, half + 2), width - half - 2), 1)
        style = f"stroke:{_colour(i)};opacity:1"
        uprights.append(f'<line class="ref turn" style="{style}" x1="{x}" x2="{x}" y1="{text_y + 4}" y2="{y}"/>')
        names.append(f'<text class="name halo" x="{middle}" y="{text_y}" text-anchor="middle">{escape(text)}</text>')
    told = "; ".join([*map(_run_told, runs), *_best_told(best_of)])
    return _svg(title, f"{title}: {told}", (width, y + 40), [*legend, *uprights, *panels, axis, *names])


def gold_plot(
    runs: Sequence[Mapping[str, Any]],
    title: str,
    best_of: Sequence[Mapping[str, Any]] = (),
    size: tuple[int, int] = (460, 300),
) -> str:
    """Gold against proxy, each run's checkpoints joined in the order of training; those without gold are left out.

    The last dot is larger; a ring stands where over-optimisation begins; a dotted line is best-of-n.
    """
    of_run = [(i, run, list(zip(run["proxy"], run["gold"], strict=True))) for i, run in enumerate(runs) if run["gold"]]
    best = [(b["n"], b["proxy"], b["gold"]) for b in best_of if b["gold"] is not None]
    all_points = [p for *_, points in of_run for p in points] + [(x, y) for _, x, y in best]
    (x0, x1, x_marks), (y0, y1, y_marks) = (_span(values) for values in zip(*all_points, strict=True))
    parts, top = _legend([run for _, run, _ in of_run], width := size[0], [i for i, *_ in of_run])
    height = size[1] + top
    box = _Box(46, top + 26, width - 14, height - 40, x0, x1, y0, y1)
    parts += [_axes(box, x_marks, y_marks, PROXY, height), f'<text class="note" x="{box.left}" y="{box.top - 8}">{GOLD}</text>']
    for i, _, points in of_run:
        style = f"stroke:{_colour(i)};stroke-width:1.2;opacity:.6"
        parts.append(f'<path class="line" style="{style}" d="{_path(box, _thin(points))}"/>')
        parts.append(_dots(box, points, i, last=5.0))
    parts += [_best_of(box, best, all_points)[0]] if best else []
    parts += [_ring(box, run["turn"]["proxy"], run["turn"]["gold"], i) for i, run, _ in of_run if run["turn"]]
    told = "; ".join([*(_run_told(run) for _, run, _ in of_run), *_best_told([b for b in best_of if b["gold"] is not None])])
    return _svg(title, f"{title}: {told}", (width, height), parts)


def rate_plot(
    points: Sequence[Mapping[str, Any]],
    title: str,
    labels: tuple[str, str],
    diagonal: bool = False,
    size: tuple[int, int] = (460, 300),
) -> str:
    """Rates in [0, 1] with intervals over x. Point: `x`, `rate`, `low`, `high`, `n`.

    `labels`: of x and of y. `diagonal`: the reference is y = x on a unit square, else ½.
    """
    width, height = size
    x_marks = ticks(min(p["x"] for p in points), max(p["x"] for p in points))
    ends = [v for p in points for v in (*_ends({**p, "mean": p["rate"]}), p["x"] if diagonal else 0.5)]
    y_marks = [y for y in ticks(min(ends), max(ends)) if -1e-9 <= y <= 1 + 1e-9]
    low, high = min([*y_marks, *ends]), max([*y_marks, *ends])
    box = _Box(52, 24, width - 14, height - 40, x_marks[0], x_marks[-1], low, high)
    x_texts = _percents(x_marks) if diagonal else None
    parts = [_axes(box, x_marks, y_marks, labels[0], height, x_texts, _percents(y_marks))]
    parts.append(f'<text class="note" x="8" y="12">{escape(labels[1])}</text>')
    if diagonal:
        a, b = max(box.x0, box.y0), min(box.x1, box.y1)
        parts.append(f'<line class="ref" x1="{box.x(a)}" x2="{box.x(b)}" y1="{box.y(a)}" y2="{box.y(b)}"/>')
    else:
        parts.append(f'<line class="ref" x1="{box.left}" x2="{box.right}" y1="{box.y(0.5)}" y2="{box.y(0.5)}"/>')
    for p in points:
        x, (low, high) = box.x(p["x"]), _ends({**p, "mean": p["rate"]})
        parts.append(f'<line class="bar thin main" x1="{x}" x2="{x}" y1="{box.y(low)}" y2="{box.y(high)}"/>')
        parts.append(f'<circle class="dot main" cx="{x}" cy="{box.y(p["rate"])}" r="4.5"/>')
    told = "; ".join(f"{signed(p['x'])}: {100 * p['rate']:.1f} %" for p in points)
    return _svg(title, f"{title}: {labels[1]} by {labels[0]}: {told}", size, parts)


def forest_plot(rows: Sequence[Mapping[str, Any]], title: str, width: int = 460, reference: float = 0.5) -> str:
    """Dot and interval of each rate (`label`, `rate`, `low`, `high` in [0, 1], `main`, `title`) against a reference.

    Where a label is too long to stand beside its numbers, all labels have a line of their own. `title`: the label in full.
    """
    own_line = any(len(row["label"]) > BESIDE for row in rows)
    row_height, top, label_y = (62, 28, -5) if own_line else (40, 8, 13)
    height = top + row_height * len(rows) + (14 if own_line else 30)
    left, right = 8, width - 8
    box = _Box(left, top, right, height - 26, 0.0, 1.0, 0.0, 1.0)
    tops = [top + row_height * i for i in range(len(rows))]
    parts = []
    for k in range(5):
        x = box.x(k / 4)
        anchor = {0: "start", 4: "end"}.get(k, "middle")
        parts += [f'<line class="grid" x1="{x}" x2="{x}" y1="{y + 19}" y2="{y + 33}"/>' for y in tops]
        parts.append(f'<text x="{x}" y="{height - 10}" text-anchor="{anchor}">{25 * k} %</text>')
    x = box.x(reference)
    parts += [f'<line class="ref" x1="{x}" x2="{x}" y1="{y + 17}" y2="{y + 35}"/>' for y in tops]
    for y, row in zip(tops, rows, strict=True):
        style = "main" if row.get("main") else "second"
        numbers = f"{100 * row['rate']:.1f} % ({100 * row['low']:.1f}–{100 * row['high']:.1f})"
        label, full = shortened(row["label"], ALONE), row.get("title", row["label"])
        name = escape(label) + (f"<title>{escape(full)}</title>" if full != label else "")
        parts.append(f'<text class="name halo" x="{left}" y="{y + label_y}">{name}</text>')
        parts.append(f'<text class="num halo" x="{right}" y="{y + 13}" text-anchor="end">{numbers}</text>')
        a, b, m = box.x(row["low"]), box.x(row["high"]), box.x(row["rate"])
        parts.append(f'<line class="bar {style}" x1="{a}" x2="{b}" y1="{y + 26}" y2="{y + 26}"/>')
        parts.append(f'<circle class="dot {style}" cx="{m}" cy="{y + 26}" r="5"/>')
    label = "; ".join(f"{r.get('title', r['label'])} {100 * r['rate']:.1f} %" for r in rows)
    return _svg(title, f"{title}: {label}", (width, height), parts)


def scatter(
    points: Sequence[Mapping[str, Any]],
    title: str,
    x_label: str,
    size: tuple[int, int] = (460, 300),
    best_of: Sequence[tuple[int, float, float]] = (),
) -> str:
    """Named points with intervals both ways. Point: `label`, `x`, `y` (`mean`, `low`, `high`), `main`.

    `best_of`: (n, x, y) of best-of-n, drawn as a dotted line.
    """
    width, height = size
    xs = [v for p in points for v in _ends(p["x"])] + [x for _, x, _ in best_of] + [0.0]
    ys = [v for p in points for v in _ends(p["y"])] + [y for _, _, y in best_of]
    x_marks, y_marks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    box = _Box(46, 12, width - 14, height - 40, x_marks[0], x_marks[-1], y_marks[0], y_marks[-1])
    parts = [_axes(box, x_marks, y_marks, x_label, height)]
    used: list[tuple[float, float]] = []
    if best_of:
        drawn, at = _best_of(box, best_of, [(p["x"]["mean"], p["y"]["mean"]) for p in points])
        parts.append(drawn)
        used.append(at)
    names = short_names([p["label"] for p in points])
    for p in sorted(points, key=lambda p: (-p["y"]["mean"], p["label"])):
        x, y, style = box.x(p["x"]["mean"]), box.y(p["y"]["mean"]), "main" if p.get("main") else "second"
        (xa, xb), (ya, yb) = _ends(p["x"]), _ends(p["y"])
        parts.append(f'<line class="bar thin {style}" x1="{box.x(xa)}" x2="{box.x(xb)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<line class="bar thin {style}" x1="{x}" x2="{x}" y1="{box.y(ya)}" y2="{box.y(yb)}"/>')
        parts.append(f'<circle class="dot {style}" cx="{x}" cy="{y}" r="5"/>')
        to_left = x > box.left + 0.6 * (box.right - box.left)
        text_y = y - 9
        while any(abs(text_y - other) < 14 and abs(x - at) < 150 for at, other in used):
            text_y += 14  # names of points that lie together stand below one another
        used.append((x, text_y))
        anchor, dx = ("end", -9) if to_left else ("start", 9)
        shown = names[p["label"]]
        name = escape(shown) + (f"<title>{escape(p['label'])}</title>" if shown != p["label"] else "")
        parts.append(
            f'<text class="name halo" x="{x + dx:.1f}" y="{text_y:.1f}" text-anchor="{anchor}">{name}</text>'
        )
    label = "; ".join(f"{p['label']} at {signed(p['x']['mean'])}, {signed(p['y']['mean'])}" for p in points)
    return _svg(title, f"{title}: {label}", size, parts)


def accuracy_bar(model: Mapping[str, Any], title: str, width: int = 460) -> str:
    """Accuracy with its interval on [0, 1], against chance and the labeler's own accuracy where known."""
    height, y = 104, 52
    box = _Box(8, 30, width - 8, 76, 0.0, 1.0, 0.0, 1.0)
    accuracy = model["accuracy"]
    parts = [f'<line class="track" x1="{box.left}" x2="{box.right}" y1="{y}" y2="{y}"/>']
    marks = [("chance", model.get("chance")), ("labeler", model.get("labeler_accuracy"))]
    for name, value in marks:
        if value is not None:
            x = box.x(value)
            anchor = "start" if x < 60 else "end" if x > width - 60 else "middle"
            parts.append(f'<line class="ref" x1="{x}" x2="{x}" y1="34" y2="72"/>')
            text = f"{name} {100 * value:.1f} %"
            parts.append(f'<text x="{x}" y="88" text-anchor="{anchor}">{text}</text>')
    known = model.get("low") is not None and model.get("high") is not None
    if known:
        a, b = box.x(model["low"]), box.x(model["high"])
        parts.append(f'<line class="bar main wide" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>')
    x = box.x(accuracy)
    parts.append(f'<circle class="dot main" cx="{x}" cy="{y}" r="6"/>')
    anchor = "start" if x < 100 else "end" if x > width - 100 else "middle"
    bounds = f" ({100 * model['low']:.1f}–{100 * model['high']:.1f})" if known else ""
    text = f"accuracy {100 * accuracy:.1f} %{bounds}"
    parts.append(f'<text class="name" x="{x}" y="22" text-anchor="{anchor}">{text}</text>')
    said = [f"accuracy {100 * accuracy:.1f} %"] + [f"{n} {100 * v:.1f} %" for n, v in marks if v is not None]
    return _svg(title, f"{title}: {', '.join(said)}", (width, height), parts)


class _Box:
    """The plotting area in pixels and the data it spans."""

    def __init__(
        self, left: float, top: float, right: float, bottom: float, x0: float, x1: float, y0: float, y1: float
    ) -> None:
        self.left, self.top, self.right, self.bottom = left, top, right, bottom
        self.x0, self.x1 = (x0, x1) if x1 > x0 else (x0, x0 + 1)
        self.y0, self.y1 = (y0, y1) if y1 > y0 else (y0, y0 + 1)

    def x(self, value: float) -> float:
        return round(self.left + (self.right - self.left) * (value - self.x0) / (self.x1 - self.x0), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (self.bottom - self.top) * (value - self.y0) / (self.y1 - self.y0), 1)


def _axes(
    box: _Box,
    x_marks: Sequence[float],
    y_marks: Sequence[float],
    x_label: str,
    height: int,
    x_texts: Sequence[str] | None = None,
    y_texts: Sequence[str] | None = None,
) -> str:
    """Grid lines and labels (texts: others than the marks' values); the axis's name stands under its middle."""
    x_texts = x_texts or [tick_text(value, x_marks) for value in x_marks]
    parts = [_levels(box, y_marks, y_texts)]
    for value, text in zip(x_marks, x_texts, strict=True):
        x = box.x(value)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{box.bottom}" y2="{box.bottom + 4}"/>')
        parts.append(f'<text x="{x}" y="{box.bottom + 16}" text-anchor="middle">{text}</text>')
    middle = round((box.left + box.right) / 2, 1)
    parts.append(
        f'<text class="note" x="{middle}" y="{height - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


def _span(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """An axis a little longer than its values, and the round numbers on it."""
    margin = (max(values) - min(values)) * 0.06 or abs(values[0]) * 0.1 or 1.0
    low, high = min(values) - margin, max(values) + margin
    return low, high, [mark for mark in ticks(low, high) if low <= mark <= high]


def _levels(box: _Box, y_marks: Sequence[float], y_texts: Sequence[str] | None = None) -> str:
    """Grid lines with their labels at the left."""
    parts = []
    for value, text in zip(y_marks, y_texts or [tick_text(value, y_marks) for value in y_marks], strict=True):
        y = box.y(value)
        parts.append(f'<line class="grid" x1="{box.left}" x2="{box.right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{box.left - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    return "".join(parts)


# ---- runs ----


def _root(kl: float) -> float:
    return math.sqrt(max(kl, 0.0))


def _values(run: Mapping[str, Any], key: str) -> Sequence[float]:
    """What a panel of the frontier shows of a run."""
    return (run["line"] or {}).get("residuals", []) if key == "rest" else run[key] or []


def _fit(run: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Both ends of a run's straight line."""
    line, roots = run["line"], [_root(k) for k in run["kl"]]
    return [(d, line["intercept"] + line["slope"] * d) for d in (min(roots), max(roots))]


def _colour(run: int) -> str:
    return f"var({COLOURS[run % len(COLOURS)]})"


def _dots(box: _Box, points: Points, run: int, last: float | None = None, opacity: float = 1.0) -> str:
    """A run's checkpoints in its colour, smaller where they are many; `last`: another radius of the last one."""
    kept = _thin(points)
    radii = [3.2 if len(kept) <= 60 else 2.2] * len(kept)
    radii[-1:] = [last or radii[-1]] if kept else []
    inner, outer = (_colour(run), "var(--page)") if run // len(COLOURS) % 2 == 0 else ("var(--page)", _colour(run))
    circles = [f'<circle cx="{box.x(x or 0)}" cy="{box.y(y or 0)}" r="{r}"/>' for (x, y), r in zip(kept, radii, strict=True)]
    return f'<g class="run" style="fill:{inner};stroke:{outer};stroke-width:1.2;opacity:{opacity:g}">{"".join(circles)}</g>'


def _ring(box: _Box, x: float, y: float, run: int) -> str:
    """Where over-optimisation begins."""
    style = f"fill:none;stroke:{_colour(run)};stroke-width:1.8"
    return f'<circle class="ring" style="{style}" cx="{box.x(x)}" cy="{box.y(y)}" r="7"/>'


def _legend(runs: Sequence[Mapping[str, Any]], width: int, numbers: Sequence[int] | None = None) -> tuple[list[str], int]:
    """Dots and names of several runs (numbers: their colours) in rows, and the height of these; of one nothing."""
    parts: list[str] = []
    x, y = 46.0, 12
    shown = short_names([run["name"] for run in runs])
    for number, run in zip(numbers or range(len(runs)), runs, strict=True):
        name = shown[run["name"]]
        room = 8.0 * len(name) + 32  # on a phone too
        if parts and x + room > width:
            x, y = 46.0, y + 18
        full = f"<title>{escape(run['name'])}</title>" if name != run["name"] else ""
        parts.append(_dots(_Box(x, y - 4, x + 1, y - 3, 0, 1, 0, 1), [(0.0, 1.0)], number, last=4.5))
        parts.append(f'<text class="name" x="{x + 10}" y="{y}">{escape(name)}{full}</text>')
        x += room
    return (parts, y + 8) if len(runs) > 1 else ([], 0)


def _best_of(box: _Box, points: Sequence[tuple[int, float, float]], others: Points) -> tuple[str, tuple[float, float]]:
    """Best-of-n, (n, x, y) from n = 1 on: a dotted line, a dot at each further n, the last one named where that hides the fewest
    other points; and where the name stands."""
    name, last = f"best of {points[-1][0]}", (box.x(points[-1][1]), box.y(points[-1][2]))
    there, width = [(box.x(x or 0), box.y(y or 0)) for x, y in others], 7.0 * len(name)  # on a phone too
    places: list[tuple[bool, int, int, float, float, str]] = []
    for text_y in (max(last[1] - 7, box.top + 10), min(last[1] + 17, box.bottom - 4)):
        for left, text_x, anchor in ((last[0] + 7, last[0] + 7, "start"), (last[0] - 7 - width, last[0] - 7, "end")):
            hidden = sum(left - 5 < x < left + width + 5 and text_y - 15 < y < text_y + 7 for x, y in there)
            places.append((left < box.left or left + width > box.right, hidden, len(places), text_x, text_y, anchor))
    *_, text_x, text_y, anchor = min(places)
    line = f'<path class="line second dotted" d="{_path(box, [(x, y) for _, x, y in points])}"/>'
    dots = "".join(f'<circle class="dot second" cx="{box.x(x)}" cy="{box.y(y)}" r="3"/>' for _, x, y in points[1:])
    text = f'<text class="halo" x="{text_x:.1f}" y="{text_y:.1f}" text-anchor="{anchor}">{name}</text>'
    return f'<g class="best">{line}{dots}{text}</g>', (text_x, text_y)


def _run_told(run: Mapping[str, Any]) -> str:
    """A run's figures in words, for who cannot see them."""
    told = [f"{run['name']}: KL {_trend(list(enumerate(run['kl'])))}", f"proxy {_trend(list(enumerate(run['proxy'])))}"]
    told += [f"gold {_trend(list(enumerate(run['gold'])))}"] if run["gold"] else []
    told += [f"over-optimisation begins at {run['turn']['kl']:.1f} nats"] if run["turn"] else []
    return ", ".join(told)


def _best_told(best_of: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last of best-of-n in words."""
    told = []
    for b in best_of[-1:]:
        gold = "" if b["gold"] is None else f", gold {signed(b['gold'])}"
        told.append(f"best of {b['n']}: proxy {signed(b['proxy'])}{gold} at {signed(b['kl'])} nats")
    return told


def _percents(marks: Sequence[float]) -> list[str]:
    values = [100 * mark for mark in marks]
    return [f"{tick_text(value, values)} %" for value in values]


def _path(box: _Box, points: Points) -> str:
    """SVG path; a missing value lifts the pen."""
    out, down = [], False
    for x, y, *_ in points:
        if x is None or y is None:
            down = False
            continue
        out.append(f"{'L' if down else 'M'}{box.x(x)} {box.y(y)}")
        down = True
    return "".join(out)


def _alone(points: Points) -> list[tuple[float, float]]:
    """Points without a neighbour, of which a line would show nothing."""
    there = [p[0] is not None and p[1] is not None for p in points]
    padded = [False, *there, False]
    kept = [p for i, p in enumerate(points) if there[i] and not padded[i] and not padded[i + 2]]
    return [(x, y) for x, y, *_ in kept if x is not None and y is not None]


def _thin(points: Points) -> list[Sequence[float | None]]:
    """At most about MAX_POINTS of the points, first and last kept."""
    step = -(-len(points) // MAX_POINTS) or 1
    kept = list(points[::step])
    if points and (len(points) - 1) % step:
        kept.append(points[-1])
    return kept


def _trend(points: Points) -> str:
    values = [p[1] for p in points if p[1] is not None]
    return f"from {signed(values[0])} to {signed(values[-1])}" if values else "has no value"


def _ends(summary: Mapping[str, Any]) -> tuple[float, float]:
    """The interval, or the mean twice where there is none."""
    low, high = summary.get("low"), summary.get("high")
    return (summary["mean"], summary["mean"]) if low is None or high is None else (low, high)


def _svg(title: str, label: str, size: tuple[int, int], parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
