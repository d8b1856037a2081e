"""The operations that can be quantized, brought to one form each.

A user's module spells an addition `a + b`, `a.add_(b)` or `torch.add(a, b)`, and a global mean in even more ways.
`normalize` rewrites a traced graph so that each operation has one spelling, and lists what has no integer form.

| operation | form afterwards |
| --- | --- |
| convolution, linear | call_module of nn.Conv2d, nn.Linear |
| batch norm | call_module of nn.BatchNorm2d behind a convolution, of nn.BatchNorm1d |
| ReLU, ReLU6 | call_function torch.relu, with what caps it in its `meta` |
| sigmoid, SiLU, hard sigmoid, hard swish | call_module of Function |
| softmax over the channels | call_module of Softmax |
| sum, product of two tensors | call_function operator.add, operator.mul |
| concatenation of channels | call_function torch.cat |
| every n-th pixel, with channels of zeros around it | call_module of a 1x1 nn.Conv2d |
| slice of channels, chunk, split | call_module of ChannelSlice |
| channel shuffle, also as view, transpose, view | call_module of ChannelShuffle |
| nearest upsampling by whole factors | call_module of Upsample |
| average pooling, mean over a window or the map | call_module of AveragePool |
| max pooling | call_module of nn.MaxPool2d |
| [B, C, H, W] to [B, C * H * W] | call_function torch.flatten |
| dropout, stochastic depth | call_module of nn.Dropout, nn.Dropout2d, StochasticDepth |
| identity | none: its input stands for it |
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from kdpipe.stages.quantization import pooling, rearrangements
from kdpipe.stages.quantization.layer_calls import fold_layer_calls
from kdpipe.stages.quantization.lone_batch_norm import give_a_layer
from kdpipe.stages.quantization.normalized import (
    INSERTED,
    Complaint,
    Normalized,
    Problem,
    arguments,
    replace_by_function,
    replace_by_module,
)
from kdpipe.stages.quantization.pad_shortcuts import fold_pad_shortcuts
from kdpipe.stages.quantization.softmax import Softmax
from kdpipe.stages.quantization.stored_operations import REARRANGEMENTS, Function, StochasticDepth
from kdpipe.stages.quantization.tracing import SCOPE, STOCHASTIC_DEPTHS, Traced
from kdpipe.targets.graph import LARGEST_SOFTMAX
from kdpipe.targets.lower import PATH, SHAPE

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
DROPOUTS = (nn.Dropout, nn.Dropout2d, StochasticDepth)

CEILING = "ceiling"
"""Key of a ReLU node's `meta`: the largest value that the float network lets through (6 for a ReLU6)."""


