"""The ways to spell a mean or a maximum over windows, brought to one each; see `operations.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from kdpipe.stages.quantization.layers import AveragePool
from kdpipe.stages.quantization.normalized import Complaint, Normalized, arguments, replace_by_module
from kdpipe.stages.quantization.tracing import SCOPE
from kdpipe.targets.lower import PATH, SHAPE


def average(
    result: Normalized, node: fx.Node, kernel: Any, stride: Any, exact: tuple[Any, Any, Any], tap: str | None = None
) -> Complaint:
    """Replace `node` by an AveragePool; `exact` is padding, ceil_mode and divisor_override, of which it has none."""
    padding, ceil_mode, divisor = exact
    window = _pair(kernel)
    steps = _pair(stride) if stride else window
    if ceil_mode:
        # Where the windows fit the map it makes no difference.
        sizes = zip(node.all_input_nodes[0].meta[SHAPE][-2:], node.meta[SHAPE][-2:], window, steps, strict=True)
        ceil_mode = any((outputs - 1) * step + length > size for size, outputs, length, step in sizes)
    if padding not in (0, (0, 0), [0, 0]) or ceil_mode or divisor is not None:
        return "average pooling with padding, ceil_mode or divisor_override", "Use the defaults of these three"
    replace_by_module(result, node, AveragePool(window, steps), tap)
    return None


def adaptive(result: Normalized, node: fx.Node, size: Any, tap: str | None = None) -> Complaint:
    """Replace `node` by an AveragePool, if its windows are all alike."""
    shape = node.all_input_nodes[0].meta[SHAPE]
    wanted = [known if out is None else out for known, out in zip(shape[2:], _pair_or_none(size), strict=True)]
    if len(shape) != 4 or any(known % out for known, out in zip(shape[2:], wanted, strict=True)):
        return f"adaptive pooling of {list(shape[2:])} to {wanted}", "The output size must divide the input's"
    window = (shape[2] // wanted[0], shape[3] // wanted[1])
    replace_by_module(result, node, AveragePool(window, window), tap)
    return None


def _mean_call(result: Normalized, node: fx.Node) -> Complaint:
    shape = node.all_input_nodes[0].meta[SHAPE]
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axes = sorted(axis % len(shape) for axis in dims) if isinstance(dims, list | tuple) else dims
    if len(shape) != 4 or axes != [2, 3]:
        return f"a mean over dimensions {dims}", "Only the mean over height and width is possible"
    window = (shape[2], shape[3])
    flat = len(node.meta[SHAPE]) == 2
    pool = replace_by_module(result, node, AveragePool(window, window))
    pool.meta[SHAPE] = (*shape[:2], 1, 1)
    if flat:
        with result.graph.inserting_after(pool):
            new = result.graph.call_function(torch.flatten, (pool, 1))
        new.meta.update({SCOPE: pool.meta[SCOPE], PATH: f"{pool.meta[PATH]}.flatten", SHAPE: shape[:2]})
        pool.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        for path, tapped in result.taps.items():
            if tapped is pool:
                result.taps[path] = new
    return None


def _average_call(result: Normalized, node: fx.Node) -> Complaint:
    given = arguments(node, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    exact = (given.get("padding", 0), given.get("ceil_mode", False), given.get("divisor_override"))
    return average(result, node, given["kernel_size"], given.get("stride"), exact)


def _maximum_call(result: Normalized, node: fx.Node) -> Complaint:
    given = arguments(node, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    if given.get("dilation", 1) not in (1, (1, 1)) or given.get("return_indices"):
        return "max pooling with dilation or return_indices", "Use the defaults of these two"
    stride = given.get("stride") or given["kernel_size"]
    pool = nn.MaxPool2d(given["kernel_size"], stride, given.get("padding", 0), ceil_mode=given.get("ceil_mode", False))
    replace_by_module(result, node, pool)
    return None


def _adaptive_call(result: Normalized, node: fx.Node) -> Complaint:
    return adaptive(result, node, arguments(node, "output_size")["output_size"])


def _pair(value: Any) -> tuple[int, int]:
    first, second = _pair_or_none(value)
    return int(first), int(second)


def _pair_or_none(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)  # type: ignore[return-value]


CALLS: Mapping[Any, Callable[[Normalized, fx.Node], Complaint]] = {
    torch.mean: _mean_call,
    "mean": _mean_call,
    F.adaptive_avg_pool2d: _adaptive_call,
    **({torch.adaptive_avg_pool2d: _adaptive_call} if hasattr(torch, "adaptive_avg_pool2d") else {}),
    F.avg_pool2d: _average_call,
    torch._C._nn.avg_pool2d: _average_call,
    F.max_pool2d: _maximum_call,
    torch.max_pool2d: _maximum_call,
}
"""By call_function target or method: what brings a node to its one form."""
