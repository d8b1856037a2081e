"""References such as `${teachers.ensemble}`: how one stage names another's output."""

from __future__ import annotations

import re
from dataclasses import dataclass

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Reference:
    """An output of a stage or data source.

    Args:
        stage: the stage's name; of a data source `data.NAME`.
        output: the output's name; None stands for the only one.
    """

    stage: str
    output: str | None

    def __str__(self) -> str:
        return "${" + (self.stage if self.output is None else f"{self.stage}.{self.output}") + "}"


def looks_like_reference(value: object) -> bool:
    """Return whether a value seems to be meant as a reference."""
    return isinstance(value, str) and "${" in value


def parse_reference(text: str) -> Reference | None:
    """Return the reference that `text` is, or None where it is none.

    >>> parse_reference("${data.digits.test}")
    Reference(stage='data.digits', output='test')
    >>> parse_reference("${student}")
    Reference(stage='student', output=None)
    """
    match = _REFERENCE.fullmatch(text.strip())
    if not match:
        return None
    words = match[1].strip().split(".")
    if not all(_WORD.fullmatch(word) for word in words):
        return None
    if words[0] == "data":
        return Reference(f"data.{words[1]}", words[2]) if len(words) == 3 else None
    if len(words) > 2:
        return None
    return Reference(words[0], words[1] if len(words) == 2 else None)
