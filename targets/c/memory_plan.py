"""Where each intermediate tensor lies in the arena: buffers that live at the same time must not overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 4


@dataclass(frozen=True)
class Buffer:
    """A piece of memory with a lifetime.

    Args:
        name: unique among the buffers planned together.
        size: bytes, at least 0.
        first: the step that writes it.
        last: the last step that reads it; at least `first`. Both steps belong to the lifetime.
    """

    name: str
    size: int
    first: int
    last: int

    def overlaps(self, other: Buffer) -> bool:
        """Return whether both live at some step."""
        return self.first <= other.last and other.first <= self.last


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
        """Return the bytes of the buffers that live at `step`."""
        return sum(_aligned(buffer.size) for buffer in self.buffers if buffer.first <= step <= buffer.last)


def plan_memory(buffers: Sequence[Buffer]) -> MemoryPlan:
    """Place `buffers` in an arena as small as a few greedy orders make it.

    Each order places one buffer after the other into the smallest gap that fits, between those already placed that
    live at the same time (greedy by size: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
    Inference", 2020). The best of the orders is kept; equal ones resolve to the first, so plans are reproducible.
    """
    orders: list[Callable[[Buffer], tuple[int, ...]]] = [
        lambda buffer: (-buffer.size, buffer.first),
        lambda buffer: (-buffer.size * (buffer.last - buffer.first + 1), buffer.first),
        lambda buffer: (buffer.first, -buffer.size),
        lambda buffer: (-buffer.last, -buffer.size),
    ]
    plans = [_place(sorted(buffers, key=order)) for order in orders]
    offsets, size = min(plans, key=lambda plan: plan[1])
    return MemoryPlan(offsets, tuple(buffers), size, _lower_bound(buffers))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _place(buffers: Sequence[Buffer]) -> tuple[dict[str, int], int]:
    placed: list[tuple[int, Buffer]] = []
    for buffer in buffers:
        placed.append((_best_gap(buffer, sorted(_neighbours(buffer, placed))), buffer))
    size = max((offset + _aligned(buffer.size) for offset, buffer in placed), default=0)
    return {buffer.name: offset for offset, buffer in placed}, size


def _neighbours(buffer: Buffer, placed: Sequence[tuple[int, Buffer]]) -> list[tuple[int, int]]:
    return [(offset, offset + _aligned(other.size)) for offset, other in placed if buffer.overlaps(other)]


def _best_gap(buffer: Buffer, occupied: Sequence[tuple[int, int]]) -> int:
    """Return the start of the smallest gap between `occupied` (sorted) that fits, or else their end."""
    best: tuple[int, int] | None = None
    end = 0
    for start, stop in occupied:
        gap = start - end
        if gap >= _aligned(buffer.size) and (best is None or gap < best[0]):
            best = (gap, end)
        end = max(end, stop)
    return best[1] if best else end


def _lower_bound(buffers: Sequence[Buffer]) -> int:
    return max(
        (
            sum(_aligned(buffer.size) for buffer in buffers if buffer.first <= start.first <= buffer.last)
            for start in buffers
        ),
        default=0,
    )
