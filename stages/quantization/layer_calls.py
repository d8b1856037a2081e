"""Layers that a module computes by calling a function with its own parameters, brought to modules of torch.nn.

So do subclasses of nn.Linear, nn.Conv2d and nn.BatchNorm2d that have a forward of their own (timm's Linear and
BatchNormAct2d), and modules of a user's own that hold nn.Parameters.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kdpipe.stages.quantization.normalized import Normalized
from kdpipe.stages.quantization.tracing import SCOPE
from kdpipe.targets.lower import PATH, SHAPE


def fold_layer_calls(result: Normalized) -> None:
    """Replace F.linear, F.conv2d and F.batch_norm of parameters by nn.Linear, nn.Conv2d and nn.BatchNorm2d.

    A layer that was written as a module without children keeps its path and its parameters' names. Parameters that are
    read more than once stay as they are, and are then complained about.
    """
    reads: Counter[str] = Counter()
    for node in result.graph.nodes:
        if node.op == "get_attr":
            reads[str(node.target)] += len(node.users)
    for node in list(result.graph.nodes):
        fold = _CALLS.get(node.target) if node.op == "call_function" else None
        if fold is None or SHAPE not in node.meta:
            continue
        make, names = fold
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        constants = {name: value for name, value in given.items() if isinstance(value, fx.Node) and name != "input"}
        if not isinstance(given.get("input"), fx.Node) or any(
            value.op != "get_attr" or reads[str(value.target)] > 1 for value in constants.values()
        ):
            continue
        tensors = {name: _attribute(result.root, str(value.target)) for name, value in constants.items()}
        module = make(given | tensors)
        if module is not None:
            _call(result, node, module.train(result.root.training), given["input"], list(constants.values()))


def _call(result: Normalized, node: fx.Node, module: nn.Module, source: fx.Node, constants: list[fx.Node]) -> None:
    """Call `module` in the place of `node`, and let it alone have the parameters."""
    scope = str(node.meta.get(SCOPE, ""))
    owner = result.root.get_submodule(scope)
    for constant in constants:
        holder, _, name = str(constant.target).rpartition(".")
        part = result.root.get_submodule(holder)
        part._parameters.pop(name, None)
        part._buffers.pop(name, None)
    is_the_layer = scope != "" and not list(owner.children()) and result.taps.get(scope) is node
    if is_the_layer:
        parent, _, name = scope.rpartition(".")
        setattr(result.root.get_submodule(parent), name, module)
        del result.taps[scope]
        target = scope
    else:
        target = result.insert(scope or node.name, module)
    with result.graph.inserting_before(node):
        new = result.graph.call_module(target, (source,))
    new.meta.update(node.meta | {PATH: scope or node.name})
    result.replace(node, new)
    for constant in constants:
        result.graph.erase_node(constant)


def _linear(given: dict[str, Any]) -> nn.Module | None:
    weight, bias = given["weight"], given.get("bias")
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return _with(layer, weight, bias)


def _conv2d(given: dict[str, Any]) -> nn.Module | None:
    weight, bias, groups = given["weight"], given.get("bias"), given.get("groups", 1)
    if not isinstance(weight, Tensor):
        return None
    sizes: dict[str, Any] = {
        name: given.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    outputs, per_group, *kernel = weight.shape
    layer = nn.Conv2d(
        per_group * groups,
        outputs,
        (kernel[0], kernel[1]),
        **sizes,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return _with(layer, weight, bias)


def _with(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = _parameter(weight)
    layer.bias = None if bias is None else _parameter(bias)
    return layer


def _batch_norm(given: dict[str, Any]) -> nn.Module | None:
    mean, variance, weight, bias = (given.get(name) for name in ("running_mean", "running_var", "weight", "bias"))
    if mean is None or variance is None or (weight is None) != (bias is None):
        return None
    norm = nn.BatchNorm2d(len(mean), given.get("eps", 1e-5), given.get("momentum", 0.1), weight is not None)
    if weight is not None and bias is not None:
        norm.weight, norm.bias = _parameter(weight), _parameter(bias)
    norm.running_mean, norm.running_var = mean, variance
    return norm.to(mean.device)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)


def _attribute(root: nn.Module, path: str) -> Tensor:
    holder, _, name = path.rpartition(".")
    tensor: Tensor = getattr(root.get_submodule(holder), name)
    return tensor


_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CALLS: dict[Any, tuple[Callable[[dict[str, Any]], nn.Module | None], tuple[str, ...]]] = {
    F.linear: (_linear, ("input", "weight", "bias")),
    F.conv2d: (_conv2d, _CONVOLUTION_ARGUMENTS),
    torch.conv2d: (_conv2d, _CONVOLUTION_ARGUMENTS),
    F.batch_norm: (_batch_norm, tuple(inspect.signature(F.batch_norm).parameters)),
}
"""By function: what makes the module, and the names of its arguments."""
