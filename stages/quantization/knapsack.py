"""The multiple-choice knapsack: one option of each group, the least total loss in a limited total size, exactly.

Groups are taken one after the other. Of the partial choices only those stay that no other beats in both size and loss
(dynamic programming over the sizes that occur), and of these only those that can still lead to less than the best
choice known. The bound is Lagrange's: for any l >= 0

    min { sum loss : sum size <= S }  >=  sum over groups of min (loss + l * size)  -  l * S,

with the l at which choosing by loss + l * size just fits (Sinha and Zoltners 1979, "The multiple-choice knapsack
problem", use the same relaxation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BISECTIONS = 100
_SLACK = 1e-9
"""By how much, relative to the losses, a bound may be above the best choice known: floats are added in any order."""


@dataclass(frozen=True)
class Option:
    """One option of a group: its size, an integer of at least 0, and its loss, a finite number."""

    size: int
    loss: float


def choose(groups: Sequence[Sequence[Option]], capacity: int) -> tuple[int, ...]:
    """Return the index of the chosen option of each group.

    Of several choices with the least loss one of the smallest is returned; the same one each time.

    Args:
        groups: each of at least one option.
        capacity: the largest total size.

    Raises:
        ValueError: even the smallest options are too large together.
    """
    sizes = [np.array([option.size for option in group], dtype=np.int64) for group in groups]
    losses = [np.array([option.loss for option in group], dtype=np.float64) for group in groups]
    least = np.array([size.min() for size in sizes], dtype=np.int64)
    if int(least.sum()) > capacity:
        raise ValueError(f"the smallest options take {int(least.sum())}, more than {capacity}")
    multiplier, best = _relax(sizes, losses, capacity)
    known = sum(float(loss[at]) for loss, at in zip(losses, best, strict=True))
    magnitude = sum(float(np.abs(loss).max()) for loss in losses)
    at_most = known + _SLACK * magnitude

    # what the groups that are still to come add at least: to the size, and to loss + l * size
    room = capacity - _sums_behind(least)
    rest = _sums_behind(
        np.array([(loss + multiplier * size).min() for size, loss in zip(sizes, losses, strict=True)], dtype=np.float64)
    )
    size, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[NDArray[np.int64]] = []
    for index, (own_size, own_loss) in enumerate(zip(sizes, losses, strict=True)):
        grown_size = (size[:, None] + own_size).reshape(-1)
        grown_loss = (loss[:, None] + own_loss).reshape(-1)
        bound = grown_loss + rest[index] + multiplier * (grown_size - capacity)
        kept = np.flatnonzero((grown_size <= room[index]) & (bound <= at_most))
        kept = kept[np.lexsort((grown_loss[kept], grown_size[kept]))]
        # in the order of size, only what has less loss than all before it
        before = np.minimum.accumulate(grown_loss[kept])
        kept = kept[np.concatenate([[True], grown_loss[kept][1:] < before[:-1]])]
        trail.append(kept)
        size, loss = grown_size[kept], grown_loss[kept]

    chosen: list[int] = []
    position = int(loss.argmin())
    for kept, own_size in zip(reversed(trail), reversed(sizes), strict=True):
        position, option = divmod(int(kept[position]), len(own_size))
        chosen.append(option)
    return tuple(reversed(chosen))


def _sums_behind(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return for each position the sum of all values after it."""
    return np.concatenate([np.cumsum(values[::-1])[::-1][1:], np.zeros(1, dtype=values.dtype)])


def _relax(
    sizes: Sequence[NDArray[np.int64]], losses: Sequence[NDArray[np.float64]], capacity: int
) -> tuple[float, list[int]]:
    """Return the multiplier l of the bound, and a choice that fits and is good."""

    def pick(multiplier: float) -> list[int]:
        # of equally good ones the smallest
        return [int(np.lexsort((size, loss + multiplier * size))[0]) for size, loss in zip(sizes, losses, strict=True)]

    def total(choice: Sequence[int]) -> int:
        return sum(int(size[at]) for size, at in zip(sizes, choice, strict=True))

    free = pick(0.0)
    if total(free) <= capacity:
        return 0.0, free
    smallest = [int(np.lexsort((loss, size))[0]) for size, loss in zip(sizes, losses, strict=True)]
    spread = max(float(loss.max() - loss.min()) for loss in losses)
    # at `high` a byte less is worth more than any loss
    low, high, best = 0.0, 2.0 * spread + 1e-300, smallest
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2 if low > 0 else high / 16
        choice = pick(middle)
        if total(choice) <= capacity:
            high, best = middle, choice
        else:
            low = middle
        if high - low <= 1e-12 * high:
            break
    return high, _improve(sizes, losses, capacity, best)


def _improve(
    sizes: Sequence[NDArray[np.int64]], losses: Sequence[NDArray[np.float64]], capacity: int, choice: list[int]
) -> list[int]:
    """Use what room is left: again and again take the option that lowers the loss most."""
    choice = list(choice)
    left = capacity - sum(int(size[at]) for size, at in zip(sizes, choice, strict=True))
    while True:
        gains = [
            (float(loss[at] - loss[other]), index, other)
            for index, (size, loss, at) in enumerate(zip(sizes, losses, choice, strict=True))
            for other in range(len(size))
            if size[other] - size[at] <= left and loss[other] < loss[at]
        ]
        if not gains:
            return choice
        _, index, other = max(gains)
        left -= int(sizes[index][other] - sizes[index][choice[index]])
        choice[index] = other
