from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdpipe.stages.data.batches import TensorBatches
from kdpipe.stages.training.loop import train
from kdpipe.stages.training.parameters import OptimizationParams, make_optimizer
from kdpipe.stages.training.schedules import constant, cosine, make_schedule, step
from kdpipe.stages.training.seeding import derive_seed, seeded
from kdpipe.targets.errors import TrainingError, UsageError


def batches(count=8, size=4):
    x = torch.arange(count, dtype=torch.float32)
    return TensorBatches((x,), size, torch.Generator().manual_seed(0))


def test_plain_descent_by_hand():
    w = nn.Parameter(torch.tensor(2.0))
    rows = train(
        batches(8, 4),
        lambda batch: {"square": w * w / 2, "linear": w},
        torch.optim.SGD([w], lr=0.5),
        constant,
        epochs=1,
        evaluate=lambda: {"extra": 7.0},
    )
    # two steps of w -= 0.5 * (w + 1): 2 -> 0.5 -> -0.25; losses 2 + 2 and 0.125 + 0.5
    assert w.item() == -0.25
    assert rows == [{"epoch": 1, "loss": 2.3125, "square": 1.0625, "linear": 1.25, "lr": 0.5, "extra": 7.0}]


def test_the_schedule_multiplies_every_groups_own_rate():
    a, b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 10.0}])
    train(batches(8, 4), lambda batch: {"loss": a + b}, optimizer, cosine, epochs=2)
    moved = sum(cosine(i / 4) for i in range(4))
    assert math.isclose(a.item(), -moved, rel_tol=1e-6)
    assert math.isclose(b.item(), -10 * moved, rel_tol=1e-6)


def test_a_loss_that_is_not_finite_names_term_and_step_and_changes_nothing():
    w = nn.Parameter(torch.tensor(1.0))
    count = 0

    def loss(batch):
        nonlocal count
        count += 1
        return {"fine": 0 * w, "broken": w * (math.nan if count == 3 else 0)}

    with pytest.raises(TrainingError, match=r"'broken' is nan at step 3 \(epoch 2\)"):
        train(batches(8, 4), loss, torch.optim.SGD([w], lr=1.0), constant, epochs=2)
    assert w.item() == 1


def test_weights_that_the_last_step_broke_are_not_returned():
    w = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(TrainingError, match=r"a weight of shape \[\] is not finite after step 1 \(epoch 1\)"):
        train(batches(4, 4), lambda batch: {"fine": 1e20 * w}, torch.optim.SGD([w], lr=1e30), constant, epochs=1)


def test_nothing_to_train_on():
    w = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(TrainingError, match="no batch"):
        train(batches(0), lambda batch: {"loss": w}, torch.optim.SGD([w], lr=1.0), constant, epochs=1)


def test_schedules_ends():
    assert [cosine(p) for p in (0, 1)] == [1, 0]
    assert [step(p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    warm = make_schedule("cosine", 0.2)
    assert 0 < warm(0) <= 0.01
    assert math.isclose(warm(0.1), 0.5)
    assert warm(0.2) == 1
    assert math.isclose(warm(1.0), 0, abs_tol=1e-12)
    with pytest.raises(UsageError, match="cosine"):
        make_schedule("cosin")


def test_biases_and_batch_norms_are_not_decayed():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for name in ("sgd", "adamw"):
        groups = make_optimizer(OptimizationParams(optimizer=name, weight_decay=0.3), [network]).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert [decay[id(p)] for p in network.parameters()] == [0.3, 0, 0, 0]


def test_seeding_puts_the_global_generator_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(3), expected)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)


def test_derived_seeds_differ_by_every_part():
    seeds = [derive_seed(s, *n) for s in (0, 1) for n in (("a",), ("b",), ("a", 1), ("a1",), ("a", "b"), ("ab",))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**31 for s in seeds)
