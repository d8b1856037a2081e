"""Networks of torchvision are quantized as they are, and lowered to what they were trained as."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import fx, nn

from kdpipe.models.external import import_library
from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.prepare import QuantizationConfig, input_quantizer, prepare
from kdpipe.targets.devices.host_c import HostC
from kdpipe.targets.devices.host_litert import HostLitert
from kdpipe.targets.devices.host_onnxruntime import HostOnnxruntime
from kdpipe.targets.devices.host_openvino import HostOpenvino
from kdpipe.targets.errors import MissingDependencyError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import IntegerGraph
from kdpipe.targets.lower import lower

NETWORKS = (
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "efficientnet_b0"),
    "regnet_y_400mf",
)
LARGE = ("resnet18", "resnet34", "resnet50", "mobilenet_v3_large")


@pytest.fixture(scope="module")
def models() -> ModuleType:
    """torchvision.models, also where torchvision was built for another torch: its own operators are not needed."""
    try:
        return import_library("torchvision.models")
    except MissingDependencyError as error:
        pytest.skip(str(error))


def deployed(
    models: ModuleType, name: str, rounding: Rounding, size: int
) -> tuple[fx.GraphModule, IntegerGraph, torch.Tensor]:
    """A network with the weights it starts with and batch norms as training leaves them, quantized and lowered."""
    torch.manual_seed(0)
    network = models.get_model(name, num_classes=10).train()
    images = torch.randn(8, 3, size, size)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        network(images)
        network(images)
    prepared = prepare(network.eval(), images[:2], QuantizationConfig(4, 8, 8, rounding))
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(images)
    prepared.eval()
    return prepared, lower(prepared, (3, size, size), name="g", rounding=rounding), images[:2]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in sorted({*NETWORKS, *LARGE})],
)
def test_prepared_and_lowered_agree(name: str, models: ModuleType) -> None:
    prepared, graph, images = deployed(models, name, "single", 32)
    found = compare(prepared, graph, images)
    assert found.max_step_difference <= 1
    assert found.worst[1] >= 0.999
    assert found.top1_agreement == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_target_computes_each_layer_to_one_step_and_c_exactly(
    name: str, models: ModuleType, layer_differences, tmp_path: Path
) -> None:
    _, graph, images = deployed(models, name, "tflite", 64)
    inputs = graph.input.quantization.quantize(images.numpy())
    devices = {"onnx": HostOnnxruntime(), "openvino": HostOpenvino(), "tflite": HostLitert(), "c": HostC()}
    for target, device in devices.items():
        directory = tmp_path / target
        directory.mkdir()
        EXPORTERS[target].export(graph, directory)
        trace = {graph.input_name: inputs, **device.trace(directory, inputs, fused=False)}
        differences = layer_differences(graph, trace)
        assert len(differences) >= len(graph.nodes) - 1  # LiteRT leaves out a Flatten
        assert max(differences.values()) <= (0 if target == "c" else 1), target
