"""The stage `quantize`, on a small network and synthetic samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdpipe.models.registry import MODELS
from kdpipe.stages.artifacts import (
    ImageSpace,
    NetworkDescription,
    Samples,
    Split,
    build_network,
    load_network,
    save_ensemble,
    save_network,
    save_samples,
    save_split,
)
from kdpipe.stages.base import Artifact
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.network import load_quantized_network
from kdpipe.stages.quantize import STAGE, QuantizeParams
from kdpipe.targets.errors import ArtifactError, DataError, GraphError, UnsupportedError, UsageError
from kdpipe.targets.graph_files import load_graph

SPACE = ImageSpace((1, 8, 8), ("a", "b", "c"), (0.3,), (0.4,))
ARGUMENTS = {"depth": 8, "width": 4}


class Context:
    """Records what a stage reports."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.seed, self.accelerator, self.threads = root, seed, "cpu", 1
        self.reports: list[tuple[int, int]] = []

    def output(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def file(self, path: str) -> Path:
        return Path(path)

    def scratch(self) -> Path:
        path = self.root / "scratch"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def progress(self, done: int, total: int, unit: str = "epoch", **metrics: float) -> None:
        self.reports.append((done, total))

    def log(self, message: str) -> None:
        pass


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    """A network with random weights, which is its own teacher on samples of three kinds of stripes."""
    root = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(192) % 3
    stripes = torch.zeros(3, 1, 8, 8)
    stripes[0, :, ::2], stripes[1, :, :, ::2], stripes[2, :, 2:6, 2:6] = 1, 1, 1
    pixels = (stripes[labels] * 0.7 + 0.3 * torch.rand(192, 1, 8, 8, generator=generator)).clamp(0, 1)
    images = (pixels - 0.3) / 0.4
    description = NetworkDescription("resnet", MODELS["resnet"].check(dict(ARGUMENTS)).model_dump(), SPACE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(description)
        with torch.no_grad():
            for _ in range(30):
                network.train()(images)
    for name in ("network", "samples", "split"):
        (root / name).mkdir()
    save_network(root / "network", network, description)
    logits = 6.0 * torch.nn.functional.one_hot(labels, 3)
    save_samples(root / "samples", Samples(images, logits, SPACE))
    save_split(root / "split", Split("train", (pixels * 255).to(torch.uint8), labels, SPACE))
    return {name: Artifact(name, root / name) for name in ("network", "samples", "split")}


def run(inputs: Mapping[str, Artifact], root: Path, kind: str = "samples", seed: int = 0, **params: Any):
    given = {name: inputs[name] for name in ("network", "teachers") if name in inputs} | {"samples": inputs[kind]}
    context = Context(root, seed)
    values = {"epochs": 4, "batch_size": 32, "verified_images": 64, **params}
    outcome = STAGE.run(QuantizeParams(network="n", samples="s", **values), given, context)
    return outcome, context


def test_it_trains_and_hands_over_graph_and_network(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    outcome, context = run(inputs, tmp_path)
    assert context.reports == [(epoch, 4) for epoch in (1, 2, 3, 4)]
    history = outcome.history["quantized"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert outcome.metrics["agreement"] > 0.9
    assert outcome.metrics["integer_exact"] == 1.0
    assert outcome.metrics["integer_top1_agreement"] == 1.0
    assert 0.1 < outcome.metrics["ternary_sparsity"] < 0.9

    graph = load_graph(tmp_path / "graph")
    widths = {node.name: weight.bits for node, weight in graph.weights()}
    assert widths.pop("conv1") == widths.pop("fc") == 8
    assert set(widths.values()) == {2}
    assert outcome.metrics["weight_bytes"] == sum(weight.packed_bytes for _, weight in graph.weights())
    assert graph.class_names == SPACE.classes
    assert graph.rounding == "single"

    network, description = load_quantized_network(tmp_path / "network")
    assert description.quantization == {
        "weight_bits": 2, "activation_bits": 8, "first_last_bits": 8, "rounding": "single", "bits": {},
        "weight_gradient": "straight-through", "activation_gradient": "pact", "ewgs_delta": 1e-3,
        "weight_scales": "channel",
    }  # fmt: skip
    images = torch.randn(32, 1, 8, 8)
    assert compare(network, graph, images).worst[1] == 1.0


def test_pixels_are_stored_as_they_are(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    run(inputs, tmp_path, epochs=1)
    graph = load_graph(tmp_path / "graph")
    pixels = np.arange(256)
    normalized = ((pixels / 255 - 0.3) / 0.4).astype(np.float32)
    assert np.abs(graph.input.quantization.quantize(normalized).astype(int) - (pixels - 128)).max() <= 1


def test_the_same_seed_gives_the_same_files(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(inputs, tmp_path / name, seed=seed, epochs=1)
    files = ["graph/graph.json", "graph/weights.safetensors", "network/network.json", "network/weights.safetensors"]
    contents = {name: [(tmp_path / name / file).read_bytes() for file in files] for name in "abc"}
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]


@pytest.mark.parametrize("losses", [{"ce": {}}, {"kd": {"temperature": 2}}, {"ce": {}, "speq": {"probability": 0.4}}])
def test_every_recipe_runs(inputs: Mapping[str, Artifact], tmp_path: Path, losses: dict[str, Any]) -> None:
    outcome, _ = run(inputs, tmp_path, epochs=1, losses=losses, activation_bits=4)
    row = outcome.history["quantized"][0]
    assert len(losses) == 1 or set(losses) <= set(row)


def test_weights_of_losses_go_to_their_ends(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    losses = {"dkd": {"weight": 1, "weight_end": 0}, "ce": {"weight": 0, "weight_end": 1}}
    rows = run(inputs, tmp_path, epochs=3, losses=losses)[0].history["quantized"]
    assert rows[0]["ce"] == 0 < rows[0]["dkd"]
    assert rows[-1]["dkd"] == 0 < rows[-1]["ce"]


def test_teachers_are_asked_about_augmented_images(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    """The network as its own teacher, whose advice is no cached one."""
    given = {"epochs": 1, "losses": {"kd": {}}, "shift": 1, "flip": True}
    for kind in ("split", "samples"):
        with pytest.raises(DataError, match="as shift and flip changed it"):
            run(inputs, tmp_path / "refused", kind, **given)
        taught = {**inputs, "teachers": inputs["network"]}
        plain, _ = run(taught, tmp_path / f"plain-{kind}", kind, epochs=1, losses={"kd": {}})
        augmented, _ = run(taught, tmp_path / f"augmented-{kind}", kind, **given)
        assert augmented.metrics["loss"] != plain.metrics["loss"]
        assert augmented.metrics["integer_exact"] == 1.0


def test_samples_and_the_split_that_they_were_made_of_are_one(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    """Bytes that are normalized batch by batch train as normalized images do, to what bytes lose."""
    losses = [
        run(inputs, tmp_path / kind, kind, epochs=1, losses={"ce": {}}, shift=1)[0].metrics["loss"]
        for kind in ("split", "samples")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("kind", ["one", "two"])
def test_an_ensemble_of_one_network_is_that_network(inputs: Mapping[str, Artifact], tmp_path: Path, kind: str) -> None:
    member = load_network(inputs["network"].path)
    (tmp_path / "ensemble").mkdir()
    save_ensemble(tmp_path / "ensemble", [member] * {"one": 1, "two": 2}[kind])
    ensemble = {**inputs, "network": Artifact("ensemble", tmp_path / "ensemble")}
    if kind == "two":
        with pytest.raises(DataError, match="an ensemble of 2 networks, where one is to be quantized"):
            run(ensemble, tmp_path / "out", epochs=1)
        return
    run(ensemble, tmp_path / "out", epochs=1)
    run(inputs, tmp_path / "network", epochs=1)
    files = [tmp_path / name / "graph" / "weights.safetensors" for name in ("out", "network")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("scales", ["channel", "layer"])
@pytest.mark.parametrize(("weights", "activations"), [("lsq", "lsq"), ("ewgs", "ewgs"), ("lsq", "pact")])
def test_every_gradient_trains_and_is_lowered(
    inputs: Mapping[str, Artifact], tmp_path: Path, weights: str, activations: str, scales: str
) -> None:
    given = {"weight_gradient": weights, "activation_gradient": activations, "weight_scales": scales}
    outcome, _ = run(inputs, tmp_path, activation_bits=4, losses={"kd": {}}, **given)
    history = outcome.history["quantized"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert outcome.metrics["integer_exact"] == 1.0
    network, _ = load_quantized_network(tmp_path / "network")
    graph = load_graph(tmp_path / "graph")
    assert compare(network, graph, torch.randn(16, 1, 8, 8)).worst[1] == 1.0


def test_widths_by_pattern(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    bits = {"layer?.*": 4, "layer2.*": {"weights": 3, "activations": 4}, "layer2.0.conv2": 8, "fc": 2}
    run(inputs, tmp_path, epochs=1, bits=bits)
    graph = load_graph(tmp_path / "graph")
    widths = {node.name: weight.bits for node, weight in graph.weights()}
    assert widths.pop("layer2.0.conv2") == widths.pop("conv1") == 8
    assert widths.pop("fc") == 2
    assert {width for name, width in widths.items() if name.startswith("layer2.")} == {3}
    assert {width for name, width in widths.items() if not name.startswith("layer2.")} == {4}
    read = {node.name: graph.tensor(node.inputs[0]).quantization.bits for node, _ in graph.weights()}
    assert {name: width for name, width in read.items() if width != 8} == dict.fromkeys(
        [name for name in read if name.startswith("layer2.")], 4
    )
    network, _ = load_quantized_network(tmp_path / "network")
    assert compare(network, graph, torch.randn(16, 1, 8, 8)).worst[1] == 1.0


def test_readers_of_one_tensor_at_different_widths(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    bits = {"layer2.0.conv1": {"activations": 4}, "layer2.0.shortcut*": {"activations": 2}}
    run(inputs, tmp_path, epochs=1, bits=bits)
    graph = load_graph(tmp_path / "graph")
    read = {node.name: graph.tensor(node.inputs[0]).quantization.bits for node, _ in graph.weights()}
    assert read.pop("layer2.0.conv1") == 4
    assert {width for name, width in read.items() if name.startswith("layer2.0.shortcut")} == {2}
    network, _ = load_quantized_network(tmp_path / "network")
    assert compare(network, graph, torch.randn(16, 1, 8, 8)).worst[1] == 1.0


def test_a_pattern_that_matches_nothing_is_refused_before_training(
    inputs: Mapping[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"matches 'layer1.0.cnov1'") as caught:
        run(inputs, tmp_path / "out", bits={"layer1.0.cnov1": 4})
    assert caught.value.remedy == "Did you mean layer1.0.conv1?"
    assert not (tmp_path / "out").exists()


def test_progressive_initialization(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    outcome, context = run(inputs, tmp_path, epochs=2, progressive=[8, 4], progressive_epochs=1, activation_bits=4)
    assert {name: len(rows) for name, rows in outcome.history.items()} == {"8 bits": 1, "4 bits": 1, "quantized": 2}
    assert context.reports == [(done, 4) for done in (1, 2, 3, 4)]
    graph = load_graph(tmp_path / "graph")
    assert {weight.bits for _, weight in graph.weights()} == {2, 8}
    assert outcome.metrics["integer_exact"] == 1.0


def test_on_a_split_kd_needs_teachers_and_ce_takes_the_labels(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="kd needs what the teachers say"):
        run(inputs, tmp_path, "split")
    outcome, _ = run(inputs, tmp_path, "split", losses={"ce": {}})
    assert outcome.metrics["agreement"] > 0.9


def test_a_network_that_cannot_be_quantized_is_refused_before_training(
    inputs: Mapping[str, Artifact], tmp_path: Path
) -> None:
    description = NetworkDescription("timm:test_convnext", {}, replace(SPACE, shape=(1, 32, 32)))
    (tmp_path / "modern").mkdir()
    save_network(tmp_path / "modern", build_network(description), description)
    with pytest.raises(UnsupportedError, match=r"stages\.0\.blocks\.0"):
        run({**inputs, "network": Artifact("network", tmp_path / "modern")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_with_padded_shortcuts_is_quantized(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    arguments = MODELS["resnet"].check({**ARGUMENTS, "shortcut": "pad"}).model_dump()
    description = NetworkDescription("resnet", arguments, SPACE)
    (tmp_path / "padded").mkdir()
    torch.manual_seed(0)
    save_network(tmp_path / "padded", build_network(description), description)
    padded = {**inputs, "network": Artifact("network", tmp_path / "padded")}
    run(padded, tmp_path / "out", epochs=2, activation_bits=2)
    graph = load_graph(tmp_path / "out" / "graph")
    read = {node.name: graph.tensor(node.inputs[0]).quantization.bits for node, _ in graph.weights()}
    assert {name: width for name, width in read.items() if "pad" in name and width != 8} == {}
    assert read["layer2.0.conv1"] == read["layer2.0.conv2"] == 2
    prepared, _ = load_quantized_network(tmp_path / "out" / "network")
    assert compare(prepared, graph, torch.rand(32, 1, 8, 8)).worst[1] == 1.0


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("bn1.weight", float("nan"), "layer bn1: its weight holds a value that is not finite"),
        ("layer1.0.conv1.weight", float("inf"), r"layer layer1\.0\.conv1: its weight holds"),
        ("bn1.bias", -1e3, "layer conv1: its activation quantizer is dead: scale 0"),
    ],
)
def test_damaged_weights_are_refused_before_training_and_leave_nothing(
    inputs: Mapping[str, Artifact], tmp_path: Path, tensor: str, value: float, message: str
) -> None:
    network, description = load_network(inputs["network"].path)
    network.state_dict()[tensor].fill_(value)
    (tmp_path / "network").mkdir()
    save_network(tmp_path / "network", network, description)
    damaged = {**inputs, "network": Artifact("network", tmp_path / "network")}
    with pytest.raises(GraphError, match=message):
        run(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_do_not_fit_are_refused(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    space = ImageSpace((1, 4, 4), SPACE.classes, (0.3,), (0.4,))
    (tmp_path / "small").mkdir()
    save_samples(tmp_path / "small", Samples(torch.zeros(8, 1, 4, 4), torch.zeros(8, 3), space))
    with pytest.raises(DataError, match=r"images of shape \[1, 4, 4\]"):
        run({**inputs, "samples": Artifact("samples", tmp_path / "small")}, tmp_path / "out")


def test_float_and_quantized_networks_are_not_mistaken(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    run(inputs, tmp_path, epochs=1)
    with pytest.raises(ArtifactError, match="quantized network, where a float one"):
        load_network(tmp_path / "network")
    with pytest.raises(ArtifactError, match="float network, where a quantized one"):
        load_quantized_network(inputs["network"].path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_bits": 5}, "weight_bits"),
        ({"activation_bits": 9}, "less than or equal to 8"),
        ({"losses": {"sqeq": {}}}, "Did you mean speq"),
        ({"losses": {"feed": {}}}, "no loss 'feed' for quantize"),
        ({"losses": {"speq": {}}}, "give kd or ce beside it"),
        ({"losses": {"kd": {}, "speq": {"probabilty": 1}}}, "Did you mean probability"),
        ({"losses": {"kd": {}, "speq": {"teacher_bits": 16}}}, "3 to 8, or 32"),
        ({"rounding": "even"}, "rounding"),
        ({"bits": {"conv1": 5}}, r"bits\.conv1"),
        ({"bits": {"conv1": {"weight": 4}}}, r"bits\.conv1"),
        ({"progressive": [4, 8]}, "must become narrower"),
        ({"weight_gradient": "lqs"}, "weight_gradient"),
    ],
)
def test_wrong_parameters_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantizeParams(network="n", samples="s", **values)
