"""Response knowledge: losses on logits. B images, K classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge
from kdpipe.stages.knowledge.loss_parameters import CrossEntropyParameters, KdParameters


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


class CrossEntropy(DistillationLoss):
    """`ce`."""

    def __init__(self, parameters: CrossEntropyParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return CE(student, labels)."""
        return F.cross_entropy(knowledge.student_logits, knowledge.labels)
