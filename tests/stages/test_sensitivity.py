"""The stage `sensitivity`, and widths that `quantize` chooses by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from kdpipe.pipeline.problems import SpecError
from kdpipe.pipeline.spec_file import load_spec
from kdpipe.stages.artifacts import (
    NetworkDescription,
    Samples,
    build_network,
    save_network,
    save_samples,
    save_split,
)
from kdpipe.stages.base import Artifact
from kdpipe.stages.quantization.network import load_quantized_network
from kdpipe.stages.quantization.sensitivities import load_sensitivity
from kdpipe.stages.quantization.weights import QuantizedConv2d, QuantizedLinear
from kdpipe.stages.quantize import STAGE as QUANTIZE
from kdpipe.stages.quantize import QuantizeParams
from kdpipe.stages.sensitivity import STAGE, SensitivityParams
from kdpipe.stages.training.parameters import OptimizationParams
from kdpipe.stages.training.teachers import train_classifier
from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.errors import DataError, UsageError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph_files import load_graph

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "automatic-widths.yaml"


@pytest.fixture
def inputs(tmp_path: Path, space, make_bars) -> dict[str, Artifact]:
    """A trained network of four layers, real images and unlabelled ones with its logits."""
    description = NetworkDescription("cnn", {"channels": (6, 12, 16)}, space)
    split = make_bars(300, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(description)
        params = OptimizationParams(epochs=2, batch_size=32)
        train_classifier(network, split, params, seed=0, pixels=0, device=torch.device("cpu"))
    network.eval()
    for name in ("network", "split", "samples"):
        (tmp_path / name).mkdir()
    save_network(tmp_path / "network", network, description)
    save_split(tmp_path / "split", split)
    images = split.normalized()
    with torch.no_grad():
        logits = network(images)
    save_samples(tmp_path / "samples", Samples(images, logits, split.space))
    return {name: Artifact(name, tmp_path / name) for name in ("network", "split", "samples")}


def analyse(inputs, context, kind="samples", **given: Any):
    params = SensitivityParams(network="n", samples="s", **given)
    return STAGE.run(params, {"network": inputs["network"], "samples": inputs[kind]}, context)


def quantize(inputs, context, sensitivity: Path | None, **given: Any):
    values = {"epochs": 1, "batch_size": 32, "losses": {"kd": {}}, "verified_images": 32, **given}
    handed = {"network": inputs["network"], "samples": inputs["samples"]}
    if sensitivity is not None:
        handed["sensitivity"] = Artifact("sensitivity", sensitivity)
    return QUANTIZE.run(QuantizeParams(network="n", samples="s", sensitivity="x", **values), handed, context)


def test_without_labels_and_with_them(inputs, context) -> None:
    alone = context("alone")
    outcome = analyse(inputs, alone, images=100)
    assert alone.reports[-1][:3] == (16, 16, "width")
    assert outcome.metrics["images"] == 100
    assert outcome.metrics["layers"] == 4
    found = load_sensitivity(alone.root / "sensitivity")
    most = max(found.layers, key=lambda path: found.layers[path].by_bits[2].loss)
    assert outcome.metrics["most_sensitive"] == most
    assert list(outcome.grids) == [
        "Predicted loss of each layer's weights alone",
        "Top-1 agreement with each layer's weights alone",
    ]
    grid = outcome.grids["Predicted loss of each layer's weights alone"]
    assert grid.rows == tuple(found.layers)
    assert grid.columns == ("2 bits", "3 bits", "4 bits", "8 bits")
    labelled = analyse(inputs, context("labelled"), "split", images=100, widths=[2], activations=True)
    assert list(labelled.grids)[1:] == [
        "Accuracy with each layer's weights alone",
        "Predicted loss of each activation alone",
    ]


def test_the_seed_draws_the_images(inputs, context) -> None:
    contexts = [context(name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for each in contexts:
        analyse(inputs, each, images=64, widths=[2])
    a, b, c = ((each.root / "sensitivity" / "sensitivity.json").read_bytes() for each in contexts)
    assert a == b != c


@pytest.mark.parametrize("target", ["onnx", "tflite", "integer-graph"])
def test_the_chosen_widths_are_trained_exported_and_within_the_budget(inputs, context, tmp_path, target: str) -> None:
    analyse(inputs, context("sensitivity"))
    place = context("quantized")
    size = {"onnx": 1.2, "integer-graph": 1.4, "tflite": 2.0}[target]
    outcome = quantize(
        inputs,
        place,
        tmp_path / "sensitivity" / "sensitivity",
        weight_bits="auto",
        first_last_bits="auto",
        budget={"size_kib": size, "target": target},
    )
    (grid,) = outcome.grids.values()
    chosen = {grid.rows[row]: int(grid.columns[at].split()[0]) for row, at in grid.marked}
    assert len(set(chosen.values())) > 1, "the budget should make it choose"
    graph = load_graph(place.root / "graph")
    assert {node.name: weight.bits for node, weight in graph.weights()} == chosen
    prepared, description = load_quantized_network(place.root / "network")
    layers = {n: m for n, m in prepared.named_modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)}
    assert {name: layer.weight_quantizer.bits for name, layer in layers.items()} == chosen
    assert "auto" not in str(description.quantization)
    if target == "integer-graph":
        counted = outcome.metrics["weight_bytes"] + outcome.metrics["scale_and_bias_bytes"]
    else:
        (tmp_path / target).mkdir()
        EXPORTERS[target].export(graph, tmp_path / target)
        counted = sum(read_artifact(tmp_path / target).weight_bytes.values())
    assert counted == outcome.metrics["assigned_bytes"] <= size * 1024
    if target == "onnx":
        assert stored_bytes(tmp_path / "onnx" / "model.onnx", graph) == counted


def stored_bytes(path: Path, graph) -> int:
    """Return the bytes of the weights, their scales and biases among an ONNX file's initializers."""
    import onnx

    model = onnx.load(path)
    kinds = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = {name: node for node in model.graph.node for name in node.input}
    total = 0
    for node, weight in graph.weights():
        candidates = [
            tensor
            for tensor in kinds.values()
            if list(tensor.dims) == list(weight.values.shape) and tensor.name.startswith(node.name)
        ]
        assert len(candidates) == 1, [tensor.name for tensor in candidates]
        total += len(candidates[0].raw_data)
        assert candidates[0].name in readers
        total += 4 * weight.scales.size + 4 * node.op.bias.size
    return total


