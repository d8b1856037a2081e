"""Mistakes in a pipeline file: each with its place and remedy, and all of them reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdpipe.targets.errors import UsageError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands: a line and column (from 1) of a file, or a `--set` of the command line (line 0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Args:
        place: where it stands.
        path: the key's path, such as ("stages", "student", "epochs").
        message: what is wrong, as a sentence without a full stop.
        remedy: what to do about it.
    """

    place: Place
    path: KeyPath
    message: str
    remedy: str | None = None

    def __str__(self) -> str:
        key = f" {dotted(self.path)}:" if self.path else ""
        remedy = f". {self.remedy}" if self.remedy else ""
        return f"{self.place}:{key} {self.message}{remedy}"


class SpecError(UsageError):
    """A pipeline file is wrong.

    Args:
        problems: every mistake that was found, at least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems), key=lambda problem: (problem.place, dotted(problem.path))))
        count = len(self.problems)
        super().__init__("a mistake was found" if count == 1 else f"{count} mistakes were found")

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def dotted(path: KeyPath) -> str:
    """Return a key's path as it is written after `--set`.

    >>> dotted(("stages", "teachers", "members", 0, "width"))
    'stages.teachers.members.0.width'
    """
    return ".".join(map(str, path))
