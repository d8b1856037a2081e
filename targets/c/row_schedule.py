"""In which order layers compute their rows in turns, so that of the tensors between them few rows exist at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Reading:
    """Which rows of a tensor a layer reads: for its row y those from y * stride - before on, `span` of them.

    Args:
        tensor: its name.
        height: rows that it has; those outside of it are padding.
        stride: 0 where all rows of the output read the same.
        before: rows of padding above.
        span: rows under a window.
    """

    tensor: str
    height: int
    stride: int = 1
    before: int = 0
    span: int = 1

    def first(self, row: int) -> int:
        """Return the first row that output row `row` and those after it read."""
        return min(self.height, max(0, row * self.stride - self.before))

    def end(self, rows: int) -> int:
        """Return how many rows must be there for the first `rows` of the output."""
        return min(self.height, max(0, (rows - 1) * self.stride - self.before + self.span)) if rows else 0


@dataclass(frozen=True)
class RowLayer:
    """A layer that can be computed by rows.

    Args:
        name: of its output.
        height: rows of its output.
        step: how many of them it computes at a time; the last time it may be fewer.
        readings: of its inputs.
        keeps: whether it copies the rows that it reads before it writes, and reads none twice.
        elementwise: whether a value may be written over those that it is computed from.
    """

    name: str
    height: int
    step: int
    readings: tuple[Reading, ...]
    keeps: bool = False
    elementwise: bool = False

    def oldest(self, reading: Reading, done: int) -> int:
        """Return the first row that it still reads when `done` of its rows are computed."""
        if done >= self.height:
            return reading.height
        return max(reading.first(done), reading.end(done)) if self.keeps else reading.first(done)


@dataclass(frozen=True)
class Turns:
    """Which layer's turn it is, folded: most turns are one round that comes again and again.

    Args:
        listed: indices of layers.
        first: where the round begins in `listed`.
        last: where it ends, itself included.
        again: how often it is repeated.
    """

    listed: tuple[int, ...]
    first: int
    last: int
    again: int

    def unfolded(self) -> tuple[int, ...]:
        """Return every turn."""
        end = self.last + 1
        return self.listed[:end] + self.listed[self.first : end] * self.again + self.listed[end:]


def fold_turns(turns: Sequence[int]) -> Turns:
    """List the turns as shortly as one round allows."""
    found = Turns(tuple(turns), 0, 0, 0)
    for length in range(1, len(turns) // 2 + 1):
        # How many turns, up to each one, equal those one round before.
        equal = 0
        for end in range(length, len(turns)):
            equal = equal + 1 if turns[end] == turns[end - length] else 0
            again = equal // length
            if again * length > found.again * (found.last - found.first + 1):
                first = end + 1 - (again + 1) * length
                listed = (*turns[: first + length], *turns[end + 1 :])
                found = Turns(listed, first, first + length - 1, again)
    return found


@dataclass(frozen=True)
class RowSchedule:
    """Turns of layers.

    Args:
        turns: indices of layers; each computes its next rows.
        rings: by layer, how many rows of its output must be kept at a time if only these layers read it: row y lies in
            row y modulo that many. A multiple of the rows that it computes at a time, or all; all of what none reads.
    """

    turns: tuple[int, ...]
    rings: Mapping[str, int]


def schedule_rows(layers: Sequence[RowLayer]) -> RowSchedule:
    """Let every layer compute its rows as late as they are needed, and all of them in the end.

    Args:
        layers: in an order in which those that read others come after them.
    """
    index = {layer.name: number for number, layer in enumerate(layers)}
    readers: dict[str, list[tuple[int, Reading]]] = {layer.name: [] for layer in layers}
    for number, layer in enumerate(layers):
        for reading in layer.readings:
            if reading.tensor in readers:
                readers[reading.tensor].append((number, reading))
    done = [0] * len(layers)
    rings = [0] * len(layers)
    turns: list[int] = []

    def compute(number: int) -> None:
        layer = layers[number]
        rows = min(layer.height, done[number] + layer.step)
        for reading in layer.readings:
            source = index.get(reading.tensor)
            while source is not None and done[source] < reading.end(rows):
                compute(source)
        needed = (layers[reader].oldest(reading, done[reader]) for reader, reading in readers[layer.name])
        rings[number] = max(rings[number], rows - min(needed, default=0))
        done[number] = rows
        turns.append(number)

    # Results go forward side by side.
    results = [number for number, layer in enumerate(layers) if not readers[layer.name]]
    while left := [number for number in results if done[number] < layers[number].height]:
        compute(min(left, key=lambda number: done[number] / layers[number].height))
    for number, layer in enumerate(layers):
        while done[number] < layer.height:
            compute(number)
    return RowSchedule(
        tuple(turns),
        {
            layer.name: _ring(layer, rings[number], [reading for _, reading in readers[layer.name]])
            for number, layer in enumerate(layers)
        },
    )


def _ring(layer: RowLayer, rows: int, readings: Sequence[Reading]) -> int:
    # A reader goes around at most once with a step.
    rows = max([rows, *(reading.stride for reading in readings)])
    return min(layer.height, -(-rows // layer.step) * layer.step)


@dataclass(frozen=True)
class RowChain:
    """Neighbouring layers of a program that are computed by rows, in turns.

    Args:
        first: the first one's number in the program.
        layers: in the program's order.
    """

    first: int
    layers: tuple[RowLayer, ...]

    @property
    def last(self) -> int:
        """The last layer's number in the program."""
        return self.first + len(self.layers) - 1

    @cached_property
    def schedule(self) -> RowSchedule:
        """Their turns."""
        return schedule_rows(self.layers)

    def stays_behind(self, source: str, target: str, rows: tuple[int, int]) -> bool:
        """Return whether a layer's output may lie over a tensor that others made, both from the same byte on.

        Args:
            source: name of the tensor, which is there before the first turn.
            target: name of the layer.
            rows: bytes of a row of the tensor, and of one of the layer's output.
        """
        readers = [
            (number, reading)
            for number, layer in enumerate(self.layers)
            for reading in layer.readings
            if reading.tensor == source
        ]
        done = [0] * len(self.layers)
        for number in self.schedule.turns:
            layer = self.layers[number]
            before = done[number]
            done[number] = min(layer.height, before + layer.step)
            if layer.name != target:
                continue
            copies = layer.keeps or (layer.elementwise and rows[0] == rows[1])
            for reader, reading in readers:
                read = before if reader == number and not copies else done[reader]
                if done[number] * rows[1] > self.layers[reader].oldest(reading, read) * rows[0]:
                    return False
        return True
