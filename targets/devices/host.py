"""This machine: each format on its own runtime, without one format's packages being needed for another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.devices.base import Device, Measurement
from kdpipe.targets.devices.formats import format_of, refuse_format

RUNTIMES = {
    "onnx": "kdpipe.targets.devices.host_onnxruntime:create",
    "openvino": "kdpipe.targets.devices.host_openvino:create",
    "tflite": "kdpipe.targets.devices.host_litert:create",
    "c": "kdpipe.targets.devices.host_c:create",
    "integer-graph": "kdpipe.targets.devices.host_reference:create",
}
"""By format, what creates the device that runs it, as "module:function"."""


def create() -> Host:
    """Return this machine as a device."""
    return Host()


@dataclass(frozen=True)
class Host:
    """Hands an artifact to the runtime of its format."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Every format with a runtime."""
        return tuple(RUNTIMES)

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Run the artifact; see `Device.measure`."""
        return self._runtime(artifact).measure(artifact, inputs, progress)

    def trace(self, artifact: Path, inputs: NDArray[np.int8], *, fused: bool = True) -> dict[str, NDArray[np.int8]]:
        """Run the artifact and return its tensors; see `Device.trace`."""
        return self._runtime(artifact).trace(artifact, inputs, fused=fused)

    def _runtime(self, artifact: Path) -> Device:
        kind = format_of(artifact)
        if kind not in RUNTIMES:
            refuse_format("host", kind, tuple(RUNTIMES))
        module, function = RUNTIMES[kind].split(":")
        runtime: Device = getattr(import_module(module), function)()
        return runtime
