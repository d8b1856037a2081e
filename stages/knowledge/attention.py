"""Attention transfer (Zagoruyko and Komodakis 2017, arXiv:1612.03928): where a layer looks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge, mean
from kdpipe.stages.knowledge.factor_transfer import match_size
from kdpipe.stages.knowledge.loss_parameters import AttentionParameters


def attention_map(feature: Tensor, power: float) -> Tensor:
    """Q / ||Q||_2 with Q = mean over channels of |F|^p: [B, C, H, W] -> [B, H * W] (section 3.1)."""
    return F.normalize(feature.abs().pow(power).mean(dim=1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Mean over images and pixels of the squared difference of the attention maps (equation 2, squared).

    The channels may differ; the larger map is pooled to the smaller one's size.

    Args:
        student: [B, C, H, W].
        teacher: [B, C', H', W'].
        power: p.
    """
    student, teacher = match_size(student, teacher)
    return (attention_map(student, power) - attention_map(teacher, power)).square().mean()


class AttentionTransfer(DistillationLoss):
    """`attention`: the sum over the layers, and its mean over the teachers."""

    def __init__(self, parameters: AttentionParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.power = parameters.power

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        return mean(
            torch.stack(
                [attention_loss(a, b, self.power) for a, b in zip(knowledge.student_layers, layers, strict=True)]
            ).sum()
            for layers in knowledge.teacher_layers
        )
