"""Horizontal bars: one figure of several targets, each beside its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdpipe.pipeline.report.svg import element, join, picture, shorten

WIDTH, ROW, BAR = 360.0, 40.0, 11.0


@dataclass(frozen=True)
class Bar:
    """One row of the chart.

    Args:
        label: the target's name.
        value: at least 0.
        text: the value as it is to be read.
        group: index of the colour.
        limit: the largest value that its gate allows, or None.
        limit_text: the limit as it is to be read.
    """

    label: str
    value: float
    text: str
    group: int = 0
    limit: float | None = None
    limit_text: str = ""


def chart(title: str, bars: Sequence[Bar]) -> Markup:
    """Return the chart. Its axis starts at 0 and ends at the largest value or limit, whichever is greater."""
    most = max([bar.value for bar in bars] + [bar.limit for bar in bars if bar.limit is not None] + [1e-12])
    length = WIDTH - 4
    parts = []
    for index, bar in enumerate(bars):
        y = index * ROW
        over = bar.limit is not None and bar.value > bar.limit
        tooltip = f"{bar.label}: {bar.text}" + (f", limit {bar.limit_text}" if bar.limit is not None else "")
        shown = bar.text + (f" of {bar.limit_text}" if bar.limit is not None else "")
        row = [
            element("title", tooltip),
            element("text", shorten(bar.label, 26), x=0, y=y + 14, class_="label"),
            element("text", shown, x=length, y=y + 14, class_="label end strong"),
            element("rect", x=0, y=y + 20, width=length, height=BAR, rx=3, class_="track"),
            element("rect", x=0, y=y + 20, width=max(1.5, length * bar.value / most), height=BAR, rx=3, class_="bar"),
        ]
        if bar.limit is not None:
            x = min(length * bar.limit / most, length - 1)
            row.append(element("line", x1=x, x2=x, y1=y + 17, y2=y + 34, class_="limit"))
        parts.append(element("g", *row, class_="is-over" if over else f"series-{bar.group % 8}"))
    names = "; ".join(f"{bar.label} {bar.text}" for bar in bars[:40])
    return picture(WIDTH, len(bars) * ROW, f"{title}: {names}", join(parts), class_="chart bars")
