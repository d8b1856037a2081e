"""The images that a student learns on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kdpipe.stages.artifacts import ImageSpace, load_samples, load_split, renormalize
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
    labels = None
    if artifact.kind == "split":
        split = load_split(artifact.path)
        found, images, labels = split.space, split.normalized(), split.labels
    else:
        samples = load_samples(artifact.path)
        found, images = samples.space, samples.images
    if found.shape != space.shape:
        raise DataError(f"images of shape {list(found.shape)} for networks that see {list(space.shape)}")
    if len(found.classes) != len(space.classes):
        raise DataError(f"the images have {len(found.classes)} classes, the networks {len(space.classes)}")
    return TrainingImages(renormalize(images, found, space), labels)
