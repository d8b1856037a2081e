"""What a network is quantized on: images, labels, and what teachers say about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdpipe.stages.artifacts import ImageSpace
from kdpipe.stages.base import Artifact
from kdpipe.stages.data.batches import Augmentation, augmentation
from kdpipe.stages.data.stored_images import StoredImages, store_images
from kdpipe.stages.training.ensemble import TeacherEnsemble, load_teachers
from kdpipe.stages.training.metrics import predict
from kdpipe.targets.errors import DataError


@dataclass(frozen=True)
class QuantizationImages:
    """Images with labels, and the teachers' mean logits about them where losses need these.

    Args:
        images: N images.
        labels: int64 [N]: true ones, or the teachers' choice.
        augment: what each batch of `images.pixels` is changed by.
        logits: [N, K] of the images as they are.
        teachers: asked about each batch instead, because augmentation changes the images.
    """

    images: StoredImages
    labels: Tensor
    augment: Augmentation | None
    logits: Tensor | None
    teachers: TeacherEnsemble | None

    def tensors(self) -> Sequence[Tensor]:
        """Return what is cut into batches: pixels, labels and, where they are known, logits."""
        return [self.images.pixels, self.labels, *([] if self.logits is None else [self.logits])]

    def first(self, count: int) -> QuantizationImages:
        """Return the first `count` of them, or all."""
        logits = self.logits[:count] if self.logits is not None else None
        images = replace(self.images, pixels=self.images.pixels[:count])
        return replace(self, images=images, labels=self.labels[:count], logits=logits)

    @torch.no_grad()
    def said(self, pixels: Tensor, known: Sequence[Tensor]) -> Tensor:
        """Return the teachers' logits [B, K] about a batch; [B, 0] without teachers."""
        if known:
            return known[0]
        if self.teachers is None:
            return torch.zeros(len(pixels), 0, device=pixels.device)
        return self.teachers(self.images.seen(pixels, self.teachers.space))


def load_images(
    samples: Artifact,
    teachers: Artifact | None,
    space: ImageSpace,
    *,
    asked_by: str | None,
    shift: int,
    flip: bool,
    device: torch.device,
) -> QuantizationImages:
    """Read what a network of `space` is quantized on.

    Args:
        samples: a split, or synthesized images.
        teachers: an ensemble or a network, or None.
        space: what the network sees.
        asked_by: a loss that needs what teachers say; None: no loss does.
        shift: augmentation, see `augmentation`.
        flip: likewise.
        device: where teachers compute.

    Raises:
        DataError: the images or the teachers don't fit the network, or a loss needs teachers and there are none.
    """
    images, labels, logits = store_images(samples, space)
    _check_fit(images.given, space, "images")
    augment = augmentation(shift, flip, fill=images.black)
    if asked_by is None:
        return QuantizationImages(images, labels, augment, None, None)
    ensemble = _load_teachers(teachers, space, device)
    if augment is not None:
        if ensemble is None:
            raise DataError(
                f"{asked_by} needs what the teachers say about each image as shift and flip changed it",
                remedy="Give `teachers`, or leave out shift and flip",
            )
        return QuantizationImages(images, labels, augment, None, ensemble)
    if logits is None and ensemble is not None:
        logits = predict(ensemble, replace(images, wanted=ensemble.space))
    if logits is None:
        raise DataError(
            f"{asked_by} needs what the teachers say about the images", remedy="Give `teachers`, or use ce alone"
        )
    return QuantizationImages(images, labels, None, logits, None)


def _load_teachers(artifact: Artifact | None, space: ImageSpace, device: torch.device) -> TeacherEnsemble | None:
    if artifact is None:
        return None
    ensemble = load_teachers(artifact)
    _check_fit(ensemble.space, space, "teachers")
    return ensemble.to(device, memory_format=torch.channels_last)


def _check_fit(found: ImageSpace, space: ImageSpace, what: str) -> None:
    if found.shape != space.shape:
        raise DataError(f"{what} of shape {list(found.shape)} for a network that takes {list(space.shape)}")
    if len(found.classes) != len(space.classes):
        raise DataError(f"{what} with {len(found.classes)} classes for a network with {len(space.classes)}")
