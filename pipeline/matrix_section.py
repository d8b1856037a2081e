"""The section `matrix` of pipeline.yaml, checked: what is varied, over which seeds, and what is shown of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdpipe.pipeline.matrix import SEED_AXIS, Axis, Metric
from kdpipe.pipeline.problems import KeyPath, Problem, dotted
from kdpipe.pipeline.yaml_source import Document
from kdpipe.targets.errors import did_you_mean

KEY = "matrix"
KEYS, AXIS_KEYS = ("axes", "seeds", "metrics"), ("set", "values")
MAX_AXES, MAX_CELLS = 4, 500
AXIS_PATTERN = "[A-Za-z][A-Za-z0-9_-]{0,23}"
LABEL_PATTERN = "[A-Za-z0-9_.+-]{0,31}[A-Za-z0-9_+-]"
"""Labels become parts of stages' names, and with them of files' names."""
PATH_PATTERN = r"(stages|data)(\.[^.\s]+){2,}"


@dataclass(frozen=True)
class Value:
    """A value on an axis, and where it stands in the document."""

    label: str
    value: Any
    path: KeyPath


@dataclass(frozen=True)
class AxisValues:
    """An axis with its values."""

    axis: Axis
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Section:
    """The whole section."""

    axes: tuple[AxisValues, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]


def read_section(document: Document, max_seed: int) -> Section | None:
    """Return the section of a document, or None where it has mistakes, which then are among its `problems`."""
    reader = _Reader(document, max_seed)
    before = len(document.problems)
    section = reader.section()
    return section if len(document.problems) == before else None


class _Reader:
    """Reads the section; what is wrong goes into the document's `problems`."""

    def __init__(self, document: Document, max_seed: int) -> None:
        self._document = document
        self._max_seed = max_seed

    def section(self) -> Section:
        data = self._document.data[KEY]
        if not isinstance(data, dict):
            self._value_problem((KEY,), f"must be a mapping with the keys {', '.join(KEYS)}")
            return Section((), (), ())
        self._known_keys((KEY,), data, KEYS)
        section = Section(tuple(self._axes(data)), tuple(self._seeds(data)), tuple(self._metrics(data)))
        self._paths(section.axes)
        cells = math.prod(len(axis.values) for axis in section.axes) * max(1, len(section.seeds))
        if cells > MAX_CELLS:
            self._value_problem((KEY,), f"{cells} cells are too many", f"{MAX_CELLS} is the most")
        return section

    def _axes(self, data: Mapping[str, Any]) -> Iterator[AxisValues]:
        axes = data.get("axes")
        path: KeyPath = (KEY, "axes")
        if not isinstance(axes, dict) or not 1 <= len(axes) <= MAX_AXES:
            remedy = "Write for instance `temperature: {set: stages.student.losses.kd.temperature, values: [1, 4]}`"
            self._value_problem(path, f"must be a mapping of 1 to {MAX_AXES} names to what they set", remedy)
            return
        for name, axis in axes.items():
            here = (*path, name)
            if not re.fullmatch(AXIS_PATTERN, name) or name == SEED_AXIS:
                remedy = "`seeds` of the matrix varies the seed" if name == SEED_AXIS else "Letters, digits, - and _"
                self._key_problem(here, f"{name!r} can't be an axis's name", remedy)
            if not isinstance(axis, dict):
                self._value_problem(here, "must be a mapping with the keys set and values")
                continue
            self._known_keys(here, axis, AXIS_KEYS)
            paths = tuple(text for text, _ in self._set_paths(here, axis))
            values = tuple(self._values((*here, "values"), axis.get("values")))
            yield AxisValues(Axis(name, paths, tuple(value.label for value in values)), values)

    def _set_paths(self, path: KeyPath, axis: Mapping[str, Any]) -> Iterator[tuple[str, KeyPath]]:
        """Yield the paths that an axis sets, each with where it stands."""
        value = axis.get("set")
        items = value if isinstance(value, list) and value else [value]
        for index, text in enumerate(items):
            where = (*path, "set", index) if isinstance(value, list) else (*path, "set")
            if isinstance(text, str) and re.fullmatch(PATH_PATTERN, text):
                yield text, where
            else:
                remedy = "Write for instance stages.student.losses.kd.temperature"
                self._value_problem(where, "must be the path of a stage's or data source's key", remedy)

    def _values(self, path: KeyPath, values: object) -> Iterator[Value]:
        if not isinstance(values, list | dict) or not values:
            self._value_problem(path, "must be a list of values, or a mapping of names to values")
            return
        seen: set[str] = set()
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            here = (*path, key)
            label = key if isinstance(key, str) else label_of(value)
            if label is None:
                remedy = "Write `values: {NAME: VALUE, ...}`; the names stand in the report"
                self._value_problem(here, "the value needs a name", remedy)
            elif not re.fullmatch(LABEL_PATTERN, label):
                remedy = "Letters, digits, and . _ + -; 32 in all"
                self._key_problem(here, f"{label!r} can't be the name of a value", remedy)
            elif label.lower() in seen:
                self._value_problem(here, f"{label!r} stands twice on this axis", "Remove one of the two")
            else:
                seen.add(label.lower())
                yield Value(label, value, here)

    def _seeds(self, data: Mapping[str, Any]) -> Iterator[int]:
        seeds = data.get("seeds", [])
        path: KeyPath = (KEY, "seeds")
        if not isinstance(seeds, list):
            self._value_problem(path, f"must be a list of integers, found {seeds!r}")
            return
        for index, seed in enumerate(seeds):
            if type(seed) is not int or not 0 <= seed < self._max_seed:
                self._value_problem((*path, index), f"must be an integer from 0 to {self._max_seed - 1}")
            elif seed in seeds[:index]:
                self._value_problem((*path, index), f"the seed {seed} stands twice")
            yield seed
        if seeds and self._is_set_by_hand(("seed",)):
            remedy = "Set matrix.seeds instead"
            self._value_problem(("seed",), "`seeds` of the matrix takes its place", remedy)

    def _metrics(self, data: Mapping[str, Any]) -> Iterator[Metric]:
        metrics = data.get("metrics")
        path: KeyPath = (KEY, "metrics")
        stages = self._document.data.get("stages")
        names = list(stages) if isinstance(stages, dict) else []
        if not isinstance(metrics, list) or not metrics:
            remedy = "Write for instance [student-accuracy.accuracy]"
            self._value_problem(path, "must be a list of figures to show: STAGE.METRIC", remedy)
            return
        for index, text in enumerate(metrics):
            stage, dot, name = text.partition(".") if isinstance(text, str) else ("", "", "")
            if not (stage and dot and name):
                self._value_problem((*path, index), f"must be of the form STAGE.METRIC, found {text!r}")
            elif stage not in names:
                self._value_problem((*path, index), f"there is no stage {stage!r}", did_you_mean(stage, names))
            elif text in metrics[:index]:
                self._value_problem((*path, index), f"{text!r} stands twice")
            else:
                yield Metric(stage, name)

    def _paths(self, axes: tuple[AxisValues, ...]) -> None:
        """Complain of keys that two axes set, and of keys that the command line sets too."""
        taken: dict[tuple[str, ...], str] = {}
        for entry in axes:
            here = (KEY, "axes", entry.axis.name, "set")
            for text in entry.axis.paths:
                words = tuple(text.split("."))
                for other, name in taken.items():
                    if other == words[: len(other)] or words == other[: len(words)]:
                        self._value_problem(here, f"{text} and {dotted(other)} (axis {name}) set the same")
                taken[words] = entry.axis.name
                if self._is_set_by_hand(words):
                    remedy = f"Set matrix.axes.{entry.axis.name}.values instead"
                    self._value_problem(words, f"the axis {entry.axis.name!r} of the matrix sets it", remedy)

    def _is_set_by_hand(self, path: KeyPath) -> bool:
        place = self._document.values.get(path)
        return place is not None and place.line == 0

    def _known_keys(self, path: KeyPath, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in data:
            if key not in known:
                self._key_problem((*path, key), f"unknown key {key!r}", did_you_mean(key, known))

    def _key_problem(self, path: KeyPath, message: str, remedy: str | None = None) -> None:
        self._document.problems.append(Problem(self._document.key_place(path), path, message, remedy))

    def _value_problem(self, path: KeyPath, message: str, remedy: str | None = None) -> None:
        self._document.problems.append(Problem(self._document.value_place(path), path, message, remedy))


def label_of(value: object) -> str | None:
    """Return the name of a value that is given without one, or None where it has none by itself.

    >>> label_of(0.5), label_of(True), label_of("${small.ensemble}"), label_of([1])
    ('0.5', 'true', 'small.ensemble', None)
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return value.strip().removeprefix("${").removesuffix("}").strip()
    return None
