"""OpenVINO: 8-bit kernels, one step a layer at most, weights at their width."""

import json
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets import openvino as exporter
from kdpipe.targets import openvino_numbers as numbers
from kdpipe.targets.devices.host_openvino import HostOpenvino
from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import (
    Add,
    Concat,
    Conv2d,
    IntegerGraph,
    Linear,
    Lookup,
    Mul,
    Node,
    Operator,
    Quantization,
    Requantize,
    TensorType,
    Weight,
    convolution_output_size,
)
from kdpipe.targets.layer_differences import Trace, compare_layers, first_divergent_layer, trace_graph
from kdpipe.targets.lookup import FUNCTIONS

openvino = pytest.importorskip("openvino")


@pytest.mark.parametrize("rounding", ["tflite", "single"])
def test_each_layer_is_within_one_step(
    rounding: str, random_graph, random_inputs, layer_differences, tmp_path: Path
) -> None:
    for seed in range(15):
        graph = random_graph(seed, rounding=rounding)
        inputs = random_inputs(graph, 8)
        exporter.export(graph, tmp_path)
        trace = HostOpenvino().trace(tmp_path, inputs)
        assert set(trace) == {graph.input_name, *(node.name for node in graph.nodes)}
        assert (trace[graph.input_name] == inputs).all()
        assert max(layer_differences(graph, trace).values()) <= 1, f"seed {seed}"


def scaled(scale: float) -> IntegerGraph:
    quantization = Quantization(float(np.float32(scale)), 5)
    shape = TensorType((2, 3, 3), quantization)
    return IntegerGraph("net", "x", shape, (Node("layer.sum", Add(), ("x", "x"), shape),))


def test_steps_that_openvino_gets_wrong_are_refused_by_layer_and_the_others_are_right(
    random_inputs, layer_differences, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=r"layer x: .*wrong values.*1e-08"):
        exporter.export(scaled(1e-8), tmp_path)
    assert not list(tmp_path.iterdir())
    graph = scaled(numbers.SMALLEST_SCALE * 1.01)
    inputs = random_inputs(graph, 8)
    exporter.export(graph, tmp_path)
    assert max(layer_differences(graph, HostOpenvino().trace(tmp_path, inputs)).values()) <= 1


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_convolutions_and_linear_layers_run_in_8_bits(bits: int, random_graph, tmp_path: Path) -> None:
    core, seen = openvino.Core(), set()
    for seed in range(12):
        path, _ = exporter.export(random_graph(seed, weight_bits=(bits,)), tmp_path)
        compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for operation in compiled.get_runtime_model().get_ordered_ops():
            information = operation.get_rt_info()
            kind = information["layerType"].astype(str)
            if "Convolution" in kind or "FullyConnected" in kind:
                seen.add(kind)
                assert information["runtimePrecision"].astype(str) in ("u8", "i8"), f"seed {seed}"
                # Weights of 8 bits are not enough: of real inputs, the plugin makes 8 bits of its own.
                assert operation.input_value(0).get_element_type() in (openvino.Type.u8, openvino.Type.i8), seed
    assert {"Convolution", "FullyConnected"} <= seen


def test_the_constants_shrink_with_the_weights(random_graph, tmp_path: Path) -> None:
    sizes = {}
    for bits in (2, 4, 8):
        graph = random_graph(11, weight_bits=(bits,), operators=("conv",), depth=4, input_shape=(4, 12, 12))
        _, path = exporter.export(graph, tmp_path)
        sizes[bits] = path.stat().st_size
    values = sum(weight.values.size for _, weight in graph.weights())
    layers = sum(1 for _ in graph.weights())
    # 8 bytes a layer for rounding up to bytes and alignment.
    assert sizes[8] - sizes[4] == pytest.approx(values / 2, abs=8 * layers)
    assert sizes[4] - sizes[2] == pytest.approx(values / 4, abs=8 * layers)


def test_information_and_interface(random_graph, tmp_path: Path) -> None:
    graph = random_graph(2)
    path, _ = exporter.export(graph, tmp_path)
    model = openvino.Core().read_model(path)
    assert json.loads(model.get_rt_info(["kdpipe", "classes"]).astype(str)) == list(graph.class_names)
    bits = json.loads(model.get_rt_info(["kdpipe", "weight_bits"]).astype(str))
    assert bits == {node.name: weight.bits for node, weight in graph.weights()}
    assert "input" in model.inputs[0].get_names()
    assert "logits" in model.outputs[0].get_names()
    assert model.inputs[0].get_partial_shape()[0].is_dynamic


def run(graph: IntegerGraph, inputs: np.ndarray, directory: Path) -> dict[str, np.ndarray]:
    exporter.export(graph, directory)
    return HostOpenvino().trace(directory, inputs)


