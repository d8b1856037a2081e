"""FitNets (Romero et al. 2015, arXiv:1412.6550): a hint from a middle layer."""

from __future__ import annotations

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
from kdpipe.stages.knowledge.factor_transfer import match_size
from kdpipe.stages.knowledge.loss_parameters import FitNetsParameters
from kdpipe.targets.errors import NetworkError


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps [B, C, H, W]: equation 3, with the mean over elements for the norm."""
    return F.mse_loss(student, teacher)


class FitNets(DistillationLoss):
    """`fitnets`: a 1x1 convolution a teacher maps the student's layer to the teacher's channels.

    The hint is learned together with the rest, as in later reruns, not in a stage before it.
    """

    def __init__(self, parameters: FitNetsParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        shapes = required_shapes(shapes, "fitnets")
        count = len(shapes.student_layers)
        self.layer = count // 2 if parameters.layer is None else parameters.layer
        if not 0 <= self.layer < count:
            raise NetworkError(
                f"fitnets: there is no layer {self.layer} among the {count} tapped ones",
                remedy=f"Choose one from 0 to {count - 1}",
            )
        self.regressors = one_a_teacher(
            lambda layers: nn.Conv2d(shapes.student_layers[self.layer][0], layers[self.layer][0], 1),
            shapes.teacher_layers,
            seed,
            "regressor",
        )

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the mean over the teachers."""
        student = knowledge.student_layers[self.layer]
        terms = []
        for regress, layers in zip(self.regressors, knowledge.teacher_layers, strict=True):
            ours, theirs = match_size(student, layers[self.layer])
            terms.append(hint_loss(regress(ours), theirs))
        return mean(terms)
