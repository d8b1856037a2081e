"""TFLite: equal to the reference to the bit on reference kernels, one step a layer at most on XNNPACK."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import from_numpy

from kdpipe.targets import reference
from kdpipe.targets import tflite as exporter
from kdpipe.targets.devices.host_litert import HostLitert
from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import (
    PROBABILITIES,
    Flatten,
    IntegerGraph,
    Linear,
    MaxPool2d,
    Mul,
    Node,
    Quantization,
    Requantize,
    Slice,
    Softmax,
    TensorType,
    Weight,
    convolution_output_size,
)
from kdpipe.targets.tflite_model import unpack_model
from kdpipe.targets.tflite_padding import tflite_padding
from kdpipe.targets.tflite_writer import STORED_SUFFIX

litert = pytest.importorskip("ai_edge_litert.interpreter")
QUANTIZATION = Quantization(0.5, -3)


def reference_trace(graph: IntegerGraph, inputs: NDArray[np.int8]) -> dict[str, NDArray[np.int8]]:
    """Run a graph's export on LiteRT's reference kernels."""
    interpreter = litert.Interpreter(
        model_content=exporter.build_model(graph),
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    (source,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(source["index"], [len(inputs), *source["shape"][1:]])
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], inputs.transpose(0, 2, 3, 1))
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    names = {output["index"]: graph.output_name, source["index"]: graph.input_name}
    for detail in interpreter.get_tensor_details():
        if detail["name"].endswith(STORED_SUFFIX):
            names[detail["index"]] = detail["name"].removesuffix(STORED_SUFFIX)
    tensors = {name: interpreter.get_tensor(index) for index, name in names.items()}
    return {name: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for name, value in tensors.items()}


def operators(graph: IntegerGraph) -> list[str]:
    """Return the names of the operators in the file."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = unpack_model(exporter.build_model(graph))
    return [names[model.operatorCodes[entry.opcodeIndex].builtinCode] for entry in model.subgraphs[0].operators]


def test_reference_kernels_equal_the_reference_to_the_bit(random_graph, random_inputs, layer_differences) -> None:
    for seed in range(80):
        graph = random_graph(seed)
        trace = reference_trace(graph, random_inputs(graph, 4))
        exact, rounded_once = layer_differences(graph, trace), layer_differences(graph, trace, rounding="single")
        for node in graph.nodes:
            # LiteRT's FULLY_CONNECTED rounds once, unlike its other kernels, and unlike TFLite Micro's.
            differences = rounded_once if isinstance(node.op, Linear) else exact
            assert differences.get(node.name, 0) == 0, f"seed {seed}, {node.name}"


def test_tflite_micro_equals_the_reference_to_the_bit(random_graph, random_inputs) -> None:
    runtime = pytest.importorskip("tflite_micro").runtime
    for seed in range(60):
        graph = random_graph(seed)
        inputs = random_inputs(graph, 4)
        interpreter = runtime.Interpreter.from_bytes(exporter.build_model(graph))
        for image, expected in zip(inputs.transpose(0, 2, 3, 1), reference.run(graph, inputs), strict=True):
            interpreter.set_input(image[None], 0)
            interpreter.invoke()
            assert (interpreter.get_output(0)[0] == expected).all(), f"seed {seed}"


def test_real_input_and_output_are_the_same_network(random_graph, random_inputs, tmp_path: Path) -> None:
    stored, real = tmp_path / "int8", tmp_path / "float32"
    stored.mkdir()
    real.mkdir()
    for seed in range(40):
        graph = random_graph(seed, narrow=seed % 2 == 0)
        inputs = random_inputs(graph, 4)
        exporter.export(graph, stored)
        (path,) = exporter.export(graph, real, io="float32")
        expected, found = (HostLitert().measure(artifact, inputs).outputs for artifact in (stored, real))
        assert (expected == found).all(), f"seed {seed}"
        types = {tensor.name.decode(): tensor.type for tensor in unpack_model(path.read_bytes()).subgraphs[0].tensors}
        assert types["input"] == types["logits"] == 0  # FLOAT32


