"""Shortcuts that take every n-th pixel and append channels of zeros: option A of He et al. 2016 (arXiv:1512.03385)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from kdpipe.stages.quantization.normalized import Normalized, replace_by_module
from kdpipe.stages.quantization.tracing import SCOPE
from kdpipe.targets.lower import PATH, SHAPE

RESIDUAL = "residual"
"""Key of a layer node's `meta`: that it only passes a residual on, which stays as wide as where nothing is padded."""

_PADS = (F.pad, torch._C._nn.pad)


def fold_pad_shortcuts(result: Normalized) -> None:
    """Replace x[:, :, ::s, ::s] with channels of zeros around it by one 1x1 convolution of stride s.

    Its weights are 0 and 1, which every width has, so that it computes the same; they are not trained. What it reads
    has 8 bits, as what a sum reads.
    """
    for node in list(result.graph.nodes):
        if node.target not in _PADS or SHAPE not in node.meta:
            continue
        channels = _added_channels(node)
        source = node.all_input_nodes[0]
        if channels is None or len(source.meta.get(SHAPE, ())) != 4:
            continue
        stride = _stride(source)
        if stride is None or len(source.users) > 1:
            stride = (1, 1)
        else:
            source = source.all_input_nodes[0]
        device = next((p.device for p in result.root.parameters()), None)
        layer = _convolution(int(source.meta[SHAPE][1]), channels, stride).to(device)
        skipped = node.all_input_nodes[0]
        node.replace_input_with(skipped, source)
        if not skipped.users:
            result.graph.erase_node(skipped)
        scope = node.meta.get(SCOPE, "")
        node.meta[PATH] = f"{scope}.pad" if scope else "pad"
        node.meta[RESIDUAL] = True
        replace_by_module(result, node, layer)


def _convolution(inputs: int, added: tuple[int, int], stride: tuple[int, int]) -> nn.Conv2d:
    before, after = added
    layer = nn.Conv2d(inputs, before + inputs + after, 1, stride, bias=False)
    weight = torch.zeros_like(layer.weight)
    rows = torch.arange(inputs)
    weight[rows + before, rows] = 1
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _added_channels(node: fx.Node) -> tuple[int, int] | None:
    """Return (before, after) of an F.pad that appends channels of zeros and nothing else."""
    given: dict[str, Any] = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | dict(node.kwargs)
    pad = given.get("pad")
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0):
        return None
    if not isinstance(pad, list | tuple) or len(pad) != 6 or not all(isinstance(size, int) for size in pad):
        return None
    if any(pad[:4]) or min(pad[4:]) < 0 or not any(pad[4:]):
        return None
    return int(pad[4]), int(pad[5])


def _stride(node: fx.Node) -> tuple[int, int] | None:
    """Return the strides of an indexing x[:, :, ::a, ::b], None for anything else."""
    name = getattr(node.target, "__name__", None)
    if node.op != "call_function" or name != "getitem" or not isinstance(node.args[1], tuple):
        return None
    source, slices = node.args
    if not isinstance(source, fx.Node) or len(source.meta.get(SHAPE, ())) != 4 or len(slices) != 4:
        return None
    if not all(isinstance(part, slice) and part.start in (None, 0) and part.stop is None for part in slices):
        return None
    steps = [part.step or 1 for part in slices]
    if steps[:2] != [1, 1] or not all(isinstance(step, int) and step > 0 for step in steps):
        return None
    return steps[2], steps[3]
