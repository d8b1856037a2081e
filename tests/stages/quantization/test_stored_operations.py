"""Products, functions, concatenations and what moves channels: as users spell them, in training and in integers."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.prepare import QuantizationConfig, input_quantizer, prepare, quantizers
from kdpipe.stages.quantization.stored_operations import ChannelShuffle, Function, StochasticDepth, Upsample
from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import PROBABILITIES, IntegerGraph, Lookup
from kdpipe.targets.graph import Slice as GraphSlice
from kdpipe.targets.lookup import FUNCTIONS
from kdpipe.targets.lower import lower


class StochasticDepthOfALibrary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p, self.mode = 0.5, "row"

    def forward(self, x: Tensor) -> Tensor:
        return x if not self.training else x * (torch.rand(len(x), 1, 1, 1) > self.p)


StochasticDepthOfALibrary.__name__ = "StochasticDepth"


class Spelled(nn.Module):
    """Each operation in some way that PyTorch offers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.act6, self.pool = nn.ReLU6(), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.last, self.drop = nn.Conv2d(12, 12, 1), StochasticDepthOfALibrary()
        self.shuffle, self.up = nn.ChannelShuffle(3), nn.Upsample(scale_factor=2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, dim=1)
        y = torch.cat([self.act6(self.left(first)), F.silu(self.right(second))], dim=1)
        batch, channels, height, width = y.size()
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        y = self.pool(y.view(batch, channels, height, width))
        gate = F.hardsigmoid(self.excite(F.relu6(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = torch.mul(gate, y)
        y = y + self.drop(self.last(y))
        y = F.interpolate(self.up(self.shuffle(y)), scale_factor=(1, 3))
        a, _ = torch.split(y, [8, 4], 1)
        b = y[:, -8:]
        return self.fc((torch.sigmoid(a) * b).mean((2, 3)))


def quantized(network: nn.Module, images: Tensor, rounding: Rounding = "single", bits: int = 8) -> fx.GraphModule:
    prepared = prepare(network, images[:2], QuantizationConfig(bits, bits, 8, rounding))
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(images)
    return prepared.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def spelled() -> Spelled:
    torch.manual_seed(0)
    return Spelled().eval()


def kinds(graph: IntegerGraph) -> list[str]:
    return [type(node.op).__name__ for node in graph.nodes]


def test_each_operation_has_its_operator(images: Tensor) -> None:
    graph = lower(quantized(spelled(), images), (2, 8, 8), name="g")
    assert [kind for kind in kinds(graph) if kind not in ("Conv2d", "Linear", "Flatten", "Add", "Requantize")] == [
        *(
            "Lookup",
            "Slice",
            "Slice",
            "Lookup",
            "Concat",
            "ChannelShuffle",
            "MaxPool2d",
            "AveragePool2d",
            "Lookup",
            "Mul",
        ),
        *("ChannelShuffle", "Upsample", "Upsample", "Slice", "Slice", "Lookup", "Mul", "AveragePool2d"),
    ]
    functions = [node.op.function for node in graph.nodes if isinstance(node.op, Lookup)]
    assert functions == ["hard_swish", "silu", "hard_sigmoid", "sigmoid"]
    slices = [(node.op.start, node.op.stop) for node in graph.nodes if isinstance(node.op, GraphSlice)]
    assert slices == [(0, 4), (4, 8), (0, 8), (4, 12)]


@pytest.mark.parametrize("rounding", ["single", "tflite"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_reference_equals_the_simulated_network(images: Tensor, rounding: Rounding, bits: int) -> None:
    prepared = quantized(spelled(), images, rounding, bits)
    graph = lower(prepared, (2, 8, 8), name="g", rounding=rounding)
    found = compare(prepared, graph, images)
    assert len(found.exact) > 15
    assert found.worst[1] == 1.0


def test_at_8_bits_the_network_computes_nearly_what_it_did(images: Tensor) -> None:
    network = spelled()
    expected = network(images)
    # what a quantizer of wrong scale, a wrong order of channels or a swapped factor would break
    assert float((quantized(network, images)(images) - expected).abs().mean()) < 0.05 * float(expected.std())


def test_training_reaches_every_parameter(images: Tensor) -> None:
    prepared = quantized(spelled(), images).train()
    prepared(images).square().sum().backward()
    for name, parameter in prepared.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert float(prepared.get_parameter("stem.0.weight").grad.abs().sum()) > 0


def test_signs_follow_the_function() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 2)
    )
    signed = {part.name: part.signed for part in quantizers(prepare(network, torch.zeros(2, 2, 8, 8), CONFIG))}
    assert signed == {"0": True, "1": False, "2": True, "3": True, "5": True}


CONFIG = QuantizationConfig(8, 8)


def test_a_relu6_starts_at_6_at_most() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(16, 2)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1.0)
    prepared = prepare(network, torch.zeros(2, 1, 4, 4), CONFIG)
    input_quantizer(prepared).set_range(0, 100)
    with torch.no_grad(), calibrating(prepared):
        prepared(torch.linspace(0, 100, 16).view(1, 1, 4, 4))
    assert float(quantizers(prepared)[0].clip) == pytest.approx(6.0)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_training_and_deployment_compute_one_function(name: str) -> None:
    x = torch.linspace(-9, 9, 301)
    assert torch.allclose(Function(name)(x).double(), torch.from_numpy(FUNCTIONS[name](x.double().numpy())), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_a_shuffle_is_torchs(groups: int) -> None:
    x = torch.randn(2, 6, 3, 2)
    assert torch.equal(ChannelShuffle(groups)(x), nn.ChannelShuffle(groups)(x))


def test_an_upsampling_is_torchs() -> None:
    x = torch.randn(2, 3, 3, 2)
    assert torch.equal(Upsample((2, 3))(x), F.interpolate(x, scale_factor=(2, 3)))


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 2, 2)
    dropped = StochasticDepth(0.25).train()(x).flatten(1)
    assert bool(((dropped == 0).all(1) | (dropped == 1 / 0.75).all(1)).all())
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)
    assert StochasticDepth(0.25).eval()(x) is x
    assert not StochasticDepth(1.0).train()(x).any()


class Attention(nn.Module):
    """A softmax whose result is multiplied, one of a map, and one of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.score, self.after = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.softmax, self.fc, self.last = nn.Softmax2d(), nn.Linear(4, 3), nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = F.softmax(self.score(x.mean((2, 3), keepdim=True)), dim=1)
        x = self.after(self.softmax(x * gate))
        return self.last(self.fc(torch.softmax(x.relu(), 1).mean((2, 3))).softmax(-1))


@pytest.mark.parametrize("bits", [4, 8])
def test_softmax_is_trained_and_deployed_alike(images: Tensor, bits: int) -> None:
    torch.manual_seed(0)
    network = Attention().eval()
    prepared = quantized(network, images, bits=bits)
    graph = lower(prepared, (2, 8, 8), name="g")
    assert kinds(graph).count("Softmax") == 5
    assert graph.output.quantization == PROBABILITIES
    found = compare(prepared, graph, images)
    assert found.worst[1] == 1.0
    if bits == 8:
        assert float((prepared(images) - network(images)).abs().max()) < 0.02
    prepared.train()(images)[:, 0].sum().backward()
    assert float(prepared.get_parameter("conv.weight").grad.abs().sum()) > 0


class InPlace(nn.Module):
    """Results of operations that overwrite their input are not assigned, and one branch is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.unused = nn.Conv2d(2, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.relu(x)
        F.sigmoid(self.unused(x))
        x.add_(x)
        return self.fc(x.flatten(1))


def test_operations_in_place_count_although_nothing_takes_their_result(images: Tensor) -> None:
    torch.manual_seed(0)
    network = InPlace().eval()
    prepared = quantized(network, images)
    assert kinds(lower(prepared, (2, 8, 8), name="g")) == ["Conv2d", "Add", "Flatten", "Linear"]
    expected = network(images)
    assert float((prepared(images) - expected).abs().mean()) < 0.05 * float(expected.std())


class Refused(nn.Module):
    def __init__(self, operation) -> None:
        super().__init__()
        self.conv, self.operation, self.fc = nn.Conv2d(2, 4, 1), operation, nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.operation(self.conv(x)).flatten(1))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x * 2, "a product with a number"),
        (lambda x: x * x[:, :1], r"a product of shapes \[2, 4, 8, 8\] and \[2, 1, 8, 8\]"),
        (lambda x: torch.cat([x, x], 2), "a concatenation along dimension 2"),
        (lambda x: x[:, :, ::2, ::2], "indexing that is no slice of channels"),
        (lambda x: x[:, ::2], "indexing that is no slice of channels"),
        (lambda x: x[:, :, :4], "indexing that is no slice of channels"),
        (lambda x: operator.getitem(x.chunk(2, 2), 0), "a split along dimension 2"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "by 'bilinear'"),
        (lambda x: F.interpolate(x, size=(12, 8)), r"resizing \[8, 8\] to \[12, 8\]"),
        (lambda x: F.softmax(x, 2), r"a softmax of \[2, 4, 8, 8\] over dimension 2"),
        (lambda x: F.softmax(x.flatten(1)[:, :1], 1), "a softmax over 1 channels"),
        (lambda x: F.log_softmax(x, 1), "the operation 'log_softmax' has no integer form"),
        (lambda x: F.gelu(x), "the operation 'gelu' has no integer form"),
    ],
)
def test_what_has_no_integer_form_is_named(operation, message: str) -> None:
    network = Refused(operation)
    network(torch.zeros(2, 2, 8, 8))
    with pytest.raises(UnsupportedError, match=message):
        prepare(network, torch.zeros(2, 2, 8, 8), CONFIG)
