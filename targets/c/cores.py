"""The cores that C sources can be written for, and what each of them can compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

CoreName = Literal["generic", "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]
GENERIC: CoreName = "generic"
"""Any core with a C99 compiler."""

THUMB, DSP, FPU = "the Thumb instructions of Armv6-M", "the DSP extension", "a floating-point unit"
"""Every Cortex-M has those of Armv6-M. The DSP extension multiplies pairs of 16-bit integers. Of the FPU the kernels
use the registers only."""

FEATURES: Mapping[str, frozenset[str]] = {
    "generic": frozenset(),
    "cortex-m0plus": frozenset({THUMB}),
    "cortex-m3": frozenset({THUMB}),
    "cortex-m4": frozenset({THUMB, DSP, FPU}),
    "cortex-m7": frozenset({THUMB, DSP, FPU}),
    "cortex-m33": frozenset({THUMB, DSP, FPU}),
    "cortex-m55": frozenset({THUMB, DSP, FPU}),
}
"""By core, what kernels may ask for. A Cortex-M33 can be had without either, a Cortex-M55 without an FPU: these have
both."""

NAMES: tuple[str, ...] = get_args(CoreName)


def missing_features(built_for: str, core: str) -> frozenset[str]:
    """Return what sources written for `built_for` may need and `core` lacks; nothing where they can run."""
    return FEATURES[built_for] - FEATURES[core]
