"""The functions that a `Lookup` may compute, and the tables that they become.

A table holds what the graph's integers are mapped to, so that every target that reads the table agrees to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.graph import Lookup, Quantization

Reals = NDArray[np.float64]


def _hard_sigmoid(x: Reals) -> Reals:
    return np.asarray(np.clip(x / 6 + 0.5, 0.0, 1.0))


def _sigmoid(x: Reals) -> Reals:
    # Of a negative x by exp(x), of a positive one by exp(-x): neither overflows.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


FUNCTIONS: Mapping[str, Callable[[Reals], Reals]] = MappingProxyType(
    {
        "hard_sigmoid": _hard_sigmoid,
        "hard_swish": lambda x: x * _hard_sigmoid(x),
        "sigmoid": _sigmoid,
        "silu": lambda x: x * _sigmoid(x),
    }
)
"""By name: float64 to float64, elementwise. hard_sigmoid(x) = clip(x / 6 + 1 / 2, 0, 1) and hard_swish(x) =
x * hard_sigmoid(x), as in MobileNetV3 (Howard et al. 2019, arXiv:1905.02244); silu(x) = x * sigmoid(x)."""


def lookup_table(op: Lookup, source: Quantization, output: Quantization) -> NDArray[np.int8]:
    """Return what each stored integer becomes: int8 [256], the entry of q at index q + 128.

    Entries outside the input's range are there, but never read.
    """
    real = source.scale * (np.arange(-128, 128, dtype=np.float64) - source.zero_point)
    steps = np.rint(FUNCTIONS[op.function](real) / output.scale) + output.zero_point
    table: NDArray[np.int8] = np.clip(steps, output.qmin, output.qmax).astype(np.int8)
    return table
