"""The constants in C sources: what sums begin with, and what they are multiplied with in fixed point.

Kernels of a core's own have them in other forms; these layers, which compute the integer graph to the bit, are absent.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.devices.c_artifact import load_arena
from kdpipe.targets.errors import DeviceError

_WEIGHTS_SOURCE = "model_weights.c"
_NAMES = {"bias": "start", "multipliers": "multipliers", "shifts": "shifts"}


def read(artifact: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return, by layer with weights, `start`, `multipliers` and `shifts`."""
    described, layers = read_artifact(artifact), load_arena(artifact).layers
    (path,) = (artifact / name for name in described.files if Path(name).name == _WEIGHTS_SOURCE)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DeviceError(f"the sources can't be read ({error.strerror})", where=str(path)) from None
    found: dict[str, dict[str, NDArray[Any]]] = {}
    pattern = rf"\b{described.name}_(bias|multipliers|shifts)(\d+)\[\d+\] = {{([-\d,\s]*)}}"
    for kind, index, numbers in re.findall(pattern, text):
        values = np.array([int(number) for number in numbers.split(",") if number.strip()])
        found.setdefault(layers[int(index)], {})[_NAMES[kind]] = values
    return found
