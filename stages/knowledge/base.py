"""What a distillation loss is given, and what it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from kdpipe.stages.training.seeding import derive_seed

MapShape = tuple[int, int, int]
M = TypeVar("M", bound=nn.Module)
S = TypeVar("S")


@dataclass(frozen=True)
class Knowledge:
    """What student and teachers say about a batch of B images with K classes.

    Everything of the teachers is without gradient. What no loss asks for (`sees` of its entry) is None or empty.

    Args:
        student_logits: [B, K].
        student_feature: [B, C, H, W], the student's tapped map (the deepest, where several are tapped).
        teacher_logits: [teachers, B, K].
        teacher_features: by teacher, [B, C_i, H_i, W_i].
        labels: int64 [B]: the true classes, or, where there are none, the teachers' choice.
        student_layers: the student's maps from shallow to deep, each [B, C, H, W].
        teacher_layers: by teacher, as many maps as the student has.
        student_embedding: [B, D], what the student's classifier is given.
        teacher_embeddings: by teacher, [B, D_i].
        indices: int64 [B], the images' places in the data.
        progress: share of the epochs that are done: 0 in the first epoch, 1 in the last.
    """

    student_logits: Tensor
    student_feature: Tensor | None
    teacher_logits: Tensor
    teacher_features: Sequence[Tensor]
    labels: Tensor
    student_layers: Sequence[Tensor] = ()
    teacher_layers: Sequence[Sequence[Tensor]] = ()
    student_embedding: Tensor | None = None
    teacher_embeddings: Sequence[Tensor] = ()
    indices: Tensor | None = None
    progress: float = 0.0


@dataclass(frozen=True)
class FeatureShapes:
    """From what a loss builds the modules that it trains beside the student.

    Args:
        student: [C, H, W] of the student's tapped map.
        teachers: of each teacher's.
        student_layers: of the student's maps, from shallow to deep.
        teacher_layers: by teacher.
        student_embedding: length D of what the student's classifier is given.
        teacher_embeddings: by teacher.
        images: images to learn on.
    """

    student: MapShape = (0, 0, 0)
    teachers: tuple[MapShape, ...] = ()
    student_layers: tuple[MapShape, ...] = ()
    teacher_layers: tuple[tuple[MapShape, ...], ...] = ()
    student_embedding: int = 0
    teacher_embeddings: tuple[int, ...] = ()
    images: int = 0


@dataclass(frozen=True)
class Said:
    """What the teachers say about a batch, and its labels; the same fields as in Knowledge."""

    teacher_logits: Tensor
    teacher_features: Sequence[Tensor]
    labels: Tensor
    indices: Tensor


class Survey(Protocol):
    """Passes over all images and what the teachers say about them."""

    def __call__(self, generator: torch.Generator | None = None) -> Iterator[Said]:
        """Start a pass: in the images' order, or in one drawn from a CPU generator."""
        ...


class DistillationLoss(nn.Module, ABC):
    """A loss that may hold modules of its own; they are trained with the student and dropped afterwards."""

    def attach(self, student: nn.Module, teachers: Sequence[nn.Module]) -> None:
        """Change what must be changed in the new student before it is trained: by default, nothing.

        Raises:
            NetworkError: the networks don't fit each other.
        """
        return

    def prepare(self, survey: Survey) -> Mapping[str, float]:
        """Learn what must be known before the student's training starts: by default, nothing.

        Args:
            survey: passes over the images that the student will learn on.

        Returns:
            Figures for the stage's metrics.

        Raises:
            TrainingError: what was learned is of no use.
        """
        return {}

    def generators(self) -> Sequence[torch.Generator]:
        """Return the generators that the loss draws from in training: with `state_dict` they are its whole state."""
        return ()

    @abstractmethod
    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss, a scalar without the weight that YAML gives it."""


def mean(terms: Iterable[Tensor]) -> Tensor:
    """Return the mean of scalars: of the same loss over several teachers or layers."""
    return torch.stack(list(terms)).mean()


def required_shapes(shapes: FeatureShapes | None, loss: str) -> FeatureShapes:
    """Return the shapes, which every loss that looks at features is built from.

    Raises:
        ValueError: there are none (a defect in the code that builds the loss).
    """
    if shapes is None:
        raise ValueError(f"{loss} needs the shapes of the feature maps")
    return shapes


def one_a_teacher(build: Callable[[S], nn.Module], teachers: Iterable[S], seed: int, name: str) -> nn.ModuleList:
    """Return a module for each teacher, with weights of its own that are a function of `seed` alone.

    Args:
        build: from what it must know of a teacher, such as a shape.
        teachers: that, by teacher.
        seed: of the loss.
        name: what the modules are, unlike what else the loss draws by its seed.
    """
    return nn.ModuleList(
        [
            seeded_module(partial(build, teacher), derive_seed(seed, name, index))
            for index, teacher in enumerate(teachers)
        ]
    )


def seeded_module(build: Callable[[], M], seed: int) -> M:
    """Return a module whose weights are a function of `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()
