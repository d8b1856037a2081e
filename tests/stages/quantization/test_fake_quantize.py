"""Gradients of rounding against the papers' equations, worked out by hand or element by element."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdpipe.stages.quantization.activations import ActivationQuantizer
from kdpipe.stages.quantization.fake_quantize import CHUNK, RoundActivations, RoundWeights
from kdpipe.stages.quantization.weights import QuantizedConv2d, WeightQuantizer, WeightTraining, optimal_step


def round_activations(x: torch.Tensor, g: torch.Tensor, gradient: str, **given) -> tuple[torch.Tensor, ...]:
    """Return out and the gradients of x and of a step of 2 with levels -2 to 1."""
    x, scale = x.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    out = RoundActivations.apply(x, scale, -2, 1, gradient, given.get("delta", 0.5), False)
    out.backward(g)
    return out.detach(), x.grad, scale.grad


# u = x / 2 is -3, -0.8, 0.2, 0.75, 4; q is -2, -1, 0, 1, 1. The level 0.75 lies inside, though it rounds to the limit.
X = torch.tensor([[-6.0, -1.6, 0.4, 1.5, 8.0]])
G = torch.tensor([[1.0, -2.0, 3.0, 4.0, -5.0]])


@pytest.mark.parametrize("gradient", ["pact", "lsq", "ewgs"])
def test_all_gradients_round_alike(gradient: str) -> None:
    assert round_activations(X, G, gradient)[0].tolist() == [[-4, -2, 0, 2, 2]]


def test_pact() -> None:
    _, to_input, to_scale = round_activations(X, G, "pact")
    assert to_input.tolist() == [[0, -2, 3, 4, 0]]
    assert float(to_scale) == 1 * -2 + -5 * 1


def test_lsq() -> None:
    _, to_input, to_scale = round_activations(X, G, "lsq")
    assert to_input.tolist() == [[0, -2, 3, 4, 0]]
    inside = -2 * (-1 + 0.8) + 3 * (0 - 0.2) + 4 * (1 - 0.75)
    # N = 5 values in an image, Q_P = 1
    assert float(to_scale) == pytest.approx((1 * -2 + inside + -5 * 1) / math.sqrt(5 * 1))


def test_ewgs() -> None:
    _, to_input, to_scale = round_activations(X, G, "ewgs", delta=0.5)
    # g * (1 + delta * sign(g) * (x_n - x_q)), x_n = u / 1
    expected = [0, -2 * (1 - 0.5 * (-0.8 + 1)), 3 * (1 + 0.5 * 0.2), 4 * (1 + 0.5 * (0.75 - 1)), 0]
    assert to_input.tolist()[0] == pytest.approx(expected)
    assert float(to_scale) == -7


def test_ewgs_without_delta_is_straight_through() -> None:
    plain, scaled = (round_activations(X, G, "pact"), round_activations(X, G, "ewgs", delta=0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("gradient", ["pact", "lsq", "ewgs"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_pieces_and_layouts_change_nothing(gradient: str, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, 3, 5, 18, 257, generator=generator)
    assert x.numel() > CHUNK  # more than one piece
    given = {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }[layout].detach().requires_grad_()  # fmt: skip
    scale = torch.tensor(0.3, requires_grad=True)
    out = RoundActivations.apply(given, scale, 0, 7, gradient, 0.1, False)
    out.backward(g)
    # the same, one operation after the other
    u = x / 0.3
    q = u.round().clamp(0, 7)
    inside = (u > 0) & (u < 7)
    to_input = g * inside
    to_scale = (g * ~inside * q).sum()
    if gradient == "lsq":
        to_scale = (to_scale + (to_input * (q - u)).sum()) / math.sqrt(x[0].numel() * 7)
    if gradient == "ewgs":
        to_input = to_input * (1 + 0.1 * g.sign() * (u - q) / 7)
    assert torch.equal(out, q * 0.3)
    assert torch.allclose(given.grad, to_input, atol=1e-6)
    assert float(scale.grad) == pytest.approx(float(to_scale), rel=1e-4)


def test_the_clip_moves_the_step_as_lsq_would() -> None:
    """One step of SGD on the clip is one on the step."""
    quantizer = ActivationQuantizer("layer", 4, signed=False, gradient="lsq")
    quantizer.clip.data.fill_(3.0)
    x, g = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(1)) * 4
    scale = torch.tensor(3.0 / 15, requires_grad=True)
    RoundActivations.apply(x, scale, 0, 15, "lsq", 0.0, False).backward(g)
    quantizer(x).backward(g)
    rate = 0.01
    moved = (quantizer.clip - rate * quantizer.clip.grad) / 15
    expected = scale - rate * scale.grad
    assert float(moved.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


W = torch.tensor([[-3.0, -0.8, 0.4, 1.5], [0.2, 0.9, -1.2, 2.6]])
STEP = torch.tensor([[1.0], [2.0]])
GW = torch.tensor([[1.0, -2.0, 3.0, 4.0], [-1.0, 2.0, -3.0, 0.5]])


def round_weights(gradient: str, limit: int = 1) -> tuple[torch.Tensor, ...]:
    weight, step = W.clone().requires_grad_(), STEP.clone().requires_grad_()
    out = RoundWeights.apply(weight, step, limit, gradient, 0.5)
    out.backward(GW)
    return out.detach(), weight.grad, step.grad


@pytest.mark.parametrize("gradient", ["straight-through", "lsq", "ewgs"])
def test_all_gradients_round_weights_alike(gradient: str) -> None:
    assert round_weights(gradient)[0].tolist() == [[-1, -1, 0, 1], [0, 0, -2, 2]]


def test_lsq_of_weights() -> None:
    _, to_weight, to_step = round_weights("lsq")
    # u = w / D: -3, -0.8, 0.4, 1.5 and 0.1, 0.45, -0.6, 1.3
    assert to_weight.tolist() == [[0, -2, 3, 0], [-1, 2, -3, 0]]
    first = 1 * -1 + -2 * (-1 + 0.8) + 3 * (0 - 0.4) + 4 * 1
    second = -1 * (0 - 0.1) + 2 * (0 - 0.45) + -3 * (-1 + 0.6) + 0.5 * 1
    # N = 4 weights to a step, Q_P = 1
    assert to_step.flatten().tolist() == pytest.approx([first / 2, second / 2])


def test_ewgs_of_weights() -> None:
    _, to_weight, to_step = round_weights("ewgs")
    # beyond the range value and level are the same: clipped before they are compared
    misses = torch.tensor([[0, 0.2, 0.4, 0], [0.1, 0.45, 0.4, 0]])
    assert torch.allclose(to_weight, GW * (1 + 0.5 * GW.sign() * misses))
    assert to_step is None


def test_a_learned_range_has_no_weight_decay_and_stays_alive() -> None:
    layer = QuantizedConv2d.of(nn.Conv2d(2, 3, 3), 2, WeightTraining("lsq"))
    quantizer = layer.weight_quantizer
    assert quantizer.reach.dim() == 1  # make_optimizer decays what has more
    assert torch.allclose(quantizer.reach.unsqueeze(1), optimal_step(layer.weight.flatten(1), 2))
    layer(torch.randn(1, 2, 5, 5)).sum().backward()
    assert quantizer.reach.grad is not None
    with torch.no_grad():
        quantizer.reach.fill_(-1.0)
    quantizer(layer.weight)
    assert (quantizer.reach > 0).all()


@pytest.mark.parametrize("gradient", ["straight-through", "lsq", "ewgs"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_one_step_for_a_layer(gradient: str, bits: int) -> None:
    layer = QuantizedConv2d.of(nn.Conv2d(4, 3, 3), bits, WeightTraining(gradient, "layer"))
    values, scales, _ = layer.integer_weight()
    assert scales.shape == (3,)
    assert len(scales.unique()) == 1
    expected = optimal_step(layer.weight.detach().view(1, -1), bits)
    assert torch.allclose(scales, expected.flatten())
    # training computes with just these integers
    quantizer = layer.weight_quantizer
    quantizer.follow = False
    assert torch.equal(quantizer(layer.weight), values * scales.view(-1, 1, 1, 1))


def test_changing_the_width_keeps_the_weights() -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    quantizer = WeightQuantizer(3, 8)
    quantizer.set_bits(2)
    quantizer.calibrate(weight)
    assert quantizer.integers(weight)[0].abs().max() == 1
