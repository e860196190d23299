"""Small SVG plots as text: no dependency, no request, coloured by the page's CSS for light and dark alike.

Each function returns one `<svg>` with a `<title>` and an `aria-label`. Sizes are in pixels of the
`viewBox`; the page scales it. Classes: `grid`, `axis`, `ref` (reference line), `line`, `bar` (interval),
`dot`, `main`, `second`, `name`. Coordinates are rounded to a tenth of a pixel, so the same data give the
same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.text import short_names, shortened, signed

Points = Sequence[Sequence[float | None]]
BESIDE, ALONE = 38, 56  # characters of a label that fit beside its numbers, and on a line of their own, on a phone too
MAX_POINTS = 400  # drawn per line; the data stay whole in report.json


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
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
    ys = [y for _, y in finite] + ([] if target is None else [target]) or [0.0, 1.0]
    margin = (max(ys) - min(ys)) * 0.06 or abs(ys[0]) * 0.1 or 1.0
    low, high = min(ys) - margin, max(ys) + margin
    width, height = size
    box = _Box(40, 6, width - 12, height - 34, min(xs), max(xs), low, high)
    y_marks = [y for y in ticks(low, high) if low <= y <= high]
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


def path_plot(run: Mapping[str, Any], title: str, size: tuple[int, int] = (460, 300)) -> str:
    """A run's checkpoints over √KL (`eval.evidence.frontier`'s): proxy and its straight line, gold where it was logged.

    The x axis is linear in √KL and labelled in nats; a dashed upright line marks where over-optimisation begins.
    """
    width, height = size
    roots = [math.sqrt(max(k, 0.0)) for k in run["kl"]]
    proxy, gold, line = run["proxy"], run["gold"] or [], run["line"]
    y_marks = ticks(min([*proxy, *gold]), max([*proxy, *gold]))
    box = _Box(46, 12, width - 14, height - 40, 0.0, max(roots) * 1.03 or 1.0, y_marks[0], y_marks[-1])
    most = box.x1**2
    scale = next(s for s in (10.0**k * m for k in range(-6, 9) for m in (1, 2, 5)) if 6 * s >= most)
    marks = [0.0, *(k for k in (scale / 4, scale, 2 * scale, 4 * scale, 6 * scale) if k <= most)]
    x_marks, x_texts = [math.sqrt(k) for k in marks], [f"{k:g}" for k in marks]
    parts = [_axes(box, x_marks, y_marks, "KL to the reference, nats (√ scale)", height, x_texts)]
    if line:
        ends = [(d, line["intercept"] + line["slope"] * d) for d in (min(roots), max(roots))]
        parts.append(f'<path class="line fit" d="{_path(box, ends)}"/>')
    for style, values in (("second", gold), ("main", proxy)):
        kept = _thin(list(zip(roots, values, strict=False)))
        parts += [f'<circle class="dot {style}" cx="{box.x(x or 0)}" cy="{box.y(y or 0)}" r="3.2"/>' for x, y in kept]
    if run["turn"]:
        x = box.x(math.sqrt(max(run["turn"]["kl"], 0.0)))
        parts.append(f'<line class="ref" x1="{x}" x2="{x}" y1="{box.top}" y2="{box.bottom}"/>')
        anchor, dx = ("end", -6) if x > box.left + 0.5 * (box.right - box.left) else ("start", 6)
        at = f'x="{x + dx:.1f}" y="{box.bottom - 8}" text-anchor="{anchor}"'
        parts.append(f'<text class="name halo" {at}>over-optimised from here</text>')
    told = [f"proxy {_trend(list(zip(roots, proxy, strict=True)))}"]
    told += [f"gold {_trend(list(zip(roots, gold, strict=True)))}"] if gold else []
    kl = f"KL {_trend(list(zip(roots, run['kl'], strict=True)))}"
    return _svg(title, f"{title}: {'; '.join([kl, *told])}", size, parts)


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

    `best_of`: (n, x, y) of best-of-n, drawn as a dotted line with n at its points.
    """
    width, height = size
    xs = [v for p in points for v in _ends(p["x"])] + [x for _, x, _ in best_of] + [0.0]
    ys = [v for p in points for v in _ends(p["y"])] + [y for _, _, y in best_of]
    x_marks, y_marks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    box = _Box(46, 12, width - 14, height - 40, x_marks[0], x_marks[-1], y_marks[0], y_marks[-1])
    parts = [_axes(box, x_marks, y_marks, x_label, height)]
    if best_of:
        parts.append(f'<path class="line second dotted" d="{_path(box, [(x, y) for _, x, y in best_of])}"/>')
    for n, best_x, best_y in best_of[1:]:
        parts.append(f'<circle class="dot second" cx="{box.x(best_x)}" cy="{box.y(best_y)}" r="3"/>')
        parts.append(f'<text class="halo" x="{box.x(best_x)}" y="{box.y(best_y) + 15}" text-anchor="middle">best of {n}</text>')
    used: list[tuple[float, float]] = []
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
    y_texts = y_texts or [tick_text(value, y_marks) for value in y_marks]
    parts = []
    for value, text in zip(y_marks, y_texts, strict=True):
        y = box.y(value)
        parts.append(f'<line class="grid" x1="{box.left}" x2="{box.right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{box.left - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in zip(x_marks, x_texts, strict=True):
        x = box.x(value)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{box.bottom}" y2="{box.bottom + 4}"/>')
        parts.append(f'<text x="{x}" y="{box.bottom + 16}" text-anchor="middle">{text}</text>')
    middle = round((box.left + box.right) / 2, 1)
    parts.append(
        f'<text class="note" x="{middle}" y="{height - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


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
