"""A traced graph while its operations are brought to one form each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from kdpipe.stages.quantization.tracing import SCOPE
from kdpipe.targets.lower import PATH

INSERTED = "inserted"
"""Name of the submodule of a prepared module that holds what was inserted."""


@dataclass(frozen=True)
class Problem:
    """An operation that can't be quantized.

    Args:
        path: of the module that does it, or that calls it.
        operation: what it is.
        remedy: what to do instead.
    """

    path: str
    operation: str
    remedy: str


_LISTED_PATHS = 6


def listed(problems: list[Problem]) -> list[str]:
    """Return the problems as lines: those that differ only in the module are one, with the first modules' paths."""
    paths: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        paths.setdefault((problem.operation, problem.remedy), []).append(problem.path or "the module itself")
    lines = []
    for (operation, remedy), found in paths.items():
        more = f" and {len(found) - _LISTED_PATHS} more" if len(found) > _LISTED_PATHS else ""
        lines.append(f"{', '.join(found[:_LISTED_PATHS])}{more}: {operation}. {remedy}")
    return lines


@dataclass
class Normalized:
    """A graph in which every operation has one form.

    Args:
        root: the copied module; new modules are in its submodule `INSERTED`.
        graph: its operations.
        taps: by path, the node whose value a container, a ReLU or an identity returned.
        problems: what has no integer form; with any, the graph is not to be used.
    """

    root: nn.Module
    graph: fx.Graph
    taps: dict[str, fx.Node] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a call_module node calls, None for other nodes."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def insert(self, name: str, module: nn.Module) -> str:
        """Register a new module and return its path; dots in `name` become underscores, a taken name a number."""
        holder = getattr(self.root, INSERTED)
        wanted = name = name.replace(".", "_")
        for number in itertools.count(1):
            if not hasattr(holder, name):
                break
            name = f"{wanted}_{number}"
        holder.add_module(name, module.train(self.root.training))
        return f"{INSERTED}.{name}"

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let `new` stand for `old`, which is erased."""
        new.meta.setdefault(SCOPE, old.meta.get(SCOPE, ""))
        old.replace_all_uses_with(new)
        for path, node in self.taps.items():
            if node is old:
                self.taps[path] = new
        self.graph.erase_node(old)


Complaint = tuple[str, str] | None
"""Operation and remedy, or None where all is well."""


def arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """Return the arguments of a call by name; `names` are those behind the first, in order."""
    return dict(zip(names, node.args[1:], strict=False)) | {
        key: node.kwargs[key] for key in names if key in node.kwargs
    }


def replace_by_function(
    result: Normalized, node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...], tap: str | None = None
) -> fx.Node:
    """Call `function` in the place of `node`; `tap` is the path that returned its value. Return the new node."""
    with result.graph.inserting_before(node):
        new = result.graph.call_function(function, args)
    new.meta.update(node.meta)
    if tap is not None:
        result.taps[tap] = node
    result.replace(node, new)
    return new


def replace_by_module(result: Normalized, node: fx.Node, module: nn.Module, tap: str | None = None) -> fx.Node:
    """Call a new module, with the first input of `node`, in its place; otherwise as `replace_by_function`."""
    path = result.insert(node.meta[PATH], module)
    with result.graph.inserting_before(node):
        new = result.graph.call_module(path, (node.all_input_nodes[0],))
    new.meta.update(node.meta)
    if tap is not None:
        result.taps[tap] = node
    result.replace(node, new)
    return new
