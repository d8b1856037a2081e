"""QDQ files of others: the same integers within a step as onnxruntime computes, and C equal to the bit."""

import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.targets import onnx as exporter
from kdpipe.targets import reference
from kdpipe.targets.graph import AveragePool2d, Conv2d, Linear, Requantize, Softmax
from kdpipe.targets.qdq import reader
from kdpipe.targets.qdq.operators import OPERATORS
from kdpipe.targets.qdq.values import offset_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FILES = Path(__file__).parent / "files"
VARIANTS: list[dict[str, bool]] = [{}, {"batch_norm": True}, {"mat_mul": True}, {"relu6": True}]


def session(model: Any) -> Any:
    """Return onnxruntime's run of a model as it is written: nothing fused, so that every tensor can be asked for."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def trace(path: Path, reading: reader.Reading, images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
    """Run the file in onnxruntime and return the stored integers of the graph's tensors."""
    model = onnx.load(path)
    present = {value.name for value in model.graph.output}
    for stored, _ in reading.stored.values():
        if stored not in present:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(stored))
    names = [stored for stored, _ in reading.stored.values()]
    values = session(model).run(names, {model.graph.input[0].name: images})
    return {
        tensor: (value.astype(np.int16) - offset_of(kind)).astype(np.int8)
        for (tensor, (_, kind)), value in zip(reading.stored.items(), values, strict=True)
    }


def logits(path: Path, reading: reader.Reading, images: NDArray[np.float32]) -> tuple[Any, Any]:
    """Return the outputs as onnxruntime and as the integer reference compute them, real numbers both."""
    model, graph = onnx.load(path), reading.graph
    theirs = session(model).run(None, {model.graph.input[0].name: images})[0]
    ours = reference.run(graph, graph.input.quantization.quantize(images))
    return theirs, graph.output.quantization.dequantize(ours)


def margin(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return by how much each image's best output leads."""
    best = np.sort(outputs, axis=1)
    return best[:, -1] - best[:, -2]


@pytest.mark.parametrize(
    ("activation", "per_channel", "variant"),
    list(itertools.product(["QInt8", "QUInt8"], [False, True], VARIANTS)),
    ids=str,
)
def test_quantize_static_is_within_one_step_a_layer(
    activation: str, per_channel: bool, variant: dict[str, bool], quantized: Any, networks: Any, layer_differences: Any
) -> None:
    path = quantized(activation, per_channel, **variant)
    reading, images = reader.read(path), networks.images(100, seed=5)
    traced = trace(path, reading, images)
    assert {"stem", "conv1", "conv2", "add", "logits"} <= traced.keys()
    assert (reading.graph.input.quantization.quantize(images) == traced[reading.graph.input_name]).all()
    assert max(layer_differences(reading.graph, traced).values()) <= 1
    theirs, ours = logits(path, reading, images)
    agree = theirs.argmax(axis=1) == ours.argmax(axis=1)
    assert agree.mean() >= 0.99
    assert len(set(theirs.argmax(axis=1))) > 3, "the images must not all look alike to the network"


@pytest.mark.parametrize("name", ["brevitas_w8a8", "brevitas_w3a4", "nncf_mixed", "nncf_performance"])
def test_files_of_brevitas_and_nncf_are_within_one_step_a_layer(
    name: str, networks: ModuleType, layer_differences: Any
) -> None:
    path = FILES / f"{name}.onnx"
    reading, images = reader.read(path), networks.images(200, seed=5)
    traced = trace(path, reading, images)
    assert len(traced) >= 5
    assert max(layer_differences(reading.graph, traced).values()) <= 1
    theirs, ours = logits(path, reading, images)
    step = reading.graph.output.quantization.scale
    assert np.abs(theirs - ours).max() <= 2 * step
    agree = theirs.argmax(axis=1) == ours.argmax(axis=1)
    if name.startswith("nncf"):
        # The file leaves its output in floating point: two logits less than a step apart can be stored as one.
        agree |= margin(theirs) < step
    assert agree.mean() >= 0.99


def test_brevitas_weights_are_stored_at_the_width_they_have() -> None:
    graph = reader.read_graph(FILES / "brevitas_w3a4.onnx")
    assert {node.name: weight.bits for node, weight in graph.weights()} == {
        "/stem/Conv": 8,
        "/conv1/Conv": 3,
        "/conv2/Conv": 3,
        "/fc/Gemm": 8,
    }
    assert graph.tensor("/conv1/Conv").quantization.bits == 4


def test_scales_by_channel_of_an_activation_go_into_the_depthwise_weights() -> None:
    scales = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(FILES / "nncf_mixed.onnx").graph.initializer
        if tensor.name == "scale_relu3_out_1"
    ]
    assert scales[0].shape == (16,), "the file is to have what this test is about"
    graph = reader.read_graph(FILES / "nncf_mixed.onnx")
    assert graph.tensor("expand").quantization.scale == scales[0].max()


