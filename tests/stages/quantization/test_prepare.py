"""Quantizers are inserted by graph, and the module stays what its user knows."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.models.registry import MODELS
from kdpipe.stages.knowledge.taps import capture
from kdpipe.stages.quantization.activations import ActivationQuantizer, calibrating
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.prepare import input_quantizer, prepare, quantizers
from kdpipe.stages.quantization.weights import QuantizedConv2d
from kdpipe.targets.errors import GraphError, NetworkError, UnsupportedError
from kdpipe.targets.graph import AveragePool2d, Flatten, Linear, Requantize
from kdpipe.targets.lower import lower


def resnet(**arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return MODELS["resnet"].build(input_shape=(1, 8, 8), classes=10, depth=8, width=4, **arguments)


def names(module: nn.Module) -> list[str]:
    return [quantizer.name for quantizer in quantizers(module)]


def test_every_tensor_that_hardware_stores_is_quantized_once() -> None:
    prepared = prepare(resnet(), torch.zeros(2, 1, 8, 8), QuantizationConfig())
    assert set(names(prepared)) == {
        "conv1",
        *(f"layer{i}.0.{part}" for i in (1, 2, 3) for part in ("conv1", "conv2", "add")),
        *(f"layer{i}.0.shortcut.conv" for i in (2, 3)),
        "fc",
    }
    signed = {quantizer.name for quantizer in quantizers(prepared) if quantizer.signed}
    assert signed == {"fc", *(f"layer{i}.0.conv2" for i in (1, 2, 3)), *(f"layer{i}.0.shortcut.conv" for i in (2, 3))}


def test_parameters_keep_their_names_and_the_float_module_its_state() -> None:
    network = resnet()
    before = copy.deepcopy(network.state_dict())
    prepared = prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())
    assert set(before) <= set(prepared.state_dict())
    with torch.no_grad():
        prepared.get_parameter("layer1.0.conv1.weight").zero_()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert isinstance(prepared.get_submodule("layer1.0.conv1"), QuantizedConv2d)


def test_first_and_last_layer_stay_wide() -> None:
    prepared = prepare(resnet(), torch.zeros(2, 1, 8, 8), QuantizationConfig(2, 8, 4))
    bits = {n: m.weight_quantizer.bits for n, m in prepared.named_modules() if hasattr(m, "weight_quantizer")}
    assert bits.pop("conv1") == bits.pop("fc") == 4
    assert set(bits.values()) == {2}


def test_residual_paths_and_pooling_stay_at_8_bits_and_layers_read_narrow_ones() -> None:
    prepared = prepare(resnet(), torch.zeros(2, 1, 8, 8), QuantizationConfig(2, 2))
    bits = {quantizer.name: quantizer.bits for quantizer in quantizers(prepared)}
    # the stem's output is added, at 8 bits, and read by a convolution, at 2; the first sum is read by two of them
    assert bits["conv1"] == bits["layer1.0.conv2"] == bits["layer3.0.add"] == bits["fc"] == 8
    assert bits["conv1.requantize"] == bits["layer1.0.conv1"] == bits["layer1.0.add"] == 2
    assert len([name for name in bits if "requantize" in name]) == 1


@pytest.mark.parametrize("path", ["layer1", "layer2.0", "layer2.0.shortcut", "relu", "layer1.0.relu2", "bn1", "fc"])
def test_taps_by_path_see_what_the_float_module_returned_there(path: str) -> None:
    """With quantizers that observe, a prepared module computes what the float one does but for its weights."""
    network = resnet().eval()
    x = torch.randn(4, 1, 8, 8)
    prepared = prepare(network, x, QuantizationConfig(8, 8))
    prepared.get_submodule("fc").eval()
    quantizer = input_quantizer(prepared)
    quantizer.set_range(-5, 5)
    with capture(network, [path]) as expected, capture(prepared, [path]) as seen, calibrating(prepared):
        network(x)
        prepared(x)
    assert seen[path].shape == expected[path].shape
    assert (seen[path] - expected[path]).abs().max() < 0.1 * expected[path].abs().max()


def test_a_tap_that_is_not_rounded_is_not_overwritten() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.body(x)).mean((2, 3)))

    prepared = prepare(Block().train(), torch.zeros(2, 1, 5, 5), QuantizationConfig())
    with capture(prepared, ["body"]) as seen:
        loss = prepared(torch.randn(2, 1, 5, 5)).sum()
        assert float(seen["body"].min()) < 0
        (loss + seen["body"].square().sum()).backward()


class Spelled(nn.Module):
    """Every operation as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding="same")
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.same = nn.Identity()
        self.fc1 = nn.Linear(4 * 2 * 2, 8)
        self.bn = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x), inplace=True)
        y = self.same(self.conv2(x))
        y += x
        y = torch.relu(y)
        y = F.max_pool2d(y, 2)
        y = F.avg_pool2d(y, 2)
        y = y.view(y.size(0), -1)
        y = F.relu(self.bn(self.fc1(y)))
        return self.fc2(F.dropout(self.drop(y), 0.1, self.training))


