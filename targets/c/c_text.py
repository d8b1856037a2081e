"""Pieces of C source text."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.packing import ConstantArray

_LINE_WIDTH = 116


def comment_text(text: str) -> str:
    """Return `text` as it may stand in a C comment: printable ASCII that neither ends the comment nor starts one.

    >>> comment_text("evil */ int x;")
    'evil * / int x;'
    """
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    printable = "".join(character if character.isprintable() else " " for character in plain)
    # ?? starts a trigraph, and ??/ is a backslash.
    return printable.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?").rstrip("\\ ")


def string_literal(text: str) -> str:
    r"""Return `text` as a C string of the same UTF-8 bytes.

    >>> print(string_literal('a "b"'))
    "a \042b\042"
    """
    plain = {ord(character) for character in " ._-+/:"} | set(range(48, 58)) | set(range(65, 91)) | set(range(97, 123))
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def table_cell(text: str) -> str:
    """Return `text` as it may stand in a Markdown table."""
    return html.escape(comment_text(text)).replace("|", "&#124;").replace("`", "&#96;")


def integer(value: int) -> str:
    """Return `value` (int32) as a C expression: the smallest one has no literal of its own."""
    return "(-2147483647 - 1)" if value == -(2**31) else str(value)


def float_literal(value: float) -> str:
    """Return the float32 `value` as a C literal that reads back as exactly it."""
    text = f"{np.float32(value):.9g}"
    return (text if any(character in text for character in ".e") else f"{text}.0") + "f"


def braces(values: Iterable[str]) -> str:
    """Return an initializer list."""
    return "{" + ", ".join(values) + "}"


def array_body(array: ConstantArray) -> str:
    """Return the elements of `array` as indented lines of an initializer list."""
    if array.c_type == "uint32_t":
        items = [f"0x{int(value):08x}u" for value in array.values]
    else:
        items = [integer(int(value)) for value in array.values]
    return _lines(items)


def int8_body(values: NDArray[np.int8]) -> str:
    """Return `values` (one dimension) as indented lines of an initializer list."""
    return numbers_body(values.tolist())


def numbers_body(values: Iterable[int]) -> str:
    """Return small integers as indented lines of an initializer list."""
    return _lines([str(value) for value in values])


def _lines(items: list[str]) -> str:
    # Not breaking inside "(-2147483647 - 1)" is not needed: C does not mind where a line ends.
    return textwrap.fill(
        ", ".join(items),
        width=_LINE_WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
