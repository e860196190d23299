"""Learning curves of a run's stages, from the metrics.csv files of Lightning's CSVLogger."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any


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


def stage_curves(logs: str | None) -> dict[str, Any]:
    """Each stage's metrics.csv of all versions: a resumed run goes on in a further one, in place of what it does again."""
    found = {}
    for stage in ("sft", "start", "reward", "ppo"):
        files = sorted(Path(logs or "").glob(f"{stage}/version_*/metrics.csv"), key=lambda f: int(f.parent.name.split("_")[1]))
        joined: dict[str, list[list[float | None]]] = {}
        for file in files if logs else ():
            new = read_curves(str(file))
            start = min((x for points in new.values() for x, _ in points if x is not None), default=math.inf)
            joined = {name: [p for p in points if p[0] is not None and p[0] < start] for name, points in joined.items()}
            for name, points in new.items():
                joined.setdefault(name, []).extend(points)
        if joined:
            found[stage] = joined
    return found
