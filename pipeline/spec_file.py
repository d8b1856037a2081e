"""pipeline.yaml read. The whole file is checked before anything runs, and every mistake is found at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pydantic import ValidationError

from kdpipe.pipeline.gates import GATES
from kdpipe.pipeline.graph import Wire, check_wiring, execution_order, kinds_by_field
from kdpipe.pipeline.matrix_expansion import expand, without_matrix
from kdpipe.pipeline.matrix_section import KEY as MATRIX
from kdpipe.pipeline.matrix_section import read_section
from kdpipe.pipeline.parameters import RESERVED, input_fields, parameter_problems, read_files, read_folders
from kdpipe.pipeline.problems import KeyPath, Problem, SpecError
from kdpipe.pipeline.references import Reference, looks_like_reference, parse_reference
from kdpipe.pipeline.spec import ACCELERATORS, FORMAT, MAX_SEED, MAX_THREADS, NAME_PATTERN, TOP_KEYS, Spec, StageSpec
from kdpipe.pipeline.yaml_source import Document, read_document
from kdpipe.stages.base import Stage, StageParams
from kdpipe.stages.registry import STAGES, StageRegistry
from kdpipe.targets.errors import KdpipeError, did_you_mean

_DEVICE_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
"""Names that Windows gives to devices: no folder can be called so."""


def load_spec(
    path: Path, overrides: Sequence[str] = (), stages: StageRegistry = STAGES, *, folder: Path | None = None
) -> Spec:
    """Read and check a pipeline file.

    Args:
        path: the file.
        overrides: assignments as after `--set`, such as "stages.student.epochs=3".
        stages: the kinds of stage and data source that the file may use.
        folder: what the paths in the file are relative to, instead of its own folder.

    Raises:
        SpecError: with every mistake found, each with its place and remedy.
    """
    document = read_document(path)
    if document.is_complete:
        if isinstance(document.data, dict):
            for assignment in overrides:
                document.override(assignment)
        spec = _check(document, (folder or path.parent).resolve(), stages)
        if spec is not None:
            return spec
    raise SpecError(document.problems)


def _check(document: Document, folder: Path, stages: StageRegistry) -> Spec | None:
    """Return the spec of a document, its matrix expanded; or None when there are problems."""
    if not isinstance(document.data, dict) or MATRIX not in document.data:
        return _Checker(document, folder, stages).check()
    section = read_section(document, MAX_SEED)
    if section is None:
        whole = without_matrix(document)
        _Checker(whole, folder, stages).check()
        document.problems += whole.problems
        return None
    return expand(document, section, lambda cell: _Checker(cell, folder, stages).check())


@dataclass
class _Draft:
    """A stage while it is being checked; what could not be found out is None."""

    name: str
    path: KeyPath
    uses: str
    stage: Stage
    module: str
    values: dict[str, Any]
    params: StageParams | None = None
    outputs: Mapping[str, str] | None = None


class _Checker:
    """Checks one document; what is wrong goes into the document's `problems`."""

    def __init__(self, document: Document, folder: Path, stages: StageRegistry) -> None:
        self._document = document
        self._folder = folder
        self._stages = stages
        self._unreadable = {problem.place for problem in document.problems}

    def check(self) -> Spec | None:
        """Return the spec, or None when there are problems."""
        data = self._document.data
        if not isinstance(data, dict):
            what = "the file is empty" if data is None else "the file is not a mapping of keys to values"
            self._value_problem((), what, "Run `kdpipe init` for an example")
            return None
        self._unknown_keys((), data, TOP_KEYS)
        self._version(data)
        name = self._pipeline_name(data)
        seed = self._seed(("seed",), data.get("seed", 0))
        accelerator = data.get("accelerator", "auto")
        if accelerator not in ACCELERATORS:
            self._value_problem(
                ("accelerator",), f"unknown accelerator {accelerator!r}", f"Known: {', '.join(ACCELERATORS)}"
            )
        threads = data.get("threads")
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            self._value_problem(
                ("threads",), f"not a number of threads: {threads!r}", f"Give an integer from 1 to {MAX_THREADS}"
            )
        drafts = {draft.name: draft for draft in self._drafts(data)}
        for draft in drafts.values():
            self._parameters(draft)
        wires = {draft.name: self._wires(draft) for draft in drafts.values()}
        outputs = {name: draft.outputs for name, draft in drafts.items()}
        data_free = {name for name, draft in drafts.items() if draft.stage.data_free}
        for path, message, remedy in check_wiring(wires, outputs, data_free):
            self._value_problem(path, message, remedy)
        for draft in drafts.values():
            if draft.params is not None:
                kinds = kinds_by_field(wires[draft.name], outputs)
                for field, message, remedy in draft.stage.complaints(draft.params, kinds):
                    self._value_problem((*draft.path, field), message, remedy)
        gates = {draft.name: self._gates(draft) for draft in drafts.values()}
        seeds = {
            draft.name: self._seed((*draft.path, "seed"), draft.values.get("seed", seed)) for draft in drafts.values()
        }
        if self._document.problems:
            return None
        specs = {name: _finish(draft, wires[name], outputs, gates[name], seeds[name]) for name, draft in drafts.items()}
        order = execution_order({name: spec.needs for name, spec in specs.items()})
        return Spec(name, seed, accelerator, threads, self._folder, {name: specs[name] for name in order})

    def _key_problem(self, path: KeyPath, message: str, remedy: str | None = None) -> None:
        self._add(Problem(self._document.key_place(path), path, message, remedy))

    def _value_problem(self, path: KeyPath, message: str, remedy: str | None = None) -> None:
        self._add(Problem(self._document.value_place(path), path, message, remedy))

    def _add(self, problem: Problem) -> None:
        # A value that could not be read was complained of already, and stands in the data as null.
        if problem.place not in self._unreadable or problem.path not in self._document.values:
            self._document.problems.append(problem)

    def _unknown_keys(self, path: KeyPath, data: Iterable[str], known: Iterable[str]) -> None:
        for key in data:
            if key not in known:
                self._key_problem((*path, key), f"unknown key {key!r}", did_you_mean(key, known))

    def _version(self, data: Mapping[str, Any]) -> None:
        if "kdpipe" not in data:
            self._value_problem((), "missing key 'kdpipe'", f"Add the line `kdpipe: {FORMAT}`, the format's version")
        elif data["kdpipe"] != FORMAT or isinstance(data["kdpipe"], bool):
            self._value_problem(
                ("kdpipe",), f"unknown version {data['kdpipe']!r} of the format", f"This kdpipe reads {FORMAT}"
            )

    def _pipeline_name(self, data: Mapping[str, Any]) -> str:
        name = data.get("name")
        if "name" not in data:
            self._value_problem((), "missing key 'name'", "Add a line such as `name: digits`")
        elif not isinstance(name, str):
            self._value_problem(("name",), f"must be a word, found {name!r}", f'Write "{name}" if you mean the word')
        elif complaint := _name_complaint(name):
            self._value_problem(("name",), *complaint)
        return str(name)

    def _seed(self, path: KeyPath, seed: object) -> int:
        if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < MAX_SEED:
            return seed
        if path in self._document.values:
            self._value_problem(path, f"must be an integer from 0 to {MAX_SEED - 1}, found {seed!r}")
        return 0

    def _drafts(self, data: Mapping[str, Any]) -> Iterator[_Draft]:
        """Yield the stages and data sources whose kind is known."""
        for section, prefix in (("data", "data."), ("stages", "")):
            entries = data.get(section)
            if entries is None and (section == "data" or section not in data):
                if section == "stages":
                    self._value_problem((), "missing key 'stages'", "Run `kdpipe init` for an example")
                continue
            if not isinstance(entries, dict) or (section == "stages" and not entries):
                self._value_problem((section,), "must be a mapping of names to what they are, with at least one entry")
                continue
            first: dict[str, str] = {}
            for name, values in entries.items():
                path = (section, name)
                if complaint := _name_complaint(name):
                    self._key_problem(path, *complaint)
                elif name.lower() in first:
                    self._key_problem(
                        path, f"{name!r} differs from {first[name.lower()]!r} in case only", "Choose another name"
                    )
                elif section == "stages" and name.lower() == "data":
                    self._key_problem(path, "a stage can't be called 'data'", "${data...} names data sources")
                first.setdefault(name.lower(), name)
                draft = self._draft(prefix + name, path, values)
                if draft is not None:
                    yield draft

    def _draft(self, name: str, path: KeyPath, values: object) -> _Draft | None:
        is_source = path[0] == "data"
        known = self._stages.sources if is_source else self._stages.stages
        if not isinstance(values, dict):
            self._value_problem(path, "must be a mapping with the key 'uses'", f"Known kinds: {', '.join(known)}")
            return None
        if path not in self._document.keys:  # made by an assignment to something inside it
            entries = [key[1] for key in self._document.keys if len(key) == 2 and key[0] == path[0]]
            what = "data source" if is_source else "stage"
            self._value_problem(path, f"there is no {what} {path[1]!r}", did_you_mean(str(path[1]), map(str, entries)))
            return None
        if "uses" not in values:
            self._value_problem(path, "missing key 'uses'", f"Add `uses: KIND`. Known: {', '.join(known)}")
            return None
        uses = values["uses"]
        if not isinstance(uses, str) or uses not in known:
            what = "data source" if is_source else "stage"
            self._value_problem((*path, "uses"), f"unknown {what} {uses!r}", did_you_mean(str(uses), known))
            return None
        stage = self._stages.source(uses) if is_source else self._stages.stage(uses)
        module = self._stages.source_module(uses) if is_source else self._stages.stage_module(uses)
        return _Draft(name, path, uses, stage, module, values)

    def _parameters(self, draft: _Draft) -> None:
        """Check a stage's parameters and fill in `params` and `outputs`."""
        values = {key: value for key, value in draft.values.items() if key not in RESERVED}
        fields = draft.stage.params.model_fields
        inputs = input_fields(draft.stage.params)
        refused = {
            path
            for key, value in values.items()
            if key not in inputs
            for path in self._refused_references((*draft.path, key), value, draft.stage.data_free, key in fields)
        }
        try:
            params = draft.stage.params.model_validate(values)
        except ValidationError as error:
            for path, is_key, message, remedy in parameter_problems(draft.stage, values, error):
                if (*draft.path, *path) not in refused:
                    report = self._key_problem if is_key else self._value_problem
                    report((*draft.path, *path), message, remedy)
            return
        except KdpipeError as error:  # from a validator that knows no better place
            where = f"{error.where}: " if error.where else ""
            self._value_problem(draft.path, f"{where}{error.message}", error.remedy)
            return
        for path, file in read_files(params):
            if complaint := self._path_complaint(file, is_folder=False):
                self._value_problem((*draft.path, *path), *complaint)
        for path, folder in read_folders(params):
            if complaint := self._path_complaint(folder, is_folder=True):
                self._value_problem((*draft.path, *path), *complaint)
        draft.params = params
        draft.outputs = draft.stage.outputs(params)

    def _refused_references(self, path: KeyPath, value: object, data_free: bool, is_known: bool) -> Iterator[KeyPath]:
        """Complain of references where a stage takes none; yield their paths, so that nobody complains again."""
        if looks_like_reference(value):
            reference = parse_reference(str(value))
            if data_free and reference is not None and reference.stage.startswith("data."):
                self._value_problem(path, f"{value} hands real data to a data-free stage", "Remove this key")
                yield path
            elif is_known:
                self._value_problem(path, f"{value!r} stands in a parameter", "Only inputs can be references")
                yield path
        elif isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from self._refused_references((*path, key), item, data_free, is_known)

    def _path_complaint(self, file: str, *, is_folder: bool) -> tuple[str, str | None] | None:
        if (
            PurePosixPath(file).is_absolute()
            or PureWindowsPath(file).drive
            or PureWindowsPath(file).root
            or ".." in (*PurePosixPath(file).parts, *PureWindowsPath(file).parts)
        ):
            return f"the path {file!r} leaves the pipeline file's folder", "Copy or link the file into the folder"
        path = self._folder / file
        what = "folder" if is_folder else "file"
        try:
            is_there = path.is_dir() if is_folder else path.is_file()
        except OSError as error:  # a name too long, a folder that may not be read
            return f"the {what} {file!r} can't be read ({error.strerror or error})", "Give another"
        if not is_there:
            return f"no such {what}: {file!r}", f"Paths are relative to {self._folder}"
        return None

    def _wires(self, draft: _Draft) -> list[Wire]:
        """Return a stage's references, whether or not its other parameters are right."""
        wires = []
        for name, accepts in input_fields(draft.stage.params).items():
            value = draft.values.get(name)
            items = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
            for index, text in items:
                path = (*draft.path, name) if index is None else (*draft.path, name, index)
                if not isinstance(text, str):
                    continue  # absent, or of a type that pydantic complained of
                reference = parse_reference(text)
                if reference is None:
                    kinds = " or ".join(accepts.kinds)
                    self._value_problem(
                        path,
                        f"{text!r} is not a reference to a stage's output of kind {kinds}",
                        "Write ${STAGE.OUTPUT}, or ${data.NAME.SPLIT} for data",
                    )
                else:
                    wires.append(Wire(path, name, index, reference, accepts.kinds))
        return wires

    def _gates(self, draft: _Draft) -> dict[str, float]:
        if "gates" not in draft.values:
            return {}
        path, gates = (*draft.path, "gates"), draft.values["gates"]
        if not draft.stage.validates:
            self._key_problem(
                path, f"a stage of kind {draft.uses!r} has no gates", "Declare them on a stage that validates"
            )
        elif gates is None:
            return {}
        elif not isinstance(gates, dict):
            self._value_problem(path, "must be a mapping of gates to limits", f"Known: {', '.join(GATES)}")
        else:
            self._unknown_keys(path, gates, GATES)
            for name, limit in gates.items():
                if name in GATES:
                    self._limit((*path, name), limit, GATES[name].highest)
            return gates
        return {}

    def _limit(self, path: KeyPath, limit: object, highest: float) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            self._value_problem(path, f"must be a number, found {limit!r}")
        elif not 0 <= limit <= highest:
            percent = " (a fraction: 97 % is 0.97)" if highest == 1 else ""
            span = f"from 0 to {highest:g}" if highest == 1 else "not negative"
            self._value_problem(path, f"must be {span}{percent}, found {limit!r}")


def _name_complaint(name: str) -> tuple[str, str] | None:
    if not re.fullmatch(NAME_PATTERN, name):
        return f"{name!r} is not a name", "Start with a letter; then letters, digits, - and _, 64 in all"
    if name.lower() in _DEVICE_NAMES:
        return f"{name!r} can't be a folder's name on Windows", "Choose another name"
    return None


def _finish(
    draft: _Draft,
    wires: Sequence[Wire],
    outputs: Mapping[str, Mapping[str, str] | None],
    gates: Mapping[str, float],
    seed: int,
) -> StageSpec:
    inputs: dict[str, tuple[Reference, ...]] = {}
    for wire in wires:
        known = outputs[wire.reference.stage] or {}
        reference = Reference(wire.reference.stage, wire.reference.output or next(iter(known)))
        inputs[wire.field] = (*inputs.get(wire.field, ()), reference)
    if draft.params is None or draft.outputs is None:
        raise AssertionError("a stage without parameters has a problem")
    is_list = frozenset(wire.field for wire in wires if wire.index is not None)
    gates = {name: float(limit) for name, limit in gates.items()}
    return StageSpec(
        draft.name, draft.uses, draft.stage, draft.module, draft.params, inputs, is_list, draft.outputs, gates, seed
    )
