"""Every target: what it writes, that it writes the same bytes twice, and what it refuses."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from kdpipe.stages.export import TargetName, export_graph
from kdpipe.targets import openvino_numbers, reference, unrounded
from kdpipe.targets.artifact import kdpipe_version, read_artifact
from kdpipe.targets.errors import UnsupportedError, UsageError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph import IntegerGraph, Node, Normalization, Operator
from kdpipe.targets.graph_checks import check_graph
from kdpipe.targets.graph_files import graph_key, save_graph
from kdpipe.targets.tflite_model import unpack_model


@pytest.fixture
def unknown_operator(random_graph: Callable[..., IntegerGraph], monkeypatch: pytest.MonkeyPatch) -> IntegerGraph:
    @dataclass(frozen=True)
    class Softmax:
        """An operator of a later kdpipe."""

    graph = random_graph(0)
    monkeypatch.setattr("kdpipe.targets.graph_checks.check_graph", lambda graph: None)
    last = Node("classifier.softmax", Softmax(), (graph.output_name,), graph.output)  # type: ignore[arg-type]
    return replace(graph, nodes=(*graph.nodes, last))


@pytest.mark.parametrize("target", list(EXPORTERS))
def test_files_are_described_and_reproducible(target: str, random_graph, tmp_path: Path) -> None:
    graph = random_graph(7)
    contents = []
    for name in ("first", "second"):
        directory = tmp_path / name
        directory.mkdir()
        written = EXPORTERS[target].export(graph, directory)
        described = read_artifact(directory)
        assert described.target == target
        assert described.sizes(directory)
        assert set(map(Path, described.files)) <= {path.relative_to(directory) for path in written}
        contents.append({path.relative_to(directory): path.read_bytes() for path in written})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("target", list(EXPORTERS))
def test_an_unknown_operator_is_refused_by_layer_and_nothing_is_written(
    target: str, unknown_operator: IntegerGraph, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=r"classifier\.softmax"):
        EXPORTERS[target].export(unknown_operator, tmp_path)
    assert not list(tmp_path.iterdir())


def test_narrow_weights_make_small_files(random_graph, tmp_path: Path) -> None:
    sizes = {}
    for bits in (2, 4, 8):
        for target in EXPORTERS:
            directory = tmp_path / f"{target}-{bits}"
            directory.mkdir()
            graph = random_graph(11, weight_bits=(bits,), operators=("conv",), depth=4, input_shape=(4, 12, 12))
            check_graph(graph)
            EXPORTERS[target].export(graph, directory)
            sizes[target, bits] = read_artifact(directory).weight_bytes["values"]
            count = sum(weight.values.size for _, weight in graph.weights())
            if target in ("onnx", "openvino"):
                assert sizes[target, bits] == pytest.approx(count * bits / 8, abs=len(graph.nodes))
    assert sizes["onnx", 2] < sizes["onnx", 4] < sizes["onnx", 8]
    assert sizes["tflite", 2] == sizes["tflite", 4] < sizes["tflite", 8]


@pytest.mark.parametrize("target", list(EXPORTERS))
def test_every_operator_can_be_written(target: str) -> None:
    """An operator that is added is added everywhere; C refuses some by size, by the layer's name."""
    assert EXPORTERS[target].operators() == set(get_args(Operator))


def test_every_operator_is_computed_and_those_that_round_are_known() -> None:
    assert reference._OPERATORS.keys() == set(get_args(Operator))
    assert unrounded._OPERATORS.keys() == set(openvino_numbers.ROUNDING)


def test_the_stage_knows_every_target() -> None:
    assert sorted(get_args(TargetName)) == list(EXPORTERS)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown target"):
        EXPORTERS["onxx"]


def test_weights_in_the_artifact_are_the_trained_widths(random_graph, tmp_path: Path) -> None:
    graph = random_graph(3, weight_bits=(2, 8))
    EXPORTERS["onnx"].export(graph, tmp_path)
    assert read_artifact(tmp_path).weight_bits == {node.name: weight.bits for node, weight in graph.weights()}
    assert np.isin(list(read_artifact(tmp_path).stored_bits.values()), (2, 8)).all()


def stated(target: str, directory: Path) -> dict[str, Any]:
    """Return what an exported file says about itself, read by its format's own library; of C, from the header."""
    if target == "onnx":
        onnx = pytest.importorskip("onnx")
        entries = onnx.load(directory / "model.onnx").metadata_props
        return {entry.key: json.loads(entry.value) if entry.value[0] in "[{" else entry.value for entry in entries}
    if target == "openvino":
        model = pytest.importorskip("openvino").Core().read_model(directory / "model.xml")
        texts = {name: value.astype(str) for name, value in model.get_rt_info(["kdpipe"]).astype(dict).items()}
        return {name: json.loads(text) if text[0] in "[{" else text for name, text in texts.items()}
    if target == "tflite":
        pytest.importorskip("ai_edge_litert")
        model = unpack_model((directory / "model.tflite").read_bytes())
        (entry,) = model.metadata
        return dict(json.loads(bytes(model.buffers[entry.buffer].data)))
    text = (directory / "model.h").read_text()
    bits = re.search(r"Bits of the weights, by layer:\n((?: \*   .*\n)*)", text)
    assert bits is not None
    return {
        "classes": re.findall(r"\*   \d+: (.*)", text),
        "mean": [float(value) for value in re.findall(r"_MEAN \{(.*)\}", text)[0].replace("f", "").split(",")],
        "std": [float(value) for value in re.findall(r"_STD \{(.*)\}", text)[0].replace("f", "").split(",")],
        "weight_bits": {name: int(width) for name, width in re.findall(r"\*   (\S+): (\d)", bits[1])},
        "kdpipe_version": re.findall(r"written by kdpipe (.*)\.\n", text)[0],
        "key": re.findall(r"Key: (\w+)", text)[0],
    }


@pytest.mark.parametrize("target", list(EXPORTERS))
def test_each_file_says_what_it_is(target: str, random_graph, tmp_path: Path) -> None:
    graph = random_graph(4, weight_bits=(2, 4, 8), input_shape=(3, 9, 10))
    graph = replace(graph, normalization=Normalization((0.5, 0.25, 0.125), (0.75, 1.5, 2.0)))
    names = tuple(f"class-{index}" for index in range(int(np.prod(graph.output.shape))))
    source, directory = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    save_graph(replace(graph, class_names=names), source)
    export_graph(source, target, directory)
    found = stated(target, directory)
    assert found["classes"] == list(names)
    assert (found["mean"], found["std"]) == ([0.5, 0.25, 0.125], [0.75, 1.5, 2.0])
    assert found["weight_bits"] == {node.name: weight.bits for node, weight in graph.weights()}
    assert found["kdpipe_version"] == kdpipe_version()
    assert found["key"] == graph_key(source) == read_artifact(directory).key
    assert len(found["key"]) == 64