@pytest.mark.parametrize("rounding", ["tflite", "single"])
def test_our_own_files_come_back_the_same(rounding: str, random_graph: Any, random_inputs: Any, tmp_path: Path) -> None:
    for seed in range(25):
        graph = random_graph(seed, rounding=rounding)
        (path,) = exporter.export(graph, tmp_path)
        back = reader.read_graph(path)
        assert [node.name for node in back.nodes] == [node.name for node in graph.nodes]
        assert back.class_names == graph.class_names
        assert back.normalization == graph.normalization
        inputs = random_inputs(graph, 4)
        expected, found = reference.run_all(graph, inputs), reference.run_all(back, inputs)
        assert all((expected[name] == found[name]).all() for name in expected), f"seed {seed}"


@pytest.mark.parametrize("source", ["quantize_static", "nncf_performance", "brevitas_w3a4"])
def test_its_c_equals_the_reference_to_the_bit(source: str, quantized: Any, networks: Any, tmp_path: Path) -> None:
    from kdpipe.stages.export import export_graph
    from kdpipe.targets.devices.host_c import HostC

    path = quantized("QUInt8") if source == "quantize_static" else FILES / f"{source}.onnx"
    graph = reader.read_graph(path)
    export_graph(path, "c", tmp_path / "c")
    inputs = graph.input.quantization.quantize(networks.images(20, seed=6))
    measured = HostC().measure(tmp_path / "c", inputs)
    assert (measured.outputs == reference.run(graph, inputs)).all()


def test_a_relu_is_its_layers_range_and_a_mean_with_steps_of_its_own_rounds_once(quantized: Any) -> None:
    graph = reader.read_graph(quantized("QInt8", per_channel=True))
    nodes = {node.name: node for node in graph.nodes}
    assert nodes["stem"].output.quantization.qmin == nodes["stem"].output.quantization.zero_point
    assert isinstance(nodes["mean"].op, Conv2d | AveragePool2d)
    assert isinstance(nodes["logits"].op, Linear)
    assert not any(isinstance(node.op, Requantize) for node in graph.nodes)