def test_a_users_own_module_is_quantized_as_it_is_written() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 2, 8, 8)
    prepared = prepare(Spelled(), x, QuantizationConfig(8, 8))
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(x)
    prepared.eval()
    graph = lower(prepared, (2, 8, 8), name="spelled")
    operations = [type(node.op).__name__ for node in graph.nodes]
    assert operations == ["Conv2d", "Conv2d", "Add", "MaxPool2d", "AveragePool2d", "Flatten", "Linear", "Linear"]


class ReluOfASum(nn.Module):
    """A ReLU of what others read too, and a mean that is not flattened by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.fc((y.relu() + y).mean([2, 3]))


def test_a_relu_of_stored_integers_is_a_requantization() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 6, 6)
    prepared = prepare(ReluOfASum().eval(), x, QuantizationConfig(8, 8))
    with torch.no_grad(), calibrating(prepared):
        prepared(x)
    graph = lower(prepared, (1, 6, 6), name="g")
    operations = {node.name: type(node.op) for node in graph.nodes}
    assert operations["relu"] is Requantize
    assert operations["mean"] is AveragePool2d
    assert operations["mean.flatten"] is Flatten
    assert operations["fc"] is Linear


class Hopeless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")
        self.act = nn.Softplus()
        self.late = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2, dilation=2)
        self.fc = nn.Linear(4 * 3 * 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.conv(x)))
        return self.fc(torch.tanh(x * 2).flatten(1))


def test_everything_that_cannot_be_quantized_is_named_at_once() -> None:
    with pytest.raises(UnsupportedError) as caught:
        prepare(Hopeless(), torch.zeros(2, 1, 8, 8), QuantizationConfig())
    message = str(caught.value)
    for line in (
        "5 operations of the network can't be quantized",
        "conv: convolution with padding_mode='reflect'. Use padding_mode='zeros'",
        "act: Softplus has no integer form here. Replace it",
        "pool: max pooling with dilation or return_indices",
        "mul: a product with a number",
        "tanh: the operation 'tanh'",
    ):
        assert line in message


class Shortcut(nn.Module):
    """Option A as people write it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if self.way == "sliced":
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        elif self.way == "behind":
            x = F.pad(x[:, :, ::2, ::3], (0, 0, 0, 0, 0, 4))
        elif self.way == "padded":
            x = F.pad(x, pad=(0, 0, 0, 0, 4, 0))
        elif self.way == "ones":
            x = F.pad(x, (0, 0, 0, 0, 4, 0), value=1.0)
        elif self.way == "wider":
            x = F.pad(x, (1, 1, 0, 0, 2, 2))
        elif self.way == "first row":
            x = F.pad(x[:, :, 1::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("way", ["sliced", "behind", "padded"])
def test_a_padded_shortcut_is_a_convolution_of_zeros_and_ones(way: str, bits: int) -> None:
    torch.manual_seed(0)
    network, x = Shortcut(way), torch.randn(16, 1, 8, 8)
    prepared = prepare(network, x, QuantizationConfig(bits, 8))
    layer = next(part for name, part in prepared.named_modules() if name.startswith("inserted.pad"))
    values, steps, width = layer.integer_weight()
    assert width == bits
    real = values.float() * steps.view(-1, 1, 1, 1)
    stored = F.relu(network.stem(x))
    expected = {
        "sliced": lambda: F.pad(stored[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
        "behind": lambda: F.pad(stored[:, :, ::2, ::3], (0, 0, 0, 0, 0, 4)),
        "padded": lambda: F.pad(stored, (0, 0, 0, 0, 4, 0)),
    }[way]()
    torch.testing.assert_close(F.conv2d(stored, real, stride=layer.stride), expected)
    with torch.no_grad(), calibrating(prepared):
        prepared(x)
    assert not layer.weight.requires_grad
    prepared.eval()
    assert compare(prepared, lower(prepared, (1, 8, 8), name="g"), x).worst[1] == 1.0


@pytest.mark.parametrize("way", ["ones", "wider", "first row"])
def test_other_pads_are_refused(way: str) -> None:
    with pytest.raises(UnsupportedError, match=r"the operation 'pad'|no slice of channels"):
        prepare(Shortcut(way), torch.zeros(2, 1, 8, 8), QuantizationConfig())


def test_a_batch_norm_without_a_layer_of_its_own_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(72), nn.Linear(72, 2))
    with pytest.raises(UnsupportedError, match="3: batch norm that does not directly follow"):
        prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.last, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(F.relu(self.norm(x)))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


@pytest.mark.parametrize("bits", [2, 8])
def test_a_batch_norm_after_something_else_is_a_depthwise_layer(bits: int) -> None:
    torch.manual_seed(0)
    network, x = PreActivation(), torch.randn(32, 1, 8, 8)
    for norm in (network.norm, network.last):
        nn.init.uniform_(norm.weight, -1, 1.5)
        nn.init.normal_(norm.bias)
    network(x)
    network.eval()
    prepared = prepare(network, x, QuantizationConfig(bits, 8))
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(x)
    prepared.eval()
    graph = lower(prepared, (1, 8, 8), name="g")
    assert [node.name for node in graph.nodes] == ["stem", "norm", "conv", "add", "last", "mean", "mean.flatten", "fc"]
    assert compare(prepared, graph, x).worst[1] == 1.0
    if bits == 8:
        assert float((prepared(x) - network(x)).abs().mean()) < 0.05 * float(network(x).std())
    prepared.train()(x).sum().backward()
    assert float(prepared.get_parameter("norm.weight").grad.abs().sum()) > 0


def test_a_layer_that_is_called_twice_is_named() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1)
    network = nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(UnsupportedError, match="0: a layer that is called more than once"):
        prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())


def test_a_forward_that_branches_on_values_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(NetworkError, match="Branching can't be traced"):
        prepare(Branching(), torch.zeros(2, 1, 8, 8), QuantizationConfig())


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"does not take an input of shape \[3, 8, 8\]"):
        prepare(resnet(), torch.zeros(2, 3, 8, 8), QuantizationConfig())