def test_a_requantized_range_ends_on_the_outputs_steps(layer_differences, tmp_path: Path) -> None:
    """Four output steps to one of the input: the largest of 127 lies between two of the input's steps."""
    source, output = (TensorType((1, 1, 1), Quantization(*how)) for how in ((0.5, 0), (0.125, 0, 0, 127)))
    graph = IntegerGraph("net", "x", source, (Node("narrow", Requantize(), ("x",), output),))
    inputs = np.arange(-128, 128).astype(np.int8).reshape(-1, 1, 1, 1)
    assert layer_differences(graph, run(graph, inputs, tmp_path)) == {"narrow": 0}


def test_a_bias_of_more_than_2_to_the_24_steps_saturates(layer_differences, tmp_path: Path) -> None:
    weight = Weight(np.array([[1, -1], [0, 1]], np.int8), np.array([0.0145, 0.009], np.float32), 2)
    op = Linear(weight, np.array([2**26, -(2**26)], np.int32))
    source, output = (TensorType((2,), Quantization(float(np.float32(scale)), 0)) for scale in (1e-3, 2e-5))
    graph = IntegerGraph("net", "x", source, (Node("linear", op, ("x",), output),))
    inputs = np.array([[-128, -128], [127, 127], [-128, 127], [0, 0]], np.int8)
    traced = run(graph, inputs, tmp_path)
    assert traced["linear"].tolist() == [[127, -128]] * 4
    assert layer_differences(graph, traced) == {"linear": 0}


def convolution(shape: tuple[int, ...], kernel: tuple[int, int], *window: tuple[int, ...]) -> IntegerGraph:
    """One layer of 8 channels; `window` is stride, padding and dilation."""
    values = np.random.default_rng(0).integers(-1, 2, (8, shape[0], *kernel)).astype(np.int8)
    op = Conv2d(Weight(values, np.full(8, 0.0625, np.float32), 2), np.arange(8, dtype=np.int32), *window)
    stride, padding, dilation = op.stride, op.padding, op.dilation
    size = [
        convolution_output_size(shape[1 + a], kernel[a], stride[a], padding[a], padding[2 + a], dilation[a])
        for a in (0, 1)
    ]
    source, output = (TensorType(each, Quantization(0.5, 0)) for each in (shape, (8, *size)))
    return IntegerGraph("net", "x", source, (Node("conv", op, ("x",), output),))


@pytest.mark.parametrize(
    ("shape", "kernel", "window"),
    [
        ((8, 7, 2), (3, 3), ((1, 2), (0, 1, 0, 1))),
        ((8, 7, 4), (1, 2), ((1, 3), (0, 0, 0, 0))),
        ((8, 7, 1), (1, 3), ((1, 2), (0, 1, 0, 1))),
        ((8, 7, 1), (1, 1), ((1, 2), (0, 0, 0, 1), (1, 2))),
        ((8, 8, 2), (3, 2), ((2, 1), (1, 0, 2, 0))),
        ((8, 8, 1), (3, 3), ((1, 1), (0, 1, 2, 1), (2, 1))),
        ((4, 7, 3), (3, 3), ((2, 2), (2, 1, 2, 0))),
        ((1, 8, 1), (2, 2), ((2, 2), (1, 1, 1, 1))),
    ],
)
def test_one_column_out_with_strides(shape, kernel, window, layer_differences, random_inputs, tmp_path: Path) -> None:
    """The plugin takes the horizontal stride for the vertical one there, or reads what is not there."""
    graph = convolution(shape, kernel, *window)
    assert graph.output.shape[2] == 1
    # A half may be rounded to the other side.
    assert layer_differences(graph, run(graph, random_inputs(graph, 8), tmp_path))["conv"] <= 1


def test_steps_near_zero_are_refused_where_the_range_would_lose_its_beginning(
    random_inputs, layer_differences, tmp_path: Path
) -> None:
    """The plugin takes a range that begins between -1e-6 and 0 for one that begins at 0."""

    def doubled(scale: float, qmin: int) -> IntegerGraph:
        source, output = (
            TensorType((1, 4, 4), Quantization(float(np.float32(scale)), *rest))
            for rest in ((0,), (-120, qmin, qmin + 127))
        )
        return IntegerGraph("net", "x", source, (Node("sum", Add(), ("x", "x"), output),))

    smallest = numbers.SMALLEST_LIMIT / 8
    with pytest.raises(UnsupportedError, match=r"layer sum: .*wrong values.*below 2.5e-07; this layer's is 2.4"):
        exporter.export(doubled(smallest * 0.99, -128), tmp_path)
    assert not list(tmp_path.iterdir())
    # Where nothing lies below zero, the levels begin there.
    for scale, qmin in ((smallest * 1.01, -128), (numbers.SMALLEST_SCALE * 1.01, -120)):
        graph = doubled(scale, qmin)
        inputs = random_inputs(graph, 8)
        assert layer_differences(graph, run(graph, inputs, tmp_path))["sum"] <= 1


