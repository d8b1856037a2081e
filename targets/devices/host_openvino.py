"""This machine: OpenVINO IR on OpenVINO's CPU plugin."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import INPUT_NAME, OUTPUT_NAME, ExportedArtifact, read_artifact
from kdpipe.targets.dependencies import require
from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.session import THREADS, measure_session
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.graph import Quantization
from kdpipe.targets.openvino import STRUCTURE_FILE


def create() -> HostOpenvino:
    """Return this machine as a device for OpenVINO IR."""
    return HostOpenvino()


@dataclass(frozen=True)
class HostOpenvino:
    """Runs OpenVINO exports on one thread."""

    @property
    def formats(self) -> tuple[str, ...]:
        """OpenVINO IR."""
        return ("openvino",)

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Run the model on `inputs`; see `Device.measure`."""
        described = read_artifact(artifact)
        described.sizes(artifact)
        core, model = _read(artifact)
        return measure_session(_Session(_compile(core, model, artifact), described), inputs, progress)

    def trace(self, artifact: Path, inputs: NDArray[np.int8]) -> dict[str, NDArray[np.int8]]:
        """Run the model with every tensor of the integer graph as a further output; see `Device.trace`."""
        core, model = _read(artifact)
        try:
            documents = json.loads(model.get_rt_info(["kdpipe", "tensors"]).astype(str))
            tensors = {name: Quantization(**document) for name, document in documents.items()}
            missing = [name for name in tensors if name not in model.output(OUTPUT_NAME).get_names()]
            model.add_outputs(missing)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DeviceError(f"the model can't be traced ({error})", where=str(artifact / STRUCTURE_FILE)) from None
        compiled = _compile(core, model, artifact)
        results = compiled({INPUT_NAME: read_artifact(artifact).input.quantization.dequantize(inputs)})
        return {name: quantization.quantize(results[name]) for name, quantization in tensors.items()}


class _Session:
    def __init__(self, compiled: Any, described: ExportedArtifact) -> None:
        self._request = compiled.create_infer_request()
        self._described = described

    def prepare(self, inputs: NDArray[np.int8]) -> NDArray[np.float32]:
        return self._described.input.quantization.dequantize(inputs)

    def infer(self, prepared: NDArray[np.float32]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._request.infer({INPUT_NAME: prepared})[OUTPUT_NAME]
        return output

    def store(self, raw: NDArray[np.float32]) -> NDArray[np.int8]:
        return self._described.output.quantization.quantize(raw)


def _read(artifact: Path) -> tuple[Any, Any]:
    openvino = require("openvino", "openvino")
    core = openvino.Core()
    try:
        return core, core.read_model(artifact / STRUCTURE_FILE)
    except RuntimeError as error:
        raise _load_error(error, artifact) from None


def _compile(core: Any, model: Any, artifact: Path) -> Any:
    # On processors with bf16, float parts would otherwise be computed in it.
    options = {
        "INFERENCE_NUM_THREADS": THREADS,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        return core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise _load_error(error, artifact) from None


def _load_error(error: RuntimeError, artifact: Path) -> DeviceError:
    reason = str(error).strip().split("\n")[-1]
    return DeviceError(
        f"openvino can't load the model ({reason})", where=str(artifact / STRUCTURE_FILE), remedy="Export it again"
    )
