"""The cores that C sources can be written for, and what each of them can compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

CoreName = Literal["generic", "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]
GENERIC: CoreName = "generic"
"""Any core with a C99 compiler."""

THUMB, ARMV7M = "the Thumb instructions of Armv6-M", "the instructions of Armv7-M"
DSP, FPU, MVE = "the DSP extension", "a floating-point unit", "the vector extension MVE"
"""Every Cortex-M has the instructions of Armv6-M, all but M0, M0+ and M23 those of Armv7-M. The DSP extension
multiplies pairs of 16-bit integers. Of the FPU the kernels use the registers only."""

CONDITIONS: Mapping[str, str] = {
    THUMB: "defined(__thumb__)",
    ARMV7M: "__ARM_ARCH_ISA_THUMB >= 2",
    DSP: "defined(__ARM_FEATURE_DSP)",
    MVE: "defined(__ARM_FEATURE_MVE)",
}
"""By feature, for the preprocessor, whether the compiler's target has it. (Compilers know of an FPU only where
floating-point numbers are passed in its registers, which is not what the kernels need.)"""

FEATURES: Mapping[str, frozenset[str]] = {
    "generic": frozenset(),
    "cortex-m0plus": frozenset({THUMB}),
    "cortex-m3": frozenset({THUMB, ARMV7M}),
    "cortex-m4": frozenset({THUMB, ARMV7M, DSP, FPU}),
    "cortex-m7": frozenset({THUMB, ARMV7M, DSP, FPU}),
    "cortex-m33": frozenset({THUMB, ARMV7M, DSP, FPU}),
    "cortex-m55": frozenset({THUMB, ARMV7M, DSP, FPU, MVE}),
}
"""By core, what kernels may ask for. A Cortex-M33 can be had without DSP and FPU, a Cortex-M55 without FPU and MVE:
these have them."""

NAMES: tuple[str, ...] = get_args(CoreName)


def missing_features(built_for: str, core: str) -> frozenset[str]:
    """Return what sources written for `built_for` may need and `core` lacks; nothing where they can run."""
    return FEATURES[built_for] - FEATURES[core]
