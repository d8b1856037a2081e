"""This machine: TensorFlow Lite on LiteRT (ai-edge-litert), with XNNPACK as by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import ExportedArtifact, read_artifact
from kdpipe.targets.dependencies import require
from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.session import THREADS, measure_session, read_model_file
from kdpipe.targets.devices.tracing import Tensors, shown_layers
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.tflite import FILE
from kdpipe.targets.tflite_model import pack_model, unpack_model
from kdpipe.targets.tflite_writer import stored_tensors


def create() -> HostLitert:
    """Return this machine as a device for TensorFlow Lite."""
    return HostLitert()


@dataclass(frozen=True)
class HostLitert:
    """Runs TFLite exports on one thread."""

    @property
    def formats(self) -> tuple[str, ...]:
        """TensorFlow Lite."""
        return ("tflite",)

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Run the model on `inputs`; see `Device.measure`."""
        described = read_artifact(artifact)
        return measure_session(
            _Session(_load(read_model_file(artifact / FILE), artifact), described, artifact), inputs, progress
        )

    def trace(self, artifact: Path, inputs: NDArray[np.int8], *, fused: bool = True) -> dict[str, NDArray[np.int8]]:
        """Run the model with every tensor of the integer graph as a further output; see `Device.trace`.

        A Flatten whose elements are in TFLite's order is absent.
        """
        content, described = read_model_file(artifact / FILE), read_artifact(artifact)
        try:
            names = stored_tensors(content)
        except Exception as error:  # the reader of a damaged file raises whatever it comes upon
            raise DeviceError(f"the model can't be traced ({error})", where=str(artifact / FILE)) from None

        def run(shown: Sequence[str]) -> tuple[NDArray[Any], Tensors]:
            interpreter = _load(with_outputs(content, [names[name] for name in shown]), artifact)
            session = _Session(interpreter, described, artifact)
            output = session.infer(session.prepare(inputs))
            _, *details = interpreter.get_output_details()
            return output, {
                name: interpreter.get_tensor(detail["index"]) for name, detail in zip(shown, details, strict=True)
            }

        return {name: channels_first(tensor) for name, tensor in shown_layers(run, list(names), fused=fused).items()}


class _Session:
    def __init__(self, interpreter: Any, described: ExportedArtifact, artifact: Path) -> None:
        self._interpreter = interpreter
        self._described = described
        self._artifact = artifact
        self._input = interpreter.get_input_details()[0]
        self._output = interpreter.get_output_details()[0]["index"]

    def prepare(self, inputs: NDArray[np.int8]) -> NDArray[Any]:
        ordered = np.ascontiguousarray(inputs.transpose(0, 2, 3, 1) if inputs.ndim == 4 else inputs)
        source = self._described.input
        return source.quantization.dequantize(ordered) if source.type == "float32" else ordered

    def infer(self, prepared: NDArray[Any]) -> NDArray[Any]:
        index = self._input["index"]
        try:
            if self._input["shape"][0] != len(prepared):
                self._interpreter.resize_tensor_input(index, list(prepared.shape))
                self._interpreter.allocate_tensors()
                self._input = self._interpreter.get_input_details()[0]
            self._interpreter.set_tensor(index, prepared)
            self._interpreter.invoke()
            output: NDArray[Any] = self._interpreter.get_tensor(self._output)
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"LiteRT failed ({error})", where=str(self._artifact / FILE)) from None
        return output

    def store(self, raw: NDArray[Any]) -> NDArray[np.int8]:
        output = self._described.output
        return channels_first(output.quantization.quantize(raw) if output.type == "float32" else raw)


def channels_first(tensor: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return a tensor of the file, [N, H, W, C] or [N, features], as the integer graph has it."""
    return tensor.transpose(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def _load(content: bytes, artifact: Path) -> Any:
    litert = require("ai_edge_litert.interpreter", "tflite")
    try:
        interpreter = litert.Interpreter(model_content=content, num_threads=THREADS)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"LiteRT can't load the model ({error})", where=str(artifact / FILE), remedy="Export it again"
        ) from None
    return interpreter


def with_outputs(content: bytes, tensors: Sequence[int]) -> bytes:
    """Return the file with further tensors as outputs, behind its own."""
    model = unpack_model(content)
    (graph,) = model.subgraphs
    graph.outputs = [*graph.outputs, *tensors]
    return pack_model(model)
