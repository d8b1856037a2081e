"""The memory plan of a C program: each buffer as a rectangle, offsets upward and layers to the right."""

from __future__ import annotations

from markupsafe import Markup

from kdpipe.pipeline.report.document import Arena
from kdpipe.pipeline.report.formatting import size
from kdpipe.pipeline.report.svg import element, join, picture

WIDTH, HEIGHT, LEFT, FOOT, TOP = 460.0, 220.0, 62.0, 24.0, 8.0
GAP = 1.0
KINDS = ("rows", "scratch")
MOST = 2000
"""Buffers that are drawn; a page with more would be slow."""


def chart(title: str, arena: Arena) -> Markup | None:
    """Return the drawing, or None where there is nothing to draw, or too much."""
    if arena.bytes <= 0 or not arena.layers or not 0 < len(arena.buffers) <= MOST:
        return None
    across, up = (WIDTH - LEFT) / len(arena.layers), (HEIGHT - TOP - FOOT) / arena.bytes
    floor = HEIGHT - FOOT
    parts = [
        element("line", x1=LEFT, x2=WIDTH, y1=floor, y2=floor, class_="grid"),
        element("text", "0", x=LEFT - 6, y=floor, class_="tick end"),
        element("text", size(arena.bytes), x=LEFT - 6, y=TOP + 8, class_="tick end"),
        element("text", "first layer", x=LEFT, y=HEIGHT - 6, class_="tick"),
        element("text", "last", x=WIDTH, y=HEIGHT - 6, class_="tick end"),
    ]
    for buffer in arena.buffers:
        steps = range(max(0, buffer.first), min(buffer.last, len(arena.layers) - 1) + 1)
        if not steps:
            continue
        last = buffer.offset + buffer.bytes
        words = f"{buffer.name}: bytes {buffer.offset} to {last}, {arena.layers[steps[0]]} to {arena.layers[steps[-1]]}"
        # The C target names its buffers by what they are: "tensor conv1", "rows conv1", "scratch conv1".
        kind = buffer.name.split(" ")[0]
        parts.append(
            element(
                "rect",
                element("title", words),
                x=LEFT + across * steps[0],
                y=floor - up * last,
                width=max(across * len(steps) - GAP, 0.5),
                height=max(up * buffer.bytes - GAP, 0.5),
                class_=f"buffer is-{kind}" if kind in KINDS else "buffer",
            )
        )
    return picture(WIDTH, HEIGHT, title, join(parts), class_="chart memory")
