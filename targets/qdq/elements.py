"""Products, functions, concatenation and what moves channels or pixels, as a QDQ file has them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import ChannelShuffle, Concat, Slice, Upsample
from kdpipe.targets.qdq.onnx_file import Constant, FileNode
from kdpipe.targets.qdq.pools import flattened, rearranged, shape_of
from kdpipe.targets.qdq.values import Exact, Function, Grouped, Joined, Probabilities, Product, Real, Stored, Value

if TYPE_CHECKING:
    from kdpipe.targets.qdq.reader import Reader


AXES_APART_OPSET = 13
"""From here on a Softmax is over one axis; before, over all from the one that it names."""


def function(reader: Reader, node: FileNode) -> Real:
    """Read a HardSigmoid, HardSwish or Sigmoid."""
    real = reader.real(node)
    name = {"HardSigmoid": "hard_sigmoid", "HardSwish": "hard_swish", "Sigmoid": "sigmoid"}[node.op]
    if node.op == "HardSigmoid":
        line = (node.number("alpha", 0.2), node.number("beta", 0.5))
        if not np.allclose(line, (1 / 6, 0.5), rtol=1e-5, atol=0):
            raise UnsupportedError(
                f"a HardSigmoid of alpha {line[0]:g} and beta {line[1]:g}", remedy="Use alpha 1/6 and beta 1/2"
            )
    return Real(Function(reader.exact(real), name), node.name, real.shape)


def softmax(reader: Reader, node: FileNode) -> Real:
    """Read a Softmax over the channels."""
    real = reader.real(node)
    is_old = reader.file.opset < AXES_APART_OPSET
    if node.integer("axis", 1 if is_old else -1) % (1 + len(real.shape)) != 1:
        raise UnsupportedError("is a softmax over another axis than the channels", remedy="Only axis 1 is read")
    if is_old and math.prod(real.shape[1:]) > 1:
        raise UnsupportedError(
            f"is a softmax over channels and pixels together, as it is before opset {AXES_APART_OPSET}",
            remedy="Export the network with a newer opset_version",
        )
    return Real(Probabilities(reader.exact(real)), node.name, real.shape)


def product(reader: Reader, node: FileNode) -> Real:
    """Read a Mul of two activations: of one shape, or one of them with a number a channel."""
    first, second = reader.real(node, 0), reader.real(node, 1)
    for gate, factor in ((first, second), (second, first)):
        if isinstance(gate.what, Function) and not gate.is_bounded and not gate.after:
            whole = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}.get(gate.what.name)
            if whole and isinstance(factor.what, Exact) and reader.exact(factor) == gate.what.tensor:
                return Real(Function(gate.what.tensor, whole), node.name, first.shape)
    if math.prod(second.shape) > math.prod(first.shape):
        first, second = second, first
    if second.shape not in (first.shape, (first.shape[0], *[1] * (len(first.shape) - 1))):
        raise UnsupportedError(f"multiplies {first.shape} by {second.shape}", remedy="Use one number a channel")
    return Real(Product(reader.exact(first), reader.exact(second)), node.name, first.shape)


def concatenation(reader: Reader, node: FileNode) -> Value:
    """Read a Concat of channels or features."""
    values = [reader.value(node, index) for index in range(len(node.inputs))]
    shapes = [shape_of(reader, node, index) for index in range(len(values))]
    if len(values) < 2 or node.integer("axis", 1) % (1 + len(shapes[0])) != 1:
        raise UnsupportedError("joins along another axis than the channels", remedy="Only axis 1 is read")
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        raise UnsupportedError(f"joins tensors of shapes {shapes}")
    output = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    if not all(isinstance(value, Stored) for value in values):
        tensors = tuple(reader.exact(reader.real(node, index)) for index in range(len(values)))
        return Real(Joined(tensors), node.name, output)
    stored = [value for value in values if isinstance(value, Stored)]
    tensors = tuple(reader.exact(reader.exactly(value.tensor, node.name)) for value in stored)
    known = [reader.types[tensor].quantization for tensor in tensors]
    if len({(q.scale, q.zero_point) for q in known}) > 1 or len({value.kind for value in stored}) > 1:
        raise UnsupportedError("joins stored integers of different steps", remedy="Dequantize them before")
    whole = replace(known[0], qmin=min(q.qmin for q in known), qmax=max(q.qmax for q in known))
    aligned = reader.aligned(tensors, node.name, whole)
    tensor = reader.add(reader.label(node), Concat(), aligned, output, whole)
    reader.stored[tensor] = (node.outputs[0], stored[0].kind)
    return Stored(tensor, stored[0].kind)


def _integers(reader: Reader, node: FileNode, index: int) -> list[int] | None:
    value = reader.value(node, index)
    if value is None:
        return None
    if not isinstance(value, Constant) or value.is_real:
        raise UnsupportedError("its limits are computed by the network", remedy="Export the network with fixed sizes")
    return [int(number) for number in value.values.reshape(-1)]


def channel_slice(reader: Reader, node: FileNode) -> Value:
    """Read a Slice of channels or features."""
    shape = shape_of(reader, node)
    starts, stops, axes, steps = (_integers(reader, node, index) for index in range(1, 5))
    if starts is None or stops is None or len(starts) != 1 or len(stops) != 1 or (steps or [1]) != [1]:
        raise UnsupportedError("is no slice of one axis with step 1", remedy="Slice channels only")
    if [axis % (1 + len(shape)) for axis in axes or [0]] != [1]:
        raise UnsupportedError("slices another axis than the channels", remedy="Only axis 1 is read")
    start, stop, _ = slice(starts[0], stops[0]).indices(shape[0])
    return rearranged(reader, node, Slice(start, stop), (stop - start, *shape[1:]))


def split(reader: Reader, node: FileNode) -> None:
    """Read a Split of channels or features: a Slice for each output."""
    shape, count = shape_of(reader, node), len(node.outputs)
    if node.integer("axis", 0) % (1 + len(shape)) != 1:
        raise UnsupportedError("splits another axis than the channels", remedy="Only axis 1 is read")
    sizes = _integers(reader, node, 1)
    if sizes is None:
        given, part = node.attributes.get("split"), -(-shape[0] // count)
        sizes = list(given) if given else [min(part, shape[0] - index * part) for index in range(count)]
    if len(sizes) != count or sum(sizes) != shape[0] or min(sizes) < 1:
        raise UnsupportedError(f"splits {shape[0]} channels into {sizes}")
    start = 0
    for index, size in enumerate(sizes):
        one = replace(node, name=f"{node.name}.{index}", outputs=(node.outputs[index],))
        reader.values[node.outputs[index]] = rearranged(reader, one, Slice(start, start + size), (size, *shape[1:]))
        start += size


def resize(reader: Reader, node: FileNode) -> Value:
    """Read a Resize that repeats each pixel a whole number of times."""
    shape = shape_of(reader, node)
    how = (node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel"),
           node.text("nearest_mode", "round_prefer_floor"))  # fmt: skip
    scales, sizes = reader.value(node, 2), _integers(reader, node, 3)
    if isinstance(scales, Constant) and scales.values.size == 4:
        factors = [float(factor) for factor in scales.values.reshape(-1)]
    elif sizes is not None and len(sizes) == 4 and len(shape) == 3:
        factors = [1.0, *(new / old for new, old in zip(sizes[1:], shape, strict=True))]
    else:
        raise UnsupportedError("its sizes are computed by the network", remedy="Export the network with fixed sizes")
    # With whole factors, the two ways to choose the nearest pixel are one.
    nearest = (("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_floor"))
    whole = all(math.isfinite(factor) and factor >= 1 and factor == int(factor) for factor in factors)
    whole = whole and node.text("keep_aspect_ratio_policy", "stretch") == "stretch" and "axes" not in node.attributes
    if how not in nearest or not whole or factors[:2] != [1, 1] or len(shape) != 3:
        raise UnsupportedError(
            f"a Resize of {', '.join(how)} by {factors} has no integer form",
            remedy="Use nearest neighbours and whole factors",
        )
    vertical, horizontal = int(factors[2]), int(factors[3])
    output = (shape[0], shape[1] * vertical, shape[2] * horizontal)
    return rearranged(reader, node, Upsample((vertical, horizontal)), output)


def grouped(reader: Reader, node: FileNode, sizes: list[int]) -> Grouped | None:
    """Return the first half of a channel shuffle, a Reshape to [N, groups, C / groups, H, W], or None."""
    shape = shape_of(reader, node)
    value = reader.value(node, 0)
    if len(shape) != 3 or len(sizes) != 5 or not isinstance(value, Stored | Real):
        return None
    groups = sizes[1]
    if groups < 1 or shape[0] % groups or tuple(sizes[2:]) != (shape[0] // groups, *shape[1:]):
        return None
    return Grouped(node.inputs[0], shape, groups)


def shuffled(reader: Reader, node: FileNode, value: Grouped, sizes: list[int]) -> Value:
    """Return the channel shuffle that a Reshape back to [N, C, H, W] ends."""
    if not value.is_swapped or len(sizes) != 4 or tuple(sizes[1:]) != value.shape:
        raise UnsupportedError(f"reshapes channel groups to {sizes}", remedy="Only channel shuffles are read")
    whole = replace(node, inputs=(value.source,))
    return rearranged(reader, whole, ChannelShuffle(value.groups), value.shape)


def reshape(reader: Reader, node: FileNode) -> Value:
    """Read a Reshape to features, of a constant, or of a channel shuffle."""
    value, target = reader.value(node, 0), reader.value(node, 1)
    if not isinstance(target, Constant) or target.is_real or target.values.ndim != 1:
        raise UnsupportedError(
            "its shape is computed by the network", remedy="Use Flatten, or simplify the file with fixed sizes"
        )
    sizes = [int(size) for size in target.values]
    if isinstance(value, Constant):
        return replace(value, values=value.values.reshape(sizes))
    if isinstance(value, Grouped):
        return shuffled(reader, node, value, sizes)
    shape = shape_of(reader, node)
    if groups := grouped(reader, node, sizes):
        return groups
    features = math.prod(shape)
    # The first size is the batch, however it is written; a free one is the batch only if the other is known.
    if len(sizes) == 2 and sizes[1] in (-1, features) and (sizes[0] in (0, 1) or sizes[1] == features):
        return flattened(reader, node, shape)
    raise UnsupportedError(
        f"reshapes {shape} to {sizes[1:]}", remedy="Only flattening and channel shuffles have an integer form"
    )
