"""The outputs of two runs of one network compared: how far apart, and on how many images the winner differs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Parity:
    """How a device's outputs compare with the integer reference's on the same images.

    Args:
        max_step_difference: the largest difference of two stored integers, in steps of the output's scale.
        top1_agreement: the fraction of images with the same winner, in [0, 1]; the first of equal outputs wins.
        differing: indices of the images with any difference, int64.
    """

    max_step_difference: int
    top1_agreement: float
    differing: NDArray[np.int64]


def compare(expected: NDArray[np.int8], actual: NDArray[np.int8]) -> Parity:
    """Compare outputs, both int8 [N, ...] with N at least 1.

    Raises:
        ValueError: the shapes differ.
    """
    if expected.shape != actual.shape:
        raise ValueError(f"outputs of shapes {expected.shape} and {actual.shape} can't be compared")
    ours, theirs = (values.reshape(len(values), -1).astype(np.int16) for values in (expected, actual))
    difference = np.abs(ours - theirs)
    return Parity(
        int(difference.max()),
        float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        np.flatnonzero(difference.any(axis=1)).astype(np.int64),
    )
