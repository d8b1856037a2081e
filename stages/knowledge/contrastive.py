"""Contrastive representation distillation, CRD (Tian et al. 2020, arXiv:1910.10699)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.knowledge.base import (
    DistillationLoss,
    FeatureShapes,
    Knowledge,
    Survey,
    mean,
    one_a_teacher,
    required_shapes,
)
from kdpipe.stages.knowledge.loss_parameters import CrdParameters
from kdpipe.stages.training.seeding import derive_seed
from kdpipe.targets.errors import DataError


class OtherClasses:
    """Draws images of other classes than a given image's, uniformly.

    Args:
        labels: of all images, int64 [N], at least two classes among them.

    Raises:
        DataError: all images are of one class.
    """

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels
        self._order = labels.argsort(stable=True)
        counts = labels.bincount()
        if int((counts > 0).sum()) < 2:
            raise DataError("crd tells images of different classes apart, but all are of one class")
        self._counts = counts
        self._starts = counts.cumsum(0) - counts

    def draw(self, labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return places of images, int64 [B, count], whose class is not the label [B] of their row."""
        start, size = self._starts[labels][:, None], self._counts[labels][:, None]
        share = torch.rand(len(labels), count, generator=generator, dtype=torch.float64)
        rank = (share * (len(self._labels) - size)).long()
        # sorted by class, one class is one gap to step over
        return self._order[rank + size * (rank >= start)]


def contrast_loss(scores: Tensor, images: int) -> Tensor:
    """Noise-contrastive loss of one positive and n negatives for each image (equations 10 and 11, as implemented).

    -[log h(s_0) + sum_j log(1 - h(s_j))], h(s) = s / (s + n / N), mean over B.

    Args:
        scores: exp(similarity / tau) over its mean, [B, 1 + n], the positive first.
        images: N.
    """
    noise = (scores.shape[1] - 1) / images
    positive = (scores[:, 0] / (scores[:, 0] + noise)).log()
    negative = (noise / (scores[:, 1:] + noise)).log().sum(dim=1)
    return -(positive + negative).mean()


class _Pair(nn.Module):
    """The student and one teacher: a projection of each, and the memory of what each said about every image."""

    def __init__(self, student: int, teacher: int, images: int, parameters: CrdParameters) -> None:
        super().__init__()
        self.settings = parameters
        self.projections = nn.ModuleList([nn.Linear(size, parameters.dimensions) for size in (student, teacher)])
        bound = (3 / parameters.dimensions) ** 0.5
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(images, parameters.dimensions).uniform_(-bound, bound))
        # the partition constants, estimated in the first batch and kept (section 3.2's implementation)
        self.register_buffer("constants", torch.zeros(2))

    def forward(self, student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
        """Return the loss; `rows` [B, 1 + n] are places of images, the batch's own first."""
        ours, theirs = (
            F.normalize(project(x), dim=1) for project, x in zip(self.projections, (student, teacher), strict=True)
        )
        loss = self._contrast(0, ours, self.teacher_memory, rows) + self._contrast(1, theirs, self.student_memory, rows)
        self._remember(self.student_memory, ours.detach(), rows[:, 0])
        self._remember(self.teacher_memory, theirs.detach(), rows[:, 0])
        return loss

    def _contrast(self, side: int, x: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
        images = len(memory)
        # all similarities and then the drawn ones: gathering the memory's rows first would copy B (1 + n) D numbers.
        # A clone, because the memory follows before the backward pass.
        similarities = (x @ memory.clone().T).gather(1, rows)
        scores = (similarities / self.settings.temperature).exp()
        if float(self.constants[side]) == 0:
            self.constants[side] = scores.detach().mean() * images
        # a copy: the other side's constant is set in place before the backward pass
        return contrast_loss(scores / self.constants[side].clone(), images)

    def _remember(self, memory: Tensor, x: Tensor, places: Tensor) -> None:
        share = self.settings.momentum
        memory[places] = F.normalize(share * memory[places] + (1 - share) * x, dim=1)


class Contrastive(DistillationLoss):
    """`crd`: on the penultimate embeddings, mean over the teachers.

    A linear projection of the student and one of the teacher, L2-normalized. Each image's projection is to be like
    the other network's memory of that image and unlike its memory of images of other classes; memories follow by
    exponential averages. The labels are the true ones, or the teachers' choice.
    """

    def __init__(self, parameters: CrdParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        shapes = required_shapes(shapes, "crd")
        self.negatives = min(parameters.negatives, shapes.images)
        self.pairs = one_a_teacher(
            lambda size: _Pair(shapes.student_embedding, size, shapes.images, parameters),
            shapes.teacher_embeddings,
            seed,
            "pair",
        )
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "negatives"))
        self._others: OtherClasses | None = None

    def prepare(self, survey: Survey) -> Mapping[str, float]:
        """Learn which images are of which class."""
        self._others = OtherClasses(torch.cat([said.labels.cpu() for said in survey()]))
        return {}

    def generators(self) -> Sequence[torch.Generator]:
        """Return what draws the negatives."""
        return (self._generator,)

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        student = knowledge.student_embedding
        if self._others is None or student is None or knowledge.indices is None:
            raise ValueError("crd is to be prepared, and given embeddings and indices")
        negatives = self._others.draw(knowledge.labels.cpu(), self.negatives, self._generator)
        rows = torch.cat([knowledge.indices[:, None], negatives.to(knowledge.indices.device)], dim=1)
        return mean(
            pair(student, teacher, rows) for pair, teacher in zip(self.pairs, knowledge.teacher_embeddings, strict=True)
        )
