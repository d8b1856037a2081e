"""Layers computed by calls of functions, and forwards that branch on sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kdpipe.stages.knowledge.taps import capture
from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.prepare import QuantizationConfig, input_quantizer, prepare
from kdpipe.targets.errors import NetworkError, UnsupportedError
from kdpipe.targets.lower import lower

CONFIG = QuantizationConfig(8, 8)


class OwnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, bias=self.bias)


class OwnConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormThenActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: also counts its batches."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class Spelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = OwnConv(2, 6, 3, 2, 1, bias=False), NormThenActivation(6)
        self.depthwise, self.pool = OwnConv(6, 6, 3, padding=1, groups=6), nn.AvgPool2d(2, 2, ceil_mode=True)
        self.weight, self.fc = nn.Parameter(torch.randn(8, 6)), OwnLinear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = sum([self.depthwise(x), x])
        if x.shape[-1] < 3 and x.dim() == 4:
            x = F.interpolate(x, scale_factor=2)
        x = self.pool(x).mean((2, 3))
        return self.fc(F.relu(F.linear(x, self.weight)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def quantized(network: nn.Module, images: Tensor) -> fx.GraphModule:
    prepared = prepare(network, images[:2], CONFIG).eval()
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(images)
    return prepared


def spelled(images: Tensor) -> Spelled:
    torch.manual_seed(0)
    network = Spelled()
    nn.init.uniform_(network.norm.weight, -1, 1.5)
    for _ in range(60):
        network(images)
    return network


@pytest.mark.parametrize("training", [False, True])
def test_calls_become_layers(images: Tensor, training: bool) -> None:
    network = spelled(images).train(training)
    prepared = quantized(network, images)
    graph = lower(prepared, (2, 8, 8), name="g")
    assert [f"{node.name}: {type(node.op).__name__}" for node in graph.nodes] == [
        *("stem: Conv2d", "depthwise: Conv2d", "add: Add", "pool: AveragePool2d", "mean: AveragePool2d"),
        *("mean.flatten: Flatten", "linear: Linear", "fc: Linear"),
    ]
    assert compare(prepared, graph, images).worst[1] == 1.0
    expected = network.eval()(images)
    assert float((prepared(images) - expected).abs().mean()) < 0.05 * float(expected.std())


def test_layers_keep_their_names_and_all_is_trained(images: Tensor) -> None:
    prepared = quantized(spelled(images), images).train()
    names = dict(prepared.named_parameters())
    assert {"stem.weight", "depthwise.bias", "fc.weight", "inserted.norm.weight", "inserted.linear.weight"} <= set(
        names
    )
    assert not {"norm.weight", "weight"} & set(prepared.state_dict())
    prepared(images).square().sum().backward()
    for name, parameter in names.items():
        assert parameter.grad is not None, name


def test_taps_read_what_the_module_returned(images: Tensor) -> None:
    prepared = quantized(spelled(images), images)
    with capture(prepared, ["norm", "norm.act"]) as found:
        prepared(images)
    assert torch.equal(found["norm"], found["norm.act"])
    assert float(found["norm"].min()) == 0.0


def test_a_condition_on_sizes_is_decided_by_the_example(images: Tensor) -> None:
    kinds = {
        size: [
            type(node.op).__name__ for node in lower(quantized(spelled(images), image), (2, size, size), name="g").nodes
        ]
        for size, image in ((8, images), (4, images[:, :, :4, :4]))
    }
    assert "Upsample" not in kinds[8]
    assert "Upsample" in kinds[4]


def test_a_condition_on_values_is_refused_with_its_module(images: Tensor) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > x.shape[0] else -x

    network = nn.Sequential(nn.Conv2d(2, 2, 1), Branching())
    with pytest.raises(NetworkError, match=r"can't be traced in 1 \(Branching\): .*control flow"):
        prepare(network, images, CONFIG)


def test_a_parameter_that_two_layers_share_is_refused(images: Tensor) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.relu(F.conv2d(x, self.weight)), self.weight)

    with pytest.raises(UnsupportedError, match="weight: a parameter or buffer that is used outside a layer"):
        prepare(Tied(), images, CONFIG)


def test_one_operation_of_many_modules_is_one_line(images: Tensor) -> None:
    network = nn.Sequential(*[nn.Sequential(nn.Conv2d(2, 2, 1), nn.GELU()) for _ in range(9)])
    with pytest.raises(UnsupportedError) as refused:
        prepare(network, images, CONFIG)
    assert str(refused.value).count("GELU") == 1
    assert "9 operations of the network can't be quantized:\n  - 0.1, 1.1, 2.1, 3.1, 4.1, 5.1 and 3 more: " in str(
        refused.value
    )
