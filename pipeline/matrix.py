"""A matrix: one pipeline for every combination of some values and seeds, as types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SEED_AXIS = "seed"
"""What the seeds are called beside the axes."""


@dataclass(frozen=True)
class Axis:
    """One thing that is varied.

    Args:
        name: as in YAML.
        paths: the keys that it sets, such as "stages.student.losses.kd.temperature".
        labels: a short name for each of its values.
    """

    name: str
    paths: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Metric:
    """A figure that the report shows by the axes: `name` of the stage `stage`, as it is called without the matrix."""

    stage: str
    name: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.name}"


@dataclass(frozen=True)
class Cell:
    """One combination.

    Args:
        at: the index of its value on each axis.
        seed: its seed, or None where the matrix has no seeds.
        stages: by the names in YAML, the names that its stages have in the expanded pipeline.
    """

    at: tuple[int, ...]
    seed: int | None
    stages: Mapping[str, str]


@dataclass(frozen=True)
class Matrix:
    """The matrix of an expanded pipeline; its cells are in the order in which they run."""

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    cells: tuple[Cell, ...]

    def coordinates(self, cell: Cell) -> dict[str, str]:
        """Return a cell's values by the names of the axes, the seed last."""
        found = {axis.name: axis.labels[index] for axis, index in zip(self.axes, cell.at, strict=True)}
        return found if cell.seed is None else {**found, SEED_AXIS: str(cell.seed)}

    def size(self) -> str:
        """Return its size in words, such as "temperature 3 x coefficient 2 x 2 seeds = 12 cells"."""
        factors = [f"{axis.name} {len(axis.labels)}" for axis in self.axes]
        if self.seeds:
            factors.append(f"{len(self.seeds)} seed" + ("s" if len(self.seeds) > 1 else ""))
        cells = len(self.cells)
        return f"{' x '.join(factors)} = {cells} cell" + ("s" if cells > 1 else "")


@dataclass(frozen=True)
class Variant:
    """Where a stage of an expanded pipeline comes from.

    Args:
        base: its name in YAML.
        coordinates: its values on the axes that make a difference to it, by their names.
    """

    base: str
    coordinates: Mapping[str, str]

    def is_at(self, words: list[str]) -> bool:
        """Return whether each of `words`, such as "temperature=4", is one of its coordinates."""
        mine = {f"{axis}={label}" for axis, label in self.coordinates.items()}
        return mine.issuperset(words)


def variant_name(base: str, coordinates: Mapping[str, str]) -> str:
    """Return a stage's name in an expanded pipeline.

    >>> variant_name("student", {"temperature": "4", "seed": "1"})
    'student@temperature=4@seed=1'
    """
    return base + "".join(f"@{axis}={label}" for axis, label in coordinates.items())
