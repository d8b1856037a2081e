"""Relational knowledge distillation, RKD (Park et al. 2019, arXiv:1904.05068): distances and angles of embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge, mean
from kdpipe.stages.knowledge.loss_parameters import RkdParameters

EPSILON = 1e-12


def relative_distances(x: Tensor) -> Tensor:
    """psi_D: Euclidean distances of all pairs of rows over their mean (equations 6 and 7).

    Args:
        x: embeddings [B, D].

    Returns:
        [B, B], symmetric, 0 on the diagonal; all 0 if all rows are equal.
    """
    squares = (x[:, None, :] - x[None, :, :]).square().sum(dim=2)
    # the root's slope at 0 is infinite: pairs of equal rows get neither a distance nor a gradient
    apart = squares > EPSILON
    distances = torch.where(apart, squares, 1.0).sqrt() * apart
    pairs = max(len(x) * (len(x) - 1), 1)
    return distances / (distances.sum() / pairs).clamp_min(EPSILON)


def angles(x: Tensor) -> Tensor:
    """psi_A: the cosine of the angle at row j between the ways to rows i and k (equation 9).

    Args:
        x: embeddings [B, D].

    Returns:
        [B, B, B] by (j, i, k). It takes B^3 numbers, and B^2 D on the way.
    """
    ways = F.normalize(x[None, :, :] - x[:, None, :], dim=2, eps=EPSILON)
    return ways @ ways.transpose(1, 2)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all pairs of the Huber loss of the relative distances (equation 8); [B, D] and [B, D']."""
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all triples of the Huber loss of the angles' cosines (equation 10); [B, D] and [B, D']."""
    return F.smooth_l1_loss(angles(student), angles(teacher))


class RelationalDistillation(DistillationLoss):
    """`rkd`: distance x L_D + angle x L_A on the penultimate embeddings, mean over the teachers."""

    def __init__(self, parameters: RkdParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.distance = parameters.distance
        self.angle = parameters.angle

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        student = knowledge.student_embedding
        assert student is not None  # noqa: S101  # its entry's `sees` promises it
        return mean(
            self.distance * distance_loss(student, teacher) + self.angle * angle_loss(student, teacher)
            for teacher in knowledge.teacher_embeddings
        )