def test_narrow_ranges_behind_coarser_steps_stay_in_integers(layer_differences, random_inputs, tmp_path: Path) -> None:
    """A limit as a Clamp behind the steps would leave the layer that reads them to a float kernel, of 8-bit weights."""
    source, narrow = TensorType((64,), Quantization(0.375, -11)), TensorType((64,), Quantization(0.125, -36, -36, 100))
    values = np.random.default_rng(0).integers(-7, 8, (4, 64)).astype(np.int8)
    linear = Linear(Weight(values, np.full(4, 0.01, np.float32), 4), np.zeros(4, np.int32))
    nodes = (
        Node("narrow", Requantize(), ("x",), narrow),
        Node("linear", linear, ("narrow",), TensorType((4,), Quantization(0.25, 0))),
    )
    graph = IntegerGraph("net", "x", source, nodes)
    inputs = random_inputs(graph, 8)
    trace = run(graph, inputs, tmp_path)
    assert layer_differences(graph, trace)["narrow"] == 0
    compiled = openvino.Core().compile_model(str(tmp_path / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    operations = compiled.get_runtime_model().get_ordered_ops()
    (layer,) = (op for op in operations if op.get_rt_info()["layerType"].astype(str) == "FullyConnected")
    assert layer.input_value(0).get_element_type() == openvino.Type.u8


def test_what_is_joined_has_the_same_levels_however_it_was_limited(random_inputs, tmp_path: Path) -> None:
    """Else the plugin would round some of it to steps of another size."""
    finest, finer, coarse = (float(np.float32(scale)) for scale in (0.00122, 0.0154, 0.0213))

    def tensor(channels: int, *steps: float) -> TensorType:
        return TensorType((channels, 4, 8), Quantization(*steps))

    weight = Weight(np.ones((1, 2, 1, 1), np.int8), np.array([0.5], np.float32), 2)
    nodes = (
        Node("coarse", Requantize(), ("x",), tensor(1, coarse, -8, -8, 119)),
        Node("first", Requantize(), ("coarse",), tensor(1, finer, -26, -99, 28)),
        Node("second", Requantize(), ("x",), tensor(1, finer, -26, -99, 28)),
        Node("joined", Concat(), ("first", "second"), tensor(2, finer, -26, -99, 28)),
        Node("conv", Conv2d(weight, np.zeros(1, np.int32)), ("joined",), tensor(1, finer, 0)),
    )
    graph = IntegerGraph("net", "x", tensor(1, finest, -128), nodes)
    trace = run(graph, random_inputs(graph, 8), tmp_path)
    layers = compare_layers(trace_graph(graph, trace["x"]), Trace("openvino", trace, graph.quantizations()))
    assert first_divergent_layer(layers, "rounding") is None


VERY_COARSE = 1.37 * 2.0**18


@pytest.mark.parametrize(
    ("op", "coarse", "output"),
    [
        (Add(), 0.33, 0.04),
        (Add(), VERY_COARSE, 0.5),
        (Mul(), VERY_COARSE, 6.0),
        (Requantize(), VERY_COARSE, 0.25),
        *((Lookup(function), VERY_COARSE, 2.0**-7) for function in FUNCTIONS),
    ],
)
def test_coarse_steps_are_rounded_before_they_are_read(
    op: Operator, coarse: float, output: float, layer_differences, tmp_path: Path
) -> None:
    """The plugin adds what a convolution gives without rounding it, and the zero that float32 gives is not zero."""
    rng = np.random.default_rng(0)
    shape, scales = (2, 4, 4), rng.uniform(0.005, 0.02, 2).astype(np.float32)
    weight = Weight(rng.integers(-3, 4, (2, 2, 1, 1)).astype(np.int8), scales, 4)

    def tensor(scale: float, zero_point: int) -> TensorType:
        return TensorType(shape, Quantization(float(np.float32(scale)), zero_point))

    source = tensor(coarse * 2, 5)
    conv = Node("conv", Conv2d(weight, np.zeros(2, np.int32)), ("x",), tensor(coarse, -14))
    fine = Node("fine", Requantize(), ("x",), tensor(coarse / 4 if coarse < 1 else 0.5, -6))
    others = (conv, fine) if isinstance(op, Add | Mul) else (conv,)
    nodes = (*others, Node("reader", op, tuple(node.name for node in others), tensor(output, 40)))
    graph = IntegerGraph("net", "x", source, nodes)
    inputs = rng.integers(-128, 128, (8, *shape)).astype(np.int8)
    inputs[:4] = 5
    inputs[2:4, 0] = 6
    assert layer_differences(graph, run(graph, inputs, tmp_path))["reader"] <= 1


def test_windows_that_never_reach_the_input_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"layer conv: .*no window reaches its input"):
        exporter.export(convolution((1, 1, 1), (1, 1), (1, 2), (0, 1, 0, 1), (1, 2)), tmp_path)
    assert not list(tmp_path.iterdir())
