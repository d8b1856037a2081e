from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kdpipe.stages.knowledge.base import FeatureShapes, Knowledge
from kdpipe.stages.knowledge.factor_transfer import factor_loss, make_translator, match_size
from kdpipe.stages.knowledge.registry import LOSSES
from kdpipe.stages.knowledge.response import average_distribution, distillation_loss

SHAPES = FeatureShapes((4, 2, 2), ((6, 2, 2), (8, 4, 4), (6, 2, 2)))


def knowledge(teachers=SHAPES.teachers, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Knowledge(
        student_logits=torch.randn(5, 3, generator=g, requires_grad=True),
        student_feature=torch.randn(5, *SHAPES.student, generator=g, requires_grad=True),
        teacher_logits=torch.randn(len(teachers), 5, 3, generator=g),
        teacher_features=[torch.randn(5, *shape, generator=g) for shape in teachers],
        labels=torch.tensor([0, 1, 2, 0, 1]),
    )


def build(name, shapes=SHAPES, seed=0, **values):
    entry = LOSSES[name]
    return entry.build(entry.parameters.model_validate(values), shapes, seed)


def brute_kd(student, target, temperature):
    total = 0.0
    for row, wanted in zip(student.tolist(), target.tolist(), strict=True):
        exponentials = [math.exp(value / temperature) for value in row]
        for e, p in zip(exponentials, wanted, strict=True):
            total += p * (math.log(p) - math.log(e / sum(exponentials)))
    return total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_kd_equals_brute_force(temperature, average):
    k = knowledge()
    target = average_distribution(k.teacher_logits, temperature, average)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(5))
    expected = brute_kd(k.student_logits, target, temperature)
    loss = build("kd", temperature=temperature, average=average)
    assert float(loss(k).detach()) == pytest.approx(expected * temperature**2, rel=1e-4)
    plain = build("kd", temperature=temperature, average=average, scale=False)
    assert float(plain(k).detach()) == pytest.approx(expected, rel=1e-4)


def test_the_two_averages_differ_and_agree_for_one_teacher():
    k = knowledge()
    two = [average_distribution(k.teacher_logits, 1.0, a) for a in ("probabilities", "logits")]
    one = [average_distribution(k.teacher_logits[:1], 1.0, a) for a in ("probabilities", "logits")]
    assert not torch.allclose(*two)
    torch.testing.assert_close(*one)


def test_kd_is_zero_for_the_teacher_itself():
    logits = torch.randn(4, 3)
    assert float(distillation_loss(logits, (logits / 2).softmax(dim=1), 2.0)) == pytest.approx(0, abs=1e-6)


def test_feed_with_one_teacher_is_factor_transfer_by_brute_force():
    shapes = FeatureShapes(SHAPES.student, SHAPES.teachers[:1])
    k = knowledge(SHAPES.teachers[:1])
    feed = build("feed", shapes)
    x = k.student_feature
    for layer in (0, 2, 4):
        convolution = feed.translators[0][layer]
        x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
        x = torch.where(x > 0, x, 0.1 * x)
    total = 0.0
    for a, b in zip(x.flatten(1).tolist(), k.teacher_features[0].flatten(1).tolist(), strict=True):
        norm_a, norm_b = math.hypot(*a), math.hypot(*b)
        total += sum(abs(p / norm_a - q / norm_b) for p, q in zip(a, b, strict=True))
    expected = total / 5 / math.sqrt(6 * 2 * 2)
    assert float(feed(k).detach()) == pytest.approx(expected, rel=1e-4)


def test_feed_is_the_sum_over_independent_translators():
    k = knowledge()
    feed = build("feed")
    parts = []
    for index, shape in enumerate(SHAPES.teachers):
        single = build("feed", FeatureShapes(SHAPES.student, (shape,)))
        single.translators[0].load_state_dict(feed.translators[index].state_dict())
        one = Knowledge(k.student_logits, k.student_feature, k.teacher_logits, [k.teacher_features[index]], k.labels)
        parts.append(single(one))
    torch.testing.assert_close(feed(k), torch.stack(parts).sum())
    # the first and the last teacher have the same shape, yet translators of their own
    assert not torch.equal(feed.translators[0][0].weight, feed.translators[2][0].weight)
    gradient = torch.autograd.grad(parts[0], list(feed.translators[2].parameters()), allow_unused=True)
    assert gradient == (None,) * 6


def test_translators_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    first = build("feed", seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, third = build("feed", seed=3), build("feed", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_factor_loss_does_not_see_length_and_lies_in_0_to_2():
    a, b = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(factor_loss(7 * a, b), factor_loss(a, 0.1 * b))
    assert float(factor_loss(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(factor_loss(torch.ones(1, 9, 1, 1), -torch.ones(1, 9, 1, 1))) == pytest.approx(2)


def test_translator_has_the_published_form():
    translator = make_translator(4, 6)
    shapes = [tuple(layer.weight.shape) for layer in translator if hasattr(layer, "weight")]
    assert shapes == [(4, 4, 3, 3), (6, 4, 3, 3), (6, 6, 3, 3)]
    assert translator(torch.randn(2, 4, 5, 3)).shape == (2, 6, 5, 3)


def test_maps_are_pooled_to_the_smaller_size():
    student, teacher = match_size(torch.randn(2, 3, 8, 2), torch.randn(2, 5, 4, 4))
    assert student.shape == (2, 3, 4, 2)
    assert teacher.shape == (2, 5, 4, 2)


def test_cross_entropy_uses_the_labels():
    k = knowledge()
    assert float(build("ce")(k).detach()) == pytest.approx(float(F.cross_entropy(k.student_logits, k.labels).detach()))


@pytest.mark.parametrize("name", list(LOSSES))
def test_entries_tell_what_they_are_and_give_a_scalar_with_a_gradient(name):
    entry = LOSSES[name]
    assert entry.summary
    assert entry.reference
    assert entry.category in {"response", "feature", "relation"}
    k = knowledge()
    loss = build(name)(k)
    assert loss.shape == ()
    loss.backward()
    reached = k.student_feature if entry.category == "feature" else k.student_logits
    assert reached.grad.abs().sum() > 0
