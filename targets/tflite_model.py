"""TensorFlow Lite's flatbuffer: tensors, operators and constants, without any knowledge of the integer graph.

Written with the schema's object API, which ai-edge-litert ships.
Source: the TFLite schema, https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.dependencies import require
from kdpipe.targets.graph import Quantization
from kdpipe.targets.packing import pack_lowest_first

# The lowest versions whose kernels take int8 with a scale for each channel.
_VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CAST": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEQUANTIZE": 2,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "GATHER": 2,
    "MAXIMUM": 2,
    "MAX_POOL_2D": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "RESHAPE": 1,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "SOFTMAX": 2,
    "STRIDED_SLICE": 2,
    "TRANSPOSE": 2,
}
FILE_IDENTIFIER = b"TFL3"


class ModelBuilder:
    """Collects a model's tensors and operators; tensors are known by their index.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
    """

    def __init__(self, name: str) -> None:
        self.schema: Any = require("ai_edge_litert.schema_py_generated", "tflite")
        self._model = self.schema.ModelT()
        self._model.version = 3
        self._model.description = "Written by kdpipe"
        # By convention the first buffer is empty: the tensors that are computed refer to it.
        self._model.buffers = [self.schema.BufferT()]
        self._model.operatorCodes, self._model.metadata = [], []
        self._graph = self.schema.SubGraphT()
        self._graph.name = name
        self._graph.tensors, self._graph.operators = [], []
        self._model.subgraphs = [self._graph]
        self._codes: dict[str, int] = {}

    def activation(self, name: str, shape: Sequence[int], quantization: Quantization) -> int:
        """Add an int8 tensor that is computed; `shape` includes the batch."""
        tensor = self._tensor(name, shape, self.schema.TensorType.INT8, 0)
        self._set_scales(tensor, [quantization.scale], [quantization.zero_point], 0)
        return self._add(tensor)

    def real(self, name: str, shape: Sequence[int]) -> int:
        """Add a float32 tensor that is computed; `shape` includes the batch."""
        return self._add(self._tensor(name, shape, self.schema.TensorType.FLOAT32, 0))

    def index(self, name: str, shape: Sequence[int]) -> int:
        """Add an int32 tensor that is computed, without a scale; `shape` includes the batch."""
        return self._add(self._tensor(name, shape, self.schema.TensorType.INT32, 0))

    def constant(
        self,
        name: str,
        values: NDArray[Any],
        scales: Sequence[float] = (),
        zero_point: int = 0,
        axis: int = 0,
        bits: int | None = None,
    ) -> int:
        """Add a constant.

        Args:
            name: of the tensor.
            values: int8 or int32.
            scales: none, one, or one for each index of `axis`.
            zero_point: of every scale.
            axis: that the scales belong to.
            bits: 4 to store int8 values as INT4.
        """
        types = self.schema.TensorType
        kind = {np.dtype(np.int8): types.INT8, np.dtype(np.int32): types.INT32}[values.dtype]
        if bits == 4:
            kind, data = types.INT4, pack_lowest_first(values, 4)
        else:
            data = values.astype(values.dtype.newbyteorder("<")).tobytes()
        tensor = self._tensor(name, values.shape, kind, self._buffer(data))
        if len(scales):
            self._set_scales(tensor, scales, [zero_point] * len(scales), axis)
        return self._add(tensor)

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        output: int,
        options: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> int:
        """Add the operator `name`, such as CONV_2D, with `fields` of its options table `options`; return `output`."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._code(name)
        operator.inputs, operator.outputs = list(inputs), [output]
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            for field, value in (fields or {}).items():
                setattr(operator.builtinOptions, field, value)
        self._graph.operators.append(operator)
        return output

    def metadata(self, name: str, content: bytes) -> None:
        """Attach named bytes to the model."""
        entry = self.schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(content)
        self._model.metadata.append(entry)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Return the file's bytes."""
        self._graph.inputs, self._graph.outputs = list(inputs), list(outputs)
        return pack_model(self._model)

    def _tensor(self, name: str, shape: Sequence[int], kind: int, buffer: int) -> Any:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), kind, buffer
        tensor.hasRank = True
        return tensor

    def _set_scales(self, tensor: Any, scales: Sequence[float], zero_points: Sequence[int], axis: int) -> None:
        quantization = self.schema.QuantizationParametersT()
        quantization.scale = np.asarray(scales, np.float32)
        quantization.zeroPoint = np.asarray(zero_points, np.int64)
        quantization.quantizedDimension = axis
        tensor.quantization = quantization

    def _add(self, tensor: Any) -> int:
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _buffer(self, data: bytes) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self._model.buffers.append(buffer)
        return len(self._model.buffers) - 1

    def _code(self, name: str) -> int:
        if name not in self._codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.schema.BuiltinOperator, name)
            # Readers from before codes outgrew a byte look here.
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = _VERSIONS[name]
            self._codes[name] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[name]


def pack_model(model: Any) -> bytes:
    """Return the bytes of a `ModelT`."""
    flatbuffers = require("flatbuffers", "tflite")
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def unpack_model(content: bytes) -> Any:
    """Return the `ModelT` that a file's bytes hold."""
    schema = require("ai_edge_litert.schema_py_generated", "tflite")
    return schema.ModelT.InitFromPackedBuf(content, 0)
