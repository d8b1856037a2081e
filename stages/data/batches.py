"""Images that stay in memory, cut into batches without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from kdpipe.stages.training.parallel import ALONE, Parallel
from kdpipe.targets.errors import DataError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class TensorBatches:
    """Tensors of equal length, shuffled anew at every iteration and cut into batches.

    The last, smaller batch is left out while training, because batch norm needs its size; when there are fewer
    rows than one batch holds, all of them are the one batch. Of several processes each gets a part of every batch,
    whose rows and augmentation do not depend on how many there are.

    Args:
        tensors: each [N, ...]; a batch is a tuple of the same rows of each.
        batch_size: rows in a batch.
        generator: a CPU generator, the only source of randomness.
        augment: changes the first tensor's rows, [B, C, H, W] to the same shape.
        device: where the batches are sent.
        parallel: the process.

    Raises:
        DataError: there are fewer rows than processes.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        generator: torch.Generator,
        *,
        augment: Augmentation | None = None,
        device: torch.device | None = None,
        parallel: Parallel = ALONE,
    ) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise ValueError(f"tensors of different lengths: {sorted(lengths)}")
        self._tensors = tuple(tensors)
        self._length = lengths.pop()
        self._batch_size = min(batch_size, self._length)
        self._generator = generator
        self._augment = augment
        self._device = device
        self._part = parallel.rows(self._batch_size)
        if 0 < self._batch_size < parallel.count:
            raise DataError(f"{self._length} images can't be shared by {parallel.count} processes")

    @property
    def share(self) -> float:
        """The part of each batch's rows that this process gets, in (0, 1]."""
        return (self._part.stop - self._part.start) / self._batch_size if self._batch_size else 1.0

    def __len__(self) -> int:
        return self._length // self._batch_size if self._length else 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(self._length, generator=self._generator)
        for index in range(len(self)):
            rows = order[index * self._batch_size : (index + 1) * self._batch_size]
            own = rows[self._part]
            if self._augment is None:
                first = self._tensors[0][own]
            else:
                first = self._augment(self._tensors[0][rows], self._generator)[self._part]
            batch = [first, *(tensor[own] for tensor in self._tensors[1:])]
            yield tuple(tensor if self._device is None else tensor.to(self._device) for tensor in batch)


def shift(pixels: int, *, fill: Sequence[float] = (0,)) -> Augmentation:
    """Return the augmentation that moves each image by up to `pixels` in both directions.

    Args:
        pixels: at least 0; each of the (2 * pixels + 1)**2 moves is equally likely.
        fill: what moves in from outside: a number for all channels, or one for each.
    """

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = images.shape
        outside = torch.tensor(fill, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
        padded = outside.expand(count, channels, height + 2 * pixels, width + 2 * pixels).clone()
        padded[:, :, pixels : pixels + height, pixels : pixels + width] = images
        moves = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator).squeeze(2)
        # a view of every window, of which each image takes one: whole rows are copied, not single pixels
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(count), :, moves[0], moves[1]].contiguous()

    return apply


def flip() -> Augmentation:
    """Return the augmentation that mirrors each image left to right with probability 1/2."""

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)

    return apply


def augmentation(pixels: int, mirror: bool, *, fill: Sequence[float] = (0,)) -> Augmentation | None:
    """Return `shift` by up to `pixels`, and then `flip` if `mirror` is set; None where nothing is left to do."""
    steps = [shift(pixels, fill=fill)] if pixels else []
    if mirror:
        steps.append(flip())
    if not steps:
        return None

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
        return images

    return apply
