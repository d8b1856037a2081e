from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdpipe.stages.synthesis.losses import (
    activation_loss,
    batch_norm_loss,
    class_entropy,
    information_entropy_loss,
    one_hot_loss,
)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 20), st.integers(2, 30), st.floats(0, 1e4), st.integers(0, 2**31))
def test_information_entropy_is_between_minus_log_k_and_0(count, classes, scale, seed):
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * scale
    assert -math.log(classes) - 1e-5 <= float(information_entropy_loss(logits)) <= 1e-6
    assert 0 <= class_entropy(logits) <= 1


def test_information_entropy_at_its_ends():
    balanced, collapsed = 1000 * torch.eye(4), 1000 * torch.eye(4)[[0, 0, 0, 0]]
    assert float(information_entropy_loss(balanced)) == pytest.approx(-math.log(4))
    assert float(information_entropy_loss(collapsed)) == 0
    assert class_entropy(balanced) == pytest.approx(1)
    assert class_entropy(collapsed) == 0


def test_one_hot_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0]])
    # the larger class has probability 3/4 and 9/10
    assert float(one_hot_loss(logits)) == pytest.approx(-(math.log(0.75) + math.log(0.9)) / 2)


def test_activation_loss_by_hand():
    assert float(activation_loss(torch.tensor([[1.0, 0.0], [2.0, 5.0]]))) == -2


def test_batch_norm_loss_by_hand():
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[5.0, 7.0]], [[2.0, 2.0]]]])  # [2, 2, 1, 2]
    # channel 0: 1, 3, 5, 7: mean 4, variance 20/3; channel 1: 0, 0, 2, 2: mean 1, variance 4/3
    loss = batch_norm_loss([x], [torch.tensor([1.0, 5.0])], [torch.tensor([20 / 3, 1 / 3])])
    assert float(loss) == pytest.approx(5 + 1, rel=1e-5)


def test_batch_norm_loss_is_zero_where_the_statistics_match():
    x = torch.randn(16, 3, 4, 4)
    norm = nn.BatchNorm2d(3, momentum=1.0)  # the running statistics become this batch's
    norm(x)
    loss = batch_norm_loss([x, x], [norm.running_mean] * 2, [norm.running_var] * 2)
    assert float(loss) < 1e-5
    exact = x.clone().requires_grad_()
    variance, mean = torch.var_mean(x.transpose(0, 1).flatten(1), dim=1)
    batch_norm_loss([exact], [mean], [variance]).backward()
    assert torch.isfinite(exact.grad).all()


@pytest.mark.parametrize("loss", [one_hot_loss, activation_loss, information_entropy_loss])
def test_gradients(loss):
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (x,))


def test_batch_norm_gradient():
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    mean, variance = torch.randn(2, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: batch_norm_loss([x], [mean], [variance]), (x,))
