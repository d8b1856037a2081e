"""What is trained is what is deployed: the simulated network against the integer reference, tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from kdpipe.models.registry import MODELS
from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.prepare import input_quantizer, prepare
from kdpipe.stages.quantization.statistics import estimate_statistics
from kdpipe.targets.lower import lower

NETWORKS = {
    "resnet": {"depth": 8, "width": 4},
    "cnn": {"channels": (8, 16), "reduce": "max"},
    "ds-cnn": {"width": 8, "blocks": 2},
}


def quantized(name: str, config: QuantizationConfig, seed: int) -> tuple[fx.GraphModule, torch.Tensor]:
    """A network with batch norms as training leaves them: gammas of both signs, one of them zero, some offset."""
    torch.manual_seed(seed)
    network = MODELS[name].build(input_shape=(2, 8, 8), classes=10, **NETWORKS[name])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.0, 1.5)
            module.weight.data[0] = 0.0
            nn.init.normal_(module.bias, std=0.3)
    images = torch.randn(64, 2, 8, 8)
    prepared = prepare(network.train(), images[:2], config)
    input_quantizer(prepared).set_range(-3, 3)
    with torch.no_grad(), calibrating(prepared):
        prepared(images)
    estimate_statistics(prepared, images)
    return prepared.eval(), images


@pytest.mark.parametrize("rounding", ["single", "tflite"])
@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits"),
    [
        ("resnet", 2, 8),
        ("resnet", 2, 2),
        ("resnet", 4, 4),
        ("cnn", 3, 8),
        ("cnn", 8, 4),
        ("ds-cnn", 2, 8),
        ("ds-cnn", 8, 8),
    ],
)
def test_integer_reference_equals_the_simulated_network(
    name: str, weight_bits: int, activation_bits: int, rounding: str
) -> None:
    config = QuantizationConfig(weight_bits, activation_bits, 8, rounding)  # type: ignore[arg-type]
    prepared, images = quantized(name, config, seed=weight_bits)
    graph = lower(prepared, (2, 8, 8), name="g", rounding=rounding)  # type: ignore[arg-type]
    found = compare(prepared, graph, images)
    assert set(found.exact) >= {"input", graph.output_name}
    assert found.max_step_difference <= 1
    assert found.worst[1] >= 0.999
    assert found.top1_agreement >= 0.999


def test_a_wrong_scale_is_seen() -> None:
    prepared, images = quantized("cnn", QuantizationConfig(), seed=0)
    graph = lower(prepared, (2, 8, 8), name="g")
    graph.nodes[0].op.weight.scales[:] *= 1.02
    found = compare(prepared, graph, images)
    assert found.exact["input"] == 1.0
    assert found.exact[graph.nodes[0].name] < 0.99


def test_training_and_evaluation_differ_little() -> None:
    """Training leaves out the fixed point; with statistics of the same batch both modes give nearly the same."""
    prepared, images = quantized("resnet", QuantizationConfig(2, 8), seed=1)
    with torch.no_grad():
        deployed = prepared(images)
        prepared.train()
        for module in prepared.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        trained = prepared(images)
    scale = float(deployed.abs().max())
    assert float((trained - deployed).abs().mean()) < 0.02 * scale


def test_statistics_are_the_batchs_mean_and_variance() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3)).eval()
    images = torch.randn(64, 3, 4, 4) * 2 + 1
    estimate_statistics(network, images, batch_size=64)
    assert torch.allclose(network[0].running_mean, images.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(network[0].running_var, images.var((0, 2, 3)), atol=1e-4)
    assert network[0].momentum == 0.1
    assert not network.training
