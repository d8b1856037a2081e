"""Images as they are kept in memory, and normalized where a network sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.stages.artifacts import ImageSpace, load_samples, load_split, normalize, renormalize
from kdpipe.stages.base import Artifact


@dataclass(frozen=True)
class StoredImages:
    """A split's bytes, or a network's synthesized images.

    Args:
        pixels: [N, C, H, W], uint8, or float32 normalized by `given`.
        given: what the images are normalized by.
        wanted: what the network's are.
    """

    pixels: Tensor
    given: ImageSpace
    wanted: ImageSpace

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def black(self) -> tuple[float, ...]:
        """By channel, what a black pixel is in `pixels`."""
        if self.pixels.dtype == torch.uint8:
            return (0,) * len(self.given.mean)
        return tuple(-mean / std for mean, std in zip(self.given.mean, self.given.std, strict=True))

    def seen(self, pixels: Tensor, by: ImageSpace | None = None) -> Tensor:
        """Return a batch of `pixels`, augmented or not, as a network of the space `by` (or `wanted`) sees it.

        Its channels lie last in memory, in which order convolutions are faster.
        """
        space = by or self.wanted
        seen = normalize(pixels, space) if pixels.dtype == torch.uint8 else renormalize(pixels, self.given, space)
        return seen.contiguous(memory_format=torch.channels_last)

    def first(self, count: int) -> Tensor:
        """Return the first images as the network sees them."""
        return self.seen(self.pixels[:count])

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all images in order as the network sees them, as Tensor.split cuts them."""
        for chunk in self.pixels.split(batch_size):
            yield self.seen(chunk)


def store_images(artifact: Artifact, wanted: ImageSpace | None = None) -> tuple[StoredImages, Tensor, Tensor | None]:
    """Read a split or samples.

    Args:
        artifact: of kind split or samples.
        wanted: what the network sees; None: the images as they are given.

    Returns:
        The images; int64 labels [N], for samples the teachers' choice; samples' logits [N, K].
    """
    if artifact.kind == "split":
        split = load_split(artifact.path)
        return StoredImages(split.images, split.space, wanted or split.space), split.labels, None
    samples = load_samples(artifact.path)
    return (
        StoredImages(samples.images, samples.space, wanted or samples.space),
        samples.logits.argmax(dim=1),
        samples.logits,
    )
