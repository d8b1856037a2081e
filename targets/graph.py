"""The integer graph: the one deployable truth from which every target is written.

A graph has one input, one output and a list of nodes in an order in which they can be computed. Tensors are named
after the node that produces them; shapes leave out the batch and are channels first ([C, H, W] or [features]).
A stored integer q stands for the real number `scale * (q - zero_point)`. `reference.py` computes the graph in
NumPy and so defines every operator to the bit; the equations are in the operators' docstrings, where

    requantize(a, s) = clamp(zero_point + multiply_by_quantized_multiplier(a, *quantize_multiplier(s)), qmin, qmax)

with zero_point, qmin and qmax those of the node's output, and rounding that of the graph (`fixed_point.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.errors import GraphError
from kdpipe.targets.fixed_point import INT32_MAX, Rounding

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
"""Positive float32 below this are subnormal: runtimes may compute with zero instead."""

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]
WEIGHT_BITS = (2, 3, 4, 8)


def is_integer(value: object) -> bool:
    """Return whether `value` is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Quantization:
    """How stored integers stand for real numbers: real = scale * (q - zero_point).

    Args:
        scale: the step, positive, exactly a float32 (the files store float32, so all agree on one number).
        zero_point: the integer that stands for 0, in [qmin, qmax].
        qmin: the smallest stored integer, at least -128.
        qmax: the largest stored integer, at most 127. `qmax - qmin` is `2**bits - 1` for an activation of `bits`.
    """

    scale: float
    zero_point: int
    qmin: int = -128
    qmax: int = 127

    def __post_init__(self) -> None:
        if not np.isfinite(self.scale) or self.scale <= 0:
            raise GraphError(f"a scale must be positive and finite, got {self.scale}")
        if not all(is_integer(value) for value in (self.zero_point, self.qmin, self.qmax)):
            raise GraphError(f"a zero point and its range are integers, got {self.zero_point!r}")
        if self.scale < SMALLEST_NORMAL:
            raise GraphError(f"the scale {self.scale:.3g} is one that runtimes flush to zero")
        if float(np.float32(self.scale)) != self.scale:
            raise GraphError(f"the scale {self.scale!r} is not a float32", remedy="Round it with float(np.float32(x))")
        if not -128 <= self.qmin < self.qmax <= 127:
            raise GraphError(f"the range [{self.qmin}, {self.qmax}] does not lie in [-128, 127]")
        if not self.qmin <= self.zero_point <= self.qmax:
            raise GraphError(f"the zero point {self.zero_point} lies outside [{self.qmin}, {self.qmax}]")

    @property
    def bits(self) -> int:
        """The smallest number of bits that holds every stored integer."""
        return (self.qmax - self.qmin).bit_length()

    def quantize(self, real: NDArray[np.floating]) -> NDArray[np.int8]:
        """Return clamp(zero_point + round_half_even(real / scale), qmin, qmax), computed in float32 as ONNX does."""
        steps = np.rint(np.asarray(real, dtype=np.float32) / np.float32(self.scale))
        stored: NDArray[np.int8] = np.clip(steps + self.zero_point, self.qmin, self.qmax).astype(np.int8)
        return stored

    def dequantize(self, stored: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return scale * (stored - zero_point) as float32."""
        return (np.float32(self.scale) * (stored.astype(np.float32) - np.float32(self.zero_point))).astype(np.float32)


PROBABILITIES = Quantization(1 / 256, -128)
"""What a Softmax returns: 0 to 255/256, as TFLite's has it."""
LARGEST_SOFTMAX = 4095
"""Channels that a Softmax may have."""
SMALLEST_SOFTMAX_STEP = 2.0**-26
"""Finer steps of its input have no quantized multiplier in a Softmax; its output would be uniform."""


@dataclass(frozen=True)
class TensorType:
    """Shape (without the batch) and quantization of an activation."""

    shape: tuple[int, ...]
    quantization: Quantization


@dataclass(frozen=True, eq=False)
class Weight:
    """Integer weights, symmetric (zero point 0), with one scale for each output channel.

    Args:
        values: int8; [O, I/groups, KH, KW] for a convolution, [O, I] for a linear layer. 2-bit weights are ternary,
            {-1, 0, 1}; b-bit ones lie in [-(2**(b-1) - 1), 2**(b-1) - 1].
        scales: float32 [O], positive and finite.
        bits: the width at which they are stored, one of 2, 3, 4, 8.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in WEIGHT_BITS:
            raise GraphError(f"weights of {self.bits} bits are not supported", remedy=f"Use one of {WEIGHT_BITS}")
        if self.values.dtype != np.int8 or self.scales.dtype != np.float32:
            raise GraphError(f"weights must be int8 with float32 scales, got {self.values.dtype}, {self.scales.dtype}")
        if self.values.ndim not in (2, 4) or not self.values.size:
            raise GraphError(f"weights have the shape [O, I] or [O, I, KH, KW], not {list(self.values.shape)}")
        if self.scales.shape != self.values.shape[:1]:
            raise GraphError(f"{self.values.shape[0]} output channels but scales of shape {self.scales.shape}")
        limit = 2 ** (self.bits - 1) - 1
        if self.values.size and int(np.abs(self.values.astype(np.int16)).max()) > limit:
            raise GraphError(f"a weight lies outside [-{limit}, {limit}], the range of {self.bits} bits")
        if not (np.isfinite(self.scales).all() and (self.scales >= SMALLEST_NORMAL).all()):
            raise GraphError("a weight scale is zero, negative, too small or not finite")

    @property
    def packed_bytes(self) -> int:
        """Bytes that the values alone need at their width."""
        return (self.values.size * self.bits + 7) // 8


@dataclass(frozen=True, eq=False)
class Conv2d:
    """2-D convolution; depthwise where `groups` equals the input's channels.

    acc[o,y,x] = bias[o] + sum_{i,u,v} w[o,i,u,v] * (q[g(o)+i, y*stride+u*dilation-top, x*stride+v*dilation-left] - z)
    out = requantize(acc, s_in * w.scales[o] / s_out); outside the input, q is its zero point z.

    Args:
        weight: [O, I/groups, KH, KW].
        bias: int32 [O], in units of s_in * w.scales[o].
        stride: (vertical, horizontal).
        padding: (top, left, bottom, right).
        dilation: (vertical, horizontal).
        groups: divides both I and O.
    """

    weight: Weight
    bias: NDArray[np.int32]
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Linear:
    """Fully connected: acc[o] = bias[o] + sum_i w[o,i] * (q[i] - z); out = requantize(acc, s_in * w.scales[o] / s_out).

    Args:
        weight: [O, I].
        bias: int32 [O], in units of s_in * w.scales[o].
    """

    weight: Weight
    bias: NDArray[np.int32]


@dataclass(frozen=True)
class Add:
    """Sum of two tensors of one shape, each with its own scale, as TFLite's reference kernel computes it.

    With m = 2 * max(s_1, s_2): t_k = M((q_k - z_k) * 2**20, s_k / m), out = requantize(t_1 + t_2, m / (2**20 * s_out)),
    where M multiplies by the quantized multiplier of its second argument with the graph's rounding.
    """


@dataclass(frozen=True)
class MaxPool2d:
    """Maximum over a window. Input and output have one quantization.

    out[c,y,x] = max over u < KH and v < KW of q[c, y*stride+u-top, x*stride+v-left], where that lies in the map: the
    padding never wins, and is smaller than the window.

    Args:
        kernel: (KH, KW).
        stride: (vertical, horizontal).
        padding: (top, left, bottom, right).
    """

    kernel: Pair
    stride: Pair
    padding: Padding = (0, 0, 0, 0)


@dataclass(frozen=True)
class AveragePool2d:
    """Mean over a window, without padding; input and output have one quantization.

    out[c,y,x] = round(sum over u < KH and v < KW of q[c, y*stride+u, x*stride+v] / (KH * KW)), halves away from zero,
    clamped to [qmin, qmax]. The sum stays in int32. With `kernel` the whole map this is the global mean. (TFLite's
    AVERAGE_POOL_2D rounds the stored integers, not q - z: so does this.)

    Args:
        kernel: (KH, KW).
        stride: (vertical, horizontal).
    """

    kernel: Pair
    stride: Pair


@dataclass(frozen=True)
class Flatten:
    """[C, H, W] to [C * H * W], channels first: out[(c * H + y) * W + x] = q[c, y, x]. One quantization."""


@dataclass(frozen=True)
class Requantize:
    """From one quantization to another: out = requantize(q - z, s_in / s_out)."""


@dataclass(frozen=True)
class Mul:
    """Product of two tensors, each with its own scale; the second has the first's shape, or [C, 1, 1].

    out = requantize((q_1 - z_1) * (q_2 - z_2), s_1 * s_2 / s_out), as TFLite's reference kernel computes it. With
    [C, 1, 1] every position of channel c is multiplied by the one number of c (squeeze-and-excitation).
    """


@dataclass(frozen=True)
class Lookup:
    """A function of each element by itself, as a table of 256 integers.

    out = clamp(z_out + round(f(s_in * (q - z_in)) / s_out), qmin, qmax), in float64, halves to even.

    Args:
        function: hard_sigmoid, hard_swish, sigmoid or silu; see `lookup.py`.
    """

    function: str


@dataclass(frozen=True)
class Softmax:
    """exp(x[c]) / sum_k exp(x[k]) over the channels (or features) c of each position; the output is `PROBABILITIES`.

    In 32-bit fixed point, as TFLite's reference kernel computes it, whatever the graph's rounding. With
    d[c] = max_k(q[k]) - q[c], e a table of exp(-s_in * d) in 2**-31 and n the leading zeros of the sum in 32 bits:

        sum = sum_k round(e[d[k]] / 2**12),   h = floor(sum * 2**n / 2),   r = 2 / h by three Newton-Raphson steps
        out[c] = min(127, round(r * e[d[c]] / 2**(35 - n)) - 128)

    Each product is rounded to 31 fractional bits; `softmax.py` has every step. The input has two or
    more channels, at most `LARGEST_SOFTMAX`, so that the sum stays in 31 bits, and a step above
    `SMALLEST_SOFTMAX_STEP`.
    """


@dataclass(frozen=True)
class Concat:
    """The channels (or features) of two or more tensors, one after the other; all have the output's quantization.

    out[C_1 + ... + C_{k-1} + c] = q_k[c] for c < C_k, the channels of the k-th tensor.
    """


@dataclass(frozen=True)
class Slice:
    """Channels (or features) start to stop - 1: out[c] = q[start + c]; input and output have one quantization."""

    start: int
    stop: int


@dataclass(frozen=True)
class ChannelShuffle:
    """Channels in another order: out[c] = q[(c mod groups) * (C / groups) + floor(c / groups)].

    Input and output have one quantization. Source: ShuffleNet, Zhang et al. 2018, arXiv:1707.01083.

    Args:
        groups: divides C.
    """

    groups: int


@dataclass(frozen=True)
class Upsample:
    """Nearest neighbour: out[c, y, x] = q[c, floor(y / factor), floor(x / factor)], with its input's quantization.

    Args:
        factor: (vertical, horizontal), each at least 1.
    """

    factor: Pair


Operator = (
    Conv2d
    | Linear
    | Add
    | Mul
    | Lookup
    | Softmax
    | MaxPool2d
    | AveragePool2d
    | Concat
    | Slice
    | ChannelShuffle
    | Upsample
    | Flatten
    | Requantize
)


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. Its output tensor has the node's name.

    Args:
        name: unique in the graph; the module path it was lowered from where there is one ("layer1.0.conv1").
        op: the operator and its constants.
        inputs: the names of the tensors it reads (nodes', or the graph's input's).
        output: type of what it produces.
    """

    name: str
    op: Operator
    inputs: tuple[str, ...]
    output: TensorType


@dataclass(frozen=True)
class Normalization:
    """What was subtracted from and divided out of images in [0, 1] before the network saw them, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """A network in integers. Checked when built: see `GraphError` for what is refused.

    Args:
        name: a C identifier's characters; names the files' symbols.
        input_name: name of the input tensor.
        input: type of the input; real inputs are normalized images.
        nodes: in an order in which each node's inputs come before it. The last node's output is the graph's.
        rounding: `tflite` or `single`, see `fixed_point.py`.
        class_names: one for each output, or empty.
        normalization: of the input, where known.
        metadata: further strings that travel with every export (artifact key, kdpipe version).
    """

    name: str
    input_name: str
    input: TensorType
    nodes: tuple[Node, ...]
    rounding: Rounding = "tflite"
    class_names: tuple[str, ...] = ()
    normalization: Normalization | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from kdpipe.targets.graph_checks import check_graph

        check_graph(self)

    @property
    def output_name(self) -> str:
        """Name of the output tensor."""
        return self.nodes[-1].name

    @property
    def output(self) -> TensorType:
        """Type of the output."""
        return self.nodes[-1].output

    def tensor(self, name: str) -> TensorType:
        """Return the type of the tensor called `name`; raise KeyError if there is none."""
        if name == self.input_name:
            return self.input
        for node in self.nodes:
            if node.name == name:
                return node.output
        raise KeyError(name)

    def quantizations(self) -> dict[str, Quantization]:
        """Return what the stored integers of every tensor stand for, by name, the input's first."""
        found = {self.input_name: self.input.quantization}
        return found | {node.name: node.output.quantization for node in self.nodes}

    def weights(self) -> Iterator[tuple[Node, Weight]]:
        """Yield each node that has weights, with them."""
        for node in self.nodes:
            if isinstance(node.op, Conv2d | Linear):
                yield node, node.op.weight


def convolution_output_size(size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """Return the number of output positions along one axis (0 or less where the window does not fit)."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def accumulator_bound(op: Conv2d | Linear, input_quantization: Quantization) -> int:
    """Return the largest |accumulator| that any input can cause in any channel, partial sums included."""
    reach = max(
        input_quantization.qmax - input_quantization.zero_point, input_quantization.zero_point - input_quantization.qmin
    )
    magnitudes = np.abs(op.weight.values.astype(np.int64)).reshape(op.weight.values.shape[0], -1).sum(axis=1)
    return int((magnitudes * reach + np.abs(op.bias.astype(np.int64))).max())


def overflows_int32(bound: int) -> bool:
    """Return whether an accumulator bounded by `bound` could leave the int32 range."""
    return bound > INT32_MAX
