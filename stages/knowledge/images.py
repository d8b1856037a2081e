"""The images that a student learns on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdpipe.stages.artifacts import ImageSpace
from kdpipe.stages.base import Artifact
from kdpipe.stages.data.stored_images import StoredImages, store_images
from kdpipe.targets.errors import DataError


@dataclass(frozen=True)
class TrainingImages:
    """Images that teachers see.

    Args:
        images: N images, and how the teachers see them.
        labels: int64 [N], or None for synthesized ones.
        space: the teachers', and behind their classes any further ones of the images.
    """

    images: StoredImages
    labels: Tensor | None
    space: ImageSpace


def load_images(artifact: Artifact, space: ImageSpace, *, further: bool = False) -> TrainingImages:
    """Read samples or a split, checked against what the teachers see.

    Args:
        artifact: samples or a split.
        space: the teachers'.
        further: a split's classes may be others than the teachers know. Then they are told apart by name; otherwise
            they must be as many, and are the same by their order.

    Raises:
        DataError: the images have another shape, or other classes, than the teachers know.
    """
    images, truth, logits = store_images(artifact, space)
    found, labels = images.given, truth if logits is None else None
    if found.shape != space.shape:
        raise DataError(f"images of shape {list(found.shape)} for networks that see {list(space.shape)}")
    if further and labels is not None:
        classes = tuple(dict.fromkeys([*space.classes, *found.classes]))
        labels = torch.tensor([classes.index(name) for name in found.classes])[labels]
        space = replace(space, classes=classes)
    elif len(found.classes) != len(space.classes):
        raise DataError(f"the images have {len(found.classes)} classes, the networks {len(space.classes)}")
    return TrainingImages(images, labels, space)
