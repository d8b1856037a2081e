"""SimKD (Chen et al. 2022, "Knowledge distillation with the reused teacher classifier", arXiv:2203.14001)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge, required_shapes
from kdpipe.stages.knowledge.factor_transfer import match_size
from kdpipe.stages.knowledge.loss_parameters import SimKdParameters
from kdpipe.stages.knowledge.taps import classifier
from kdpipe.targets.errors import NetworkError


class ReusedClassifier(DistillationLoss):
    """`simkd`: mean squared difference of the student's projected map and the teacher's last one (equation 2).

    The student is of the model `reused-classifier`. Its last layer becomes the one teacher's, and stays so.

    Raises:
        NetworkError: there are several teachers, or the student's map has not the teacher's channels.
    """

    def __init__(self, parameters: SimKdParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        shapes = required_shapes(shapes, "simkd")
        if len(shapes.teachers) != 1:
            raise NetworkError(
                f"simkd reuses the classifier of one teacher, but there are {len(shapes.teachers)}",
                remedy="Give one network, or an ensemble of one",
            )
        ours, theirs = shapes.student[0], shapes.teachers[0][0]
        if ours != theirs:
            raise NetworkError(
                f"simkd: the student's map has {ours} channels, the teacher's {theirs}",
                remedy=f"Let the student be (model: reused-classifier, backbone: ..., channels: {theirs})",
            )

    def attach(self, student: nn.Module, teachers: Sequence[nn.Module]) -> None:
        """Copy the teacher's last layer into the student's, and freeze it there.

        Raises:
            NetworkError: they differ in size.
        """
        ours, theirs = classifier(student), classifier(teachers[0])
        if ours.weight.shape != theirs.weight.shape or (ours.bias is None) != (theirs.bias is None):
            raise NetworkError(
                f"simkd: the student's last layer is {list(ours.weight.shape)}, the teacher's "
                f"{list(theirs.weight.shape)}"
            )
        with torch.no_grad():
            ours.load_state_dict(theirs.state_dict())
        ours.requires_grad_(False)

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        assert knowledge.student_feature is not None  # noqa: S101  # its entry's `sees` promises it
        return F.mse_loss(*match_size(knowledge.student_feature, knowledge.teacher_features[0]))
