"""DIST (Huang et al. 2022, arXiv:2205.10536): predictions need correlate with the teachers', not equal them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge
from kdpipe.stages.knowledge.loss_parameters import DistParameters
from kdpipe.stages.knowledge.response import average_distribution

EPSILON = 1e-8


def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - Pearson's correlation of each pair of rows, mean over the rows (equation 6).

    It does not change when a row is multiplied by a positive number or a number is added to it. A constant row
    correlates with nothing: its distance is 1.

    Args:
        a: [rows, columns].
        b: of the same shape.

    Returns:
        A scalar in [0, 2].
    """
    a, b = (F.normalize(x - x.mean(dim=1, keepdim=True), dim=1, eps=EPSILON) for x in (a, b))
    return 1 - (a * b).sum(dim=1).mean()


def dist_loss(student: Tensor, teacher: Tensor, inter: float, intra: float) -> Tensor:
    """Inter x distance over each image's classes + intra x distance over each class's images (equation 10).

    Args:
        student: probabilities [B, K].
        teacher: likewise.
        inter: factor of the first, the relation between classes.
        intra: factor of the second, the relation within a class.
    """
    return inter * pearson_distance(student, teacher) + intra * pearson_distance(student.T, teacher.T)


class Dist(DistillationLoss):
    """`dist`: T^2 times `dist_loss` at temperature T; several teachers' probabilities are averaged."""

    def __init__(self, parameters: DistParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.parameters_ = parameters

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        p = self.parameters_
        temperature = p.temperature_at(knowledge.progress)
        student = (knowledge.student_logits / temperature).softmax(dim=1)
        teacher = average_distribution(knowledge.teacher_logits, temperature, "probabilities")
        return temperature**2 * dist_loss(student, teacher, p.inter, p.intra)
