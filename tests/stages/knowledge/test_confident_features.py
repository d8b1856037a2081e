from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdpipe.stages.knowledge.confident_features import weighted_hint_loss
from kdpipe.stages.knowledge.hints import hint_loss
from kdpipe.targets.errors import NetworkError

NAME = "ca-mkd-features"


def attached(losses, teachers=3):
    shapes = replace(losses.shapes, teachers=losses.shapes.teachers[:teachers])
    loss = losses.build(NAME, shapes)
    loss.attach(nn.Identity(), losses.teachers()[:teachers])
    return loss


def test_the_loss_is_a_weighted_sum_of_squared_differences():
    g = torch.Generator().manual_seed(0)
    shapes = [(5, 3, 2, 2), (5, 4, 1, 3)]
    ours, theirs = ([torch.randn(*shape, generator=g) for shape in shapes] for _ in range(2))
    w = torch.rand(2, 5, generator=g)
    expected = sum(float(w[i, b]) * float(hint_loss(ours[i][b], theirs[i][b])) for i in range(2) for b in range(5))
    assert float(weighted_hint_loss(ours, theirs, w)) == pytest.approx(expected / 5, rel=1e-5)


def test_weights_sum_to_1_and_favour_the_teacher_that_understands_the_student(losses):
    loss = attached(losses)
    labels = losses.knowledge().labels
    # the second teacher's classifier is sure of the label whatever it is given, the third's of another class
    maps = [torch.ones(losses.images, shape[0], 2, 2) for shape in losses.shapes.teachers]
    before = loss.weights(maps, labels)
    torch.testing.assert_close(before.sum(dim=0), torch.ones(losses.images))
    right, wrong = loss._classifiers[1:]
    for layer, chosen in ((right, 1), (wrong, 2)):
        layer.weight.zero_()
        layer.bias.copy_(10.0 * (torch.arange(4) == chosen))
    weights = loss.weights(maps, torch.ones_like(labels))
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(losses.images))
    assert (weights[1] > weights[0]).all()
    assert (weights[0] > weights[2]).all()
    assert weights[2].max() < 0.01


def test_one_teacher_is_the_squared_difference_of_the_regressed_map(losses):
    loss, k = attached(losses, 1), losses.knowledge(teachers=1)
    expected = hint_loss(loss.regressors[0](k.student_feature), k.teacher_features[0])
    torch.testing.assert_close(loss(k), expected)


def test_the_teachers_classifiers_are_not_part_of_the_loss(losses):
    loss = attached(losses)
    mine = {id(parameter) for parameter in loss.parameters()}
    assert not mine & {id(parameter) for layer in loss._classifiers for parameter in layer.parameters()}
    assert all(name.startswith("regressors.") for name in loss.state_dict())


def test_weights_pass_no_gradient(losses):
    """The student's gradient is that of the squared differences alone, with the weights as constants."""
    loss, k = attached(losses), losses.knowledge()
    loss(k).backward()
    found = k.student_feature.grad.clone()
    again, same = attached(losses), losses.knowledge()
    translated = [
        regress(torch.nn.functional.adaptive_avg_pool2d(same.student_feature, 2)) for regress in again.regressors
    ]
    targets = [torch.nn.functional.adaptive_avg_pool2d(target, 2) for target in same.teacher_features]
    weights = again.weights(translated, same.labels)
    assert not weights.requires_grad
    weighted_hint_loss(translated, targets, weights).backward()
    torch.testing.assert_close(found, same.student_feature.grad)


def test_a_tap_whose_mean_the_classifier_is_not_given_is_refused(losses):
    loss = losses.build(NAME)
    teachers = losses.teachers()
    teachers[1] = nn.Sequential(nn.Linear(24, 4))
    with pytest.raises(NetworkError, match=r"teacher 1's classifier is given 24 values.* 6 channels"):
        loss.attach(nn.Identity(), teachers)
