"""Training curves: one small chart a metric, one line a series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdpipe.pipeline.report.formatting import figure, tick
from kdpipe.pipeline.report.scales import linear, logarithmic
from kdpipe.pipeline.report.svg import Point, element, join, picture, polyline, shorten

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 36.0
MOST_POINTS = 240
STEP_NAMES = ("epoch", "step", "iteration", "batch", "round")
COLOURS = 8


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Args:
        name: of the series.
        points: (step, value), in rising order of steps.
    """

    name: str
    points: tuple[Point, ...]


def step_name(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the column that counts the steps: the first well-known name, or None for the row's number."""
    return next((name for name in STEP_NAMES if rows and all(name in row for row in rows)), None)


def curves_by_metric(history: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Curve]]:
    """Return the curves of each metric in a stage's history, in the order in which the metrics first appear."""
    found: dict[str, list[Curve]] = {}
    for series, rows in history.items():
        step = step_name(rows)
        for metric in dict.fromkeys(name for row in rows for name in row):
            if metric in STEP_NAMES:
                continue
            points = [
                (_number(row[step]) if step else float(index), _number(row.get(metric)))
                for index, row in enumerate(rows, 1)
            ]
            kept = tuple(point for point in points if math.isfinite(point[0]))
            if any(math.isfinite(value) for _, value in kept):
                found.setdefault(metric, []).append(Curve(series, kept))
    return found


def _number(value: Any) -> float:
    """Return a JSON value as a float, NaN where it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most about `most` points, with the smallest and largest of each stretch, so that peaks stay."""
    if len(points) <= most:
        return list(points)
    buckets = max(1, most // 2)
    kept: list[Point] = []
    for bucket in range(buckets):
        stretch = points[bucket * len(points) // buckets : (bucket + 1) * len(points) // buckets]
        finite = [point for point in stretch if math.isfinite(point[1])]
        if finite:
            ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
            kept += sorted(ends)
        else:
            kept.append(stretch[0])
    return [points[0], *kept[1:-1], points[-1]]


def chart(metric: str, curves: Sequence[Curve], step: str = "epoch") -> Markup:
    """Return the chart of one metric: axes, lines, the last value of each line in its tooltip.

    A positive metric that spans more than two and a half decades gets a logarithmic axis.
    """
    values = [y for curve in curves for _, y in curve.points if math.isfinite(y)]
    steps = [x for curve in curves for x, _ in curve.points]
    positive = min(values) > 0 and max(values) / min(values) > 300
    is_fraction = "accuracy" in metric.lower() and min(values) >= 0 and max(values) <= 1
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    y_scale = (
        logarithmic(values, bottom, TOP) if positive else linear(values, bottom, TOP, 4, 1.0 if is_fraction else None)
    )
    low, high = min(steps), max(steps)
    x_scale = linear([low, high] if high > low else [low - 1, high + 1], LEFT, right, 5)
    parts = []
    for value in y_scale.ticks:
        y = y_scale(value)
        label = f"{value * 100:.4g}%" if is_fraction else tick(value)
        parts.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", label, x=LEFT - 7, y=y + 4, class_="tick end"))
    for value in x_scale.ticks:
        if value.is_integer() and low <= value <= high:
            parts.append(element("text", tick(value), x=x_scale(value), y=bottom + 17, class_="tick middle"))
    parts.append(element("text", step, x=right, y=HEIGHT - 3, class_="axis end"))
    for index, curve in enumerate(curves):
        points = [(x_scale(x), y_scale(y)) for x, y in thin(curve.points)]
        last = next((y for _, y in reversed(curve.points) if math.isfinite(y)), math.nan)
        title = element("title", f"{curve.name}: {metric} {figure(last)} at the end")
        colour = f"series-{index % COLOURS}"
        line = polyline(points, class_="line")
        visible = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        dots = visible if len(visible) < 2 else visible[-1:]
        marks = join([element("circle", cx=x, cy=y, r=3, class_="dot") for x, y in dots])
        parts.append(element("g", title, line, marks, class_=colour))
    names = ", ".join(shorten(curve.name, 30) for curve in curves[:12])
    return picture(WIDTH, HEIGHT, f"{metric} of {names} by {step}", join(parts))
