"""The version of a stage's code: a hash of its module and of every module of the house that it can reach.

Imports are read from the source, also those inside functions, and so are names of modules in strings such as
"kdpipe.targets.onnx:export", which registries resolve when they are asked. Only what the interpreter would run
counts: comments, formatting and docstrings can change without re-running anything. Other files that lie in a
reached package, such as C kernels and templates, count by their content.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HOUSE = ("kdpipe.stages", "kdpipe.models", "kdpipe.targets")
"""The packages whose modules are followed, beside the package of the stage itself."""

IGNORED = ("kdpipe.stages.registry", "kdpipe.targets.errors")
"""Modules that can't change what a stage computes: the engine's own table of stages, and the wording of errors."""

DATA_SUFFIXES = frozenset(
    {
        ".c",
        ".h",
        ".inc",
        ".s",
        ".ld",
        ".jinja",
        ".in",
        ".json",
        ".yaml",
        ".txt",
        ".html",
        ".css",
        ".js",
        ".md",
        ".cmake",
    }
)

_MODULE_NAME = re.compile(r"kdpipe\.(?:stages|models|targets)(?:\.\w+)*")


@dataclass(frozen=True)
class _Module:
    """A module's own hash and the names that it mentions, modules or not."""

    sha256: str
    mentions: frozenset[str]


class SourceFingerprints:
    """Computes fingerprints, reading each file once in its lifetime: one for each plan or run."""

    def __init__(self) -> None:
        self._modules: dict[str, _Module] = {}
        self._paths: dict[str, Path | None] = {}

    def of(self, entry: str) -> Mapping[str, str]:
        """Return the SHA-256 of every module, and of every data file, that the module `entry` can reach, by name."""
        roots = (*HOUSE, entry.split(".")[0] if not entry.startswith("kdpipe.") else entry)
        found: dict[str, str] = {}
        pending = [entry]
        while pending:
            name = pending.pop()
            path = self._path(name)
            if path is None or name in found or name in IGNORED:
                continue
            module = self._read(name, path)
            found[name] = module.sha256
            pending += [mention for mention in module.mentions if _is_inside(mention, roots)]
            for package in _parents(name):
                if _is_inside(package, roots) and package not in found:
                    pending.append(package)
            if path.name == "__init__.py" and name not in HOUSE:
                found.update(self._data_files(name, path.parent))
        return dict(sorted(found.items()))

    def _read(self, name: str, path: Path) -> _Module:
        if name not in self._modules:
            source = path.read_bytes()
            tree = ast.parse(source)
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            mentions = frozenset(_mentions(tree, package))
            self._modules[name] = _Module(hash_of_code(tree), mentions)
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        """Return a module's source file, or None where `name` is no module with one."""
        if name not in self._paths:
            self._paths[name] = _source_file(name)
        return self._paths[name]

    @cached_property
    def _hashes(self) -> dict[Path, str]:
        return {}

    def _data_files(self, package: str, directory: Path) -> Iterator[tuple[str, str]]:
        """Yield (name, SHA-256) of the data files of a package, folders included that aren't packages themselves."""
        for path in sorted(directory.iterdir()):
            name = f"{package}/{path.name}"
            if path.is_dir() and path.name != "__pycache__" and not (path / "__init__.py").is_file():
                yield from self._data_files(name, path)
            elif path.is_file() and path.suffix.lower() in DATA_SUFFIXES:
                if path not in self._hashes:
                    self._hashes[path] = hashlib.sha256(path.read_bytes()).hexdigest()
                yield name, self._hashes[path]


def hash_of_code(tree: ast.Module) -> str:
    """Return the SHA-256 of a syntax tree without its docstrings, which it loses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if is_docstring and isinstance(first.value.value, str):  # type: ignore[attr-defined]
                del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _mentions(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, or names in strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            if _MODULE_NAME.fullmatch(name):
                yield name


def _source_file(name: str) -> Path | None:
    """Find a module's source without importing anything but the package that it lies in at the top."""
    top = next((root for root in HOUSE if _is_inside(name, (root,))), name.split(".")[0])
    if top == name and name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return Path(file) if file else None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if top == name:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for location in spec.submodule_search_locations or ():
        base = Path(location, *name[len(top) + 1 :].split("."))
        for candidate in (base / "__init__.py", base.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


def _is_inside(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]
