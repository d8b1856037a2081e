"""Losses on how alike the images of a batch are to the student and to the teacher: SP and PKT."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge, mean
from kdpipe.stages.knowledge.loss_parameters import PktParameters, SimilarityParameters

EPSILON = 1e-7


def similarity_rows(x: Tensor) -> Tensor:
    """G / ||G||_2 by rows, with G = X X^T and X the features as rows: [B, ...] -> [B, B] (SP, equations 2 and 3)."""
    rows = x.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||G_S - G_T||_F^2 / B^2 (Tung and Mori 2019, arXiv:1907.09682, equation 4).

    Rotating or scaling the features of all images alike does not change it.

    Args:
        student: [B, ...].
        teacher: [B, ...], of any size.
    """
    return (similarity_rows(student) - similarity_rows(teacher)).square().mean()


def neighbour_probabilities(x: Tensor) -> Tensor:
    """p_{j|i}: the cosine similarities of all rows, moved into [0, 1], made to sum to 1 over each row.

    Args:
        x: embeddings [B, D].

    Returns:
        [B, B] (PKT, equations 6 and 8).
    """
    unit = F.normalize(x, dim=1, eps=EPSILON)
    similarity = ((unit @ unit.T) + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


def probabilistic_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all pairs of p_T log(p_T / p_S) (Passalis and Tefas 2018, arXiv:1803.10837, equation 9).

    Args:
        student: embeddings [B, D].
        teacher: [B, D'].
    """
    ours, theirs = neighbour_probabilities(student), neighbour_probabilities(teacher)
    return (theirs * ((theirs + EPSILON) / (ours + EPSILON)).log()).mean()


class SimilarityPreserving(DistillationLoss):
    """`similarity`: on the last feature maps, mean over the teachers."""

    def __init__(self, parameters: SimilarityParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        student = knowledge.student_feature
        assert student is not None  # noqa: S101  # its entry's `sees` promises it
        return mean(similarity_loss(student, teacher) for teacher in knowledge.teacher_features)


class ProbabilisticTransfer(DistillationLoss):
    """`pkt`: on the penultimate embeddings, mean over the teachers."""

    def __init__(self, parameters: PktParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        student = knowledge.student_embedding
        assert student is not None  # noqa: S101  # its entry's `sees` promises it
        return mean(probabilistic_transfer_loss(student, teacher) for teacher in knowledge.teacher_embeddings)