def test_fixed_layers_stay_and_recipes_go_on(inputs, context, tmp_path) -> None:
    analyse(inputs, context("sensitivity"), widths=[2, 4])
    outcome = quantize(
        inputs,
        context("quantized"),
        tmp_path / "sensitivity" / "sensitivity",
        weight_bits="auto",
        budget={"size_kib": 1.5},
        progressive=[8],
        losses={"kd": {}, "speq": {}},
        activation_bits=4,
    )
    (grid,) = outcome.grids.values()
    assert [note.endswith("fixed") for note in grid.notes] == [True, False, False, True]
    widths = [weight.bits for _, weight in load_graph(tmp_path / "quantized" / "graph").weights()]
    assert widths[0] == widths[-1] == 8
    assert set(widths[1:-1]) <= {2, 4}


def test_an_impossible_budget_and_another_network_are_refused_before_training(inputs, context, tmp_path, space) -> None:
    analyse(inputs, context("sensitivity"), widths=[2, 4])
    found = tmp_path / "sensitivity" / "sensitivity"
    with pytest.raises(UsageError, match=r"0\.25 KiB can't hold the weights: the least possible is"):
        quantize(inputs, context("small"), found, weight_bits="auto", budget={"size_kib": 0.25})
    description = NetworkDescription("cnn", {"channels": (4, 6)}, space)
    (tmp_path / "other").mkdir()
    save_network(tmp_path / "other", build_network(description), description)
    other = {**inputs, "network": Artifact("network", tmp_path / "other")}
    with pytest.raises(UsageError, match="has another size"):
        quantize(other, context("other-out"), found, weight_bits="auto", budget={"size_kib": 4})
    assert not (tmp_path / "small").exists()
    assert not (tmp_path / "other-out").exists()


def test_too_few_images_are_refused(inputs, context, tmp_path, make_bars) -> None:
    (tmp_path / "few").mkdir()
    save_split(tmp_path / "few", make_bars(15, 0))
    with pytest.raises(DataError, match="15 images are too few"):
        analyse({**inputs, "split": Artifact("split", tmp_path / "few")}, context(), "split")


@pytest.mark.parametrize(
    ("given", "message"),
    [({"widths": [8, 2]}, "widths must rise"), ({"widths": [5]}, "widths"), ({"images": 3}, "images")],
)
def test_wrong_parameters_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SensitivityParams(network="n", samples="s", **given)


def test_the_example_is_valid_and_its_mistakes_are_found_before_anything_runs() -> None:
    load_spec(EXAMPLE, [])
    load_spec(EXAMPLE, ["stages.quantized.weight_bits=2", "stages.quantized.bits={layer1.*: {weights: auto}}"])

    def messages(*overrides: str) -> list[tuple[Any, ...]]:
        with pytest.raises(SpecError) as refused:
            load_spec(EXAMPLE, list(overrides))
        return [(problem.path[2], problem.message) for problem in refused.value.problems]

    needed, useless = "a width is auto, which needs this", "no width is auto, so this would change nothing"
    assert messages("stages.quantized.budget=null") == [("budget", needed)]
    assert messages("stages.quantized.sensitivity=null") == [("sensitivity", needed)]
    assert messages("stages.quantized.weight_bits=2") == [("sensitivity", useless), ("budget", useless)]
    assert messages("stages.quantized.budget={size_kib: 0}")[0][0] == "budget"
    assert messages("stages.quantized.weight_bits=automatic")[0][0] == "weight_bits"
