"""Where each intermediate tensor lies in the arena: buffers that live at the same time must not overlap.

One exception: a kernel that works in place may write its output where a dying input begins.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 4
_ATTEMPTS = 400
_SEED = 0


@dataclass(frozen=True)
class Buffer:
    """A piece of memory with a lifetime.

    Args:
        name: unique among the buffers planned together.
        size: bytes, at least 0.
        first: the step that writes it.
        last: the last step that reads it; at least `first`. Both steps belong to the lifetime.
        over: names of buffers whose `last` is in the lifetime, and of which one may begin where this one begins.
    """

    name: str
    size: int
    first: int
    last: int
    over: tuple[str, ...] = ()

    @property
    def aligned_size(self) -> int:
        """Bytes that it takes in the arena."""
        return -(-self.size // ALIGNMENT) * ALIGNMENT

    def overlaps(self, other: Buffer) -> bool:
        """Return whether both live at some step."""
        return self.first <= other.last and other.first <= self.last

    def may_begin_with(self, other: Buffer) -> bool:
        """Return whether the two may have one offset although both live at some step."""
        return other.name in self.over or self.name in other.over


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets of all buffers in one arena.

    Args:
        offsets: bytes from the arena's start, multiples of `ALIGNMENT`.
        buffers: what was placed.
        size: bytes of the arena.
        lower_bound: bytes that live at once at the fullest step; no plan can be smaller.
    """

    offsets: Mapping[str, int]
    buffers: tuple[Buffer, ...]
    size: int
    lower_bound: int

    def live_bytes(self, step: int) -> int:
        """Return the bytes that must be there at `step`."""
        return live_bytes(self.buffers, step)


def live_bytes(buffers: Sequence[Buffer], step: int) -> int:
    """Return the fewest bytes that hold what lives at `step`: what may share its memory counts once."""
    living = {buffer.name: buffer for buffer in buffers if buffer.first <= step <= buffer.last}
    total = sum(buffer.aligned_size for buffer in living.values())
    for buffer in living.values():
        shared = (min(buffer.aligned_size, living[name].aligned_size) for name in buffer.over if name in living)
        total -= max(shared, default=0)
    return total


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """Return the bytes of the largest live set, below which no plan can be."""
    return max((live_bytes(buffers, buffer.first) for buffer in buffers), default=0)


def plan_memory(buffers: Sequence[Buffer]) -> MemoryPlan:
    """Place `buffers` in an arena as small as a search over orders makes it.

    Each order places one buffer after the other into the smallest gap that fits, between those already placed that
    live at the same time (greedy by size: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
    Inference", 2020), or over a buffer that it may begin with. Where the best of four such orders is above the lower
    bound, two of its buffers change places at random, again and again, and what is no worse is kept. All is
    reproducible: the random numbers have a fixed seed, and equal plans resolve to the first.
    """
    bound = lower_bound(buffers)
    orders: list[Callable[[Buffer], tuple[int, ...]]] = [
        lambda buffer: (-buffer.size, buffer.first),
        lambda buffer: (-buffer.size * (buffer.last - buffer.first + 1), buffer.first),
        lambda buffer: (buffer.first, -buffer.size),
        lambda buffer: (-buffer.last, -buffer.size),
    ]
    plans = [(_place(order), order) for order in (sorted(buffers, key=order) for order in orders)]
    (offsets, size), best = min(plans, key=lambda plan: plan[0][1])
    generator = random.Random(_SEED)  # noqa: S311 - no secret
    for _ in range(_ATTEMPTS):
        if size == bound:
            break
        tried = list(best)
        one, other = generator.randrange(len(tried)), generator.randrange(len(tried))
        tried[one], tried[other] = tried[other], tried[one]
        found = _place(tried)
        if found[1] <= size:
            (offsets, size), best = found, tried
    return MemoryPlan(offsets, tuple(buffers), size, bound)


def _place(buffers: Sequence[Buffer]) -> tuple[dict[str, int], int]:
    placed: list[tuple[int, Buffer]] = []
    for buffer in buffers:
        neighbours = [(offset, other) for offset, other in placed if buffer.overlaps(other)]
        neighbours.sort(key=lambda neighbour: neighbour[0])
        placed.append((_best_offset(buffer, neighbours), buffer))
    size = max((offset + buffer.aligned_size for offset, buffer in placed), default=0)
    return {buffer.name: offset for offset, buffer in placed}, size


def _best_offset(buffer: Buffer, neighbours: Sequence[tuple[int, Buffer]]) -> int:
    """Return where a neighbour begins that it may begin with, or the start of the smallest gap, or else the end."""
    for offset, partner in neighbours:
        others = [neighbour for neighbour in neighbours if neighbour[1] is not partner]
        if buffer.may_begin_with(partner) and _fits(buffer, offset, others):
            return offset
    best: tuple[int, int] | None = None
    end = 0
    for start, other in neighbours:
        gap = start - end
        if gap >= buffer.aligned_size and (best is None or gap < best[0]):
            best = (gap, end)
        end = max(end, start + other.aligned_size)
    return best[1] if best else end


def _fits(buffer: Buffer, offset: int, neighbours: Sequence[tuple[int, Buffer]]) -> bool:
    return all(
        offset + buffer.aligned_size <= start
        or start + other.aligned_size <= offset
        or (start == offset and buffer.may_begin_with(other))
        for start, other in neighbours
    )
