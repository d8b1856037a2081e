"""SPEQ: what the stochastic teacher may change, and what not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdpipe.models.registry import MODELS
from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.prepare import prepare, quantizers
from kdpipe.stages.quantization.speq import StochasticTeacher, as_teacher, draw_precisions, finer_bits, speq_loss


def prepared_network(activation_bits: int = 2, dropout: bool = False) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = MODELS["resnet"].build(input_shape=(1, 8, 8), classes=10, depth=8, width=4)
    if dropout:
        network = nn.Sequential(
            network.conv1, network.bn1, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 10)
        )
    x = torch.randn(8, 1, 8, 8)
    prepared = prepare(network.train(), x, QuantizationConfig(2, activation_bits))
    with torch.no_grad(), calibrating(prepared):
        prepared(x)
    return prepared, x


def teacher(prepared: nn.Module, probability: float, bits: int = 8) -> StochasticTeacher:
    return StochasticTeacher(prepared, bits, probability, torch.Generator().manual_seed(0))


def test_loss_is_the_equation() -> None:
    z_t, z_s = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    p, q = torch.softmax(z_t / 2, 1), torch.softmax(z_s / 2, 1)
    cosines = [float(p[i] @ q[i] / (p[i].norm() * q[i].norm())) for i in (0, 1)]
    assert float(speq_loss(z_t, z_s, 2.0)) == pytest.approx(4 * (2 - sum(cosines)) / 2, abs=1e-6)


def test_no_gradient_flows_into_the_teacher() -> None:
    z_t, z_s = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    speq_loss(z_t, z_s, 2.0).backward()
    assert z_t.grad is None
    assert float(z_s.grad.abs().sum()) > 0


def test_u_0_gives_exactly_zero_and_u_1_does_not() -> None:
    prepared, x = prepared_network()
    assert float(teacher(prepared, 0.0).student_and_loss(x, 4.0)[1]) == 0.0
    assert float(teacher(prepared, 1.0).student_and_loss(x, 4.0)[1].detach()) > 0.0


def test_teacher_at_the_students_precision_is_the_student() -> None:
    prepared, x = prepared_network()
    own = [part.bits for part in quantizers(prepared)]
    student = copy.deepcopy(prepared)(x)
    with as_teacher(prepared, own):
        assert torch.equal(prepared(x), student)


def test_teacher_leaves_no_trace() -> None:
    prepared, x = prepared_network()
    student = copy.deepcopy(prepared)
    logits, loss = teacher(prepared, 1.0).student_and_loss(x, 4.0)
    assert torch.equal(student(x), logits)
    # what the student's own pass did to statistics and steps, and nothing more
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), prepared.state_dict().values(), strict=True)
    )
    assert all(part.precision == part.bits for part in quantizers(prepared))
    assert all(parameter.grad is None for parameter in prepared.parameters())
    loss.backward()
    assert prepared.get_parameter("layer1.0.conv1.weight").grad is not None


def test_teacher_uses_the_batchs_statistics() -> None:
    prepared, x = prepared_network()
    with torch.no_grad():
        for norm in prepared.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.fill_(1e3)
    with as_teacher(prepared, [8] * len(quantizers(prepared))):
        teachers = prepared(x)
    assert float(teachers.abs().max()) < 100


def test_dropout_masks_are_shared() -> None:
    prepared, x = prepared_network(dropout=True)
    for part in quantizers(prepared):
        part.clip.data.fill_(1e-3)  # so that rounding has no part in the difference
    _, loss = teacher(prepared, 1.0).student_and_loss(x, 4.0)
    assert float(loss) < 1e-5
    state = torch.get_rng_state()
    prepared(x)
    after_one = torch.get_rng_state()
    torch.set_rng_state(state)
    teacher(prepared, 1.0).student_and_loss(x, 4.0)
    assert torch.equal(torch.get_rng_state(), after_one)


def test_draws_follow_the_probability_and_never_coarsen() -> None:
    prepared, _ = prepared_network()
    parts = quantizers(prepared)
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_precisions(parts, 8, 0.4, generator) for _ in range(500)]
    narrow = [index for index, part in enumerate(parts) if part.bits == 2]
    share = sum(draw[index] == 8 for draw in drawn for index in narrow) / (500 * len(narrow))
    assert 0.36 < share < 0.44
    assert all(draw[index] == 8 for draw in drawn for index, part in enumerate(parts) if part.bits == 8)
    assert all(set(draw) <= {2, 8} for draw in drawn)


def test_at_8_bits_the_finer_precision_is_float() -> None:
    assert (finer_bits(2), finer_bits(4), finer_bits(8)) == (8, 8, 32)
    prepared, x = prepared_network(8)
    _, loss = teacher(prepared, 1.0, finer_bits(8)).student_and_loss(x, 4.0)
    assert 0 < float(loss.detach()) < 1e-2
