"""Which kernel computes a node of an integer graph on a core.

A kernel is chosen here and nowhere else: a faster one for some core, shape or width is one more candidate in
`_LOWERINGS`, with its files in `kernels/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdpipe.targets.c import portable_layers as portable
from kdpipe.targets.c.convolution_m4 import conv8, conv8_flat
from kdpipe.targets.c.convolution_mve import conv_mve
from kdpipe.targets.c.convolution_v6m import conv_dot, conv_table
from kdpipe.targets.c.cores import ARMV7M, DSP, FEATURES, FPU, GENERIC, MVE, THUMB
from kdpipe.targets.c.depthwise_m4 import depthwise3
from kdpipe.targets.c.depthwise_mve import depthwise_mve
from kdpipe.targets.c.depthwise_v6m import depthwise_pairs
from kdpipe.targets.c.global_mean import mean_dsp, mean_mve
from kdpipe.targets.c.layer import Layer
from kdpipe.targets.c.linear_m4 import linear_dsp
from kdpipe.targets.c.linear_mve import linear_mve
from kdpipe.targets.c.linear_v6m import linear_blocks
from kdpipe.targets.c.nibble_m4 import nibble_taps
from kdpipe.targets.c.optimization import SIZE, SPEED
from kdpipe.targets.c.scaled_add import scaled_add_mve, scaled_add_v6m, scaled_add_v7m
from kdpipe.targets.c.storage import size_of
from kdpipe.targets.c.ternary_m4 import ternary_outer, ternary_taps
from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import (
    Add,
    AveragePool2d,
    ChannelShuffle,
    Concat,
    Conv2d,
    Flatten,
    IntegerGraph,
    Linear,
    Lookup,
    MaxPool2d,
    Mul,
    Node,
    Requantize,
    Slice,
    Softmax,
    Upsample,
)

_MOST_BITS = 2
"""Of a ternary weight, where small sources are wanted."""


@dataclass(frozen=True)
class Candidate:
    """A way of lowering a node.

    Args:
        plan: returns the layer, or None where it does not apply to the node or can't be proved exact.
        needs: features that the core must have, see `cores.py`.
        lacks: features of cores that have better ways.
    """

    plan: Callable[[IntegerGraph, Node], Layer | None]
    needs: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()

    def suits(self, features: frozenset[str]) -> bool:
        """Return whether it is for a core that has `features`."""
        return self.needs <= features and not self.lacks & features


def lower_node(graph: IntegerGraph, node: Node, core: str = GENERIC, optimize: str = SPEED) -> Layer:
    """Choose the kernel that computes `node`, and lay out its constants.

    Args:
        graph: the network.
        node: one of its nodes.
        core: what the kernel must run on, a name of `cores.py`.
        optimize: a name of `optimization.py`. For size, a core's own kernel computes a layer with ternary weights only
            where it stores them in 2 bits or fewer; else the portable one does, with five to a byte.

    Raises:
        UnsupportedError: the C target has no kernel for it; names the layer.
    """
    candidates = _LOWERINGS.get(type(node.op))
    if candidates is None:
        raise UnsupportedError(
            f"the C target has no kernel for {type(node.op).__name__}",
            where=f"layer {node.name}",
            remedy="Known: " + ", ".join(sorted(operator.__name__ for operator in _LOWERINGS)),
        )
    if any(size_of(graph.tensor(name).shape) >= 2**24 for name in (*node.inputs, node.name)):
        raise UnsupportedError(
            "the C target takes tensors of less than 2**24 elements",
            where=f"layer {node.name}",
            remedy="Make the input or the network smaller",
        )
    plans = (candidate.plan(graph, node) for candidate in candidates if candidate.suits(FEATURES[core]))
    # The last candidate of each operator runs everywhere and takes everything.
    found = (layer for layer in plans if layer is not None)
    op = node.op
    if optimize == SIZE and isinstance(op, Conv2d | Linear) and op.weight.bits == 2:
        *own, fallback = found
        small = (layer for layer in own if 8 * layer.arrays["weights"].nbytes <= _MOST_BITS * op.weight.values.size)
        return next(small, portable.five_to_a_byte(fallback, op))
    return next(found)


_LOWERINGS: dict[type, tuple[Candidate, ...]] = {
    Conv2d: (
        Candidate(conv_mve, frozenset({MVE})),
        Candidate(depthwise_mve, frozenset({MVE})),
        Candidate(depthwise3, frozenset({DSP, FPU})),
        Candidate(conv8_flat, frozenset({DSP})),
        Candidate(nibble_taps, frozenset({DSP, FPU})),
        Candidate(conv8, frozenset({DSP})),
        Candidate(ternary_taps, frozenset({DSP, FPU})),
        Candidate(ternary_outer, frozenset({DSP, FPU})),
        Candidate(depthwise_pairs, needs=frozenset({THUMB}), lacks=frozenset({DSP})),
        Candidate(conv_table, needs=frozenset({THUMB}), lacks=frozenset({ARMV7M})),
        Candidate(conv_dot, needs=frozenset({THUMB}), lacks=frozenset({DSP})),
        Candidate(portable.convolution),
    ),
    Linear: (
        Candidate(linear_mve, frozenset({MVE})),
        Candidate(linear_dsp, frozenset({DSP, FPU})),
        Candidate(linear_blocks, needs=frozenset({THUMB}), lacks=frozenset({DSP})),
        Candidate(portable.linear),
    ),
    Add: (
        Candidate(scaled_add_mve, frozenset({MVE})),
        Candidate(scaled_add_v7m, frozenset({ARMV7M})),
        Candidate(scaled_add_v6m, frozenset({THUMB}), lacks=frozenset({ARMV7M})),
        Candidate(portable.add),
    ),
    Mul: (Candidate(portable.mul),),
    Lookup: (Candidate(portable.lookup),),
    Softmax: (Candidate(portable.softmax),),
    Concat: (Candidate(portable.concat),),
    Slice: (Candidate(portable.channels_slice),),
    ChannelShuffle: (Candidate(portable.channel_shuffle),),
    Upsample: (Candidate(portable.upsample),),
    MaxPool2d: (Candidate(portable.pool),),
    AveragePool2d: (
        Candidate(mean_mve, frozenset({MVE})),
        Candidate(mean_dsp, frozenset({DSP})),
        Candidate(portable.pool),
    ),
    Flatten: (Candidate(portable.flatten),),
    Requantize: (Candidate(portable.requantize),),
}
"""By operator, in the order of preference."""
OPERATORS = frozenset(_LOWERINGS)
"""The operators of the integer graph that have a kernel."""
