"""What an ONNX file says of itself beside its operators: its name, and what kdpipe's own files carry."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import numpy as np

from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import Normalization

DEFAULT_ROUNDING: Rounding = "single"
"""The nearer one to runtimes that requantize in floating point."""


def identifier(name: str) -> str:
    """Return a graph's name in the characters of a C identifier."""
    return re.sub(r"\W", "_", f"_{name}" if name[:1].isdigit() else name, flags=re.A) or "network"


def stated_rounding(text: str | None) -> Rounding:
    """Return the rounding that kdpipe's own files carry, or the default."""
    return "tflite" if text == "tflite" else "single" if text == "single" else DEFAULT_ROUNDING


def class_names(text: str | None, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names that kdpipe's own files carry, or none."""
    try:
        names = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) and (len(names),) == shape else ()


def normalization(properties: Mapping[str, str], channels: int) -> Normalization | None:
    """Return the normalization that kdpipe's own files carry, or None."""
    try:
        mean, std = (tuple(map(float, json.loads(properties[key]))) for key in ("mean", "std"))
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    if len(mean) != channels or len(std) != channels or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        return None
    return Normalization(mean, std)
