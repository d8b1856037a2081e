"""What a device is: something that runs an exported artifact and measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LayerCost:
    """What one layer of a firmware takes.

    Args:
        name: in the integer graph.
        instructions: executed for one inference, its call included (mean over the counted samples).
        cycles: estimated likewise, or None where the core has no model.
        constant_bytes: of flash: weights, scales, biases.
        live_bytes: of the arena, while it runs.
    """

    name: str
    instructions: int
    cycles: int | None
    constant_bytes: int
    live_bytes: int


@dataclass(frozen=True, eq=False)
class Measurement:
    """What running an artifact on a device gave.

    Args:
        outputs: the stored integers of the graph's output, int8 [N, *output shape].
        latency_ms: seconds on a wall clock times 1000, one entry for each timed inference of a single image;
            empty on an emulator, whose wall clock says nothing about the device.
        instructions: executed for one inference (mean over the samples), or None.
        cycles: estimated for one inference (mean over the samples), or None.
        sample_cycles: the same for each counted sample.
        layers: what each layer takes, or None where that is not known.
        flash_bytes: text plus read-only data of the firmware, or None.
        ram_bytes: arena, other writable data and the stack's high-water mark, or None.
    """

    outputs: NDArray[np.int8]
    latency_ms: tuple[float, ...] = ()
    instructions: int | None = None
    cycles: int | None = None
    sample_cycles: tuple[int, ...] = ()
    layers: tuple[LayerCost, ...] | None = None
    flash_bytes: int | None = None
    ram_bytes: int | None = None


class Device(Protocol):
    """Runs artifacts of certain formats. Inputs and outputs are the graph's stored integers, channels first.

    A runner whose artifact takes real numbers dequantizes the inputs first, which the artifact's own quantization
    undoes exactly.
    """

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats it can run: of onnx, openvino, tflite, c."""
        ...

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Run `artifact` (an export's directory) on `inputs [N, C, H, W]`, calling progress(done, N) now and then.

        Raises:
            DeviceError: the artifact does not load, the compiler or emulator failed, the firmware faulted.
            MissingDependencyError: a runtime, compiler or emulator is not installed.
        """
        ...

    def trace(self, artifact: Path, inputs: NDArray[np.int8], *, fused: bool = True) -> dict[str, NDArray[np.int8]]:
        """Run `artifact` and return its intermediate tensors by their names in the integer graph, int8 [N, *shape].

        Args:
            artifact: an export's directory.
            inputs: stored integers, int8 [N, C, H, W].
            fused: compute just what `measure` computes; tensors that the runtime fuses away are absent. Otherwise
                keep every layer apart that can be.
        """
        ...