def element_network(rng: Any) -> Any:
    """Return a float network of a split, a join, functions, a gate by channel and an upsampling."""
    helper, constants = onnx.helper, []

    def constant(name: str, values: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(name: str, *shape: int) -> str:
        return constant(name, rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32))

    def node(op: str, inputs: list[str], *outputs: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs, list(outputs), name=outputs[0], **attributes)

    nodes = [
        node("Conv", ["image", weight("w1", 8, 3, 3, 3)], "stem", pads=[1] * 4, strides=[2, 2]),
        node("Split", ["stem", constant("sizes", np.array([3, 5], np.int64))], "left", "right", axis=1),
        node("Conv", ["right", weight("w2", 5, 5, 3, 3)], "conv", pads=[1] * 4),
        node("Concat", ["left", "conv"], "joined", axis=1),
        node("HardSigmoid", ["joined"], "sigmoid", alpha=1 / 6, beta=0.5),
        node("Mul", ["joined", "sigmoid"], "swish"),
        node("GlobalAveragePool", ["swish"], "squeeze"),
        node("Conv", ["squeeze", weight("w3", 8, 8, 1, 1)], "excite"),
        node("Sigmoid", ["excite"], "gate"),
        node("Mul", ["gate", "swish"], "gated"),
        node("Resize", ["gated", "", constant("factors", np.array([1, 1, 2, 2], np.float32))], "large",
             mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Conv", ["large", weight("w4", 4, 8, 3, 3)], "last", strides=[4, 4]),
        node("Flatten", ["last"], "features"),
        node("Gemm", ["features", weight("w5", 10, 64)], "logits", transB=1),
    ]  # fmt: skip
    info, real = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "elements", [info("image", real, ["N", 3, 16, 16])], [info("logits", real, ["N", 10])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


@pytest.mark.parametrize("activation", ["QInt8", "QUInt8"])
def test_operators_on_elements_are_within_one_step_a_layer(
    activation: str, networks: ModuleType, layer_differences: Any, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.onnx"
    model = element_network(np.random.default_rng(0))
    networks.quantize_with_onnxruntime(path, model, activation=activation, per_channel=True)
    reading, images = reader.read(path), networks.images(100, seed=5)
    kinds = {type(node.op).__name__ for node in reading.graph.nodes}
    assert {"Slice", "Concat", "Lookup", "Mul", "Upsample"} <= kinds
    traced = trace(path, reading, images)
    assert max(layer_differences(reading.graph, traced).values()) <= 1
    theirs, ours = logits(path, reading, images)
    assert (theirs.argmax(axis=1) == ours.argmax(axis=1)).mean() >= 0.99


def with_softmax(model: Any) -> None:
    """Append a Softmax to a network that returns logits."""
    graph = model.graph
    graph.node.append(onnx.helper.make_node("Softmax", [graph.output[0].name], ["shares"], name="shares", axis=-1))
    graph.output[0].name = "shares"


@pytest.mark.parametrize("activation", ["QInt8", "QUInt8"])
def test_a_softmax_is_within_one_step(
    activation: str, networks: ModuleType, layer_differences: Any, tmp_path: Path
) -> None:
    path, model = tmp_path / "theirs.onnx", networks.residual_network()
    with_softmax(model)
    networks.quantize_with_onnxruntime(path, model, activation=activation, per_channel=True)
    reading, images = reader.read(path), networks.images(50, seed=5)
    assert any(isinstance(node.op, Softmax) for node in reading.graph.nodes)
    traced = trace(path, reading, images)
    assert "shares" in traced
    assert max(layer_differences(reading.graph, traced).values()) <= 1


def test_a_softmax_that_ends_a_network_in_floating_point_is_read(quantized: Any, networks: ModuleType) -> None:
    path = quantized()
    model = onnx.load(path)
    with_softmax(model)
    onnx.save(model, path)
    reading = reader.read(path)
    assert isinstance(reading.graph.nodes[-1].op, Softmax)
    theirs, ours = logits(path, reading, networks.images(50, seed=5))
    differences = np.abs(theirs - ours).max(axis=1)
    # Where the logits are a step apart, so are the probabilities.
    assert np.median(differences) <= 1 / 256


def test_a_batch_norm_between_convolution_and_quantizer_is_absorbed(
    quantized: Any, networks: Any, layer_differences: Any
) -> None:
    path = quantized("QInt8", per_channel=True, batch_norm=True)
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.input[0] = f"{node.name.removesuffix('_bn')}_out"
            assert any(node.input[0] in conv.output for conv in model.graph.node if conv.op_type == "Conv")
    path.write_bytes(model.SerializeToString())
    reading, images = reader.read(path), networks.images(50, seed=5)
    assert "conv1" not in {node.name for node in reading.graph.nodes} or "conv1_bn" not in reading.stored
    differences = layer_differences(reading.graph, trace(path, reading, images))
    assert max(differences.values()) <= 1


def test_the_documented_operators_are_those_that_are_read() -> None:
    text = (Path(__file__).parents[3] / "docs" / "targets.md").read_text(encoding="utf-8")
    listed = text.partition("- Read are ")[2].partition(".")[0]
    assert set(listed.replace(" and ", ", ").replace("\n ", "").split(", ")) == set(OPERATORS)
