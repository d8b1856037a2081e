"""Golden vectors: inputs and the outputs that the reference computes for them, for the export's own test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets import reference
from kdpipe.targets.graph import IntegerGraph

RANDOM_VECTORS = 4


@dataclass(frozen=True, eq=False)
class GoldenVectors:
    """Inputs int8 [N, *graph.input.shape] and the graph's outputs for them, int8 [N, *graph.output.shape]."""

    inputs: NDArray[np.int8]
    outputs: NDArray[np.int8]


def make_golden_vectors(graph: IntegerGraph, generator: np.random.Generator) -> GoldenVectors:
    """Return the smallest, the largest and a few random inputs with the reference's outputs."""
    limits = graph.input.quantization
    drawn = generator.integers(limits.qmin, limits.qmax + 1, (RANDOM_VECTORS, *graph.input.shape)).astype(np.int8)
    extremes = [np.full((1, *graph.input.shape), value, dtype=np.int8) for value in (limits.qmin, limits.qmax)]
    inputs = np.concatenate([*extremes, drawn])
    return GoldenVectors(inputs, reference.run(graph, inputs))
