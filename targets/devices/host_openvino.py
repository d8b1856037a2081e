"""This machine: OpenVINO IR on OpenVINO's CPU plugin."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import INPUT_NAME, OUTPUT_NAME, ExportedArtifact, read_artifact
from kdpipe.targets.dependencies import require
from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.session import THREADS, measure_session
from kdpipe.targets.devices.tracing import Tensors, shown_layers
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.graph import Quantization
from kdpipe.targets.openvino import STRUCTURE_FILE
from kdpipe.targets.openvino_writer import tensor_name


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

    def trace(self, artifact: Path, inputs: NDArray[np.int8], *, fused: bool = True) -> dict[str, NDArray[np.int8]]:
        """Run the model with every tensor of the integer graph as a further output; see `Device.trace`."""
        real = read_artifact(artifact).input.quantization.dequantize(inputs)
        _, model = _read(artifact)
        try:
            documents = json.loads(model.get_rt_info(["kdpipe", "tensors"]).astype(str))
            quantizations = {name: Quantization(**document) for name, document in documents.items()}
        except (RuntimeError, ValueError, TypeError) as error:
            raise _trace_error(error, artifact) from None

        def run(shown: Sequence[str]) -> tuple[NDArray[Any], Tensors]:
            core, showing = _read(artifact)
            try:
                names = [tensor_name(layer) for layer in shown]
                showing.add_outputs([name for name in names if name not in showing.output(OUTPUT_NAME).get_names()])
            except (RuntimeError, TypeError) as error:
                raise _trace_error(error, artifact) from None
            results = _compile(core, showing, artifact)({INPUT_NAME: real})
            return results[OUTPUT_NAME], {layer: results[tensor_name(layer)] for layer in shown}

        tensors = shown_layers(run, list(quantizations), fused=fused, suspects=_added(model))
        return {name: quantizations[name].quantize(tensor) for name, tensor in tensors.items()}


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
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter from a message that quotes the file
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


def _load_error(error: RuntimeError | UnicodeDecodeError, artifact: Path) -> DeviceError:
    reason = str(error).strip().split("\n")[-1]
    return DeviceError(
        f"openvino can't load the model ({reason})", where=str(artifact / STRUCTURE_FILE), remedy="Export it again"
    )


def _added(model: Any) -> set[str]:
    """Return the layers whose outputs are added to each other: convolutions among them are fused with the sum."""
    found = set()
    for operation in model.get_ops():
        if operation.get_type_name() == "Add":
            sources = [value.get_source_output().get_node() for value in operation.inputs()]
            if all(source.get_type_name() != "Constant" for source in sources):
                found |= {source.get_friendly_name() for source in sources}
    return found


def _trace_error(error: Exception, artifact: Path) -> DeviceError:
    return DeviceError(f"the model can't be traced ({error})", where=str(artifact / STRUCTURE_FILE))
