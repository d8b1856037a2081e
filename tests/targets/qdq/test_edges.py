"""QDQ files at the edges of what is read, against onnxruntime's own run of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.drawn_graphs import fuzz_inputs
from fuzz.edge_graphs import EDGES

from kdpipe.targets import onnx as exporter
from kdpipe.targets import reference
from kdpipe.targets.errors import GraphError, UnsupportedError
from kdpipe.targets.graph import Add, Concat, IntegerGraph, MaxPool2d, Softmax
from kdpipe.targets.qdq import reader

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class File:
    """A QDQ file in the making; each method returns the name of the tensor that it adds."""

    def __init__(self, *shape: int, opset: int = 13) -> None:
        self.shape, self.opset = shape, opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{op}{len(self.nodes)}.{index}" for index in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op, inputs, names, name=f"{op}{len(self.nodes)}", **attributes))
        return names[0]

    def constant(self, values: Any, dtype: type) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def stored(self, real: str, scale: float = 0.02, zero_point: int = 120) -> tuple[str, list[str]]:
        steps = [self.constant(scale, np.float32), self.constant(zero_point, np.uint8)]
        return self.node("QuantizeLinear", real, *steps), steps

    def rounded(self, real: str, scale: float = 0.02, zero_point: int = 120) -> str:
        stored, steps = self.stored(real, scale, zero_point)
        return self.node("DequantizeLinear", stored, *steps)

    def write(self, path: Path, *outputs: str) -> Path:
        helper, real = onnx.helper, onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "1st graph",
            [helper.make_tensor_value_info("image", real, ["N", *self.shape])],
            [helper.make_tensor_value_info(name, real, None) for name in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        path.write_bytes(model.SerializeToString())
        return path


def check(file: File, output: str, path: Path) -> IntegerGraph:
    """Compare the file's output with the reference's, whose last step it is, and return the graph."""
    file.write(path, output)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).uniform(-2.5, 2.5, (9, *file.shape)).astype(np.float32)
    (theirs,) = session.run([output], {"image": images})
    graph = reader.read_graph(path)
    for count in (9, 1):
        ours = reference.run(graph, graph.input.quantization.quantize(images[:count]))
        steps = (graph.output.quantization.dequantize(ours) - theirs[:count]) / graph.output.quantization.scale
        assert np.abs(steps).max() <= 1.001
    return graph


def test_a_tensor_that_is_read_twice_by_one_node(tmp_path: Path) -> None:
    file = File(2, 3, 4)
    x = file.rounded("image")
    total = file.rounded(file.node("Add", x, x), 0.04)
    joined = file.rounded(file.node("Concat", total, x, total, axis=1), 0.05, 127)
    graph = check(file, file.rounded(file.node("Mul", joined, joined), 0.1, 3), tmp_path / "x.onnx")
    assert graph.name == "_1st_graph"
    assert [len(set(node.inputs)) for node in graph.nodes if isinstance(node.op, Add | Concat)] == [1, 2]


def test_an_output_that_others_read_too(tmp_path: Path) -> None:
    file = File(2, 5, 5)
    x = file.rounded("image")
    pooled = file.node("MaxPool", x, kernel_shape=[1, 2], strides=[3, 4])
    file.rounded(file.node("Relu", pooled), 0.01, 0)
    output = file.rounded(pooled)
    file.rounded(file.node("Add", output, output))
    graph = check(file, output, tmp_path / "x.onnx")
    assert isinstance(graph.nodes[-1].op, MaxPool2d), "what comes behind the output is left out"


def test_an_input_that_is_the_output_is_no_network(tmp_path: Path) -> None:
    file = File(4)
    with pytest.raises(GraphError, match="no nodes"):
        reader.read_graph(file.write(tmp_path / "x.onnx", file.rounded("image")))


def test_several_outputs_are_refused(tmp_path: Path) -> None:
    file = File(4)
    first = file.rounded("image")
    with pytest.raises(UnsupportedError, match="1 inputs and 2 outputs"):
        reader.read_graph(file.write(tmp_path / "x.onnx", first, file.rounded(file.node("Relu", first))))


@pytest.mark.parametrize(("opset", "pixels"), [(11, 1), (12, 1), (13, 1), (13, 6)])
def test_a_softmax_over_channels(opset: int, pixels: int, tmp_path: Path) -> None:
    file = File(3, pixels, 1, opset=opset)
    shares = file.node("Softmax", file.rounded("image"), axis=1)
    graph = check(file, file.rounded(shares, 1 / 256, 0), tmp_path / "x.onnx")
    assert isinstance(graph.nodes[-1].op, Softmax)


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}])
def test_before_opset_13_a_softmax_is_over_pixels_too(attributes: dict[str, int], tmp_path: Path) -> None:
    file = File(3, 2, 2, opset=12)
    shares = file.node("Softmax", file.rounded("image"), **attributes)
    with pytest.raises(UnsupportedError, match="channels and pixels together, as it is before opset 13"):
        reader.read_graph(file.write(tmp_path / "x.onnx", file.rounded(shares, 1 / 256, 0)))


CLIPS: dict[int, Callable[[File, str], str]] = {
    10: lambda file, x: file.node("Clip", x, min=-0.5, max=1.0),
    11: lambda file, x: file.node("Clip", x, file.constant(-0.5, np.float32), file.constant(1.0, np.float32)),
}


@pytest.mark.parametrize("opset", list(CLIPS))
def test_a_clip_by_attributes_and_by_inputs(opset: int, tmp_path: Path) -> None:
    file = File(2, 3, 3, opset=opset)
    clipped = CLIPS[opset](file, file.rounded("image"))
    graph = check(file, file.rounded(clipped, 0.01, 100), tmp_path / "x.onnx")
    assert (graph.output.quantization.qmin, graph.output.quantization.qmax) == (100 - 50 - 128, 100 + 100 - 128)


@pytest.mark.parametrize(
    "attributes",
    [
        {"keep_aspect_ratio_policy": "not_larger"},
        {"axes": [1, 2, 3]},
    ],
)
def test_a_resize_that_is_told_more_is_refused(attributes: dict[str, Any], tmp_path: Path) -> None:
    file = File(2, 3, 3, opset=18)
    size = [2, 6, 9] if "axes" in attributes else [1, 2, 6, 9]
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    large = file.node("Resize", file.rounded("image"), "", "", file.constant(size, np.int64), **how, **attributes)
    with pytest.raises(UnsupportedError, match="Resize"):
        reader.read_graph(file.write(tmp_path / "x.onnx", file.rounded(large)))


@pytest.mark.parametrize("edge", list(EDGES))
def test_our_own_files_come_back_the_same(edge: str, tmp_path: Path) -> None:
    graph = EDGES[edge]()
    (path,) = exporter.export(graph, tmp_path)
    back = reader.read_graph(path)
    assert [node.name for node in back.nodes] == [node.name for node in graph.nodes]
    inputs = fuzz_inputs(graph)
    expected, found = reference.run_all(graph, inputs), reference.run_all(back, inputs)
    assert expected.keys() == found.keys()
    assert all((expected[name] == found[name]).all() for name in expected)
