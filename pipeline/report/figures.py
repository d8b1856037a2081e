"""Pictures that stages drew, as data addresses inside the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BUDGET = 1_800_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    """A picture, or the reason why it is not shown.

    Args:
        caption: what it shows.
        address: a `data:` address, or None.
        path: where the file lies, relative to the report.
        problem: why there is no address; empty where there is one.
    """

    caption: str
    address: str | None
    path: str
    problem: str = ""


def inline(figures: Mapping[str, str], folder: Path, left: int) -> tuple[list[Figure], int]:
    """Return the figures of one stage with their content, and what is left of the page's budget of bytes.

    Only PNG files inside `folder` are read; any other, a missing one and one over the budget is named instead.
    """
    shown = []
    for caption, path in figures.items():
        data, problem = _read(path, folder, left)
        address = None
        if data is not None:
            address = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
            left -= len(address)
        shown.append(Figure(caption, address, path, problem))
    return shown, left


def _read(path: str, folder: Path, left: int) -> tuple[bytes | None, str]:
    """Return the content of a figure, or None and what is wrong."""
    try:
        root = folder.resolve()
        file = (root / path).resolve()
        if not file.is_relative_to(root):
            return None, "it lies outside the report's folder"
        if not file.is_file():
            return None, "the file is missing"
        if file.stat().st_size * 4 / 3 + 32 > left:
            return None, "it is too large for this page"
        data = file.read_bytes()
    except (OSError, ValueError):
        return None, "the file can't be read"
    return (data, "") if data.startswith(_SIGNATURE) else (None, "it is not a PNG picture")
