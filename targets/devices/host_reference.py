"""This machine: an integer graph on the NumPy reference. Its time says nothing about any runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.session import BATCH
from kdpipe.targets.graph_files import load_graph
from kdpipe.targets.reference import run, run_all


def create() -> HostReference:
    """Return this machine as a device for integer graphs."""
    return HostReference()


@dataclass(frozen=True)
class HostReference:
    """Computes integer graphs with the reference, and does not time it."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Integer graphs."""
        return ("integer-graph",)

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Compute the graph on `inputs`; see `Device.measure`."""
        graph = load_graph(artifact)
        outputs = []
        for start in range(0, len(inputs), BATCH):
            outputs.append(run(graph, inputs[start : start + BATCH]))
            if progress is not None:
                progress(min(start + BATCH, len(inputs)), len(inputs))
        return Measurement(np.concatenate(outputs))

    def trace(self, artifact: Path, inputs: NDArray[np.int8], *, fused: bool = True) -> dict[str, NDArray[np.int8]]:
        """Compute the graph and return every tensor; see `Device.trace`."""
        return run_all(load_graph(artifact), inputs)
