"""QDQ files of others: the same integers within a step as onnxruntime computes, and C equal to the bit."""

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.targets import onnx as exporter
from kdpipe.targets import reference
from kdpipe.targets.errors import ArtifactError, GraphError, KdpipeError, UnsupportedError
from kdpipe.targets.graph import AveragePool2d, Conv2d, Linear, Requantize
from kdpipe.targets.qdq import reader
from kdpipe.targets.qdq.operators import OPERATORS
from kdpipe.targets.qdq.values import offset_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FILES = Path(__file__).parent / "files"
VARIANTS: list[dict[str, bool]] = [{}, {"batch_norm": True}, {"mat_mul": True}, {"relu6": True}]


@pytest.fixture(scope="module")
def networks() -> ModuleType:
    """The module networks.py, which importlib mode leaves off the path."""
    spec = importlib.util.spec_from_file_location("qdq_networks", Path(__file__).parent / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.fixture
def quantized(networks: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """`quantized(activation=..., per_channel=..., **variant)`: a file that onnxruntime's quantize_static wrote."""

    def write(activation: str = "QInt8", per_channel: bool = True, **variant: bool) -> Path:
        path = tmp_path / "theirs.onnx"
        networks.quantize_with_onnxruntime(
            path, networks.residual_network(**variant), activation=activation, per_channel=per_channel
        )
        return path

    return write


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


def broken(path: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def initializer(model: Any, suffix: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(suffix))


def set_scale(value: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = initializer(model, "stem_relu_out_scale")
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(value, np.float32), tensor.name))

    return change


def huge(model: Any) -> None:
    tensor = initializer(model, "stem.w_quantized")
    tensor.dims[:] = [2**40, 2**20]


def external(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = initializer(model, "stem.w_quantized")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def float_weights(model: Any) -> None:
    for node in model.graph.node:
        if node.name == "conv1":
            node.input[1] = "stem.b_float"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "stem.b_float"))


def unknown_operator(model: Any) -> None:
    next(node for node in model.graph.node if node.op_type == "MaxPool").op_type = "Erf"


def free_size(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"


def float_island(model: Any) -> None:
    stored = {output: node for node in model.graph.node for output in node.output}
    node = next(node for node in model.graph.node if node.name == "conv2")
    source = node.input[0]
    while stored[source].op_type in ("DequantizeLinear", "QuantizeLinear"):
        source = stored[source].input[0]
    node.input[0] = source


def newer_opset(model: Any) -> None:
    model.opset_import[0].version = 999


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (set_scale(float("nan")), GraphError, "scale is not positive and finite"),
        (set_scale(0.0), GraphError, "scale is not positive and finite"),
        (huge, ArtifactError, "declares"),
        (external("../secret.bin"), ArtifactError, "outside the file's folder"),
        (external("/etc/hostname"), ArtifactError, "outside the file's folder"),
        (external("C:\\secret.bin"), ArtifactError, "outside the file's folder"),
        (external("gone.bin"), ArtifactError, "is missing"),
        (float_weights, UnsupportedError, r"node conv1 \(Conv\): its weights are not quantized"),
        (unknown_operator, UnsupportedError, r"node pool \(Erf\): the operator Erf has no integer form"),
        (free_size, UnsupportedError, "a size that is not known"),
        (float_island, UnsupportedError, r"node conv2 \(Conv\): reads the result of conv1 in floating point"),
        (newer_opset, UnsupportedError, "ONNX opset 999"),
        (lambda model: setattr(model, "ir_version", 999), UnsupportedError, "ONNX IR version 999"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(
    change: Any, error: type[KdpipeError], message: str, quantized: Any, tmp_path: Path
) -> None:
    from kdpipe.stages.export import export_graph

    path = broken(quantized(), change)
    with pytest.raises(error, match=message) as refused:
        export_graph(path, "c", tmp_path / "out")
    assert str(refused.value).count(str(path)) == 1
    assert refused.value.remedy or "declares" in message
    assert not (tmp_path / "out").exists()


def test_data_beside_the_file_is_read_but_not_through_a_link(quantized: Any, tmp_path: Path) -> None:
    path = quantized()
    expected = next(reader.read_graph(path).weights())[1].values
    data = initializer(onnx.load(path), "stem.w_quantized").raw_data
    (tmp_path / "w.bin").write_bytes(data)
    broken(path, external("w.bin"))
    assert (next(reader.read_graph(path).weights())[1].values == expected).all()
    outside = tmp_path.parent / f"{tmp_path.name}.bin"
    (tmp_path / "w.bin").rename(outside)
    try:
        (tmp_path / "w.bin").symlink_to(outside)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(ArtifactError, match="outside the file's folder"):
        reader.read_graph(path)


def test_a_float_network_is_refused(networks: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(networks.residual_network(), path)
    with pytest.raises(UnsupportedError, match="the network is not quantized") as refused:
        reader.read_graph(path)
    assert "quantize_static" in str(refused.value.remedy)


def test_damaged_files_give_errors_for_users_only(quantized: Any) -> None:
    path = quantized()
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for attempt in range(400):
        damaged = bytearray(content[: rng.integers(0, len(content))] if attempt % 4 == 0 else content)
        for position in rng.integers(0, max(len(damaged), 1), 3 if damaged and attempt % 4 else 0):
            damaged[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(damaged))
        try:
            reader.read_graph(path)
        except KdpipeError:
            refused += 1
    assert refused > 150


def test_the_documented_operators_are_those_that_are_read() -> None:
    text = (Path(__file__).parents[3] / "docs" / "targets.md").read_text(encoding="utf-8")
    listed = text.partition("- Read are ")[2].partition(".")[0]
    assert set(listed.replace(" and ", ", ").replace("\n ", "").split(", ")) == set(OPERATORS)
