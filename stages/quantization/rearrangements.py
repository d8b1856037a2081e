"""The ways to spell concatenation, slices, shuffles and upsampling, brought to one each; see `operations.py`."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from kdpipe.stages.quantization.normalized import Complaint, Normalized, replace_by_function, replace_by_module
from kdpipe.stages.quantization.stored_operations import ChannelShuffle, ChannelSlice, Upsample
from kdpipe.stages.quantization.tracing import SCOPE
from kdpipe.targets.lower import PATH, SHAPE

_VIEWS = ("view", "reshape", torch.reshape)
_SPLITS = ("split", "chunk", torch.split, torch.chunk)


def fold_channel_shuffles(result: Normalized) -> None:
    """Replace view [B, G, C/G, H, W], transpose(1, 2), view [B, C, H, W] by one ChannelShuffle of G groups."""
    for node in list(result.graph.nodes):
        if node.target not in _VIEWS or SHAPE not in node.meta or not node.all_input_nodes:
            continue  # the last: erased with the pattern before it
        before, split = node.all_input_nodes[0].meta.get(SHAPE), node.meta[SHAPE]
        if before is None or len(before) != 4 or len(split) != 5 or split[3:] != before[2:]:
            continue
        chain = [node]
        while len(users := list(chain[-1].users)) == 1 and len(chain) < 4 and users[0].meta.get(SHAPE) != before:
            chain.append(users[0])
        swap = chain[1] if len(chain) > 1 else None
        if swap is None or swap.target not in ("transpose", torch.transpose) or swap.args[1:] not in ((1, 2), (2, 1)):
            continue
        if any(between.target != "contiguous" for between in chain[2:]):
            continue
        if len(users) != 1 or users[0].target not in _VIEWS:
            continue
        end = users[0]
        scope = end.meta.get(SCOPE, "")
        end.meta[PATH] = f"{scope}.channel_shuffle" if scope else "channel_shuffle"
        end.replace_input_with(chain[-1], node.all_input_nodes[0])
        channel_shuffle(result, end, int(split[1]))
        for part in reversed(chain):
            result.graph.erase_node(part)


def channel_shuffle(result: Normalized, node: fx.Node, groups: int, tap: str | None = None) -> None:
    """Replace `node` by a ChannelShuffle."""
    replace_by_module(result, node, ChannelShuffle(groups), tap)


def upsample(result: Normalized, node: fx.Node, mode: str, tap: str | None = None) -> Complaint:
    """Replace `node` by an Upsample, if it repeats pixels a whole number of times."""
    before, after = node.all_input_nodes[0].meta[SHAPE], node.meta[SHAPE]
    fits = len(before) == 4 and all(large % small == 0 for small, large in zip(before[2:], after[2:], strict=True))
    if mode not in ("nearest", "nearest-exact") or not fits:
        return (
            f"resizing {list(before[2:])} to {list(after[2:])} by {mode!r}",
            "Use mode='nearest' with whole factors",
        )
    factor = (after[2] // before[2], after[3] // before[3])
    if factor == (1, 1):
        result.replace(node, node.all_input_nodes[0])
    else:
        replace_by_module(result, node, Upsample(factor), tap)
    return None


def _concatenate(result: Normalized, node: fx.Node) -> Complaint:
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if not isinstance(parts, list | tuple) or not all(
        isinstance(part, fx.Node) and SHAPE in part.meta for part in parts
    ):
        return "a concatenation of something else than the network's tensors", "Join tensors that layers compute"
    if not isinstance(axis, int) or axis % len(node.meta[SHAPE]) != 1:
        return f"a concatenation along dimension {axis}", "Only channels, dimension 1, can be joined"
    if len(parts) == 1:
        result.replace(node, parts[0])
    else:
        replace_by_function(result, node, torch.cat, (list(parts), 1))
    return None


def _item(result: Normalized, node: fx.Node) -> Complaint:
    """A slice of channels x[:, a:b], or one part of a split."""
    source, index = node.args
    if not isinstance(source, fx.Node):
        return _NO_SLICE
    if source.target in _SPLITS and isinstance(index, int):
        return _part(result, node, source, index)
    slices = index if isinstance(index, tuple) else (index,)
    if SHAPE not in source.meta or not all(_is_plain_slice(part) for part in slices):
        return _NO_SLICE
    bounds = [part.indices(size) for part, size in zip(slices, source.meta[SHAPE], strict=False)]
    whole = [(0, size, 1) for size in source.meta[SHAPE]]
    whole[: len(bounds)] = bounds
    start, stop, _ = whole.pop(1)
    if whole != [(0, size, 1) for size in (source.meta[SHAPE][0], *source.meta[SHAPE][2:])] or start >= stop:
        return _NO_SLICE
    _keep_channels(result, node, source, start, stop)
    return None


_NO_SLICE: Complaint = (
    "indexing that is no slice of channels",
    "Use a strided 1x1 convolution with batch norm instead of slicing (shortcut: projection)",
)


def _is_plain_slice(part: Any) -> bool:
    return (
        isinstance(part, slice)
        and all(value is None or isinstance(value, int) for value in (part.start, part.stop, part.step))
        and part.step in (None, 1)
    )


def _part(result: Normalized, node: fx.Node, split: fx.Node, index: int) -> Complaint:
    source = split.all_input_nodes[0]
    given = (
        split.args[1]
        if len(split.args) > 1
        else next(
            (split.kwargs[key] for key in ("chunks", "split_size", "split_size_or_sections") if key in split.kwargs),
            None,
        )
    )
    axis = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    shape = source.meta[SHAPE]
    if not isinstance(axis, int) or axis % len(shape) != 1:
        return f"a split along dimension {axis}", "Only channels, dimension 1, can be split"
    channels = shape[1]
    if isinstance(given, int):
        # chunk says how many parts, split how large one is.
        size = -(-channels // given) if split.target in ("chunk", torch.chunk) else given
        starts = list(range(0, channels, size))
    elif isinstance(given, list | tuple) and all(isinstance(size, int) for size in given):
        starts = list(itertools.accumulate(given, initial=0))[:-1]
    else:
        return "a split into parts that tracing does not know", "Give their sizes as numbers"
    start = starts[index]
    _keep_channels(result, node, source, start, start + node.meta[SHAPE][1])
    return None


def _keep_channels(result: Normalized, node: fx.Node, source: fx.Node, start: int, stop: int) -> None:
    scope = node.meta.get(SCOPE, "")
    node.meta[PATH] = f"{scope}.slice" if scope else "slice"
    if stop - start == source.meta[SHAPE][1]:
        result.replace(node, source)
        return
    node.args = (source,)
    replace_by_module(result, node, ChannelSlice(start, stop))


def _shuffle(result: Normalized, node: fx.Node) -> Complaint:
    groups = node.args[1] if len(node.args) > 1 else node.kwargs["groups"]
    channel_shuffle(result, node, int(groups))
    return None


def _interpolate(result: Normalized, node: fx.Node) -> Complaint:
    mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
    return upsample(result, node, str(mode))


CALLS: Mapping[Any, Callable[[Normalized, fx.Node], Complaint]] = {
    torch.cat: _concatenate,
    torch.concat: _concatenate,
    torch.concatenate: _concatenate,
    operator.getitem: _item,
    torch.channel_shuffle: _shuffle,
    F.channel_shuffle: _shuffle,
    F.interpolate: _interpolate,
}
"""By call_function target: what brings a node to its one form."""
