"""What a distillation loss is given, and what it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Knowledge:
    """What student and teachers say about a batch of B images with K classes.

    Args:
        student_logits: [B, K].
        student_feature: [B, C, H, W], the student's tap, or None where no loss asks for it.
        teacher_logits: [teachers, B, K], without gradient.
        teacher_features: by teacher, [B, C_i, H_i, W_i], without gradient; empty where no loss asks for them.
        labels: int64 [B]: the true classes, or, where there are none, the teachers' choice.
    """

    student_logits: Tensor
    student_feature: Tensor | None
    teacher_logits: Tensor
    teacher_features: Sequence[Tensor]
    labels: Tensor


@dataclass(frozen=True)
class FeatureShapes:
    """[C, H, W] of the tapped feature maps, from which a loss builds what it trains beside the student."""

    student: tuple[int, int, int]
    teachers: tuple[tuple[int, int, int], ...]


class DistillationLoss(nn.Module, ABC):
    """A loss that may hold modules of its own; they are trained with the student and dropped afterwards."""

    @abstractmethod
    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss, a scalar without the weight that YAML gives it."""
