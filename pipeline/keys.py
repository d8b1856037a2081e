"""The key of a stage: the SHA-256 of everything that could influence its outputs, part by part."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kdpipe.pipeline.parameters import plain_parameters, read_files, read_folders
from kdpipe.pipeline.source_fingerprint import SourceFingerprints
from kdpipe.pipeline.spec import Spec, StageSpec
from kdpipe.pipeline.storage import sha256_of_file, sha256_of_folder, sha256_of_json, storage_errors
from kdpipe.pipeline.store import StoredOutput

FORMAT = 1
_MAX_CHANGES = 6


def key_parts(spec: Spec, stage: StageSpec, fingerprints: SourceFingerprints) -> dict[str, Any]:
    """Return the parts of a stage's key that don't depend on other stages, as JSON.

    Gates and the stage's own name are no part of it: a changed limit or name re-runs nothing.

    Raises:
        StorageError: a file or folder that the stage reads can't be read, or the folder holds a link.
    """
    files = {}
    for _, file in read_files(stage.params):
        path = spec.folder / file
        with storage_errors(path, "read"):
            files[file] = sha256_of_file(path)
    for _, folder in read_folders(stage.params):
        files[folder] = sha256_of_folder(spec.folder / folder)
    return {
        "format": FORMAT,
        "uses": stage.uses,
        "params": plain_parameters(stage.params),
        "files": files,
        "seed": stage.seed,
        "accelerator": spec.accelerator,
        "threads": spec.threads,
        "code": dict(fingerprints.of(stage.module)),
        "libraries": library_versions([*stage.stage.libraries, *stage.params.further_libraries()]),
    }


def with_inputs(parts: Mapping[str, Any], inputs: Mapping[str, Sequence[StoredOutput]]) -> dict[str, Any]:
    """Return the parts with the content of the inputs, by field: where it comes from does not matter."""
    return {**parts, "inputs": {field: [output.digest for output in outputs] for field, outputs in inputs.items()}}


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key, hexadecimal."""
    return sha256_of_json(parts)


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of distributions, and of Python, whose syntax trees the code's hash is made of."""
    versions = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in words what differs between the parts of two keys. Inputs count only where both have them."""
    said = []
    if old.get("uses") != new["uses"]:
        said.append(f"kind of stage: {old.get('uses')} -> {new['uses']}")
    said += _abridged(_value_changes("parameter", old.get("params"), new["params"]))
    old_inputs, new_inputs = old.get("inputs"), new.get("inputs")
    if old_inputs is not None and new_inputs is not None:
        said += [f"input {name} changed" for name in _differing(old_inputs, new_inputs)]
    said += [f"file {name} changed" for name in _differing(old.get("files", {}), new["files"])]
    for name in ("seed", "accelerator", "threads"):
        if old.get(name) != new.get(name):
            said.append(f"{name} {old.get(name)} -> {new.get(name)}")
    if modules := _differing(old.get("code", {}), new["code"]):
        shown = ", ".join(modules[:_MAX_CHANGES]) + (" ..." if len(modules) > _MAX_CHANGES else "")
        said.append(f"code changed: {shown}")
    old_libraries = old.get("libraries", {})
    for name in _differing(old_libraries, new["libraries"]):
        said.append(f"library {name} {old_libraries.get(name, '-')} -> {new['libraries'].get(name, '-')}")
    return said


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def _abridged(said: Iterator[str]) -> list[str]:
    lines = list(said)
    extra = len(lines) - _MAX_CHANGES
    return [*lines[:_MAX_CHANGES], f"{extra} more parameters"] if extra > 0 else lines


def _value_changes(path: str, old: Any, new: Any) -> Iterator[str]:
    """Yield a line for each value that differs inside nested mappings and lists."""
    if old == new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            joint = " " if path == "parameter" else "."
            yield from _value_changes(f"{path}{joint}{key}", old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and (old or new):
        if len(old) != len(new):
            yield f"{path}: {len(old)} -> {len(new)} items"
        for index, (before, after) in enumerate(zip(old, new, strict=False)):
            yield from _value_changes(f"{path}.{index}", before, after)
    else:
        yield f"{path}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
