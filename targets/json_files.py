"""JSON files that anybody may have written: whatever is wrong with one comes out as one of a few errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What reading a file raises that is missing, no JSON, or JSON of other content than expected, such as an infinite
number where an integer is meant."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it can't be read.
        ValueError: it is not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_text(value: Any) -> str:
    r"""Return a value that should be text that can be written to a file, as JSON's `"\ud800"` can't.

    Raises:
        TypeError: it is not text.
        ValueError: it has half a surrogate pair.
    """
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    value.encode()
    return value
