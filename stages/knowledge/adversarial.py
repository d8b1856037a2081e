"""Adversarial distillation: a discriminator can't tell the student's features from the teacher's.

After Goodfellow et al. 2014 (arXiv:1406.2661) on features, as in section 5.1 of Gou et al. 2021 (arXiv:2006.05525).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.knowledge.base import (
    DistillationLoss,
    FeatureShapes,
    Knowledge,
    mean,
    one_a_teacher,
    required_shapes,
)
from kdpipe.stages.knowledge.loss_parameters import AdversarialParameters


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return -gradient


def reverse_gradient(x: Tensor) -> Tensor:
    """Return x, whose gradient is turned round (Ganin and Lempitsky 2015, arXiv:1409.7495).

    What comes before it maximizes what the rest minimizes, in one step of one optimizer.
    """
    result: Tensor = _Reversal.apply(x)
    return result


def discrimination_loss(student_score: Tensor, teacher_score: Tensor) -> Tensor:
    """-[log sigmoid(teacher's) + log(1 - sigmoid(student's))] / 2, mean over B: log 2 if they can't be told apart."""
    return (F.softplus(-teacher_score) + F.softplus(student_score)).mean() / 2


class _Discriminator(nn.Module):
    """A projection of the student's embedding to the teacher's size, and three layers that tell the two apart."""

    def __init__(self, student: int, teacher: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(student, teacher)
        self.judge = nn.Sequential(
            nn.Linear(teacher, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return discrimination_loss(self.judge(reverse_gradient(self.project(student))), self.judge(teacher))


class Adversarial(DistillationLoss):
    """`adversarial`: on the penultimate embeddings, mean over the teachers.

    The discriminator minimizes it; the student and its projection, behind a reversed gradient, maximize it.
    """

    def __init__(self, parameters: AdversarialParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        shapes = required_shapes(shapes, "adversarial")
        self.discriminators = one_a_teacher(
            lambda size: _Discriminator(shapes.student_embedding, size, parameters.hidden),
            shapes.teacher_embeddings,
            seed,
            "discriminator",
        )

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the discriminators' loss."""
        student = knowledge.student_embedding
        assert student is not None  # noqa: S101  # its entry's `sees` promises it
        return mean(
            judge(student, teacher)
            for judge, teacher in zip(self.discriminators, knowledge.teacher_embeddings, strict=True)
        )
