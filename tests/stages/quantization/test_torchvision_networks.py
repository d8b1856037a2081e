"""Networks of torchvision are quantized as they are, and lowered to what they were trained as."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.prepare import QuantizationConfig, input_quantizer, prepare
from kdpipe.targets.lower import lower

NETWORKS = {
    "resnet18": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
}
SIZE = 64


@pytest.fixture(scope="module")
def models() -> ModuleType:
    """torchvision.models, also where torchvision was built for another torch: its own operators are not needed."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("torchvision.models", exc_type=ImportError)


@pytest.mark.parametrize("name", NETWORKS)
def test_prepared_and_lowered_agree(name: str, models: ModuleType) -> None:
    torch.manual_seed(0)
    network = models.get_model(name, num_classes=10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    images = torch.randn(8, 3, SIZE, SIZE)
    network.train()
    with torch.no_grad():
        for _ in range(10):
            network(images)
    network.eval()
    prepared = prepare(network, images[:2], QuantizationConfig(4, 8))
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(images)
    prepared.eval()
    graph = lower(prepared, (3, SIZE, SIZE), name="g")
    found = compare(prepared, graph, images[:2])
    assert found.max_step_difference <= 1
    assert found.worst[1] >= 0.999
    assert found.top1_agreement == 1.0
