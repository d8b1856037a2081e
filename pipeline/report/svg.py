"""SVG elements as strings: the one place where text and attributes are escaped."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from markupsafe import Markup, escape

Point = tuple[float, float]


def number(value: float) -> str:
    """Return `value` with at most two decimals and no trailing zeros, as SVG attributes want it.

    >>> number(12.0), number(1 / 3)
    ('12', '0.33')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element. Children that are not Markup are escaped, and so are all attributes.

    In attribute names a trailing underscore is dropped and the others become hyphens; None leaves one out.

    >>> str(element("text", "a<b", x=1.5, class_="label"))
    '<text x="1.5" class="label">a&lt;b</text>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None:
            continue
        text = value if isinstance(value, str) else number(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    inside = "".join(escape(child) for child in children)
    return Markup("".join(parts) + (f">{inside}</{name}>" if inside else "/>"))  # noqa: S704 - all parts are escaped


def join(parts: Sequence[str]) -> Markup:
    """Return the parts one after another, escaping those that are not Markup."""
    return Markup("").join(parts)


def picture(width: float, height: float, title: str, *children: str, class_: str = "chart") -> Markup:
    """Return a whole `<svg>` of `width` x `height` user units which scales with its container and reads its title."""
    return element(
        "svg",
        element("title", title),
        *children,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=title,
        class_=class_,
    )


def polyline(points: Sequence[Point], **attributes: str | float | None) -> Markup:
    """Return a line through `points`, interrupted where a coordinate is not finite."""
    commands: list[str] = []
    pen_down = False
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen_down = False
            continue
        # "h0" makes a point that stands alone visible, as a dot of the line's round ends.
        commands.append(f"L{number(x)} {number(y)}" if pen_down else f"M{number(x)} {number(y)}h0")
        pen_down = True
    return element("path", d="".join(commands), fill="none", **attributes)


def columns(text: str) -> int:
    """Return how many columns `text` takes: two for each wide East Asian character, one for any other.

    >>> columns("abc"), columns("数字")
    (3, 4)
    """
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def shorten(text: str, width: int) -> str:
    """Return `text`, cut in the middle with an ellipsis where it takes more than `width` columns.

    >>> shorten("teacher-ensemble", 9)
    'teac…mble'
    """
    if columns(text) <= width:
        return text
    head, tail = "", ""
    while True:
        left_turn = len(head) <= len(tail)
        longer_head = head + text[len(head)] if left_turn else head
        longer_tail = tail if left_turn else text[len(text) - len(tail) - 1] + tail
        if columns(longer_head) + 1 + columns(longer_tail) > width:
            return f"{head}…{tail}"
        head, tail = longer_head, longer_tail


def two_lines(text: str, width: int) -> tuple[str, ...]:
    """Return `text` as one line, or broken after a separator into two, each at most `width` columns.

    >>> two_lines("ensemble-accuracy", 12)
    ('ensemble-', 'accuracy')
    """
    if columns(text) <= width:
        return (text,)
    breaks = [index for index, character in enumerate(text, 1) if character in "-_. /" and index < len(text)]
    fitting = [index for index in breaks if columns(text[:index]) <= width]
    if not fitting:
        return (shorten(text, width),)
    best = max(fitting)
    return text[:best], shorten(text[best:], width)
