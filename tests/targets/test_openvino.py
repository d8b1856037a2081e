"""OpenVINO: 8-bit kernels, one step a layer at most, weights at their width."""

import json
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets import openvino as exporter
from kdpipe.targets.devices.host_openvino import HostOpenvino
from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import Add, IntegerGraph, Node, Quantization, TensorType

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
    graph = scaled(exporter.SMALLEST_SCALE * 1.01)
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
