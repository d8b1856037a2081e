"""Two runs of one network compared: how far apart, on how many images the winner differs, and from which layer on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.graph import IntegerGraph
from kdpipe.targets.reference import run_all


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


def first_divergent_layer(
    graph: IntegerGraph, trace: Mapping[str, NDArray[Any]], inputs: NDArray[np.int8]
) -> str | None:
    """Return the first layer, in the graph's order, whose traced tensor differs from the reference's.

    Args:
        graph: the reference.
        trace: what a device computed for `inputs`, by layer, int8 [N, *shape]; layers may be absent.
        inputs: stored integers, int8 [N, *graph.input.shape].

    Returns:
        The layer's name, or None if none of the traced ones differs.
    """
    expected = run_all(graph, inputs)
    for node in graph.nodes:
        if node.name in trace and not np.array_equal(trace[node.name], expected[node.name]):
            return node.name
    return None
