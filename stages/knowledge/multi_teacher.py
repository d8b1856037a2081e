"""Response knowledge of several teachers, which may disagree: weights for each image, or one of them at random."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge
from kdpipe.stages.knowledge.loss_parameters import (
    CaMkdParameters,
    EntropyWeightedParameters,
    RandomTeacherParameters,
    SoftenedParameters,
)
from kdpipe.stages.knowledge.response import distillation_loss
from kdpipe.stages.training.seeding import derive_seed


def lower_is_better(scores: Tensor) -> Tensor:
    """w_i = (1 - softmax_i(score)) / (n - 1): weights over n teachers that fall with the score.

    This is equation 4 of Zhang et al. 2022 (CA-MKD, arXiv:2201.00007). One teacher has the weight 1.

    Args:
        scores: [teachers, B].

    Returns:
        [teachers, B], in [0, 1], summing to 1 over the teachers.
    """
    if len(scores) == 1:
        return torch.ones_like(scores)
    return (1 - scores.softmax(dim=0)) / (len(scores) - 1)


def entropies(teacher_logits: Tensor) -> Tensor:
    """Return the entropy in nats of each teacher's prediction: [teachers, B, K] -> [teachers, B]."""
    logs = F.log_softmax(teacher_logits, dim=2)
    return -(logs.exp() * logs).sum(dim=2)


def cross_entropies(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Return each teacher's cross entropy with the labels [B]: [teachers, B, K] -> [teachers, B]."""
    teachers, count, classes = teacher_logits.shape
    losses = F.cross_entropy(teacher_logits.reshape(-1, classes), labels.repeat(teachers), reduction="none")
    return losses.view(teachers, count)


def weighted_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """T^2 sum_i w_i KL(softmax(z_i / T) || softmax(z_S / T)), mean over B.

    Args:
        student_logits: [B, K].
        teacher_logits: [teachers, B, K].
        weights: [teachers, B].
        temperature: T > 0.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teachers = F.log_softmax(teacher_logits / temperature, dim=2)
    divergences = (teachers.exp() * (teachers - student)).sum(dim=2)
    return temperature**2 * (weights * divergences).sum(dim=0).mean()


class _Weighted(DistillationLoss):
    def __init__(self, parameters: SoftenedParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.parameters_ = parameters

    @abstractmethod
    def scores(self, knowledge: Knowledge) -> Tensor:
        """Return what speaks against each teacher, [teachers, B]."""

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the weighted loss."""
        weights = lower_is_better(self.scores(knowledge))
        temperature = self.parameters_.temperature_at(knowledge.progress)
        return weighted_distillation_loss(knowledge.student_logits, knowledge.teacher_logits, weights, temperature)


class EntropyWeighted(_Weighted):
    """`entropy-weighted`: a teacher that is sure of an image has more to say about it.

    After Kwon et al. 2020 ("Adaptive knowledge distillation based on entropy", ICASSP); the weights have
    CA-MKD's form with the entropy at T = 1 as the score.
    """

    parameters_: EntropyWeightedParameters

    def scores(self, knowledge: Knowledge) -> Tensor:
        """Return the entropies, [teachers, B]."""
        return entropies(knowledge.teacher_logits)


class ConfidenceAware(_Weighted):
    """`ca-mkd`: a teacher that is right about an image has more to say about it.

    Zhang et al. 2022 (arXiv:2201.00007), equations 3 to 5, its loss on predictions; that on features is
    `ca-mkd-features`. On synthesized images the labels are the teachers' choice.
    """

    parameters_: CaMkdParameters

    def scores(self, knowledge: Knowledge) -> Tensor:
        """Return the cross entropies with the labels, [teachers, B]."""
        return cross_entropies(knowledge.teacher_logits, knowledge.labels)


class RandomTeacher(DistillationLoss):
    """`random-teacher`: in each batch, kd with one teacher drawn at random (Fukuda et al. 2017, Interspeech)."""

    def __init__(self, parameters: RandomTeacherParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.parameters_ = parameters
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "teacher"))

    def generators(self) -> Sequence[torch.Generator]:
        """Return what draws the teachers."""
        return (self._generator,)

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return T^2 KL(drawn teacher || student)."""
        drawn = int(torch.randint(len(knowledge.teacher_logits), (), generator=self._generator))
        temperature = self.parameters_.temperature_at(knowledge.progress)
        target = (knowledge.teacher_logits[drawn] / temperature).softmax(dim=1)
        return distillation_loss(knowledge.student_logits, target, temperature)
