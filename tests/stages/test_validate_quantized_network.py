"""The quantized network itself, validated in torch and against the integer graph that was lowered from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdpipe.pipeline.problems import SpecError
from kdpipe.pipeline.spec_file import load_spec
from kdpipe.stages.artifacts import NetworkDescription, build_network, save_network, save_split
from kdpipe.stages.base import Artifact
from kdpipe.stages.quantize import STAGE as QUANTIZE
from kdpipe.stages.quantize import QuantizeParams
from kdpipe.stages.validate import STAGE, ValidateParams, validate_artifact
from kdpipe.targets.errors import ArtifactError, DataError, UsageError
from kdpipe.targets.graph import Conv2d
from kdpipe.targets.graph_files import load_graph, save_graph

EXACT = {"max_step_difference": 0, "top1_agreement": 1.0, "first_divergent_layer": None, "layers": []}


@pytest.fixture
def quantized(tmp_path: Path, space, make_bars, context) -> Path:
    """A folder with `graph`, `network` (quantized), `float` and `split`."""
    place = context("quantized")
    description = NetworkDescription("cnn", {"channels": (4, 8)}, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(description)
    for name in ("float", "split"):
        (place.root / name).mkdir(parents=True)
    save_network(place.root / "float", network, description)
    save_split(place.root / "split", make_bars(160, 3))
    params = QuantizeParams(
        network="n", samples="s", epochs=3, lr=0.02, losses={"ce": {}}, weight_bits=4, verified_images=32
    )
    inputs = {"network": Artifact("network", place.root / "float"), "samples": Artifact("split", place.root / "split")}
    QUANTIZE.run(params, inputs, place)
    return place.root


def test_it_is_the_integer_graph_to_the_bit(quantized: Path, context) -> None:
    params = ValidateParams(artifact="a", data="d", reference="r", baseline="b")
    inputs = {
        "artifact": Artifact("quantized-network", quantized / "network"),
        "data": Artifact("split", quantized / "split"),
        "reference": Artifact("integer-graph", quantized / "graph"),
        "baseline": Artifact("quantized-network", quantized / "network"),
    }
    record = STAGE.run(params, inputs, context("validated")).target
    assert record.parity == EXACT
    assert record.format == "torch"
    assert record.latency_ms is None
    assert [name for name, _ in record.files] == ["network.json", "weights.safetensors"]
    reference = validate_artifact(quantized / "graph", device="host", split=quantized / "split")
    assert record.accuracy == record.baseline_accuracy == reference.accuracy > 0.4
    alone = validate_artifact(quantized / "network", device="host", split=quantized / "split", samples=5)
    assert alone.parity is None
    assert alone.samples == 5


def test_a_layer_of_another_graph_is_named(quantized: Path, tmp_path: Path) -> None:
    graph = load_graph(quantized / "graph")
    convolutions = [index for index, node in enumerate(graph.nodes) if isinstance(node.op, Conv2d)]
    index = convolutions[1]
    node = graph.nodes[index]
    off = replace(node, op=replace(node.op, bias=node.op.bias + 2000))
    (tmp_path / "planted").mkdir()
    save_graph(replace(graph, nodes=(*graph.nodes[:index], off, *graph.nodes[index + 1 :])), tmp_path / "planted")
    record = validate_artifact(
        quantized / "network", device="host", split=quantized / "split", reference=tmp_path / "planted"
    )
    assert record.parity["first_divergent_layer"] == node.name
    assert record.parity["max_step_difference"] > 0


def test_what_does_not_fit_is_refused(quantized: Path, tmp_path: Path, make_bars, random_graph) -> None:
    split = quantized / "split"
    (tmp_path / "other").mkdir()
    save_graph(random_graph(3, input_shape=(1, 8, 8)), tmp_path / "other")
    with pytest.raises(UsageError, match="another network's"):
        validate_artifact(quantized / "network", device="host", split=split, reference=tmp_path / "other")
    with pytest.raises(UsageError, match="a float network has no integer reference"):
        validate_artifact(quantized / "float", device="host", split=split, reference=quantized / "graph")
    with pytest.raises(UsageError, match="can't run torch networks"):
        validate_artifact(quantized / "network", device="cortex-m4", split=split)
    bars = make_bars(8, 0)
    (tmp_path / "renamed").mkdir()
    save_split(tmp_path / "renamed", replace(bars, space=replace(bars.space, classes=("x", "y", "z"))))
    with pytest.raises(DataError, match="its classes are left, right, top"):
        validate_artifact(quantized / "network", device="host", split=tmp_path / "renamed")
    (quantized / "network" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="can't be read"):
        validate_artifact(quantized / "network", device="host", split=split)


def test_a_pipeline_may_validate_it() -> None:
    pipeline = Path(__file__).resolve().parents[2] / "pipeline.yaml"
    load_spec(pipeline, ["stages.onnx.artifact=${quantized.network}", "stages.mcu.baseline=${quantized.network}"])
    with pytest.raises(SpecError, match="can't run quantized-network"):
        load_spec(pipeline, ["stages.mcu.artifact=${quantized.network}"])
