"""QDQ files that are damaged, hostile or out of reach: each a clear error with its place, and nothing half-written."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kdpipe.stages.export import export_graph
from kdpipe.targets.errors import ArtifactError, GraphError, KdpipeError, UnsupportedError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.qdq import reader

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


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


def no_shape(model: Any) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def huge_input(model: Any) -> None:
    for axis in (1, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 2**40


def huge_padding(model: Any) -> None:
    node = next(node for node in model.graph.node if node.name == "stem")
    next(entry for entry in node.attribute if entry.name == "pads").ints[:] = [2**30] * 4


def huge_short(model: Any) -> None:
    """A tensor that declares more than any memory, and holds nothing at all."""
    tensor = initializer(model, "conv1.w_quantized")
    tensor.dims[:] = [2**31 - 1, 2**31 - 1, 2**31 - 1]
    tensor.ClearField("raw_data")


def huge_external(model: Any) -> None:
    tensor = initializer(model, "stem.w_quantized")
    tensor.dims[:] = [2**40]
    external("theirs.onnx")(model)


def computed_shape(model: Any) -> None:
    """A Reshape to a size that the network computes."""
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    model.graph.node.insert(0, onnx.helper.make_node("Shape", [model.graph.input[0].name], ["size"], name="size"))
    pool.op_type, pool.input[:] = "Reshape", [pool.input[0], "size"]
    del pool.attribute[:]


def operator_form(model: Any) -> None:
    for node in list(model.graph.node):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.op_type = "Identity"
            del node.input[1:]
        elif node.op_type == "Conv":
            node.op_type = "QLinearConv"


def dynamically(model: Any) -> None:
    operator_form(model)
    for node in model.graph.node:
        if node.op_type == "QLinearConv":
            node.op_type = "ConvInteger"


def wide_weights(model: Any) -> None:
    """As PyTorch writes them where its fake quantization has the whole range of int8."""
    tensor = initializer(model, "conv1.w_quantized")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[7] = -128
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


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
        (huge, ArtifactError, r"tensor stem.w_quantized: declares \d+ bytes, but has \d+"),
        (huge_short, ArtifactError, r"tensor conv1.w_quantized: declares \d+ elements, but has 0"),
        (huge_external, ArtifactError, r"tensor stem.w_quantized: declares \d+ bytes, but has \d+ in theirs.onnx"),
        (huge_input, UnsupportedError, r"the input \w+ has \d+ elements"),
        (huge_padding, UnsupportedError, r"node stem\w+ \(QuantizeLinear\): its output would have the shape"),
        (external("../secret.bin"), ArtifactError, "outside the file's folder"),
        (external("/etc/hostname"), ArtifactError, "outside the file's folder"),
        (external("C:\\secret.bin"), ArtifactError, "outside the file's folder"),
        (external("gone.bin"), ArtifactError, "is missing"),
        (float_weights, UnsupportedError, r"node conv1 \(Conv\): its weights are not quantized"),
        (unknown_operator, UnsupportedError, r"node pool \(Erf\): the operator Erf has no integer form"),
        (free_size, UnsupportedError, "a size that is not known"),
        (no_shape, UnsupportedError, r"is not \[N, C, H, W\]"),
        (computed_shape, UnsupportedError, r"node size \(Shape\): the operator Shape has no integer form"),
        (operator_form, UnsupportedError, "in QOperator form"),
        (dynamically, UnsupportedError, "quantized dynamically"),
        (wide_weights, UnsupportedError, r"node conv1 \(Conv\): its weights lie up to 128 steps"),
        (float_island, UnsupportedError, r"node conv2 \(Conv\): reads the result of conv1 in floating point"),
        (newer_opset, UnsupportedError, "ONNX opset 999"),
        (lambda model: setattr(model, "ir_version", 999), UnsupportedError, "ONNX IR version 999"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(
    change: Any, error: type[KdpipeError], message: str, quantized: Any, tmp_path: Path
) -> None:
    path = broken(quantized(), change)
    with pytest.raises(error, match=message) as refused:
        export_graph(path, "c", tmp_path / "out")
    assert str(refused.value).count(str(path)) == 1
    assert refused.value.remedy or "declares" in message or "elements" in message
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


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


@pytest.mark.parametrize("target", list(EXPORTERS))
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_and_nothing_is_written(
    target: str, share: float, quantized: Any, tmp_path: Path
) -> None:
    path = quantized()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError, match=r"not a readable ONNX file|holds no ONNX graph|declares") as refused:
        export_graph(path, target, tmp_path / "out")
    assert str(path) in str(refused.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


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


@pytest.mark.parametrize("axis", [0, 2])
def test_a_softmax_over_another_axis_is_refused(axis: int, quantized: Any) -> None:
    def turned(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "MaxPool")
        node.CopyFrom(onnx.helper.make_node("Softmax", node.input, node.output, name=node.name, axis=axis))

    with pytest.raises(UnsupportedError, match="a softmax over another axis"):
        reader.read_graph(broken(quantized(), turned))
