"""The images that a student learns on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdpipe.stages.artifacts import ImageSpace, load_samples, load_split, renormalize
from kdpipe.stages.base import Artifact
from kdpipe.targets.errors import DataError


@dataclass(frozen=True)
class TrainingImages:
    """Images as the teachers see them.

    Args:
        images: float32 [N, C, H, W].
        labels: int64 [N], or None for synthesized ones.
        space: the teachers', and behind their classes any further ones of the images.
    """

    images: Tensor
    labels: Tensor | None
    space: ImageSpace


def load_images(artifact: Artifact, space: ImageSpace, *, further: bool = False) -> TrainingImages:
    """Read samples or a split, checked against what the teachers see and normalized as they are used to.

    Args:
        artifact: samples or a split.
        space: the teachers'.
        further: a split's classes may be others than the teachers know. Then they are told apart by name; otherwise
            they must be as many, and are the same by their order.

    Raises:
        DataError: the images have another shape, or other classes, than the teachers know.
    """
    labels = None
    if artifact.kind == "split":
        split = load_split(artifact.path)
        found, images, labels = split.space, split.normalized(), split.labels
    else:
        samples = load_samples(artifact.path)
        found, images = samples.space, samples.images
    if found.shape != space.shape:
        raise DataError(f"images of shape {list(found.shape)} for networks that see {list(space.shape)}")
    if further and labels is not None:
        classes = tuple(dict.fromkeys([*space.classes, *found.classes]))
        labels = torch.tensor([classes.index(name) for name in found.classes])[labels]
        space = replace(space, classes=classes)
    elif len(found.classes) != len(space.classes):
        raise DataError(f"the images have {len(found.classes)} classes, the networks {len(space.classes)}")
    return TrainingImages(renormalize(images, found, space), labels, space)
