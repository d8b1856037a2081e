"""For tests of losses: what a student and three teachers of other shapes say, and how losses are built."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdpipe.stages.knowledge.base import FeatureShapes, Knowledge, Said
from kdpipe.stages.knowledge.registry import LOSSES

IMAGES, CLASSES = 6, 4
# fsp needs equal channels in student and teachers; sizes differ, and so do the embeddings
SHAPES = FeatureShapes(
    student=(6, 2, 2),
    teachers=((6, 2, 2), (6, 4, 4), (6, 2, 2)),
    student_layers=((4, 4, 4), (6, 2, 2)),
    teacher_layers=(((4, 4, 4), (6, 2, 2)), ((4, 8, 8), (6, 4, 4)), ((4, 4, 4), (6, 2, 2))),
    student_embedding=5,
    teacher_embeddings=(5, 7, 9),
    images=20,
)


def make_knowledge(seed: int = 0, teachers: int = 3, progress: float = 0.0) -> Knowledge:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int, ours: bool = False) -> torch.Tensor:
        return torch.randn(*shape, generator=g).requires_grad_(ours)

    layers = tuple(draw(IMAGES, *shape, ours=True) for shape in SHAPES.student_layers)
    theirs = tuple(tuple(draw(IMAGES, *shape) for shape in shapes) for shapes in SHAPES.teacher_layers[:teachers])
    return Knowledge(
        student_logits=draw(IMAGES, CLASSES, ours=True),
        student_feature=layers[-1],
        teacher_logits=2 * draw(teachers, IMAGES, CLASSES),
        teacher_features=[maps[-1] for maps in theirs],
        labels=torch.tensor([0, 1, 2, 3, 1, 0]),
        student_layers=layers,
        teacher_layers=theirs,
        student_embedding=draw(IMAGES, SHAPES.student_embedding, ours=True),
        teacher_embeddings=[draw(IMAGES, size) for size in SHAPES.teacher_embeddings[:teachers]],
        indices=torch.tensor([3, 7, 1, 19, 0, 12]),
        progress=progress,
    )


def make_teachers() -> list[nn.Module]:
    """Return networks whose classifiers take the mean of the teachers' last maps."""
    networks: list[nn.Module] = []
    for index, (channels, *_) in enumerate(SHAPES.teachers):
        with torch.random.fork_rng():
            torch.manual_seed(100 + index)
            networks.append(nn.Sequential(nn.Linear(channels, CLASSES)).requires_grad_(False))
    return networks


def make_survey():
    """Passes over 20 images, of which the teachers' maps are low in rank, so that they can be paraphrased."""
    g = torch.Generator().manual_seed(5)
    patterns = [torch.randn(2, *shape, generator=g) for shape in SHAPES.teachers]
    amounts = torch.rand(SHAPES.images, 2, generator=g)
    maps = [torch.einsum("nr,rchw->nchw", amounts, pattern).abs() for pattern in patterns]
    labels = torch.arange(SHAPES.images) % CLASSES

    def survey(generator=None):
        order = torch.arange(SHAPES.images) if generator is None else torch.randperm(SHAPES.images, generator=generator)
        for rows in order.split(8):
            yield Said(torch.zeros(3, len(rows), CLASSES), [m[rows] for m in maps], labels[rows], rows)

    return survey


def build(name: str, shapes: FeatureShapes = SHAPES, seed: int = 0, **values):
    entry = LOSSES[name]
    return entry.build(entry.parameters.model_validate(values), shapes, seed)


@pytest.fixture
def losses() -> SimpleNamespace:
    """The makers above: `losses.build("kd", temperature=2)`, `losses.knowledge(seed=1)`."""
    return SimpleNamespace(
        build=build,
        knowledge=make_knowledge,
        survey=make_survey,
        teachers=make_teachers,
        shapes=SHAPES,
        images=IMAGES,
    )


@pytest.fixture
def numeric() -> Callable[..., float]:
    """A scalar tensor as a number."""
    return lambda value: float(value.detach())
