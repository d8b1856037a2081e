"""What lowering makes of a prepared module, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.fidelity import compare
from kdpipe.stages.quantization.prepare import input_quantizer, prepare, quantizers
from kdpipe.targets.errors import GraphError, KdpipeError, UnsupportedError
from kdpipe.targets.graph import Concat, Conv2d
from kdpipe.targets.lower import convolution_padding, lower


@pytest.mark.parametrize(
    ("padding", "kernel", "dilation"),
    [("same", (3, 3), 1), ("same", (1, 4), 1), ("same", 3, 2), ("valid", 3, 1), ((2, 1), 3, 1)],
)
def test_padding_is_torchs(padding, kernel, dilation) -> None:
    layer = nn.Conv2d(1, 1, kernel, padding=padding, dilation=dilation, bias=False)
    x = torch.randn(1, 1, 7, 8)
    top, left, bottom, right = convolution_padding(layer)
    padded = nn.functional.pad(x, (left, right, top, bottom))
    assert torch.allclose(layer(x), nn.functional.conv2d(padded, layer.weight, dilation=dilation), atol=1e-6)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(torch.relu(self.bn(self.conv(x))), 1))


def small() -> fx.GraphModule:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 6, 6)
    prepared = prepare(Small(), x, QuantizationConfig())
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(x)
    return prepared.eval()


def test_a_negative_gamma_flips_the_channels_signs_and_keeps_ternary_weights_ternary() -> None:
    prepared = prepare(Small(), torch.randn(4, 1, 6, 6), QuantizationConfig(2, 8, 2))
    with torch.no_grad(), calibrating(prepared):
        prepared(torch.randn(4, 1, 6, 6))
    prepared.get_submodule("bn").weight.data[1] = -0.5
    prepared.get_submodule("bn").weight.data[2] = 0.0
    graph = lower(prepared, (1, 6, 6), name="g")
    op = graph.nodes[0].op
    assert isinstance(op, Conv2d)
    trained = prepared.get_submodule("conv").integer_weight()[0].numpy()
    assert op.weight.bits == 2
    assert np.array_equal(op.weight.values[1], -trained[1])
    assert not op.weight.values[2].any()
    assert np.array_equal(op.weight.values[[0, 3]], trained[[0, 3]])


def test_lowering_leaves_the_module_as_it_was() -> None:
    prepared = small().train()
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    lower(prepared, (1, 6, 6), name="g", class_names=("a", "b", "c"), metadata={"key": "k"})
    assert all(part.training for part in prepared.modules())
    assert all(torch.equal(value, prepared.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [("conv.weight", "conv"), ("bn.running_var", "bn"), ("fc.bias", "fc"), ("inserted.conv.clip", "conv")],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_layer(parameter: str, layer: str, value: float) -> None:
    prepared = small()
    prepared.state_dict()[parameter].view(-1)[0] = value
    with pytest.raises(GraphError, match=f"layer (inserted\\.)?{layer}: "):
        lower(prepared, (1, 6, 6), name="g")


def test_a_dead_quantizer_is_refused_by_layer() -> None:
    prepared = small()
    quantizers(prepared)[0].clip.data.zero_()
    with pytest.raises(GraphError, match="layer conv: its activation quantizer is dead: scale 0"):
        lower(prepared, (1, 6, 6), name="g")


def test_a_dead_weight_step_is_refused_by_layer() -> None:
    prepared = small()
    prepared.get_buffer("conv.weight_quantizer.step")[1] = 0
    with pytest.raises(GraphError, match="layer conv: its weight quantizer is dead"):
        lower(prepared, (1, 6, 6), name="g")


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(GraphError, match=r"does not take an input of shape \[1, 7, 7\]"):
        lower(small(), (1, 7, 7), name="g")


def test_another_shape_than_the_modules_own_is_refused_though_it_would_fit() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 1))
    prepared = prepare(network.eval(), torch.zeros(2, 1, 8, 8), QuantizationConfig())
    assert lower(prepared, (1, 8, 8), name="g").output.shape == (3, 1, 1)
    with pytest.raises(
        GraphError, match=r"prepared for inputs of shape \[1, 8, 8\] and does not take .* \[1, 14, 14\]"
    ):
        lower(prepared, (1, 14, 14), name="g")


def test_an_accumulator_beyond_int32_is_refused_by_layer() -> None:
    network = nn.Sequential(nn.Linear(70_000, 2, bias=False))
    nn.init.ones_(network[0].weight)
    prepared = prepare(network.eval(), torch.zeros(2, 70_000), QuantizationConfig())
    input_quantizer(prepared).set_range(0, 8)
    with pytest.raises(GraphError, match="layer 0: its accumulator can reach 2266950000, beyond int32"):
        lower(prepared, (70_000,), name="g")
    # what it reads is half as large
    input_quantizer(prepared).set_range(-4, 4)
    assert lower(prepared, (70_000,), name="g").nodes[0].name == "0"


def test_a_module_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        lower(fx.symbolic_trace(Small()), (1, 6, 6), name="g")


def test_an_operation_without_integer_form_is_refused_by_name() -> None:
    prepared = small()
    for node in prepared.graph.nodes:
        if node.op == "call_function":
            node.target, node.args = torch.sigmoid, node.args[:1]
    prepared.recompile()
    with pytest.raises(KdpipeError):
        lower(prepared, (1, 6, 6), name="g")


def test_names_are_module_paths() -> None:
    graph = lower(small(), (1, 6, 6), name="g")
    assert [node.name for node in graph.nodes] == ["conv", "flatten", "fc"]
    assert graph.input_name == "input"
    assert graph.output.shape == (3,)


class Joining(nn.Module):
    """Its path `cat.conv` is what a join at `cat` would call `conv` in its own quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.cat = nn.Sequential()
        self.cat.add_module("conv", nn.Conv2d(1, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.conv(x), 3 * [self.cat(x)]
        return torch.cat([first, *second, first], 1)


def test_what_a_join_brings_to_its_scale_has_a_name_of_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 6, 6)
    prepared = prepare(Joining(), x, QuantizationConfig())
    input_quantizer(prepared).set_range(-4, 4)
    with torch.no_grad(), calibrating(prepared):
        prepared(x)
    next(part for part in quantizers(prepared) if part.name == "cat").clip.data *= 1.25
    graph = lower(prepared.eval(), (1, 6, 6), name="g")
    (join,) = (node for node in graph.nodes if isinstance(node.op, Concat))
    sources = {node.name: node.inputs for node in graph.nodes}
    # Each is brought to the common scale once, however often it is joined.
    assert [sources[name] for name in join.inputs] == [("conv",), *[("cat.conv",)] * 3, ("conv",)]
    assert len(set(join.inputs)) == 2
    assert compare(prepared, graph, x).max_step_difference == 0
