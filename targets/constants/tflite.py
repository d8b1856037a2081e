"""The constants in a TFLite export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.dependencies import require
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.packing import unpack_lowest_first
from kdpipe.targets.tflite import FILE
from kdpipe.targets.tflite_model import unpack_model
from kdpipe.targets.tflite_writer import REORDERED_SUFFIX, stored_tensors


def read(artifact: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return, by layer, the steps of its output and, where it has weights, these, their scales and the bias."""
    try:
        content = (artifact / FILE).read_bytes()
        model, stored = unpack_model(content), stored_tensors(content)
    except Exception as error:  # the reader of a damaged file raises whatever it comes upon
        raise DeviceError(f"the model can't be read ({error})", where=str(artifact / FILE)) from None
    (graph,) = model.subgraphs
    tensors = {tensor.name.decode(): tensor for tensor in graph.tensors}
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for layer, index in stored.items():
        steps = graph.tensors[index].quantization
        found[layer] = {"scale": np.array(steps.scale, np.float32), "zero_point": np.array(steps.zeroPoint)}
        if f"{layer}/weight" in tensors:
            weight, bias = (tensors[f"{layer}/{name}"] for name in ("weight", "bias"))
            found[layer] |= {
                "weights": _weights(model, weight).reshape(-1),
                "weight_scales": np.array(weight.quantization.scale, np.float32),
                "bias": np.frombuffer(bytes(model.buffers[bias.buffer].data), "<i4"),
            }
    return found


def _weights(model: Any, weight: Any) -> NDArray[np.int8]:
    """Return integer weights in the integer graph's order: [O, I / groups, KH, KW] or [O, I]."""
    content = bytes(model.buffers[weight.buffer].data)
    bits = 4 if weight.type == require("ai_edge_litert.schema_py_generated", "tflite").TensorType.INT4 else 8
    values = unpack_lowest_first(content, int(np.prod(weight.shape)), bits, signed=True).astype(np.int8)
    values = values.reshape(weight.shape)
    if values.ndim == 4:
        is_depthwise = weight.quantization.quantizedDimension == 3
        return values.transpose(3, 0, 1, 2) if is_depthwise else values.transpose(0, 3, 1, 2)
    height, width, channels = _image_before(model, weight)
    return values.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)


def _image_before(model: Any, weight: Any) -> tuple[int, int, int]:
    """Return the [H, W, C] in whose order a linear layer's features are; [1, 1, I] where it is the integer graph's."""
    (graph,) = model.subgraphs
    index = next(index for index, tensor in enumerate(graph.tensors) if tensor is weight)
    source = next(operator.inputs[0] for operator in graph.operators if index in operator.inputs)
    if graph.tensors[source].name.decode().endswith(REORDERED_SUFFIX):
        image = next(operator.inputs[0] for operator in graph.operators if source in operator.outputs)
        _, height, width, channels = graph.tensors[image].shape
        return int(height), int(width), int(channels)
    return 1, 1, int(weight.shape[1])
