"""Flow of the solution procedure, FSP (Yim et al. 2017, "A gift from knowledge distillation", CVPR)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge, mean, required_shapes
from kdpipe.stages.knowledge.factor_transfer import match_size
from kdpipe.stages.knowledge.loss_parameters import FspParameters
from kdpipe.targets.errors import NetworkError


def flow_matrix(shallow: Tensor, deep: Tensor) -> Tensor:
    """G = F1 F2^T / (H W): the inner products of two layers' channels (equation 1).

    Args:
        shallow: [B, C1, H, W].
        deep: [B, C2, H', W']; the larger map is pooled to the smaller one's size.

    Returns:
        [B, C1, C2].
    """
    shallow, deep = match_size(shallow, deep)
    return shallow.flatten(2) @ deep.flatten(2).transpose(1, 2) / (shallow.shape[2] * shallow.shape[3])


class Flow(DistillationLoss):
    """`fsp`: mean squared difference of the flow matrices (equation 2), over consecutive layers; mean over teachers.

    The student's layers need as many channels as the teacher's.

    Raises:
        NetworkError: they have not, or only one layer is tapped.
    """

    def __init__(self, parameters: FspParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        shapes = required_shapes(shapes, "fsp")
        if len(shapes.student_layers) < 2:
            raise NetworkError("fsp relates two layers at least, but one is tapped", remedy="Name more in student_tap")
        ours = [layer[0] for layer in shapes.student_layers]
        for index, layers in enumerate(shapes.teacher_layers):
            if (theirs := [layer[0] for layer in layers]) != ours:
                raise NetworkError(
                    f"fsp needs layers with equal channels: the student's have {ours}, teacher {index}'s {theirs}",
                    remedy="Tap layers of equal channels, or use another relation such as similarity",
                )

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        ours = [flow_matrix(a, b) for a, b in pairwise(knowledge.student_layers)]
        return mean(
            torch.stack(
                [(g - flow_matrix(a, b)).square().mean() for g, (a, b) in zip(ours, pairwise(layers), strict=True)]
            ).sum()
            for layers in knowledge.teacher_layers
        )