def is_relu(node: Any) -> bool:
    """Return whether a node of a normalized graph is a ReLU."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is torch.relu


def is_add(node: fx.Node) -> bool:
    """Return whether a node of a normalized graph is a sum."""
    return node.op == "call_function" and node.target is operator.add


def is_mul(node: fx.Node) -> bool:
    """Return whether a node of a normalized graph is a product."""
    return node.op == "call_function" and node.target is operator.mul


def is_cat(node: fx.Node) -> bool:
    """Return whether a node of a normalized graph joins channels."""
    return node.op == "call_function" and node.target is torch.cat


def is_flatten(node: fx.Node) -> bool:
    """Return whether a node of a normalized graph is a flattening."""
    return node.op == "call_function" and node.target is torch.flatten


def normalize(traced: Traced) -> Normalized:
    """Bring every operation to its one form; see the table above."""
    if hasattr(traced.root, INSERTED):
        problem = Problem("", f"the module has a submodule {INSERTED!r}", "Rename it, or quantize the float module")
        return Normalized(traced.root, traced.graph, problems=[problem])
    traced.root.add_module(INSERTED, nn.Module())
    result = Normalized(traced.root, traced.graph, dict(traced.returned))
    fold_layer_calls(result)
    rearrangements.fold_channel_shuffles(result)
    fold_pad_shortcuts(result)
    called: set[str] = set()
    for node in list(traced.graph.nodes):
        if node.op in ("placeholder", "output"):
            continue
        node.meta.setdefault(PATH, _path(node))
        complaint: Complaint
        if node.op == "call_module":
            complaint = _normalize_module(result, node, called)
        elif node.op == "get_attr":
            complaint = "a parameter or buffer that is used outside a layer", "Move it into a layer of torch.nn"
        elif SHAPE not in node.meta:
            continue  # arithmetic on sizes; what uses it is replaced, and it goes with the dead code
        else:
            complaint = _normalize_call(result, node)
        if complaint:
            result.problems.append(Problem(node.meta[PATH], *complaint))
    result.problems += _input_problems(traced.graph)
    give_a_layer(result)
    for node in reversed(list(traced.graph.nodes)):
        if node.op in ("call_function", "call_method") and SHAPE not in node.meta and not node.users:
            traced.graph.erase_node(node)
    return result


def _input_problems(graph: fx.Graph) -> list[Problem]:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        return [Problem("", "it takes several inputs", "One input tensor can be deployed")]
    shape = inputs[0].meta[SHAPE]
    if len(shape) not in (2, 4):
        return [Problem("", f"it takes an input of shape {list(shape)}", "Give [B, C, H, W] or [B, features]")]
    return []


def _path(node: fx.Node) -> str:
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    name = {
        "iadd": "add",
        "imul": "mul",
        "mul_": "mul",
        "add_": "add",
        "relu_": "relu",
        "boolean_dispatch": "pool",
        "fn": "pool",
    }.get(name, name)
    scope = node.meta.get(SCOPE, "")
    return f"{scope}.{name}" if scope else name


def _normalize_module(result: Normalized, node: fx.Node, called: set[str]) -> Complaint:
    module, path = result.module(node), str(node.target)
    again = path in called
    called.add(path)
    if isinstance(module, (*LAYERS, *NORMS)) and again:
        return "a layer that is called more than once", "Give each call a layer of its own"
    if isinstance(module, nn.Linear):
        source = node.all_input_nodes[0].meta[SHAPE]
        if len(source) != 2:
            return f"a linear layer of {list(source)}", "Flatten before it; over channels use a 1x1 convolution"
    elif isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"convolution with padding_mode={module.padding_mode!r}", "Use padding_mode='zeros'"
    elif isinstance(module, NORMS):
        if module.running_mean is None:
            return "batch norm without running statistics", "Use track_running_stats=True"
    elif isinstance(module, nn.ReLU):
        replace_by_function(result, node, torch.relu, (node.args[0],), tap=path)
    elif _is_relu6(module):
        node.meta[CEILING] = 6.0
        replace_by_function(result, node, torch.relu, (node.args[0],), tap=path)
    elif type(module) in _FUNCTION_MODULES:
        replace_by_module(result, node, Function(_FUNCTION_MODULES[type(module)]), tap=path)
    elif isinstance(module, nn.Softmax | nn.Softmax2d):
        return _softmax(result, node, getattr(module, "dim", 1), tap=path)
    elif isinstance(module, nn.ChannelShuffle):
        rearrangements.channel_shuffle(result, node, module.groups, tap=path)
    elif isinstance(module, nn.Upsample):
        return rearrangements.upsample(result, node, module.mode, tap=path)
    elif type(module).__name__ in STOCHASTIC_DEPTHS:
        probability = getattr(module, "drop_prob", None) or getattr(module, "p", None) or 0.0
        dropping = StochasticDepth(float(probability), getattr(module, "mode", "row") == "row")
        replace_by_module(result, node, dropping, tap=path)
    elif isinstance(module, nn.Flatten):
        return _flatten(result, node)
    elif isinstance(module, nn.AvgPool2d):
        exact = (module.padding, module.ceil_mode, module.divisor_override)
        return pooling.average(result, node, module.kernel_size, module.stride, exact, tap=path)
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        return pooling.adaptive(result, node, module.output_size, tap=path)
    elif isinstance(module, nn.MaxPool2d):
        if module.dilation not in (1, (1, 1)) or module.return_indices:
            return "max pooling with dilation or return_indices", "Use the defaults of these two"
    elif isinstance(module, nn.Identity):
        result.taps[path] = node.all_input_nodes[0]
        result.replace(node, node.all_input_nodes[0])
    elif not isinstance(module, (*LAYERS, *DROPOUTS, *REARRANGEMENTS)):
        return f"{type(module).__name__} has no integer form here", _remedy(type(module).__name__)
    return None


def _normalize_call(result: Normalized, node: fx.Node) -> Complaint:
    target = node.target
    if target in _ADDS:
        return _add(result, node)
    if target in _RELUS:
        replace_by_function(result, node, torch.relu, (node.args[0],))
        return None
    if target is F.relu6:
        node.meta[CEILING] = 6.0
        replace_by_function(result, node, torch.relu, (node.args[0],))
        return None
    if target in _MULS:
        return _mul(result, node)
    if target in _FUNCTION_CALLS:
        replace_by_module(result, node, Function(_FUNCTION_CALLS[target]))
        return None
    if target in (F.softmax, torch.softmax, "softmax"):
        given = arguments(node, "dim")
        return _softmax(result, node, given.get("dim"))
    if target in rearrangements.CALLS:
        return rearrangements.CALLS[target](result, node)
    if target in (torch.flatten, "flatten", "view", "reshape", torch.reshape):
        return _flatten(result, node)
    if target in pooling.CALLS:
        return pooling.CALLS[target](result, node)
    if target is F.dropout:
        probability = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        replace_by_module(result, node, nn.Dropout(float(probability)))
        return None
    if target == "contiguous":
        result.replace(node, node.all_input_nodes[0])
        return None
    name = node.meta[PATH].rpartition(".")[2]
    return f"the operation {name!r} has no integer form here", _remedy(name)


_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_MULS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
_FUNCTION_MODULES: dict[type, str] = {
    nn.Hardsigmoid: "hard_sigmoid",
    nn.Hardswish: "hard_swish",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
}
_FUNCTION_CALLS: dict[Any, str] = {
    F.hardsigmoid: "hard_sigmoid",
    F.hardswish: "hard_swish",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    F.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    F.silu: "silu",
}
_RELUS = (torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
_REMEDIES = {
    "LogSoftmax": "Leave it out: the largest logit is the largest probability",
    "pad": "Use the padding of the next convolution; of channels, only zeros can be appended",
    "log_softmax": "Leave it out: the largest logit is the largest probability",
}


def _remedy(name: str) -> str:
    known = (
        "convolution, linear, batch norm, ReLU, ReLU6, sigmoid, SiLU, hard sigmoid, hard swish, softmax, sum, product, "
        "mean, average and max pooling, concatenation, slices and shuffles of channels, nearest upsampling, flatten, "
        "dropout"
    )
    return _REMEDIES.get(name, f"Replace it by what can be quantized: {known}")


def _add(result: Normalized, node: fx.Node) -> Complaint:
    inputs = node.args
    if len(inputs) == 2 and 0 in inputs and not node.kwargs:
        result.replace(node, node.all_input_nodes[0])  # as sum() of a list begins
        return None
    shapes = [arg.meta.get(SHAPE) if isinstance(arg, fx.Node) else None for arg in inputs]
    if len(inputs) != 2 or None in shapes or node.kwargs:
        return "a sum with a number or a factor", "Put constants into a layer's bias"
    if shapes[0] != shapes[1]:
        return f"a sum of shapes {list(shapes[0] or ())} and {list(shapes[1] or ())}", "Bring both to one shape"
    replace_by_function(result, node, operator.add, (inputs[0], inputs[1]))
    return None


def _mul(result: Normalized, node: fx.Node) -> Complaint:
    shapes = [arg.meta.get(SHAPE) if isinstance(arg, fx.Node) else None for arg in node.args]
    if len(shapes) != 2 or node.kwargs or shapes[0] is None or shapes[1] is None:
        return "a product with a number", "Put constants into a layer's weights"
    first, second = node.args
    by_channel = [(*shape[:2], *[1] * len(shape[2:])) for shape in shapes if shape is not None]
    if shapes[0] == by_channel[1] != shapes[1]:
        first, second = second, first
    elif shapes[1] not in (shapes[0], by_channel[0]):
        return f"a product of shapes {list(shapes[0])} and {list(shapes[1])}", "Multiply one shape, or channels"
    replace_by_function(result, node, operator.mul, (first, second))
    return None


def _softmax(result: Normalized, node: fx.Node, axis: Any, tap: str | None = None) -> Complaint:
    shape = node.meta[SHAPE]
    # Without an axis torch takes the channels of such tensors.
    if len(shape) not in (2, 4) or (axis is not None and axis % len(shape) != 1):
        return f"a softmax of {list(shape)} over dimension {axis}", "Only the softmax over the channels is possible"
    if not 2 <= shape[1] <= LARGEST_SOFTMAX:
        return f"a softmax over {shape[1]} channels", f"Use 2 to {LARGEST_SOFTMAX}, or leave it out"
    replace_by_module(result, node, Softmax(), tap)
    return None


def _is_relu6(module: nn.Module | None) -> bool:
    # nn.ReLU6 is an nn.Hardtanh too.
    return isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0)


def _flatten(result: Normalized, node: fx.Node) -> Complaint:
    source = node.all_input_nodes[0]
    before, after = source.meta[SHAPE], node.meta[SHAPE]
    if before == after:
        result.replace(node, source)
        return None
    if len(after) != 2 or after[0] != before[0]:
        return f"a reshaping from {list(before)} to {list(after)}", "Only flattening all but the batch is possible"
    tap = str(node.target) if node.op == "call_module" else None
    replace_by_function(result, node, torch.flatten, (source, 1), tap=tap)
    return None
