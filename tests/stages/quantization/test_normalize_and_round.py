"""Batch norm and rounding at once against the two operations, one after the other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.quantization.activations import ActivationQuantizer
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.fake_quantize import CHUNK, RoundActivations
from kdpipe.stages.quantization.layers import ExactBatchNorm2d, exact_batch_norm
from kdpipe.stages.quantization.normalize_and_round import NormalizeAndRound, can_normalize_and_round
from kdpipe.stages.quantization.prepare import prepare
from kdpipe.stages.quantization.training import calibrate

EPS = 1e-5
SEVERAL_PIECES = (1 + CHUNK // (16 * 16 * 17), 16, 16, 17)
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def at_once(x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor, levels: tuple[int, int], gradient: str) -> Tensor:
    mean, var = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), unbiased=False)
    return NormalizeAndRound.apply(x, gamma, beta, scale, mean, var, EPS, *levels, True, gradient, 0.1)


def one_by_one(x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor, levels: tuple[int, int], gradient: str) -> Tensor:
    normalized = F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
    return RoundActivations.apply(normalized, scale, *levels, gradient, 0.1, False)


@pytest.mark.parametrize("gradient", ["pact", "lsq", "ewgs"])
@pytest.mark.parametrize("levels", [(0, 255), (-128, 127), (0, 3)])
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("shape", [(5, 24, 7, 9), SEVERAL_PIECES, (4, 3, 1, 1)])
def test_as_two_operations(gradient: str, levels: tuple[int, int], layout: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values, g = torch.randn(2, *shape, generator=generator)
    gamma, beta = torch.rand(2, shape[1], generator=generator) + 0.5
    gamma[0] = -gamma[0]
    found = []
    for function in (at_once, one_by_one):
        x = (3 * values + 1).to(memory_format=LAYOUTS[layout])
        given = [x, gamma.clone(), beta.clone(), torch.tensor(2.0 / levels[1])]
        given = [tensor.requires_grad_() for tensor in given]
        out = function(*given, levels, gradient)
        out.backward(g)
        assert out.is_contiguous(memory_format=LAYOUTS[layout])
        found.append([out.detach(), *(tensor.grad for tensor in given)])
    (out, *gradients), (expected, *expected_gradients) = found
    steps = 2.0 / levels[1]
    apart = (out - expected).abs() > steps / 2
    assert float(apart.float().mean()) < 1e-3  # a float32's last place decides between two levels
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert float((one - other).norm()) <= 2e-3 * float(other.norm()) + 1e-5


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).train()


def test_a_prepared_network_keeps_no_masks_and_trains_as_one_operation_after_the_other() -> None:
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    prepared = prepare(network(), images, QuantizationConfig())
    calibrate(prepared, images)
    plain = copy.deepcopy(prepared)
    for norm in (part for part in plain.modules() if isinstance(part, ExactBatchNorm2d)):
        norm._quantizer = ()
    kept = {}
    for name, module in {"at once": prepared, "one by one": plain}.items():
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(images).square().sum().backward()
        kept[name] = sum(sizes.values())
    masks = 8 * (8 * 12 * 12 + 4 * 10 * 10)  # a byte for each value of the two maps
    assert kept["at once"] <= kept["one by one"] - masks + 256
    for (name, buffer), other in zip(prepared.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(buffer.float(), other.float(), atol=1e-4), name


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_batch_norms(momentum: float | None) -> None:
    norm = nn.BatchNorm2d(3, momentum=momentum).train()
    rounded = exact_batch_norm(copy.deepcopy(norm))
    ActivationQuantizer("layer", 8, signed=False).train().follow(rounded)
    for seed in range(3):
        x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
        assert rounded.rounds_ahead(x)
        norm(x)
        assert float(rounded(x).detach().min()) >= 0
    for name, buffer in norm.named_buffers():
        assert torch.allclose(rounded.get_buffer(name).float(), buffer.float(), rtol=1e-5), name
    before = rounded.running_mean.clone()
    rounded.track_running_stats = False  # as for SPEQ's teacher
    rounded(x)
    assert torch.equal(rounded.running_mean, before)


def test_a_dead_quantizer_gives_zeros() -> None:
    norm = exact_batch_norm(nn.BatchNorm2d(3)).train()
    quantizer = ActivationQuantizer("layer", 8, signed=False).train()
    quantizer.clip.data.fill_(0.0)
    quantizer.follow(norm)
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = quantizer(norm(x))
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()


def test_what_it_is_not_made_for() -> None:
    assert can_normalize_and_round(torch.zeros(2, 3, 4, 4))
    assert not can_normalize_and_round(torch.zeros(2, 3))
    assert not can_normalize_and_round(torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    assert not can_normalize_and_round(torch.zeros(2, 3, 4, 8)[..., ::2])
    with pytest.raises(ValueError, match="more than 1 value"):
        exact_batch_norm(nn.BatchNorm2d(3)).train()(torch.zeros(1, 3, 1, 1))