def test_real_numbers_are_quantized_and_limited_in_tflite_micro(random_graph) -> None:
    runtime = pytest.importorskip("tflite_micro").runtime
    for seed in range(30):
        graph = random_graph(seed, narrow=True)
        steps = graph.input.quantization
        images = np.random.default_rng(seed).normal(0, 100 * steps.scale, (2, *graph.input.shape)).astype(np.float32)
        interpreter = runtime.Interpreter.from_bytes(exporter.build_model(graph, io="float32"))
        expected = graph.output.quantization.dequantize(reference.run(graph, steps.quantize(images)))
        for image, wanted in zip(images.transpose(0, 2, 3, 1), expected, strict=True):
            interpreter.set_input(image[None], 0)
            interpreter.invoke()
            assert (interpreter.get_output(0)[0] == wanted).all(), f"seed {seed}"


def test_every_tensor_of_a_real_network_can_be_traced(random_graph, random_inputs, tmp_path: Path) -> None:
    graph = random_graph(3)
    exporter.export(graph, tmp_path, io="float32")
    inputs = random_inputs(graph, 4)
    trace = HostLitert().trace(tmp_path, inputs)
    assert (trace[graph.input_name] == inputs).all()
    assert len(trace) >= len(graph.nodes)
    assert trace[graph.output_name].dtype == np.int8


@pytest.mark.parametrize("rounding", ["tflite", "single"])
def test_each_layer_is_within_one_step_on_xnnpack(
    rounding: str, random_graph, random_inputs, layer_differences, tmp_path: Path
) -> None:
    for seed in range(40):
        graph = random_graph(seed, rounding=rounding)
        exporter.export(graph, tmp_path)
        inputs = random_inputs(graph, 8)
        trace = HostLitert().trace(tmp_path, inputs)
        assert graph.output_name in trace
        assert len(trace) >= len(graph.nodes) - 1
        assert max(layer_differences(graph, {graph.input_name: inputs, **trace}).values()) <= 1, f"seed {seed}"


