"""Two artifacts of any kind, compared layer by layer on a split's images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.stages.artifacts import (
    ImageSpace,
    NetworkDescription,
    Split,
    build_network,
    save_ensemble,
    save_network,
    save_split,
)
from kdpipe.stages.diff import SAMPLES, diff_artifacts
from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.fidelity import layer_outputs, unquantize
from kdpipe.stages.quantization.network import prepare_for, save_quantized_network
from kdpipe.targets.artifact import FILE
from kdpipe.targets.errors import ArtifactError, DataError, UsageError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph import Normalization
from kdpipe.targets.graph_files import save_graph
from kdpipe.targets.lower import lower

SPACE = ImageSpace((1, 8, 8), ("a", "b", "c"), (0.3,), (0.4,))
DESCRIPTION = NetworkDescription("resnet", {"depth": 8, "width": 4}, SPACE)


def network() -> nn.Module:
    torch.manual_seed(0)
    made = build_network(DESCRIPTION)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, -1, 1)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return made.eval()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network in every form, by format; and the split."""
    root = tmp_path_factory.mktemp("artifacts")
    paths = {name: root / name for name in ("split", "float", "quantized", "graph", "onnx", "openvino", "tflite", "c")}
    for path in paths.values():
        path.mkdir()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, *SPACE.shape), dtype=torch.uint8, generator=generator)
    split = Split("test", images, torch.zeros(40, dtype=torch.int64), SPACE)
    save_split(paths["split"], split)
    save_network(paths["float"], network(), DESCRIPTION)
    config = QuantizationConfig()
    prepared = prepare_for(SPACE, network(), config)
    with calibrating(prepared), torch.no_grad():
        prepared(split.normalized())
    save_quantized_network(paths["quantized"], prepared, DESCRIPTION, config)
    normalization = Normalization(SPACE.mean, SPACE.std)
    graph = lower(prepared, SPACE.shape, name="net", class_names=SPACE.classes, normalization=normalization)
    save_graph(graph, paths["graph"])
    for target in ("onnx", "openvino", "tflite", "c"):
        EXPORTERS[target].export(graph, paths[target])
    return paths


def diff(artifacts: dict[str, Path], a: str, b: str, **options: Any) -> Any:
    return diff_artifacts(artifacts[a], artifacts[b], split=artifacts["split"], **options)


@pytest.mark.parametrize("other", ["quantized", "onnx", "openvino", "tflite", "c"])
def test_every_form_against_the_integer_graph(other: str, artifacts: dict[str, Path]) -> None:
    found = diff(artifacts, "graph", other)
    assert found.first_divergent_layer is None
    assert found.samples == SAMPLES
    assert found.limit == (0 if other == "c" else "rounding")
    assert [layer.name for layer in found.layers][:3] == ["input", "conv1", "layer1.0.conv1"]
    assert found.layers[-1].name == "fc"
    if other in ("quantized", "c"):
        assert {(layer.steps, layer.exact) for layer in found.layers} == {(0, 1.0)}


def test_the_order_does_not_matter(artifacts: dict[str, Path]) -> None:
    def figures(a: str, b: str) -> list[tuple[Any, ...]]:
        layers = diff(artifacts, a, b).layers
        return [(layer.name, layer.steps, layer.exact, layer.own_steps, layer.misrounded) for layer in layers]

    assert figures("graph", "onnx") == figures("onnx", "graph")


def test_the_float_network_has_no_limit_but_one_that_is_given(artifacts: dict[str, Path]) -> None:
    found = diff(artifacts, "float", "graph")
    assert found.limit is None
    assert found.first_divergent_layer is None
    names = {layer.name for layer in found.layers}
    assert names == {layer.name for layer in diff(artifacts, "graph", "c").layers}
    first, *_, last = found.layers
    assert first.steps <= 0.5 + 1e-3
    assert first.exact == 1
    assert last.snr_db is not None
    assert diff(artifacts, "float", "graph", max_steps=1).first_divergent_layer in names


def test_two_runtimes_without_the_graph(artifacts: dict[str, Path]) -> None:
    found = diff(artifacts, "onnx", "tflite", samples=4)
    assert found.limit == 0
    assert found.samples == 4
    assert {layer.own_steps for layer in found.layers} == {None}
    assert diff(artifacts, "onnx", "tflite", samples=4, max_steps=255).first_divergent_layer is None


def test_c_on_two_devices(artifacts: dict[str, Path]) -> None:
    pytest.importorskip("unicorn")
    found = diff(artifacts, "c", "c", devices=("host", "cortex-m4"), samples=2)
    assert (found.a, found.b) == ("c on host", "c on cortex-m4")
    assert {layer.steps for layer in found.layers} == {0}


def test_an_unquantized_preparation_is_the_float_network() -> None:
    prepared = unquantize(prepare_for(SPACE, network(), QuantizationConfig()))
    images = torch.randn(4, *SPACE.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network()(images).numpy()
    outputs = layer_outputs(prepared, images, "output")
    np.testing.assert_allclose(outputs["fc"], expected, rtol=1e-5, atol=1e-6)
    assert "output" not in outputs


def test_a_qdq_file_is_a_graph_too(artifacts: dict[str, Path]) -> None:
    found = diff_artifacts(artifacts["onnx"] / "model.onnx", artifacts["onnx"], split=artifacts["split"])
    assert found.a == "integer-graph on host"
    assert found.first_divergent_layer is None


def test_what_does_not_fit_is_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cortex-m4 can't run onnx"):
        diff(artifacts, "graph", "onnx", devices=("host", "cortex-m4"))
    with pytest.raises(UsageError, match="unknown device"):
        diff(artifacts, "graph", "onnx", devices=("host", "abacus"))
    with pytest.raises(DataError, match="fewer than the 41"):
        diff(artifacts, "graph", "onnx", samples=41)
    save_ensemble(tmp_path, [(network(), DESCRIPTION)])
    with pytest.raises(UsageError, match="several networks"):
        diff_artifacts(tmp_path, artifacts["graph"], split=artifacts["split"])


def test_an_export_that_does_not_name_its_layers_is_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    for path in artifacts["onnx"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    document = json.loads((tmp_path / FILE).read_text())
    del document["tensors"]
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="earlier kdpipe"):
        diff_artifacts(artifacts["graph"], tmp_path, split=artifacts["split"])
