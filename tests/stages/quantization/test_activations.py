"""Activation quantizers: values, gradients, calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.stages.quantization.activations import (
    FLOAT_BITS,
    ActivationQuantizer,
    InputQuantizer,
    best_clip,
    calibrating,
)
from kdpipe.targets.errors import GraphError, UnsupportedError


def make(bits: int = 2, *, signed: bool = False, clip: float = 3.0, in_place: bool = False) -> ActivationQuantizer:
    quantizer = ActivationQuantizer("layer", bits, signed=signed, in_place=in_place)
    quantizer.clip.data.fill_(clip)
    return quantizer


def test_unsigned_is_a_relu_with_evenly_spaced_levels() -> None:
    x = torch.tensor([-5.0, -0.1, 0.4, 0.6, 1.4, 2.6, 9.0])
    assert make()(x).tolist() == [0, 0, 0, 1, 1, 3, 3]


def test_signed_is_symmetric_around_zero() -> None:
    x = torch.tensor([-9.0, -1.1, 0.3, 1.2, 9.0])
    assert make(3, signed=True)(x).tolist() == [-4, -1, 0, 1, 3]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_training_rounds_to_what_the_stored_integers_stand_for(bits: int, signed: bool) -> None:
    quantizer = make(bits, signed=signed, clip=2.7)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(bits)) * 3
    q = quantizer.quantization()
    assert q.bits == bits
    assert q.zero_point == (0 if signed else q.qmin)
    assert np.array_equal(quantizer(x).detach().numpy(), q.dequantize(q.quantize(x.numpy())))


def test_gradient_passes_inside_the_clip_and_trains_it_outside() -> None:
    quantizer = make(2, clip=3.0)
    x = torch.tensor([-1.0, 0.2, 2.9, 4.0, 7.0], requires_grad=True)
    weights = torch.tensor([10.0, 1.0, 2.0, 3.0, 4.0])
    (quantizer(x) * weights).sum().backward()
    assert x.grad.tolist() == [0, 1, 2, 0, 0]
    # PACT: d out / d clip = 1 where x is cut above
    assert float(quantizer.clip.grad) == pytest.approx(7.0)


def test_gradient_of_a_signed_clip_has_both_ends() -> None:
    quantizer = make(2, signed=True, clip=1.0)
    x = torch.tensor([-9.0, -0.5, 9.0], requires_grad=True)
    (quantizer(x) * torch.tensor([1.0, 1.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]
    # the ends are -2 * clip and 1 * clip
    assert float(quantizer.clip.grad) == pytest.approx(5.0 - 2.0)


def test_in_place_changes_nothing_but_memory() -> None:
    results = []
    for in_place in (False, True):
        torch.manual_seed(0)
        layer, quantizer = nn.Conv2d(1, 2, 3), make(4, in_place=in_place)
        x = torch.randn(2, 1, 5, 5, requires_grad=True)
        quantizer(layer(x)).square().sum().backward()
        results.append((x.grad, layer.weight.grad, quantizer.clip.grad))
    for plain, in_place in zip(*results, strict=True):
        assert torch.equal(plain, in_place)


def test_nothing_is_overwritten_under_a_hook() -> None:
    layer = nn.Conv2d(1, 2, 3)
    quantizer = make(2, in_place=True)
    quantizer.add_producer(layer)
    seen = []
    x = torch.randn(1, 1, 5, 5)
    plain = layer(x).detach()
    handle = layer.register_forward_hook(lambda module, given, out: seen.append(out))
    quantizer(layer(x))
    assert torch.equal(seen[0], plain)
    handle.remove()
    y = layer(x)
    quantizer(y)
    assert not torch.equal(y, plain)


def test_finer_precision_keeps_the_clip() -> None:
    quantizer = make(2)
    x = torch.linspace(-1, 5, 50)
    quantizer.precision = 8
    assert torch.allclose(quantizer(x), x.clamp(0, 3), atol=3 / 255 / 2 + 1e-6)
    quantizer.precision = FLOAT_BITS
    assert torch.equal(quantizer(x), x.clamp(0, 3))


@pytest.mark.parametrize(("low", "high"), [(0, 3), (-2, 1), (-128, 127)])
def test_best_clip_is_as_good_as_a_fine_grid(low: int, high: int) -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))

    def error(clip: float) -> float:
        step = clip / high
        return float((values - (values / step).round().clamp(low, high) * step).square().mean())

    assert error(best_clip(values, low, high)) <= 1.05 * min(error(clip) for clip in np.linspace(0.3, 5, 400))


def test_calibration_observes_and_then_rounds() -> None:
    quantizer = make(8)
    with calibrating(quantizer):
        x = torch.rand(1000) * 4
        assert torch.equal(quantizer(x), x)
    assert 3.9 < quantizer.clip.item() <= 4.0
    assert quantizer.rounds_now


def test_what_sees_only_zeros_is_dead_and_says_so() -> None:
    quantizer = make(8)
    with calibrating(quantizer):
        quantizer(torch.zeros(5))
    with pytest.raises(GraphError, match="layer layer: its activation quantizer is dead"):
        quantizer.quantization()
    quantizer.clip.data.fill_(float("nan"))
    with pytest.raises(GraphError, match="dead"):
        quantizer.quantization()


@pytest.mark.parametrize("bits", [1, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(UnsupportedError, match=f"{bits} bits"):
        make(bits)


@pytest.mark.parametrize(("low", "high"), [(-0.8, 1.9), (0.0, 1.0), (0.5, 2.0), (-3.0, -1.0)])
def test_input_quantizer_covers_its_range(low: float, high: float) -> None:
    quantizer = InputQuantizer("input", low, high)
    x = torch.linspace(low, high, 997)
    q = quantizer.quantization()
    assert float((quantizer(x) - x).abs().max()) <= q.scale * 0.501
    assert float(quantizer(torch.zeros(1))) == 0
    assert np.array_equal(quantizer(x).numpy(), q.dequantize(q.quantize(x.numpy())))


def test_input_quantizer_stores_pixels_as_they_are() -> None:
    mean, std = 0.3071, 0.3762
    quantizer = InputQuantizer("input", -mean / std, (1 - mean) / std)
    pixels = np.arange(256)
    stored = quantizer.quantization().quantize(((pixels / 255 - mean) / std).astype(np.float32))
    assert np.array_equal(stored.astype(int), pixels - 128)
