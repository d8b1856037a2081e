"""Variational information distillation, VID (Ahn et al. 2019, arXiv:1904.05835)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.knowledge.base import (
    DistillationLoss,
    FeatureShapes,
    Knowledge,
    MapShape,
    mean,
    one_a_teacher,
    required_shapes,
)
from kdpipe.stages.knowledge.factor_transfer import match_size
from kdpipe.stages.knowledge.loss_parameters import VidParameters

LEAST_VARIANCE = 1e-5


def gaussian_loss(predicted: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """-log N(target; predicted, variance) without its constant, mean over all elements (equations 5 and 6).

    ((target - predicted)^2 / variance + log variance) / 2: it bounds the mutual information of the two layers from
    below, and may be negative.

    Args:
        predicted: [B, C, H, W].
        target: the teacher's map, likewise.
        variance: of each channel, [C], positive.
    """
    spread = variance.view(1, -1, 1, 1)
    return 0.5 * ((predicted - target).square() / spread + spread.log()).mean()


class _Gaussian(nn.Module):
    """The student's map to a Gaussian over the teacher's: three 1x1 convolutions and a variance a channel."""

    def __init__(self, student: MapShape, teacher: MapShape, initial_variance: float) -> None:
        super().__init__()
        inputs, outputs = student[0], teacher[0]
        self.regress = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
        )
        # softplus of it is the variance, so that it stays positive
        start = math.log(math.expm1(max(initial_variance - LEAST_VARIANCE, LEAST_VARIANCE)))
        self.spread = nn.Parameter(torch.full((outputs,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = match_size(student, teacher)
        return gaussian_loss(self.regress(student), teacher, F.softplus(self.spread) + LEAST_VARIANCE)


class VariationalInformation(DistillationLoss):
    """`vid`: the sum over the layers, and its mean over the teachers."""

    def __init__(self, parameters: VidParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        shapes = required_shapes(shapes, "vid")
        self.gaussians = one_a_teacher(
            lambda layers: nn.ModuleList(
                [
                    _Gaussian(ours, theirs, parameters.initial_variance)
                    for ours, theirs in zip(shapes.student_layers, layers, strict=True)
                ]
            ),
            shapes.teacher_layers,
            seed,
            "gaussians",
        )

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        return mean(
            torch.stack(
                [
                    gaussian(ours, theirs)
                    for gaussian, ours, theirs in zip(gaussians, knowledge.student_layers, layers, strict=True)
                ]
            ).sum()
            for gaussians, layers in zip(self.gaussians, knowledge.teacher_layers, strict=True)
        )
