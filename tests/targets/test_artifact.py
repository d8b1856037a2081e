"""artifact.json: written, read back, and every way of being wrong refused with the file's name."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdpipe.targets.artifact import FILE, ExportedArtifact, describe, read_artifact, write_artifact
from kdpipe.targets.errors import ArtifactError


def described(graph: Any, **changes: Any) -> ExportedArtifact:
    fields: dict[str, Any] = {
        "target": "onnx",
        "files": ["model.onnx"],
        "input_type": "float32",
        "layout": "NCHW",
        "stored_bits": {2: 2, 3: 4, 4: 4, 8: 8},
    }
    return describe(graph, **(fields | changes))


def test_it_is_read_as_it_was_written(random_graph, tmp_path: Path) -> None:
    artifact = described(random_graph(0))
    write_artifact(artifact, tmp_path)
    assert read_artifact(tmp_path) == artifact


def test_it_says_what_the_graph_is(random_graph) -> None:
    graph = random_graph(1, weight_bits=(3,), operators=("conv",))
    artifact = described(graph, linear_stored_bits={3: 8})
    assert artifact.input.quantization == graph.input.quantization
    assert artifact.output.shape == graph.output.shape
    assert artifact.key == graph.metadata["key"]
    assert artifact.tensors == {"input": graph.input.quantization} | {
        n.name: n.output.quantization for n in graph.nodes
    }
    assert set(artifact.weight_bits.values()) == {3}
    assert {name: bits for name, bits in artifact.stored_bits.items() if name.startswith("conv")}
    expected_values = expected_constants = 0
    for node, weight in graph.weights():
        stored = 8 if node.name.startswith("linear") else 4
        assert artifact.stored_bits[node.name] == stored
        expected_values += (weight.values.size * stored + 7) // 8
        expected_constants += 8 * len(weight.scales)
    assert artifact.weight_bytes == {"values": expected_values, "scales_and_biases": expected_constants}


def test_an_earlier_export_names_no_tensors(random_graph, tmp_path: Path) -> None:
    write_artifact(described(random_graph(0)), tmp_path)
    document = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    del document["tensors"]
    (tmp_path / FILE).write_text(json.dumps(document), encoding="utf-8")
    assert read_artifact(tmp_path).tensors == {}


def test_sizes_are_the_files(random_graph, tmp_path: Path) -> None:
    artifact = described(random_graph(0))
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        artifact.sizes(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"12345")
    assert artifact.sizes(tmp_path) == (("model.onnx", 5),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "this kdpipe reads 1"),
        ({"files": ["../model.onnx"]}, "outside the directory"),
        ({"files": ["/etc/passwd"]}, "outside the directory"),
        ({"files": ["C:\\model.onnx"]}, "outside the directory"),
        ({"files": 3}, "not a readable"),
        ({"mean": None}, "mean and std"),
        ({"rounding": "up"}, "unknown rounding"),
        ({"input": {}}, "not a readable"),
        ({"weight_bits": []}, "not a readable"),
    ],
)
def test_a_wrong_document_is_refused(random_graph, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_artifact(described(random_graph(0)), tmp_path)
    document = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(document | change))
    with pytest.raises(ArtifactError, match=message) as refused:
        read_artifact(tmp_path)
    assert refused.value.where == str(tmp_path / FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": -1.0}, "positive"),
        ({"scale": 0.1}, "not a float32"),
        ({"type": "int4"}, "has type 'int4'"),
        ({"layout": "CHWN"}, "has layout 'CHWN'"),
        ({"shape": "abc"}, "not a readable"),
        ({"zero_point": float("inf")}, "not a readable"),
    ],
)
def test_a_wrong_tensor_is_refused(random_graph, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_artifact(described(random_graph(0)), tmp_path)
    document = json.loads((tmp_path / FILE).read_text())
    document["input"] |= change
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=message):
        read_artifact(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "\x00", "null", "[" * 100_000])
def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path)


def test_a_directory_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing"):
        read_artifact(tmp_path)
