import json
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets import reference
from kdpipe.targets.errors import ArtifactError, GraphError
from kdpipe.targets.graph import (
    Add,
    AveragePool2d,
    Conv2d,
    Flatten,
    IntegerGraph,
    Linear,
    MaxPool2d,
    Node,
    Normalization,
    Quantization,
    Requantize,
    TensorType,
    Weight,
)
from kdpipe.targets.graph_files import load_graph, save_graph

Q = Quantization(0.5, -3)
HALF = Quantization(0.25, 0, 0, 15)


@pytest.fixture
def graph() -> IntegerGraph:
    rng = np.random.default_rng(0)
    kernel = Weight(rng.integers(-1, 2, (4, 2, 3, 3)).astype(np.int8), np.full(4, 0.1, np.float32), 2)
    matrix = Weight(rng.integers(-7, 8, (3, 16)).astype(np.int8), np.full(3, 0.1, np.float32), 4)
    conv = Conv2d(kernel, np.arange(4, dtype=np.int32), (1, 1), (1, 1, 1, 1))
    return IntegerGraph(
        "net",
        "x",
        TensorType((2, 8, 8), Q),
        (
            Node("a", conv, ("x",), TensorType((4, 8, 8), Q)),
            Node("b", Requantize(), ("a",), TensorType((4, 8, 8), HALF)),
            Node("c", Add(), ("a", "b"), TensorType((4, 8, 8), Q)),
            Node("d", MaxPool2d((2, 2), (2, 2)), ("c",), TensorType((4, 4, 4), Q)),
            Node("e", AveragePool2d((2, 2), (2, 2)), ("d",), TensorType((4, 2, 2), Q)),
            Node("f", Flatten(), ("e",), TensorType((16,), Q)),
            Node("g", Linear(matrix, np.arange(3, dtype=np.int32)), ("f",), TensorType((3,), Q)),
        ),
        rounding="single",
        class_names=("no", "ja", "à"),
        normalization=Normalization((0.5, 0.4), (0.25, 0.2)),
        metadata={"key": "abc"},
    )


def test_a_saved_graph_computes_the_same(graph: IntegerGraph, tmp_path: Path) -> None:
    save_graph(graph, tmp_path)
    loaded = load_graph(tmp_path)
    x = np.random.default_rng(1).integers(-128, 128, (9, 2, 8, 8)).astype(np.int8)
    before, after = reference.run_all(graph, x), reference.run_all(loaded, x)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    for field in ("name", "rounding", "class_names", "normalization", "metadata", "input"):
        assert getattr(loaded, field) == getattr(graph, field)
    assert [weight.bits for _, weight in loaded.weights()] == [2, 4]


def test_random_graphs_of_every_operator_are_read_as_they_were_written(
    random_graph, random_inputs, tmp_path: Path
) -> None:
    for seed in range(40):
        written = random_graph(seed)
        save_graph(written, tmp_path)
        read = load_graph(tmp_path)
        inputs = random_inputs(written, 2)
        assert [type(node.op) for node in read.nodes] == [type(node.op) for node in written.nodes]
        assert (reference.run(read, inputs) == reference.run(written, inputs)).all()


def test_missing_files_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"graph\.json is missing\. Give the directory"):
        load_graph(tmp_path)


def test_damaged_files_are_refused(graph: IntegerGraph, tmp_path: Path) -> None:
    save_graph(graph, tmp_path)
    constants = tmp_path / "weights.safetensors"
    constants.write_bytes(constants.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: not a readable"):
        load_graph(tmp_path)
    constants.unlink()
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is missing"):
        load_graph(tmp_path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": 99}, "format 99"),
        ({"nodes": [{}]}, "not a readable"),
        ({"input": []}, "not a readable"),
        ({"name": 3}, "not a readable"),
        ({"class_names": [1.5]}, "expected text, found 1.5"),
        ({"input_name": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_wrong_structure_is_refused(graph: IntegerGraph, tmp_path: Path, change: dict, error: str) -> None:
    save_graph(graph, tmp_path)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ArtifactError, GraphError), match=error):
        load_graph(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ('"bits": 2', '"bits": 1', "layer a: "),
        ('"zero_point": -3', '"zero_point": 1e999', "integers"),
        ("{", "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_inside_is_named_with_the_file(
    graph: IntegerGraph, tmp_path: Path, before: str, after: str, error: str
) -> None:
    save_graph(graph, tmp_path)
    path = tmp_path / "graph.json"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises((ArtifactError, GraphError), match=error) as raised:
        load_graph(tmp_path)
    assert str(raised.value).startswith(str(path))


def test_unknown_operators_are_named(graph: IntegerGraph, tmp_path: Path) -> None:
    save_graph(graph, tmp_path)
    path = tmp_path / "graph.json"
    path.write_text(path.read_text().replace('"Linear"', '"Softmax"'))
    with pytest.raises(ArtifactError, match=r"layer g: unknown operator|not a readable"):
        load_graph(tmp_path)
