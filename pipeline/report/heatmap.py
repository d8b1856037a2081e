"""Heat maps: a figure for each row and column, as text on a tint."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from kdpipe.pipeline.report.formatting import DASH, tick
from kdpipe.pipeline.report.svg import element, join, picture, shorten

WIDTH, LABEL, ROW, HEAD = 360.0, 142.0, 24.0, 22.0
NARROWEST, WIDEST_TEXT = 44.0, 92.0
"""The least width of a cell: with the digits of a number, and with a mean and its deviation."""
GAP = 2.0
FAINTEST, STRONGEST = 0.04, 0.55
"""Opacity of the tint: text on the strongest can be read in both colour schemes."""
LARGEST_RATIO = 30


def chart(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    notes: Sequence[str] = (),
    marked: Sequence[tuple[int, int]] = (),
    *,
    texts: Sequence[Sequence[tuple[str, str]]] = (),
    among: Sequence[float] = (),
) -> Markup:
    """Return the heat map.

    The tint goes from the smallest value to the largest, by ratio where all are positive and span more than one and
    a half decades. A missing value has no tint.

    Args:
        title: what the values are.
        rows: their names.
        columns: their names.
        values: by row and column.
        notes: under the rows' names, or nothing.
        marked: (row, column) of cells with a frame.
        texts: by row and column, what stands in a cell and in small below it, instead of the value's first digits.
        among: further values that the tints are to be comparable with: those of the other heat maps of a group.
    """
    finite = [value for row in values for value in row if value is not None and math.isfinite(value)]
    tint = _Tint([*finite, *among])
    cell = max(WIDEST_TEXT if texts else NARROWEST, (WIDTH - LABEL) / max(1, len(columns)))
    height = ROW * (1.5 if notes or texts else 1.0)
    width = LABEL + cell * len(columns)
    frames = set(marked)
    parts = [
        element("text", shorten(name, int(cell / 6.5)), x=LABEL + cell * (at + 0.5), y=14, class_="label middle")
        for at, name in enumerate(columns)
    ]
    for index, (name, numbers) in enumerate(zip(rows, values, strict=False)):
        y = HEAD + index * height
        note = notes[index] if index < len(notes) else ""
        parts.append(element("text", shorten(name, 22), x=0, y=y + (14 if note else height / 2 + 4), class_="label"))
        if note:
            parts.append(element("text", shorten(note, 26), x=0, y=y + 28, class_="tick"))
        for at, value in enumerate(numbers[: len(columns)]):
            x = LABEL + cell * at
            text, below = texts[index][at] if texts else (short(value), "")
            told = f"{text}, {below}" if below else text
            framed = (index, at) in frames
            middle, across = x + cell / 2, y + height / 2
            inside = [
                element("title", f"{name}, {columns[at]}: {told}" + (", chosen" if framed else "")),
                element(
                    "rect",
                    x=x + GAP / 2,
                    y=y + GAP / 2,
                    width=cell - GAP,
                    height=height - GAP,
                    rx=3,
                    fill_opacity=tint(value),
                    class_="cell is-chosen" if framed else "cell",
                ),
                element("text", text, x=middle, y=across + (-1 if below else 4), class_="middle value"),
            ]
            if below:
                inside.append(element("text", below, x=middle, y=across + 12, class_="middle value"))
            parts.append(element("g", *inside))
    words = f"{title}: {len(rows)} rows by {', '.join(columns[:12])}"
    return picture(width, HEAD + height * len(rows), words, join(parts), class_="chart heatmap")


def short(value: float | None) -> str:
    """Return a value with the two or three digits that a cell has room for."""
    if value is None or not math.isfinite(value):
        return DASH
    return tick(float(f"{value:.{2 if abs(value) < 0.01 else 3}g}"))


class _Tint:
    """The opacity of a value's tint.

    Args:
        values: all that are shown, finite.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self._low, self._high = (min(values), max(values)) if values else (0.0, 0.0)
        self._by_ratio = self._low > 0 and self._high / self._low > LARGEST_RATIO

    def __call__(self, value: float | None) -> float:
        if value is None or not math.isfinite(value):
            return 0.0
        low, high = self._low, self._high
        if high <= low:
            return FAINTEST
        if self._by_ratio:
            share = math.log(value / low) / math.log(high / low)
        else:
            share = value / (high - low) - low / (high - low)
        return FAINTEST + (STRONGEST - FAINTEST) * min(1.0, max(0.0, share))
