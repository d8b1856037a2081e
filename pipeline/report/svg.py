"""SVG elements as strings: the one place where text and attributes are escaped."""

from __future__ import annotations

import math
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
        commands.append(f"{'L' if pen_down else 'M'}{number(x)} {number(y)}")
        pen_down = True
    return element("path", d="".join(commands), fill="none", **attributes)


def shorten(text: str, characters: int) -> str:
    """Return `text`, cut in the middle with an ellipsis where it is longer than `characters`.

    >>> shorten("teacher-ensemble", 9)
    'teac…mble'
    """
    if len(text) <= characters:
        return text
    head = (characters - 1 + 1) // 2
    return text[:head] + "…" + text[len(text) - (characters - 1 - head) :]
