"""The constants in an ONNX export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.dependencies import require
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.onnx import FILE, OFFSET, STORED_SUFFIX


def read(artifact: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return, by layer that rounds, the steps of its output and inputs and, where it has weights, these, their scales
    and the bias.
    """
    onnx, protobuf = require("onnx", "onnx"), require("google.protobuf.message", "onnx")
    try:
        graph = onnx.load_model_from_string((artifact / FILE).read_bytes()).graph
    except (OSError, protobuf.DecodeError) as error:
        raise DeviceError(f"the model can't be read ({error})", where=str(artifact / FILE)) from None
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    found: dict[str, dict[str, NDArray[Any]]] = {}

    def constant(node: Any, index: int) -> NDArray[Any]:
        values: NDArray[Any] = onnx.numpy_helper.to_array(tensors[node.input[index]])
        return values

    for output, producer in producers.items():
        if not output.endswith(STORED_SUFFIX):
            continue
        node = producers[producer.input[0]] if producer.op_type == "Clip" else producer
        if node.op_type != "QuantizeLinear":
            continue
        layer = found.setdefault(output.removesuffix(STORED_SUFFIX), {})
        layer |= {"scale": constant(node, 1), "zero_point": constant(node, 2).astype(np.int64) - OFFSET}
        computed = producers.get(node.input[0])
        if computed is None:
            continue
        read = [computed] if computed.op_type == "DequantizeLinear" else map(producers.get, computed.input)
        scales = [constant(each, 1) for each in read if each is not None and each.input[0].endswith(STORED_SUFFIX)]
        if scales:
            layer["input_scales"] = np.array(scales)
        if computed.op_type in ("Conv", "Gemm"):
            weight, bias = (producers[name] for name in computed.input[1:])
            # Of fewer than 8 bits there is a Cast between.
            integers = constant(producers.get(weight.input[0], weight), 0).astype(np.int8)
            layer |= {"weights": integers.reshape(-1), "weight_scales": constant(weight, 1), "bias": constant(bias, 0)}
    return found
