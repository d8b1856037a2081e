"""Splits from labelled images: what is held out for validation, and how pixels are normalized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdpipe.stages.artifacts import ImageSpace, Split, save_split
from kdpipe.stages.base import Outcome, StageContext
from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPLIT_SEED = 0
"""Splits are the same whatever the seed is, so that figures of different seeds can be compared."""

_CHUNK = 4096


def stratified_choice(labels: Tensor, count: int, *, seed: int = SPLIT_SEED) -> Tensor:
    """Choose `count` of N rows at random, every class as near to its share as whole numbers allow.

    Args:
        labels: int64 [N], from 0.
        count: in [0, N].
        seed: of the choice.

    Returns:
        The chosen rows' indices, ascending, int64 [count].
    """
    import torch

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    of_class = [order[labels[order] == label] for label in range(int(labels.max()) + 1)] if len(labels) else []
    shares = [count * len(rows) / max(len(labels), 1) for rows in of_class]
    taken = [int(share) for share in shares]
    # largest remainders first, the lower class where they are equal
    by_remainder = sorted(range(len(shares)), key=lambda label: (taken[label] - shares[label], label))
    for label in by_remainder[: count - sum(taken)]:
        taken[label] += 1
    chosen = [rows[:size] for rows, size in zip(of_class, taken, strict=True)]
    return torch.cat(chosen).sort().values if chosen else torch.zeros(0, dtype=torch.int64)


def hold_out(images: Tensor, labels: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Part images [N, ...] and labels [N] into ((those left), (`count` held out)), stratified.

    Raises:
        DataError: none would be left.
    """
    import torch

    if count >= len(labels):
        raise DataError(
            f"{count} images can't be held out for validation: there are {len(labels)} to train on",
            remedy="Lower `validation`",
        )
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[stratified_choice(labels, count)] = True
    return (images[~held], labels[~held]), (images[held], labels[held])


def reduce_to(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` of images [N, ...] and labels [N], stratified.

    Raises:
        DataError: there are fewer.
    """
    if count > len(labels):
        raise DataError(f"train_images is {count}, but {len(labels)} are left to train on")
    chosen = stratified_choice(labels, count)
    return images[chosen], labels[chosen]


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation by channel of the pixels, in [0, 1], of uint8 images [N, C, H, W]."""
    import torch

    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(_CHUNK):
        unit = chunk.to(torch.float64) / 255
        total += unit.sum(dim=(0, 2, 3))
        squares += unit.square().sum(dim=(0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def write_splits(context: StageContext, splits: Mapping[str, tuple[Tensor, Tensor]], classes: Sequence[str]) -> Outcome:
    """Write splits whose pixels are normalized by the statistics of `train`, and return their sizes.

    Files lie class by class. Every split is mixed, always in the same way, so that its first images, on which clips are
    calibrated and networks compared, are of all classes.

    Args:
        context: of the stage, whose outputs are the splits.
        splits: by name, uint8 [N, C, H, W] and int64 [N]; `train` among them.
        classes: a name for each label.

    Raises:
        DataError: a split is empty, a label is no class, or a channel has the same value everywhere.
    """
    import torch

    train = splits["train"][0]
    if len(train) == 0:
        raise DataError("there is no image to train on")
    mean, std = channel_statistics(train)
    if min(std) <= 0:
        raise DataError("all pixels of a channel are equal: there is nothing to learn from")
    channels, height, width = train.shape[1:]
    space = ImageSpace((channels, height, width), tuple(classes), mean, std)
    for name, (images, labels) in splits.items():
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
        save_split(context.output(name), Split(name, images[order], labels[order], space))
    return Outcome(metrics={f"{name}_images": len(labels) for name, (_, labels) in splits.items()})


def as_labels(labels: Sequence[int]) -> torch.Tensor:
    """Return labels as int64 [N]."""
    import torch

    return torch.tensor(labels, dtype=torch.int64)
