"""Knowledge review (Chen et al. 2021, arXiv:2104.09044): deep layers of the student help its shallow ones."""

from __future__ import annotations

from collections.abc import Sequence

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
from kdpipe.stages.knowledge.loss_parameters import ReviewParameters

LEVELS = (4, 2, 1)
MOST_CHANNELS = 512


def hierarchical_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared differences of two maps and of what they pool to, weighted 1, 1/2, 1/4, ... (section 3.3, HCL).

    Args:
        student: [B, C, H, W].
        teacher: of the same shape. Both are pooled to 4x4, 2x2 and 1x1, where that is smaller than the map.

    Returns:
        The weighted mean, a scalar.
    """
    weight = total = 1.0
    loss = F.mse_loss(student, teacher)
    for size in LEVELS:
        if size < min(student.shape[2:]):
            weight /= 2
            pooled = [F.adaptive_avg_pool2d(x, size) for x in (student, teacher)]
            loss = loss + weight * F.mse_loss(*pooled)
            total += weight
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion (section 3.3, ABF) of a layer of the student with the fused deeper ones.

    Args:
        inputs: channels of the layer.
        middle: channels of what is fused.
        outputs: channels of the teacher's layer.
        deepest: whether there is nothing deeper to fuse with.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.attend = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        self.expand = nn.Sequential(nn.Conv2d(middle, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what is compared with the teacher [B, outputs, H, W], and what the next layer is fused with."""
        x = self.reduce(x)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = self.attend(torch.cat([x, deeper], dim=1))
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        return self.expand(x), x


class _Review(nn.Module):
    """The fusions for one teacher, from its deepest layer to its shallowest."""

    def __init__(self, student: Sequence[MapShape], teacher: Sequence[MapShape], middle: int) -> None:
        super().__init__()
        pairs = list(zip(student, teacher, strict=True))[::-1]
        self.fusions = nn.ModuleList(
            [Fusion(ours[0], middle, theirs[0], deepest=not index) for index, (ours, theirs) in enumerate(pairs)]
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        terms = []
        fused: Tensor | None = None
        for fuse, ours, theirs in zip(self.fusions, reversed(student), reversed(teacher), strict=True):
            compared, fused = fuse(ours, fused)
            terms.append(hierarchical_loss(*match_size(compared, theirs)))
        return torch.stack(terms).sum()


class KnowledgeReview(DistillationLoss):
    """`review`: the sum over the layers, and its mean over the teachers.

    The paper compares the penultimate vectors too, which this does not.
    """

    def __init__(self, parameters: ReviewParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        shapes = required_shapes(shapes, "review")
        channels = parameters.channels or min(shapes.student_layers[-1][0], MOST_CHANNELS)
        self.reviews = one_a_teacher(
            lambda layers: _Review(shapes.student_layers, layers, channels), shapes.teacher_layers, seed, "review"
        )

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        return mean(
            review(knowledge.student_layers, layers)
            for review, layers in zip(self.reviews, knowledge.teacher_layers, strict=True)
        )
