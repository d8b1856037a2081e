"""Response knowledge: losses on logits. B images, K classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge
from kdpipe.stages.knowledge.loss_parameters import CrossEntropyParameters, KdParameters
from kdpipe.targets.errors import DataError


def average_distribution(teacher_logits: Tensor, temperature: float, average: str) -> Tensor:
    """Return the teachers' distribution [B, K] at a temperature.

    Args:
        teacher_logits: [teachers, B, K].
        temperature: T > 0.
        average: `probabilities`: mean_i softmax(z_i / T); `logits`: softmax(mean_i z_i / T).
    """
    if average == "logits":
        return (teacher_logits.mean(dim=0) / temperature).softmax(dim=1)
    return (teacher_logits / temperature).softmax(dim=2).mean(dim=0)


def log_average_distribution(teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return log mean_i softmax(z_i / T), [B, K], exact where probabilities would round to 0.

    Args:
        teacher_logits: [teachers, B, K].
        temperature: T > 0.
    """
    return torch.logsumexp(F.log_softmax(teacher_logits / temperature, dim=2), dim=0) - math.log(len(teacher_logits))


def distillation_loss(student_logits: Tensor, target: Tensor, temperature: float, scale: bool = True) -> Tensor:
    """[T^2] KL(target || softmax(z_S / T)), mean over B (Hinton et al. 2015, section 2).

    Args:
        student_logits: [B, K].
        target: the teachers' distribution at the same temperature, [B, K].
        temperature: T > 0.
        scale: multiply by T^2, with which the gradient stays of the size that it has at T = 1.

    Returns:
        A scalar >= 0.
    """
    loss = F.kl_div(F.log_softmax(student_logits / temperature, dim=1), target, reduction="batchmean")
    return loss * temperature**2 if scale else loss


class KnowledgeDistillation(DistillationLoss):
    """`kd`."""

    def __init__(self, parameters: KdParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.parameters_ = parameters

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return T^2 KL(mean of teachers || student)."""
        p = self.parameters_
        temperature = p.temperature_at(knowledge.progress)
        target = average_distribution(knowledge.teacher_logits, temperature, p.average)
        return distillation_loss(knowledge.student_logits, target, temperature, p.scale)


def further_cross_entropy(logits: Tensor, labels: Tensor, known: int) -> Tensor:
    """CE(softmax(z[known:]), y - known), mean over the images of classes from `known` on; 0 where there is none.

    This is L_new of learning without forgetting (Li and Hoiem 2016, arXiv:1606.09282, equation 1).

    Args:
        logits: [B, K].
        labels: int64 [B].
        known: how many classes, the first ones, take no part; less than K.
    """
    rows = labels >= known
    loss = F.cross_entropy(logits[rows, known:], labels[rows] - known, reduction="sum")
    return loss / rows.sum().clamp(min=1)


class CrossEntropy(DistillationLoss):
    """`ce`."""

    def __init__(self, parameters: CrossEntropyParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.parameters_ = parameters

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return CE(student, labels).

        Raises:
            DataError: only further classes are asked for, and there is none.
        """
        logits, labels = knowledge.student_logits, knowledge.labels
        if not self.parameters_.further_only:
            return F.cross_entropy(logits, labels)
        known = knowledge.teacher_logits.shape[2]
        if known == logits.shape[1]:
            raise DataError(
                f"ce: the teachers know all {known} classes, none is further",
                remedy="Leave further_only out, or add lwf",
            )
        return further_cross_entropy(logits, labels, known)
