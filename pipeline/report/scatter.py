"""Accuracy against size: one mark a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdpipe.pipeline.report.formatting import percent, size
from kdpipe.pipeline.report.scales import linear, logarithmic
from kdpipe.pipeline.report.svg import Point, element, join, number, picture, shorten

WIDTH, HEIGHT = 360.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 16.0, 16.0, 42.0
LABEL_HEIGHT, LETTER = 13.0, 7.4
MOST_LABELS = 24

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Mark:
    """A target on the chart.

    Args:
        name: its label.
        bytes: its size, positive.
        accuracy: in [0, 1].
        group: index of its colour and shape.
    """

    name: str
    bytes: float
    accuracy: float
    group: int


def shape(group: int, x: float, y: float) -> Markup:
    """Return a mark whose shape, not its colour alone, tells the group: disc, square, diamond, triangle, in turn."""
    outline = (
        "M-5 0A5 5 0 1 1 5 0A5 5 0 1 1-5 0Z",
        "M-4.6-4.6H4.6V4.6H-4.6Z",
        "M0-6.4L6.4 0L0 6.4L-6.4 0Z",
        "M0-6L6 4.6H-6Z",
    )[group % 4]
    return element("path", d=outline, transform=f"translate({number(x)} {number(y)})", class_="shape")


def overlap(a: Box, b: Box) -> bool:
    """Return whether two boxes (left, top, right, bottom) share an area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def place_labels(
    labels: Sequence[str], at: Sequence[Point], frame: Box, occupied: Sequence[Box] = ()
) -> list[Point | None]:
    """Return a free place (left end of the baseline) near each point, or None where there is none.

    Greedy: each label tries eight places around its point, then ones further up and down; no two labels overlap, and
    no label covers a point or an occupied box.
    """
    taken: list[Box] = [*occupied, *((x - 6, y - 6, x + 6, y + 6) for x, y in at)]
    places: list[Point | None] = []
    for text, (x, y) in zip(labels, at, strict=True):
        width = len(text) * LETTER
        options = [(x + 10, y + 4), (x - width - 10, y + 4), (x - width / 2, y - 10), (x - width / 2, y + 20)]
        for shift in (14, 26, 38, 50, 62):
            options += [
                (left, y + 4 + sign * shift) for left in (x + 8, x - width - 8, x - width / 2) for sign in (-1, 1)
            ]
        for left, base in options:
            box = (left, base - LABEL_HEIGHT + 2, left + width + 6, base + 3)
            inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] - 6 <= frame[2] and box[3] <= frame[3]
            if inside and not any(overlap(box, other) for other in taken):
                taken.append(box)
                places.append((left, base))
                break
        else:
            places.append(None)
    return places


def chart(marks: Sequence[Mark], baseline: float | None = None) -> Markup:
    """Return the chart: size on a logarithmic axis to the right, accuracy upwards; `baseline` is a dashed line."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    x_scale = logarithmic([mark.bytes / 1024 for mark in marks], LEFT + 8, right - 8)
    levels = [mark.accuracy for mark in marks] + ([baseline] if baseline is not None else [])
    spread = max(max(levels) - min(levels), 0.01)
    y_scale = linear([min(levels) - 0.15 * spread, min(1.0, max(levels) + 0.15 * spread)], bottom, TOP, 4, 1.0)
    parts = []
    for value in y_scale.ticks:
        y = y_scale(value)
        parts.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", f"{value * 100:.4g}%", x=LEFT - 7, y=y + 4, class_="tick end"))
    for value in x_scale.ticks:
        x = x_scale(value)
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="grid"))
        parts.append(element("text", f"{value:g}", x=x, y=bottom + 17, class_="tick middle"))
    parts.append(element("text", "KiB to ship (logarithmic)", x=right, y=HEIGHT - 6, class_="axis end"))
    occupied: list[Box] = []
    if baseline is not None:
        y = y_scale(baseline)
        parts.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="baseline"))
        parts.append(element("text", f"baseline {percent(baseline)}", x=LEFT + 5, y=y - 5, class_="axis"))
        occupied = [(LEFT, y - 16, LEFT + 15 * LETTER, y + 2)]
    at = [(x_scale(mark.bytes / 1024), y_scale(mark.accuracy)) for mark in marks]
    for mark, (x, y) in zip(marks, at, strict=True):
        title = element("title", f"{mark.name}: {percent(mark.accuracy, 2)} at {size(mark.bytes)}")
        parts.append(element("g", title, shape(mark.group, x, y), class_=f"series-{mark.group % 8}"))
    labels = [shorten(mark.name, 22) for mark in marks[:MOST_LABELS]]
    frame = (LEFT + 2, TOP - 12, right + 10, bottom - 2)
    for label, place in zip(labels, place_labels(labels, at[:MOST_LABELS], frame, occupied), strict=True):
        if place is not None:
            parts.append(element("text", label, x=place[0], y=place[1], class_="label"))
    names = "; ".join(f"{mark.name} {percent(mark.accuracy)} at {size(mark.bytes)}" for mark in marks[:40])
    return picture(WIDTH, HEIGHT, f"Accuracy against size: {names}", join(parts))
