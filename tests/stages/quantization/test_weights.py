"""Weight quantizers against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.stages.quantization.fake_quantize import to_steps
from kdpipe.stages.quantization.weights import (
    QuantizedConv2d,
    QuantizedLinear,
    WeightQuantizer,
    WeightTraining,
    optimal_step,
    refine_step,
    ternary_step,
    weight_limit,
)
from kdpipe.targets.errors import UnsupportedError


def squared_error(weight: torch.Tensor, step: torch.Tensor, limit: int) -> torch.Tensor:
    return (weight - to_steps(weight, step, limit) * step).square().sum(dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_ternary_step_is_the_best_of_all_ternary_vectors(seed: int) -> None:
    weight = torch.randn(1, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = np.inf
    for code in range(3**6):
        q = np.array([code // 3**place % 3 - 1 for place in range(6)], dtype=np.float64)
        if q.any():
            step = float(weight[0].numpy() @ q / (q @ q))
            best = min(best, float(((weight[0].numpy() - step * q) ** 2).sum()))
    assert float(squared_error(weight, ternary_step(weight), 1)) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_step_is_as_good_as_a_fine_grid(bits: int) -> None:
    weight = torch.randn(8, 100, generator=torch.Generator().manual_seed(bits))
    found = squared_error(weight, optimal_step(weight, bits), weight_limit(bits))
    largest = weight.abs().amax(dim=1, keepdim=True)
    grid = torch.stack(
        [
            squared_error(weight, largest * part / weight_limit(bits), weight_limit(bits))
            for part in np.linspace(0.05, 1.2, 2000)
        ]
    )
    # exact for ternary; an alternation stops in a local optimum, of which 8 bits have many, all nearly as good
    slack = {2: 1e-4, 3: 0.01, 4: 0.02, 8: 0.3}[bits]
    assert (found <= grid.amin(dim=0) * (1 + slack)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_refining_never_raises_the_error(bits: int) -> None:
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = torch.full((16, 1), 0.7, dtype=torch.float64)
    last = squared_error(weight, step, weight_limit(bits))
    for _ in range(6):
        step = refine_step(weight, step, weight_limit(bits))
        now = squared_error(weight, step, weight_limit(bits))
        assert (now <= last + 1e-12).all()
        last = now


@pytest.mark.parametrize(("bits", "levels"), [(2, 3), (3, 7), (4, 15), (8, 255)])
def test_there_are_2m_plus_1_levels_rounded_half_away_from_zero(bits: int, levels: int) -> None:
    weight = torch.linspace(-300, 300, 6001).view(1, -1)
    q = to_steps(weight, torch.ones(1, 1), weight_limit(bits))
    assert len(q.unique()) == levels
    halves = to_steps(torch.tensor([[0.5, -0.5, 0.49, -0.49]]), torch.ones(1, 1), weight_limit(bits))
    assert halves.tolist() == [[1, -1, 0, 0]]


def test_a_row_of_zeros_has_a_positive_step() -> None:
    for bits in (2, 3, 4, 8):
        assert (optimal_step(torch.zeros(3, 9), bits) > 0).all()
    assert (refine_step(torch.zeros(3, 9), torch.ones(3, 1), 1, rounds=3) == 1).all()


def test_gradient_is_straight_through() -> None:
    layer = QuantizedConv2d.of(nn.Conv2d(2, 3, 3), bits=2)
    weights = torch.randn(3, 2, 3, 3)
    (layer.weight_quantizer(layer.weight) * weights).sum().backward()
    assert torch.equal(layer.weight.grad, weights)


def test_step_follows_in_training_only() -> None:
    quantizer = WeightQuantizer(1, 2)
    weight = torch.tensor([[1.0, -3.0, 0.2]])
    quantizer.calibrate(weight)
    before = quantizer.step.clone()
    quantizer.eval()(2 * weight)
    assert torch.equal(quantizer.step, before)
    quantizer.train()
    quantizer.follow = False
    quantizer(2 * weight)
    assert torch.equal(quantizer.step, before)
    quantizer.follow = True
    for _ in range(5):
        quantizer(1.1 * weight)
    assert torch.allclose(quantizer.step, 1.1 * before)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(4, 6, (3, 1), (1, 2), (1, 0), groups=2, bias=False), QuantizedConv2d),
        (nn.Linear(5, 3), QuantizedLinear),
    ],
)
def test_quantized_layer_keeps_keys_and_computes_with_its_integers(layer: nn.Module, kind: type) -> None:
    quantized = kind.of(layer, 4)
    assert set(layer.state_dict()) | {"weight_quantizer.step"} == set(quantized.state_dict())
    values, scales, bits = quantized.integer_weight()
    assert bits == 4
    assert int(values.abs().max()) <= 7
    x = torch.randn(2, 4, 5, 6) if isinstance(layer, nn.Conv2d) else torch.randn(2, 5)
    expected = layer
    with torch.no_grad():
        expected.weight.copy_(values * scales.view(-1, *[1] * (values.ndim - 1)))
    assert torch.allclose(quantized.eval()(x), expected(x), atol=1e-6)


def test_other_widths_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="5 bits"):
        WeightQuantizer(3, 5)


@pytest.mark.parametrize("scales", ["channel", "layer"])
def test_channels_last_weights_are_rounded_where_they_lie(scales: str) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    last = weight.to(memory_format=torch.channels_last)
    found = []
    for given in (weight, last):
        quantizer = WeightQuantizer(4, 2, WeightTraining(scales=scales))
        quantizer.calibrate(given)
        found.append(quantizer.train()(given))
    assert torch.allclose(*found)
    assert found[1].stride() == last.stride()
