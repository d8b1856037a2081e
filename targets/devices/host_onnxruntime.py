"""This machine: ONNX on onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import INPUT_NAME, ExportedArtifact, read_artifact
from kdpipe.targets.dependencies import require
from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.session import THREADS, measure_session, read_model_file
from kdpipe.targets.devices.tracing import Tensors, shown_layers
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.onnx import FILE, OFFSET, STORED_SUFFIX


def create() -> HostOnnxruntime:
    """Return this machine as a device for ONNX."""
    return HostOnnxruntime()


@dataclass(frozen=True)
class HostOnnxruntime:
    """Runs ONNX exports on one thread."""

    @property
    def formats(self) -> tuple[str, ...]:
        """ONNX."""
        return ("onnx",)

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Run the model on `inputs`; see `Device.measure`."""
        content = read_model_file(artifact / FILE)
        return measure_session(_Session(_load(content, artifact), read_artifact(artifact)), inputs, progress)

    def trace(self, artifact: Path, inputs: NDArray[np.int8], *, fused: bool = True) -> dict[str, NDArray[np.int8]]:
        """Run the model with every stored tensor as a further output; see `Device.trace`."""
        onnx = require("onnx", "onnx")
        protobuf = require("google.protobuf.message", "onnx")
        try:
            model = onnx.load_model_from_string(read_model_file(artifact / FILE))
        except protobuf.DecodeError as error:
            raise DeviceError(
                f"not a readable ONNX file ({error})", where=str(artifact / FILE), remedy="Export it again"
            ) from None
        names = [name for node in model.graph.node for name in node.output if name.endswith(STORED_SUFFIX)]
        real = read_artifact(artifact).input.quantization.dequantize(inputs)

        def run(shown: Sequence[str]) -> tuple[NDArray[Any], Tensors]:
            showing = onnx.ModelProto()
            showing.CopyFrom(model)
            showing.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in shown)
            output, *tensors = _load(showing.SerializeToString(), artifact).run(None, {INPUT_NAME: real})
            return output, dict(zip(shown, tensors, strict=True))

        return {
            name.removesuffix(STORED_SUFFIX): (tensor.astype(np.int16) - OFFSET).astype(np.int8)
            for name, tensor in shown_layers(run, names, fused=fused).items()
        }


class _Session:
    def __init__(self, session: Any, described: ExportedArtifact) -> None:
        self._session = session
        self._described = described

    def prepare(self, inputs: NDArray[np.int8]) -> NDArray[np.float32]:
        return self._described.input.quantization.dequantize(inputs)

    def infer(self, prepared: NDArray[np.float32]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._session.run(None, {INPUT_NAME: prepared})[0]
        return output

    def store(self, raw: NDArray[np.float32]) -> NDArray[np.int8]:
        return self._described.output.quantization.quantize(raw)


def _load(content: bytes, artifact: Path) -> Any:
    onnxruntime = require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    options.log_severity_level = 3
    # Without VNNI, x86's fast kernels saturate sums of two products at 16 bits; the exact ones don't.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise DeviceError(
            f"onnxruntime can't load the model ({_first_line(error)})",
            where=str(artifact / FILE),
            remedy='Export it again; INT2 weights need pip install "kdpipe[onnx]" of this version or newer',
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
