from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kdpipe.stages.knowledge.multi_teacher import (
    cross_entropies,
    entropies,
    lower_is_better,
    weighted_distillation_loss,
)
from kdpipe.stages.knowledge.response import distillation_loss


@pytest.mark.parametrize("teachers", [1, 2, 5])
def test_weights_sum_to_1_and_fall_with_the_score(teachers):
    scores = 5 * torch.randn(teachers, 7, generator=torch.Generator().manual_seed(0))
    weights = lower_is_better(scores)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(7))
    assert ((weights >= 0) & (weights <= 1)).all()
    order = scores.argsort(dim=0)
    assert (weights.gather(0, order).diff(dim=0) <= 0).all()


def test_scores_equal_brute_force(losses):
    k = losses.knowledge()
    entropy, cross = entropies(k.teacher_logits), cross_entropies(k.teacher_logits, k.labels)
    for i, logits in enumerate(k.teacher_logits.tolist()):
        for b, row in enumerate(logits):
            e = [math.exp(z) for z in row]
            p = [value / sum(e) for value in e]
            assert float(entropy[i, b]) == pytest.approx(-sum(q * math.log(q) for q in p), rel=1e-4)
            assert float(cross[i, b]) == pytest.approx(-math.log(p[k.labels[b]]), rel=1e-4)


def test_the_weighted_loss_is_a_weighted_sum_of_kd(losses):
    k = losses.knowledge()
    w = torch.tensor([0.2, 0.3, 0.5])
    parts = [distillation_loss(k.student_logits, (z / 3).softmax(dim=1), 3.0) for z in k.teacher_logits]
    expected = sum(float(a) * float(b.detach()) for a, b in zip(w, parts, strict=True))
    loss = weighted_distillation_loss(k.student_logits, k.teacher_logits, w[:, None].expand(3, losses.images), 3.0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["entropy-weighted", "ca-mkd", "random-teacher"])
def test_one_teacher_is_kd(name, losses):
    k = losses.knowledge(teachers=1)
    torch.testing.assert_close(losses.build(name)(k), losses.build("kd")(k))


def test_ca_mkd_trusts_the_teacher_that_is_right(losses, numeric):
    """Of two teachers of which one is surely right and one surely wrong, the right one counts."""
    k = losses.knowledge(teachers=2)
    right = 50 * torch.nn.functional.one_hot(k.labels, 4).float()
    wrong = 50 * torch.nn.functional.one_hot((k.labels + 1) % 4, 4).float()
    both = replace(k, teacher_logits=torch.stack([right, wrong]))
    alone = replace(k, teacher_logits=right[None])
    assert numeric(losses.build("ca-mkd")(both)) == pytest.approx(numeric(losses.build("ca-mkd")(alone)), rel=1e-4)
    # entropy sees that both are sure, and can't tell them apart
    torch.testing.assert_close(lower_is_better(entropies(both.teacher_logits)), torch.full((2, losses.images), 0.5))


def test_a_random_teacher_is_one_of_them_and_all_get_their_turn(losses, numeric):
    k = losses.knowledge()
    single = [numeric(distillation_loss(k.student_logits, (z / 4).softmax(dim=1), 4.0)) for z in k.teacher_logits]
    loss = losses.build("random-teacher")
    drawn = []
    for _ in range(60):
        value = numeric(loss(k))
        drawn.append(single.index(min(single, key=lambda known: abs(known - value))))
    again = losses.build("random-teacher")
    assert all(numeric(again(k)) == pytest.approx(single[i], rel=1e-5) for i in drawn)
    assert all(10 < drawn.count(i) < 32 for i in range(3))
