"""What each runtime promises, checked on one graph: docs/targets.md says the same in words."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from layer_differences import layer_differences
from numpy.typing import NDArray

from kdpipe.targets import onnx, openvino, reference, tflite, tflite_writer
from kdpipe.targets.devices.host_litert import HostLitert, channels_first
from kdpipe.targets.devices.host_onnxruntime import HostOnnxruntime
from kdpipe.targets.devices.host_openvino import HostOpenvino
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.fixed_point import multiply_by_quantized_multiplier, quantize_multiplier
from kdpipe.targets.graph import IntegerGraph, Linear, Mul, Node, TensorType, accumulator_bound

Inputs = NDArray[np.int8]


XNNPACK_LARGEST_FACTOR = 256
"""From here on XNNPACK prepares no convolution and no fully connected layer."""


class MismatchError(Exception):
    """A target computed something else than it promises."""


class RefusedError(Exception):
    """A runtime refuses a file, as the documentation says it does."""


def check_onnxruntime(graph: IntegerGraph, inputs: Inputs, directory: Path) -> None:
    onnx.export(graph, directory)
    _within_one_step(graph, HostOnnxruntime().trace(directory, inputs))


def check_openvino(graph: IntegerGraph, inputs: Inputs, directory: Path) -> None:
    """Not where a sum can be 2**24 steps of its output, which saturates it by far: float32 can't count them."""
    openvino.export(graph, directory)
    trace = HostOpenvino().trace(directory, inputs)
    countless = {
        node.name
        for node, weight in graph.weights()
        if _largest_sum(graph, node) * float(weight.scales.max()) >= 2**24 * node.output.quantization.scale
    }
    _within_one_step(graph, trace, countless)


def _largest_sum(graph: IntegerGraph, node: Node) -> float:
    """Return the largest sum of products, in units of the weights' scales."""
    source = graph.tensor(node.inputs[0]).quantization
    unbiased = replace(node.op, bias=np.zeros_like(node.op.bias))
    return accumulator_bound(unbiased, source) * source.scale


def check_litert(graph: IntegerGraph, inputs: Inputs, directory: Path) -> None:
    """With XNNPACK, as by default."""
    tflite.export(graph, directory)
    try:
        trace = HostLitert().trace(directory, inputs)
    except DeviceError as error:
        if _largest_factor(graph) >= XNNPACK_LARGEST_FACTOR:
            raise RefusedError(str(error)) from None
        raise
    _within_one_step(graph, {graph.input_name: inputs, **trace})


def _largest_factor(graph: IntegerGraph) -> float:
    """Return what an accumulator is multiplied with at most."""
    return max(
        (
            graph.tensor(node.inputs[0]).quantization.scale
            * float(weight.scales.max())
            / node.output.quantization.scale
            for node, weight in graph.weights()
        ),
        default=0.0,
    )


def check_litert_reference(graph: IntegerGraph, inputs: Inputs, directory: Path) -> None:
    """To the bit, whatever the graph's rounding: as `tflite`, but for two operators.

    FULLY_CONNECTED rounds once, and MUL computes what it multiplies with in float32.
    """
    from ai_edge_litert import interpreter as litert

    interpreter = litert.Interpreter(
        model_content=tflite.build_model(graph),
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], [len(inputs), *source["shape"][1:]])
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], _channels_last(inputs))
    interpreter.invoke()
    names = {output["index"]: graph.output_name, source["index"]: graph.input_name}
    for detail in interpreter.get_tensor_details():
        if detail["name"].endswith(tflite_writer.STORED_SUFFIX):
            names[detail["index"]] = detail["name"].removesuffix(tflite_writer.STORED_SUFFIX)
    trace = {name: channels_first(interpreter.get_tensor(index)) for index, name in names.items()}
    twice, once = layer_differences(graph, trace, "tflite"), layer_differences(graph, trace, "single")
    for node in graph.nodes:
        steps = (once if isinstance(node.op, Linear) else twice).get(node.name, 0)
        if isinstance(node.op, Mul) and node.name in trace:
            values = [trace[name] for name in node.inputs]
            product = _product_by_float32(values, [graph.tensor(name) for name in node.inputs], node.output)
            steps = int(np.abs(product - trace[node.name]).max())
        if steps:
            raise MismatchError(f"layer {node.name}: {steps} steps")


def _product_by_float32(values: Sequence[Inputs], types: Sequence[TensorType], output: TensorType) -> NDArray[np.int64]:
    """Return a product as LiteRT's own kernel computes it: its factor has 24 bits, a graph's 31."""
    first, second, step = (np.float32(tensor.quantization.scale) for tensor in (*types, output))
    factor = quantize_multiplier(float(first * second / step))
    limits = output.quantization
    steps = [
        value.astype(np.int64) - tensor.quantization.zero_point for value, tensor in zip(values, types, strict=True)
    ]
    scaled = multiply_by_quantized_multiplier(steps[0] * steps[1], *factor, "tflite")
    product: NDArray[np.int64] = np.clip(scaled + limits.zero_point, limits.qmin, limits.qmax)
    return product


def check_tflite_micro(graph: IntegerGraph, inputs: Inputs, directory: Path) -> None:
    """To the bit as the reference with the rounding `tflite`, whatever the graph's rounding."""
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(tflite.build_model(graph))
    expected = reference.run(replace(graph, rounding="tflite"), inputs)
    for index, image in enumerate(_channels_last(inputs)):
        interpreter.set_input(image[None], 0)
        interpreter.invoke()
        if not np.array_equal(channels_first(interpreter.get_output(0))[0], expected[index]):
            raise MismatchError(f"input {index}: the output differs")


def _channels_last(tensors: Inputs) -> Inputs:
    return tensors.transpose(0, 2, 3, 1) if tensors.ndim == 4 else tensors


def _within_one_step(graph: IntegerGraph, trace: Mapping[str, Inputs], but_for: Collection[str] = ()) -> None:
    for name, steps in layer_differences(graph, trace).items():
        if steps > 1 and name not in but_for:
            raise MismatchError(f"layer {name}: {steps} steps")


RUNTIMES: Mapping[str, Callable[[IntegerGraph, Inputs, Path], None]] = {
    "ONNX Runtime": check_onnxruntime,
    "OpenVINO": check_openvino,
    "LiteRT": check_litert,
    "LiteRT, reference kernels": check_litert_reference,
    "TFLite Micro": check_tflite_micro,
}
"""By name: exports a graph into an empty directory, runs it, and raises `MismatchError` where a promise is broken."""
