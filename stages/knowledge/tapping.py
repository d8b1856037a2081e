"""Where the losses of a stage look into student and teachers: what YAML names, or the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdpipe.stages.artifacts import NetworkDescription
from kdpipe.stages.knowledge.base import FeatureShapes, MapShape
from kdpipe.stages.knowledge.registry import LOSSES, Sight
from kdpipe.stages.knowledge.taps import Seen, Taps, default_layers, matching_paths, observing
from kdpipe.stages.knowledge.teacher_outputs import teacher_outputs
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.targets.errors import NetworkError, placed

Patterns = str | tuple[str, ...]


@dataclass(frozen=True)
class Tapping:
    """The taps of the student and of each teacher."""

    student: Taps
    teachers: tuple[Taps, ...]


def choose_taps(
    losses: Sequence[str],
    student: tuple[nn.Module, NetworkDescription],
    teachers: TeacherEnsemble,
    images: Tensor,
    *,
    student_tap: Patterns | None = None,
    teacher_taps: Sequence[Patterns] | None = None,
) -> Tapping:
    """Return where to look, for the losses that are used.

    Args:
        losses: names of LOSSES. What none of them sees is not tapped.
        student: the network and its description.
        teachers: the ensemble.
        images: a few, as the teachers see them.
        student_tap: paths or patterns from shallow to deep; default: the last map at each resolution, of which the
            deepest ones are paired where a teacher has more or fewer.
        teacher_taps: likewise, for each teacher.

    Raises:
        NetworkError: a path does not exist, there are not as many entries as teachers, or not as many layers of a
            teacher as of the student.
    """
    sees: set[Sight] = {sight for name in losses for sight in LOSSES[name].sees}
    if teacher_taps is not None and len(teacher_taps) != len(teachers):
        raise NetworkError(
            f"teacher_taps names {len(teacher_taps)} modules for {len(teachers)} teachers",
            remedy="Give one path for each teacher",
        )
    given: Sequence[Patterns | None] = [None] * len(teachers) if teacher_taps is None else teacher_taps
    embedding = "embedding" in sees
    if "layers" in sees:
        members = [student[0], *teachers.networks]
        patterns = [student_tap, *given]
        layers = _paired(
            [_paths(*member, images) for member in zip(members, patterns, _fields(len(teachers)), strict=True)],
            chosen=[pattern is not None for pattern in patterns],
        )
        ours, *theirs = [Taps(paths[-1], paths, embedding) for paths in layers]
        return Tapping(ours, tuple(theirs))
    if "feature" in sees:
        own, *fields = _fields(len(teachers))
        networks = zip(teachers.networks, teachers.descriptions, given, fields, strict=True)
        return Tapping(
            Taps(_deepest(*student, student_tap, own, images), (), embedding),
            tuple(Taps(_deepest(*member, images), (), embedding) for member in networks),
        )
    return Tapping(Taps(embedding=embedding), tuple(Taps(embedding=embedding) for _ in teachers.networks))


def tapped_shapes(tapping: Tapping, student: nn.Module, teachers: TeacherEnsemble, images: Tensor) -> FeatureShapes:
    """Find the shapes of what is tapped by a forward pass of a few images, in evaluation mode.

    Raises:
        NetworkError: a tap is no feature map.
    """
    student.eval()  # the images must not reach the batch norms' statistics
    with torch.no_grad(), observing(student, tapping.student) as observer:
        student(images)
        ours = observer.seen()
    said = teacher_outputs(teachers, tapping.teachers, images)
    return FeatureShapes(
        student=_feature_shape(ours),
        teachers=tuple(_feature_shape(seen) for seen in said.seen),
        student_layers=tuple(_chw(layer) for layer in ours.layers),
        teacher_layers=tuple(tuple(_chw(layer) for layer in seen.layers) for seen in said.seen),
        student_embedding=0 if ours.embedding is None else ours.embedding.shape[1],
        teacher_embeddings=tuple(embedding.shape[1] for embedding in said.embeddings),
    )


def _fields(teachers: int) -> list[str]:
    """Return the parameters that the student's and each teacher's taps come from, for messages."""
    return ["student_tap", *(f"teacher_taps.{index}" for index in range(teachers))]


def _paths(network: nn.Module, given: Patterns | None, field: str, images: Tensor) -> tuple[str, ...]:
    if given is None:
        return default_layers(network, images)
    patterns = (given,) if isinstance(given, str) else given
    with placed(field):
        return tuple(dict.fromkeys(path for pattern in patterns for path in matching_paths(network, pattern)))


def _deepest(
    network: nn.Module, description: NetworkDescription, given: Patterns | None, field: str, images: Tensor
) -> str:
    if given is None and description.feature is not None:
        return description.feature
    return _paths(network, given, field, images)[-1]


def _paired(layers: Sequence[tuple[str, ...]], chosen: Sequence[bool]) -> list[tuple[str, ...]]:
    """Make the numbers of layers equal by leaving out shallow ones that nobody named."""
    count = min(map(len, layers))
    named = {len(paths) for paths, by_user in zip(layers, chosen, strict=True) if by_user}
    if len(named) > 1 or (named and min(named) > count):
        found = ", ".join(str(len(paths)) for paths in layers[1:])
        raise NetworkError(
            f"the student has {len(layers[0])} layers to compare, the teachers {found}",
            remedy="Name as many layers in each entry of teacher_taps as in student_tap",
        )
    count = min(named) if named else count
    return [paths[-count:] for paths in layers]


def _feature_shape(seen: Seen) -> MapShape:
    return (0, 0, 0) if seen.feature is None else _chw(seen.feature)


def _chw(feature: Tensor) -> MapShape:
    _, channels, height, width = feature.shape
    return channels, height, width
