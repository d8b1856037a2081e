"""A pipeline with a matrix becomes one pipeline without: each stage once for every value that makes a difference to it.

Every cell's document is checked as a whole, as if it had been written out. Then the cells' stages are merged: two that
agree in everything (kind, parameters, inputs, seed, gates) are one.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdpipe.pipeline.gates import GATES
from kdpipe.pipeline.matrix import Cell, Matrix, Variant, variant_name
from kdpipe.pipeline.matrix_section import KEY, Section, Value
from kdpipe.pipeline.problems import KeyPath, Problem
from kdpipe.pipeline.references import Reference
from kdpipe.pipeline.spec import Spec, StageSpec
from kdpipe.pipeline.yaml_source import Document
from kdpipe.targets.errors import did_you_mean

MAX_NAME = 180
"""Characters of a stage's name: it becomes the name of files."""
FURTHER_FIGURES = ("instructions", "seconds")
"""Figures that can be shown beside those that gates limit."""

Check = Callable[[Document], Spec | None]
Choice = tuple[tuple[int, ...], int | None]
"""A cell: the index of its value on each axis, and its seed."""


def expand(document: Document, section: Section, check: Check) -> Spec | None:
    """Return the expanded pipeline, or None where there are mistakes, which then are among the document's `problems`.

    Args:
        document: the pipeline with its matrix.
        section: the matrix.
        check: checks a document without a matrix.
    """
    specs: dict[Choice, Spec] = {}
    read = list(document.problems)
    indices = [range(len(entry.values)) for entry in section.axes]
    for at, seed in itertools.product(itertools.product(*indices), section.seeds or (None,)):
        values = {entry.axis.paths: entry.values[index] for entry, index in zip(section.axes, at, strict=True)}
        cell = _cell_document(document, read, values, seed)
        spec = check(cell)
        document.problems += [problem for problem in cell.problems if problem not in document.problems]
        if spec is not None:
            specs[at, seed] = spec
    if document.problems:
        return None
    merged = _merge(section, specs)
    problems = list(_figure_problems(document, section, next(iter(specs.values()))))
    longest = max(merged.stages, key=len)
    if len(longest) > MAX_NAME:
        message = f"a stage's name would have {len(longest)} characters: {longest}"
        remedy = f"Shorten the names of axes and values; {MAX_NAME} is the most"
        problems.append(Problem(document.key_place((KEY,)), (KEY,), message, remedy))
    document.problems += problems
    return None if problems else merged


def without_matrix(document: Document) -> Document:
    """Return a document as it is without its matrix, and without the problems found in that."""
    data = {key: value for key, value in document.data.items() if key != KEY}
    problems = [problem for problem in document.problems if problem.path[:1] != (KEY,)]
    return replace(document, data=data, problems=problems)


def _cell_document(
    document: Document, problems: Sequence[Problem], values: Mapping[tuple[str, ...], Value], seed: int | None
) -> Document:
    """Return the document of one cell, in which the values stand where the axes put them.

    The seed is that of the stages that have none of their own; data sources keep the file's, so that all cells see the
    same data.
    """
    cell = Document(
        document.source,
        {key: copy.deepcopy(value) for key, value in document.data.items() if key != KEY},
        dict(document.keys),
        dict(document.values),
        list(problems),
    )
    for paths, value in values.items():
        for path in paths:
            words = tuple(path.split("."))
            cell.assign(words, copy.deepcopy(value.value), document.value_place(value.path), value.path)
            cell.keys[words] = document.value_place((*value.path[:3], "set"))
    if seed is not None:
        sources = cell.data.get("data")
        for source in sources.values() if isinstance(sources, dict) else ():
            if isinstance(source, dict):
                source.setdefault("seed", cell.data.get("seed", 0))
        cell.data["seed"] = seed
    return cell


@dataclass
class _Versions:
    """One stage of the file in all cells: which of its versions each cell has, and one specimen of each."""

    of_cell: dict[Choice, int] = field(default_factory=dict)
    identities: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def _merge(section: Section, specs: Mapping[Choice, Spec]) -> Spec:
    """Return one pipeline with the stages of all cells."""
    versions: dict[str, _Versions] = {}
    for choice, spec in specs.items():
        for stage in spec.stages.values():
            found = versions.setdefault(stage.name, _Versions())
            inputs = {
                name: [[need.stage, versions[need.stage].of_cell[choice], need.output] for need in references]
                for name, references in stage.inputs.items()
            }
            identity = _identity(stage, inputs)
            found.of_cell[choice] = found.identities.setdefault(identity, len(found.identities))
    axes = [entry.axis for entry in section.axes]
    deciding = {name: _deciding_axes(found.of_cell, len(axes)) for name, found in versions.items()}
    stages: dict[str, StageSpec] = {}
    cells = []
    matrix = Matrix(tuple(axes), section.seeds, section.metrics, ())
    for choice, spec in specs.items():
        coordinates = list(matrix.coordinates(Cell(*choice, stages={})).items())
        names: dict[str, str] = {}
        for stage in spec.stages.values():
            found, mine = versions[stage.name], versions[stage.name].of_cell[choice]
            here = dict(coordinates[index] for index in deciding[stage.name])
            if mine == len(found.names):
                found.names.append(variant_name(stage.name, here))
            names[stage.name] = name = found.names[mine]
            if name not in stages:
                variant = Variant(stage.name, here) if here else None
                stages[name] = replace(stage, name=name, inputs=_renamed(stage.inputs, names), variant=variant)
        cells.append(Cell(*choice, stages=names))
    return replace(next(iter(specs.values())), stages=stages, matrix=replace(matrix, cells=tuple(cells)))


def _renamed(inputs: Mapping[str, tuple[Reference, ...]], names: Mapping[str, str]) -> dict[str, tuple[Reference, ...]]:
    return {key: tuple(Reference(names[need.stage], need.output) for need in needs) for key, needs in inputs.items()}


def _identity(stage: StageSpec, inputs: Mapping[str, Any]) -> str:
    parts = [stage.uses, stage.params.model_dump(mode="json"), inputs, stage.seed, dict(stage.gates)]
    return json.dumps(parts, sort_keys=True)


def _deciding_axes(of_cell: Mapping[Choice, int], axes: int) -> list[int]:
    """Return the axes (the seed comes after the others) along which a stage's version changes."""
    found = []
    for axis in range(axes + 1):
        lines: dict[tuple[int | None, ...], set[int]] = {}
        for (at, seed), version in of_cell.items():
            whole = (*at, seed)
            lines.setdefault((*whole[:axis], *whole[axis + 1 :]), set()).add(version)
        if any(len(line) > 1 for line in lines.values()):
            found.append(axis)
    return found


def _figure_problems(document: Document, section: Section, spec: Spec) -> Iterator[Problem]:
    """Yield a problem for each metric that its stage, a validation, is known not to have."""
    known = [*GATES, *FURTHER_FIGURES]
    listed = document.data[KEY]["metrics"]
    for metric in section.metrics:
        if spec.stages[metric.stage].stage.validates and metric.name not in known:
            path: KeyPath = (KEY, "metrics", listed.index(str(metric)))
            message = f"a validation has no figure {metric.name!r}"
            yield Problem(document.value_place(path), path, message, did_you_mean(metric.name, known))
