"""The table of timm's networks in docs/networks.md: which are quantized as they are, and why others are refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from kdpipe.models.external import import_library
from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.prepare import QuantizationConfig, input_quantizer, prepare
from kdpipe.targets.errors import MissingDependencyError, UnsupportedError
from kdpipe.targets.lower import lower

SIZE = 64
DOCUMENT = (Path(__file__).parents[3] / "docs" / "networks.md").read_text(encoding="utf-8")
ROWS: list[tuple[str, str]] = re.findall(r"^\| (\w+) \| (yes|refused: .*) \|$", DOCUMENT, re.MULTILINE)


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    """The library timm, also where its torchvision was built for another torch."""
    try:
        return import_library("timm")
    except MissingDependencyError as error:
        pytest.skip(str(error))


def network_of(timm: ModuleType, name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with the weights it starts with, and batch norms as training leaves them; and images."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=10).train()
    images = torch.randn(8, 3, SIZE, SIZE)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        for _ in range(2):
            network(images)
    return network.eval(), images


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 25
    assert sum(result == "yes" for _, result in ROWS) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, result in ROWS if result == "yes"])
def test_prepared_and_lowered_agree(name: str, timm: ModuleType) -> None:
    network, images = network_of(timm, name)
    prepared = prepare(network, images[:2], QuantizationConfig(4, 8, 8))
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(images)
    prepared.eval()
    found = compare(prepared, lower(prepared, (3, SIZE, SIZE), name="g"), images[:2])
    assert found.max_step_difference <= 1
    assert found.worst[1] >= 0.999
    assert found.top1_agreement == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "result"), [row for row in ROWS if row[1] != "yes"])
def test_what_cannot_be_quantized_is_refused_with_the_reason(name: str, result: str, timm: ModuleType) -> None:
    network = timm.create_model(name, pretrained=False, num_classes=10)
    reason = result.removeprefix("refused: ")
    with pytest.raises(UnsupportedError, match=re.escape(reason)) as refused:
        prepare(network, torch.zeros(2, 3, SIZE, SIZE), QuantizationConfig(4, 8, 8))
    line = next(line for line in str(refused.value).splitlines() if reason in line)
    module = line.split("-", 1)[1].split(",")[0].split(":")[0].strip().rpartition(".")[0]
    assert network.get_submodule(module) is not None
