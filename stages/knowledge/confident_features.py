"""CA-MKD's loss on features (Zhang et al. 2022, "Confidence-aware multi-teacher knowledge distillation")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdpipe.stages.knowledge.base import (
    DistillationLoss,
    FeatureShapes,
    Knowledge,
    one_a_teacher,
    required_shapes,
)
from kdpipe.stages.knowledge.factor_transfer import match_size
from kdpipe.stages.knowledge.loss_parameters import CaMkdFeaturesParameters
from kdpipe.stages.knowledge.multi_teacher import cross_entropies, lower_is_better
from kdpipe.stages.knowledge.taps import classifier
from kdpipe.targets.errors import NetworkError


def make_regressor(inputs: int, outputs: int) -> nn.Sequential:
    """Return a 1x1 convolution, batch norm and ReLU, as the authors have it: a teacher's map is behind a ReLU too."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def weighted_hint_loss(student: Sequence[Tensor], teachers: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_i w_i mean((r_i(F_S) - F_Ti)^2), the inner mean over C_i, H_i and W_i, then the mean over B.

    Args:
        student: r_i(F_S) by teacher, [B, C_i, H_i, W_i].
        teachers: F_Ti, likewise.
        weights: [teachers, B].

    Returns:
        A scalar >= 0.
    """
    distances = [
        (ours - theirs).square().flatten(1).mean(dim=1) for ours, theirs in zip(student, teachers, strict=True)
    ]
    return (weights * torch.stack(distances)).sum(dim=0).mean()


class ConfidentFeatures(DistillationLoss):
    """`ca-mkd-features`: a teacher whose classifier understands the student's features has more to say about them.

    arXiv:2201.00007, its supervision of middle layers. For each teacher a regressor r_i brings the student's last
    map to the teacher's channels; the teacher's own classifier is given its mean over the pixels, and what it then
    says is judged by the labels: w_i = (1 - softmax_i CE_i) / (n - 1). The weights pass no gradient, unlike in the
    authors' code: otherwise the student would gain from making a teacher look wrong that it imitates badly. One
    teacher has the weight 1, and the loss is that of FitNets on the last map. On synthesized images the labels are
    the teachers' choice. The authors use it beside `ce` and `ca-mkd`.
    """

    def __init__(self, parameters: CaMkdFeaturesParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        shapes = required_shapes(shapes, "ca-mkd-features")
        self._channels = [channels for channels, *_ in shapes.teachers]
        self.regressors = one_a_teacher(
            lambda channels: make_regressor(shapes.student[0], channels), self._channels, seed, "regressor"
        )
        # a tuple, so that the teachers' layers are no part of the loss: they are neither trained nor stored with it
        self._classifiers: tuple[nn.Linear, ...] = ()

    def attach(self, student: nn.Module, teachers: Sequence[nn.Module]) -> None:
        """Look for the teachers' classifiers.

        Raises:
            NetworkError: a teacher has none, or it is given something else than the mean of the tapped map.
        """
        self._classifiers = tuple(classifier(teacher) for teacher in teachers)
        for index, (layer, channels) in enumerate(zip(self._classifiers, self._channels, strict=True)):
            if layer.in_features != channels:
                raise NetworkError(
                    f"ca-mkd-features: teacher {index}'s classifier is given {layer.in_features} values, "
                    f"its tapped map has {channels} channels",
                    remedy="Tap the map whose mean its classifier is given, or use ca-mkd alone",
                )

    def weights(self, translated: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return w_i of r_i(F_S), by teacher [B, C_i, H_i, W_i], and labels [B]: [teachers, B], without gradient."""
        with torch.no_grad():
            said = [layer(ours.mean(dim=(2, 3))) for layer, ours in zip(self._classifiers, translated, strict=True)]
            return lower_is_better(cross_entropies(torch.stack(said), labels))

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the weighted loss."""
        assert knowledge.student_feature is not None  # noqa: S101  # its entry's `sees` promises it
        student, translated, targets = knowledge.student_feature, [], []
        for regress, target in zip(self.regressors, knowledge.teacher_features, strict=True):
            ours, theirs = match_size(student, target)
            translated.append(regress(ours))
            targets.append(theirs)
        return weighted_hint_loss(translated, targets, self.weights(translated, knowledge.labels))
