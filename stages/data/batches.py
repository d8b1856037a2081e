"""Images that stay in memory, cut into batches without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class TensorBatches:
    """Tensors of equal length, shuffled anew at every iteration and cut into batches.

    The last, smaller batch is left out while training, because batch norm needs its size; when there are fewer
    rows than one batch holds, all of them are the one batch.

    Args:
        tensors: each [N, ...]; a batch is a tuple of the same rows of each.
        batch_size: rows in a batch.
        generator: a CPU generator, the only source of randomness.
        augment: changes the first tensor's rows, [B, C, H, W] to the same shape.
        device: where the batches are sent.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        generator: torch.Generator,
        *,
        augment: Augmentation | None = None,
        device: torch.device | None = None,
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

    def __len__(self) -> int:
        return self._length // self._batch_size if self._length else 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(self._length, generator=self._generator)
        for index in range(len(self)):
            rows = order[index * self._batch_size : (index + 1) * self._batch_size]
            batch = [tensor[rows] for tensor in self._tensors]
            if self._augment is not None:
                batch[0] = self._augment(batch[0], self._generator)
            yield tuple(tensor if self._device is None else tensor.to(self._device) for tensor in batch)


def shift(pixels: int, *, fill: Sequence[float] = (0,)) -> Augmentation:
    """Return the augmentation that moves each image by up to `pixels` in both directions.

    Args:
        pixels: at least 0; each of the (2 * pixels + 1)**2 moves is equally likely.
        fill: what moves in from outside: a number for all channels, or one for each.
    """

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = images.shape
        outside = torch.tensor(fill, dtype=images.dtype).view(1, -1, 1, 1)
        padded = outside.expand(count, channels, height + 2 * pixels, width + 2 * pixels).clone()
        padded[:, :, pixels : pixels + height, pixels : pixels + width] = images
        moves = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
        rows = (moves[0] + torch.arange(height))[:, None, :, None]
        columns = (moves[1] + torch.arange(width))[:, None, None, :]
        image = torch.arange(count)[:, None, None, None]
        channel = torch.arange(channels)[None, :, None, None]
        return padded[image, channel, rows, columns]

    return apply