def test_weights_are_stored_in_the_width_that_kernels_take(random_graph) -> None:
    from ai_edge_litert import schema_py_generated as schema

    graph = random_graph(5, weight_bits=(2,), operators=("conv", "depthwise"))
    model = unpack_model(exporter.build_model(graph))
    tensors = {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}
    for node, weight in graph.weights():
        tensor = tensors[f"{node.name}/weight"]
        is_linear = isinstance(node.op, Linear)
        assert tensor.type == (schema.TensorType.INT8 if is_linear else schema.TensorType.INT4)
        size = weight.values.size if is_linear else -(-weight.values.size // 2)
        assert len(model.buffers[tensor.buffer].data) == size


def test_all_weights_can_be_int8(random_graph, random_inputs, tmp_path: Path) -> None:
    graph = random_graph(5, weight_bits=(2,), operators=("conv", "depthwise"))
    packed, plain = (exporter.build_model(graph, weights) for weights in ("packed", "int8"))
    model = unpack_model(plain)
    tensors = {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}
    assert {len(model.buffers[tensors[f"{node.name}/weight"].buffer].data) for node, _ in graph.weights()} == {
        weight.values.size for _, weight in graph.weights()
    }
    assert len(plain) > len(packed)


def test_metadata(random_graph) -> None:
    graph = random_graph(2)
    model = unpack_model(exporter.build_model(graph))
    (entry,) = model.metadata
    properties = json.loads(bytes(model.buffers[entry.buffer].data))
    assert properties["classes"] == list(graph.class_names)
    assert properties["weight_bits"] == {node.name: weight.bits for node, weight in graph.weights()}


def flattening(*after: Callable[[tuple[int, ...]], Node]) -> IntegerGraph:
    """A Flatten of [3, 2, 4], and what comes after it."""
    flatten = Node("flat", Flatten(), ("x",), TensorType((24,), QUANTIZATION))
    return IntegerGraph("net", "x", TensorType((3, 2, 4), QUANTIZATION), (flatten, *(make((24,)) for make in after)))


def linear(name: str, source: str) -> Callable[[tuple[int, ...]], Node]:
    values = np.random.default_rng(3).integers(-1, 2, (5, 24)).astype(np.int8)
    op = Linear(Weight(values, np.full(5, 0.125, np.float32), 2), np.arange(5, dtype=np.int32))
    return lambda shape: Node(name, op, (source,), TensorType((5,), QUANTIZATION))


def requantize(name: str, source: str) -> Callable[[tuple[int, ...]], Node]:
    return lambda shape: Node(name, Requantize(), (source,), TensorType(shape, Quantization(0.25, 4)))


@pytest.mark.parametrize(
    ("after", "transposes"),
    [
        ((linear("out", "flat"),), 0),
        ((requantize("q", "flat"), linear("out", "q")), 1),
        ((requantize("out", "flat"),), 1),
        ((), 1),
        ((linear("other", "flat"), requantize("out", "flat")), 1),
    ],
    ids=["linear", "requantize-linear", "requantize", "output", "both"],
)
def test_flatten_keeps_the_order_of_channels_first(after: Any, transposes: int, random_inputs) -> None:
    graph = flattening(*after)
    inputs = random_inputs(graph, 16)
    trace = reference_trace(graph, inputs)
    assert operators(graph).count("TRANSPOSE") == transposes
    difference = np.abs(trace[graph.output_name].astype(int) - reference.run(graph, inputs))
    # 1 is what LiteRT's FULLY_CONNECTED may be away; any wrong order is farther.
    assert difference.max() <= (1 if after and "out" in graph.output_name else 0)


@pytest.mark.parametrize("size", [(7, 8), (6, 6), (9, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), (2, 1, 0, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_padding_means_the_same_windows(size: Any, stride: Any, padding: Any, dilation: Any) -> None:
    """Sum windows of ones with torch: with the padding that TFLite would apply, each sum is the same."""
    kernel = (3, 3)
    output = tuple(
        convolution_output_size(
            size[axis], kernel[axis], stride[axis], padding[axis], padding[axis + 2], dilation[axis]
        )
        for axis in (0, 1)
    )
    found = tflite_padding(size, kernel, stride, padding, output, dilation)  # type: ignore[arg-type]
    if found == "VALID":
        applied = (0, 0, 0, 0)
    elif found == "SAME":
        totals = [
            max(0, (-(-size[axis] // stride[axis]) - 1) * stride[axis] + 2 * dilation[axis] + 1 - size[axis])
            for axis in (0, 1)
        ]
        applied = (totals[0] // 2, totals[1] // 2, totals[0] - totals[0] // 2, totals[1] - totals[1] // 2)
    else:
        applied = found  # type: ignore[assignment]

    def sums(pads: tuple[int, ...]) -> Any:
        top, left, bottom, right = pads
        image = F.pad(
            from_numpy(np.arange(size[0] * size[1], dtype=np.float64).reshape(1, 1, *size)) + 1,
            (left, right, top, bottom),
        )
        kernels = from_numpy(np.arange(9, dtype=np.float64).reshape(1, 1, 3, 3))
        return F.conv2d(image, kernels, stride=stride, dilation=dilation)

    assert sums(applied).shape == sums(padding).shape
    assert (sums(applied) == sums(padding)).all()


def test_torch_padding_of_a_stride_of_two_needs_a_pad() -> None:
    assert tflite_padding((8, 8), (3, 3), (2, 2), (1, 1, 1, 1), (4, 4)) == (1, 1, 0, 0)
    assert tflite_padding((7, 7), (3, 3), (2, 2), (1, 1, 1, 1), (4, 4)) == "SAME"
    assert tflite_padding((8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (8, 8)) == "SAME"
    assert tflite_padding((8, 8), (1, 1), (2, 2), (0, 0, 0, 0), (4, 4)) == "VALID"


def test_the_padding_of_a_maximum_never_wins(random_inputs) -> None:
    low = Quantization(0.5, 100)
    pool = Node("pool", MaxPool2d((3, 3), (2, 2), (1, 1, 1, 1)), ("x",), TensorType((2, 4, 4), low))
    graph = IntegerGraph("net", "x", TensorType((2, 8, 8), low), (pool,))
    assert operators(graph) == ["PADV2", "MAX_POOL_2D"]
    inputs = random_inputs(graph, 4) // 2 - 60
    assert (
        reference_trace(graph, inputs.astype(np.int8))["pool"] == reference.run(graph, inputs.astype(np.int8))
    ).all()


def softmax_graph(channels: int, scale: float) -> IntegerGraph:
    """A Softmax of `channels` at 1x1."""
    source = TensorType((channels, 1, 1), Quantization(float(np.float32(scale)), 5))
    node = Node("probabilities", Softmax(), ("input",), TensorType(source.shape, PROBABILITIES))
    return IntegerGraph("softmax", "input", source, (node,), "tflite")


@pytest.mark.parametrize(("channels", "scale"), [(2, 0.05), (10, 0.1), (10, 2.0), (3, 17.0), (511, 1e-4), (100, 0.01)])
def test_softmax_is_tflites_to_the_bit(channels: int, scale: float) -> None:
    graph = softmax_graph(channels, scale)
    inputs = np.random.default_rng(0).integers(-128, 128, (20, channels, 1, 1)).astype(np.int8)
    inputs[0] = 7
    expected = reference.run(graph, inputs)
    assert (reference_trace(graph, inputs)["probabilities"] == expected).all()
    runtime = pytest.importorskip("tflite_micro").runtime
    interpreter = runtime.Interpreter.from_bytes(exporter.build_model(graph))
    for image, wanted in zip(inputs.transpose(0, 2, 3, 1), expected.transpose(0, 2, 3, 1), strict=True):
        interpreter.set_input(image[None], 0)
        interpreter.invoke()
        assert (interpreter.get_output(0)[0] == wanted).all()


def test_a_softmax_that_stops_tflites_kernels_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"layer probabilities: .*512 channels"):
        exporter.build_model(softmax_graph(512, 0.1))


def product_graph(largest: float, zero_point: int) -> IntegerGraph:
    """Two channels multiplied, `largest` steps at most."""
    source = Quantization(float(np.float32(np.sqrt(largest) / 128)), 0)
    halves = [Node(f"x{index}", Slice(index, index + 1), ("x",), TensorType((1, 1, 64), source)) for index in (0, 1)]
    product = Node("product", Mul(), ("x0", "x1"), TensorType((1, 1, 64), Quantization(1.0, zero_point)))
    return IntegerGraph("net", "x", TensorType((2, 1, 64), source), (*halves, product), "tflite")


def test_products_that_overflow_are_refused_and_the_others_are_right(random_inputs, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"layer product: .*overflow at products of 328.. steps"):
        exporter.export(product_graph(exporter.LARGEST_PRODUCT * 1.01, 0), tmp_path)
    assert not list(tmp_path.iterdir())
    for zero_point in (-128, 127):
        graph = product_graph(exporter.LARGEST_PRODUCT * 0.999, zero_point)
        inputs = random_inputs(graph, 16)
        expected = reference.run(graph, inputs)
        for kernels in ("BUILTIN", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"):
            interpreter = litert.Interpreter(
                model_content=exporter.build_model(graph),
                experimental_op_resolver_type=litert.OpResolverType[kernels],
            )
            (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
            interpreter.resize_tensor_input(source["index"], [len(inputs), *source["shape"][1:]])
            interpreter.allocate_tensors()
            interpreter.set_tensor(source["index"], inputs.transpose(0, 2, 3, 1))
            interpreter.invoke()
            found = interpreter.get_tensor(output["index"]).transpose(0, 3, 1, 2)
            assert np.abs(found.astype(int) - expected).max() <= 1, kernels
