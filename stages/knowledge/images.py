"""The images that a student learns on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.stages.artifacts import ImageSpace, load_samples, load_split
from kdpipe.stages.base import Artifact
from kdpipe.targets.errors import DataError


@dataclass(frozen=True)
class TrainingImages:
    """Images as the teachers see them, float32 [N, C, H, W], and labels [N], or None for synthesized ones."""

    images: Tensor
    labels: Tensor | None


def load_images(artifact: Artifact, space: ImageSpace) -> TrainingImages:
    """Read samples or a split, checked against what the teachers see and normalized as they are used to.

    Raises:
        DataError: the images have another shape, or other classes, than the teachers know.
    """
    if artifact.kind == "split":
        split = load_split(artifact.path)
        found, result = split.space, TrainingImages(_as_seen(split.normalized(), split.space, space), split.labels)
    else:
        samples = load_samples(artifact.path)
        found, result = samples.space, TrainingImages(_as_seen(samples.images, samples.space, space), None)
    if found.shape != space.shape:
        raise DataError(f"images of shape {list(found.shape)} for teachers that see {list(space.shape)}")
    if len(found.classes) != len(space.classes):
        raise DataError(f"the images have {len(found.classes)} classes, the teachers {len(space.classes)}")
    return result


def _as_seen(images: Tensor, given: ImageSpace, space: ImageSpace) -> Tensor:
    """Convert normalized images from one mean and std to another's."""
    if (given.mean, given.std) == (space.mean, space.std) or len(given.mean) != len(space.mean):
        return images

    def by_channel(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)

    pixels = images * by_channel(given.std) + by_channel(given.mean)
    return (pixels - by_channel(space.mean)) / by_channel(space.std)
