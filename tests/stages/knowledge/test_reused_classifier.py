from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdpipe.models.registry import MODELS
from kdpipe.stages.knowledge.taps import classifier
from kdpipe.targets.errors import NetworkError


def alone(shapes, channels=None):
    return replace(shapes, teachers=((channels or shapes.student[0], 4, 4),))


def test_the_loss_is_the_mean_square_at_the_smaller_size(losses, numeric):
    k = losses.knowledge(teachers=2)
    large = k.teacher_features[1]
    k = replace(k, teacher_features=[large])
    pooled = large.view(losses.images, 6, 2, 2, 2, 2).mean(dim=(3, 5))
    expected = numeric(((k.student_feature - pooled) ** 2).mean())
    assert numeric(losses.build("simkd", alone(losses.shapes))(k)) == pytest.approx(expected, rel=1e-4)


def test_the_student_takes_the_classifier_over_and_keeps_it(losses):
    arguments = {"backbone": {"model": "cnn", "channels": (4, 5)}, "channels": 6}
    student = MODELS["reused-classifier"].build(input_shape=(1, 8, 8), classes=3, **arguments)
    teacher = MODELS["cnn"].build(input_shape=(1, 8, 8), classes=3, channels=(4, 6))
    losses.build("simkd", alone(losses.shapes)).attach(student, [teacher])
    assert torch.equal(classifier(student).weight, teacher.fc.weight)
    assert torch.equal(classifier(student).bias, teacher.fc.bias)
    assert not any(p.requires_grad for p in classifier(student).parameters())
    # a copy: training one would not change the other
    assert classifier(student).weight.data_ptr() != teacher.fc.weight.data_ptr()


def test_what_does_not_fit_is_refused(losses):
    with pytest.raises(NetworkError, match="one teacher, but there are 3"):
        losses.build("simkd")
    with pytest.raises(NetworkError, match=r"has 6 channels, the teacher's 9.*reused-classifier.*channels: 9"):
        losses.build("simkd", alone(losses.shapes, 9))
    networks = [MODELS["cnn"].build(input_shape=(1, 8, 8), classes=3, channels=(4, c)) for c in (6, 7)]
    with pytest.raises(NetworkError, match=r"\[3, 6\], the teacher's \[3, 7\]"):
        losses.build("simkd", alone(losses.shapes)).attach(networks[0], networks[1:])
