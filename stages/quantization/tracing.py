"""A module's graph, with the place in the module tree at which each operation happens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from kdpipe.targets.errors import NetworkError
from kdpipe.targets.lower import SHAPE

SCOPE = "scope"
"""Key of an fx node's `meta`: the path of the container whose forward holds the operation."""


@dataclass(frozen=True)
class Traced:
    """What tracing found.

    Args:
        root: a copy of the module.
        graph: its operations; modules of torch.nn are one operation each, and so are those of STOCHASTIC_DEPTHS; all
            others are opened.
        returned: by path, the node that each opened module returned. Those that returned no tensor are left out.
    """

    root: nn.Module
    graph: fx.Graph
    returned: dict[str, fx.Node]


STOCHASTIC_DEPTHS = ("StochasticDepth", "DropPath")
"""Names of the classes by which torchvision and timm drop branches in training."""


_SIZES = ("shape", "ndim", "size", "dim")
"""Attributes and methods of a tensor that say nothing of its values."""


class _Tracer(fx.Tracer):
    """Follows a module's forward; a condition on sizes is decided by those that the example gives."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example = example
        self.failed_in = ""
        self.path = ""
        self.returned: dict[str, Any] = {}
        self.twice: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__name__ in STOCHASTIC_DEPTHS or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        path, outer = self.path_of_module(m), self.path
        leaf = self.is_leaf_module(m, path)
        self.path = outer if leaf else path
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or path
            raise
        finally:
            self.path = outer
        if not leaf:
            if path in self.returned:
                self.twice.append(path)
            self.returned[path] = result
        return result

    def to_bool(self, obj: fx.Proxy) -> bool:
        if not _knows_only_sizes(obj.node):
            return super().to_bool(obj)
        interpreter = fx.Interpreter(self.root, graph=self.graph)
        interpreter.args_iter = iter([self.example])
        with _as_not_traced(), _in_evaluation(self.root), torch.no_grad():
            for node in self.graph.nodes:
                interpreter.env[node] = interpreter.run_node(node)
        return bool(interpreter.env[obj.node])

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[SCOPE] = self.path
        return node


def trace(module: nn.Module, example: Tensor) -> Traced:
    """Trace a copy of a module.

    Args:
        module: takes one tensor.
        example: an input [B, ...]; the module is run on it once, in evaluation mode, to learn every shape.

    Raises:
        NetworkError: the module's forward depends on its input's values, calls a module twice that has modules of
            its own, or does not take the example.
    """
    root = copy.deepcopy(module)
    # A batch norm that is called as a function in training mode changes its statistics when it is run.
    buffers = {name: buffer.clone() for name, buffer in root.named_buffers()}
    tracer = _Tracer(example)
    try:
        graph = tracer.trace(root)
    except Exception as error:  # a user's forward may raise anything when it is run on a proxy
        path = tracer.failed_in
        inside = f" in {path} ({type(root.get_submodule(path)).__name__})" if path else ""
        raise NetworkError(
            f"{type(module).__name__} can't be traced{inside}: {error}",
            remedy="Its forward must not branch on tensor values; see the documentation of torch.fx",
        ) from None
    if tracer.twice:
        raise NetworkError(
            f"{', '.join(tracer.twice)} is called more than once",
            remedy="Give each call a module of its own: each needs its own quantizers",
        )
    _infer_shapes(root, graph, example)
    for name, buffer in root.named_buffers():
        buffer.copy_(buffers[name])
    _resolve_in_place(root, graph)
    _erase_dead_code(graph, tracer.returned)
    nodes = {path: value.node for path, value in tracer.returned.items() if isinstance(value, fx.Proxy)}
    return Traced(root, graph, nodes)


_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__


@contextmanager
def _as_not_traced() -> Iterator[None]:
    """Let modules compute while torch.fx, which replaces these two methods of theirs, is tracing."""
    traced = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = traced  # type: ignore[method-assign]


def _knows_only_sizes(node: fx.Node) -> bool:
    """Whether a value is computed from sizes and numbers, not from what tensors hold."""
    if node.op == "call_method" and node.target in _SIZES:
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _SIZES
    return bool(node.all_input_nodes) and all(_knows_only_sizes(source) for source in node.all_input_nodes)


@contextmanager
def _in_evaluation(root: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in root.modules()}
    root.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _resolve_in_place(root: nn.Module, graph: fx.Graph) -> None:
    """Let whatever reads a tensor after an operation overwrote it read that operation's result."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if (
            SHAPE not in node.meta
            or not node.args
            or not isinstance(node.args[0], fx.Node)
            or not _overwrites(root, node)
        ):
            continue
        overwritten = node.args[0]
        for reader in list(overwritten.users):
            if order[reader] > order[node]:
                reader.replace_input_with(overwritten, node)


def _overwrites(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    is_in_place_name = name.endswith("_") and not name.endswith("__")
    return is_in_place_name or name in ("iadd", "imul") or bool(node.kwargs.get("inplace", False))


def _erase_dead_code(graph: fx.Graph, returned: dict[str, Any]) -> None:
    """Erase what nothing reads: an unused part of a split, an auxiliary branch."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)
            for path in [path for path, value in returned.items() if getattr(value, "node", None) is node]:
                del returned[path]


def _infer_shapes(root: nn.Module, graph: fx.Graph, example: Tensor) -> None:
    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                n.meta[SHAPE] = tuple(result.shape)
            return result

    try:
        with _in_evaluation(root), torch.no_grad():
            Shapes(root, graph=graph).run(example)
    except Exception as error:  # torch raises several kinds for a shape that does not fit
        raise NetworkError(
            f"{type(root).__name__} does not take an input of shape {list(example.shape[1:])}: {error}"
        ) from None
