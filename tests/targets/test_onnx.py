"""ONNX: integer kernels everywhere, one step a layer at most, weights at their width."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.targets import onnx as exporter
from kdpipe.targets import reference
from kdpipe.targets.devices.host_onnxruntime import HostOnnxruntime
from kdpipe.targets.graph import IntegerGraph, Linear, Node, Quantization, TensorType, Weight

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FLOAT_OPERATORS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool"}


def optimized_operators(path: Path, directory: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("rounding", ["tflite", "single"])
def test_each_layer_is_within_one_step(
    rounding: str, random_graph, random_inputs, layer_differences, tmp_path: Path
) -> None:
    for seed in range(30):
        graph = random_graph(seed, rounding=rounding)
        inputs = random_inputs(graph, 8)
        exporter.export(graph, tmp_path)
        trace = HostOnnxruntime().trace(tmp_path, inputs)
        assert set(trace) == {graph.input_name, *(node.name for node in graph.nodes)}
        assert (trace[graph.input_name] == inputs).all()
        assert max(layer_differences(graph, trace).values()) <= 1, f"seed {seed}"


def test_layers_of_8_bits_share_no_zero_points(random_graph, random_inputs, tmp_path: Path) -> None:
    """onnxruntime's exact mode for processors without VNNI makes them unsigned one by one, and this graph failed so."""
    graph = random_graph(26, rounding="tflite")
    exporter.export(graph, tmp_path)
    trace = HostOnnxruntime().trace(tmp_path, random_inputs(graph, 2))
    assert set(trace) == {graph.input_name, *(node.name for node in graph.nodes)}
    model = onnx.load(tmp_path / "model.onnx")
    wide = {f"{node.name}/weight" for node in graph.nodes if getattr(getattr(node.op, "weight", None), "bits", 0) == 8}
    points = [node.input[2] for node in model.graph.node if node.input[0] in wide]
    assert len(points) == len(wide) == len(set(points)) > 1


def test_onnxruntime_runs_every_layer_in_integers(random_graph, tmp_path: Path) -> None:
    for seed in range(40):
        graph = random_graph(seed)
        (path,) = exporter.export(graph, tmp_path)
        operators = optimized_operators(path, tmp_path)
        assert not FLOAT_OPERATORS & set(operators), f"seed {seed}"
        if any(node.name.startswith("conv") for node in graph.nodes):
            assert "QLinearConv" in operators


@pytest.mark.parametrize(("bits", "kind"), [(2, "INT2"), (3, "INT4"), (4, "INT4"), (8, "INT8")])
def test_weights_are_stored_at_their_width(bits: int, kind: str, random_graph, tmp_path: Path) -> None:
    graph = random_graph(5, weight_bits=(bits,))
    (path,) = exporter.export(graph, tmp_path)
    initializers = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    for node, weight in graph.weights():
        tensor = initializers[f"{node.name}/weight"]
        assert tensor.data_type == getattr(onnx.TensorProto, kind)
        assert len(tensor.raw_data) == -(-weight.values.size * exporter.STORED_BITS["packed"][bits] // 8)


def test_onnx_reads_the_weights_as_they_are(random_graph) -> None:
    graph = random_graph(8)
    initializers = {tensor.name: tensor for tensor in exporter.build_model(graph).graph.initializer}
    for node, weight in graph.weights():
        values = onnx.numpy_helper.to_array(initializers[f"{node.name}/weight"])
        assert (values.astype(np.int8) == weight.values).all()


def test_metadata_and_interface(random_graph) -> None:
    graph = random_graph(2)
    model = exporter.build_model(graph)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["classes"]) == list(graph.class_names)
    assert json.loads(properties["weight_bits"]) == {node.name: weight.bits for node, weight in graph.weights()}
    assert json.loads(properties["mean"]) == list(graph.normalization.mean)
    assert properties["key"] == graph.metadata["key"]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert model.opset_import[0].version == 25


def test_the_logits_are_the_real_numbers_that_the_integers_stand_for(random_graph, random_inputs) -> None:
    graph = random_graph(4)
    inputs = random_inputs(graph, 3)
    session: Any = onnxruntime.InferenceSession(
        exporter.build_model(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    logits = session.run(None, {"input": graph.input.quantization.dequantize(inputs)})[0]
    quantization = graph.output.quantization
    stored = logits / quantization.scale + quantization.zero_point
    assert np.abs(stored - np.rint(stored)).max() < 1e-3
    assert np.abs(np.rint(stored) - reference.run(graph, inputs)).max() <= 1


def test_with_int8_weights_every_output_is_the_same(random_graph, random_inputs, tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed", tmp_path / "int8"
    packed.mkdir()
    plain.mkdir()
    for seed in range(30):
        graph = random_graph(seed, weight_bits=(2, 3, 4))
        inputs = random_inputs(graph, 8)
        exporter.export(graph, packed)
        (path,) = exporter.export(graph, plain, weights="int8")
        model = onnx.load(path)
        assert {entry.version for entry in model.opset_import} == {exporter.INT8_OPSET}
        narrow = {onnx.TensorProto.INT2, onnx.TensorProto.INT4}
        assert not narrow & {tensor.data_type for tensor in model.graph.initializer}
        expected, found = (HostOnnxruntime().measure(path, inputs).outputs for path in (packed, plain))
        assert (expected == found).all(), f"seed {seed}"
        assert not FLOAT_OPERATORS & set(optimized_operators(path, tmp_path)), f"seed {seed}"


def test_linear_layers_of_one_size_load_where_sums_must_not_saturate(layer_differences, tmp_path: Path) -> None:
    """onnxruntime names what it makes of their zero points after these."""
    values = np.random.default_rng(0).integers(-127, 128, (5, 5)).astype(np.int8)
    op = Linear(Weight(values, np.full(5, 0.002, np.float32), 8), np.zeros(5, np.int32))
    kind = TensorType((5,), Quantization(0.0625, 0))
    nodes = tuple(Node(f"linear{index}", op, (("x", "linear0")[index],), kind) for index in (0, 1))
    graph = IntegerGraph("net", "x", kind, nodes)
    exporter.export(graph, tmp_path)
    inputs = np.arange(40).reshape(8, 5).astype(np.int8)
    assert max(layer_differences(graph, HostOnnxruntime().trace(tmp_path, inputs)).values()) <= 1