def test_an_input_that_is_no_image_and_no_features_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"the module itself: it takes an input of shape \[2, 8, 6\]"):
        prepare(nn.MaxPool2d(2), torch.zeros(2, 8, 6), QuantizationConfig())


def test_a_network_without_parameters_is_compared_too() -> None:
    x = torch.rand(4, 2, 4, 4)
    prepared = prepare(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), x, QuantizationConfig()).eval()
    graph = lower(prepared, (2, 4, 4), name="g")
    assert compare(prepared, graph, x).max_step_difference == 0


def test_a_prepared_module_is_not_prepared_again() -> None:
    prepared = prepare(resnet(), torch.zeros(2, 1, 8, 8), QuantizationConfig())
    with pytest.raises(UnsupportedError, match="quantized already"):
        prepare(prepared, torch.zeros(2, 1, 8, 8), QuantizationConfig())


def test_a_shared_relu_has_a_quantizer_at_each_call() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(1, 2, 3), relu, nn.Conv2d(2, 2, 3), relu, nn.Flatten(), nn.Linear(32, 2))
    prepared = prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())
    assert names(prepared) == ["0", "2", "5"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["0.weight", "1.running_var"])
def test_a_float_network_with_a_value_that_is_not_finite_is_refused(tensor: str, value: float) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    network.state_dict()[tensor].view(-1)[0] = value
    layer, _, what = tensor.partition(".")
    with pytest.raises(GraphError, match=f"layer {layer}: its {what} holds a value that is not finite"):
        prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.GELU(), "1: GELU has no integer form here. Replace it by what can be quantized: convolution"),
        (nn.ConvTranspose2d(2, 2, 2), "1: ConvTranspose2d has no integer form here"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "1: convolution with padding_mode='reflect'"),
        (nn.AdaptiveAvgPool2d(4), r"1: adaptive pooling of \[6, 6\] to \[4, 4\]"),
        (nn.Linear(6, 2), r"1: a linear layer of \[2, 2, 6, 6\]. Flatten before it"),
    ],
)
def test_a_module_without_integer_form_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        prepare(nn.Sequential(nn.Conv2d(1, 2, 3), module), torch.zeros(2, 1, 8, 8), QuantizationConfig())


def test_a_copy_is_independent() -> None:
    x = torch.randn(4, 1, 8, 8)
    prepared = prepare(resnet(), x, QuantizationConfig())
    with torch.no_grad(), calibrating(prepared):
        prepared(x)
    twin = copy.deepcopy(prepared).eval()
    before = twin(x)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.mul_(2)
    assert torch.equal(twin(x), before)
    assert isinstance(next(m for m in twin.modules() if isinstance(m, ActivationQuantizer)), ActivationQuantizer)
