"""Two runs of one network compared layer by layer: by how much, in what share, and which layer differs first.

A difference in one layer changes what the next ones read, so that the layers behind differ too. Where one of the two
runs is the integer graph, each layer of the other is therefore also compared by itself: with what the graph's operator
gives for the very integers that the other run's layer read. What is found then is the layer's own doing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.constants.comparison import Constants, differing_constants, graph_constants
from kdpipe.targets.errors import UsageError
from kdpipe.targets.graph import Add, IntegerGraph, Node, Quantization, TensorType
from kdpipe.targets.reference import compute, run_all
from kdpipe.targets.rounding_slack import ROUNDING_SLACK, rounding_slack
from kdpipe.targets.unrounded import unrounded

ROUNDING: Literal["rounding"] = "rounding"
Limit = int | Literal["rounding"] | None
"""What a layer may differ by: steps; `rounding`, what another correct rounding may give; or anything (None)."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What a run computed.

    Args:
        format: of what was run: torch, quantized-torch, integer-graph, onnx, openvino, tflite or c.
        tensors: by layer, [N, *shape]: stored integers, or float32 for layers without a quantization.
        quantizations: by layer, what stored integers stand for; empty for a float network.
        graph: where the integer graph itself was run.
        apart: another run's tensors, with every layer kept apart, where `tensors` lacks some that the runtime fuses.
        constants: what the file, or the graph, itself says of its layers' arithmetic; of these layers alone.
    """

    format: str
    tensors: Mapping[str, NDArray[Any]]
    quantizations: Mapping[str, Quantization] = field(default_factory=dict)
    graph: IntegerGraph | None = None
    apart: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    constants: Constants = field(default_factory=dict)

    @property
    def fused(self) -> tuple[str, ...]:
        """The layers that are only computed together with those that read them."""
        return tuple(name for name in self.apart if name not in self.tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers, fused ones too, in order."""
        return tuple(self.apart if self.fused else self.tensors)

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor; a fused layer's as it is where the layers are kept apart."""
        return self.tensors[name] if name in self.tensors else self.apart[name]

    def real(self, name: str) -> NDArray[np.float64]:
        """Return a tensor as real numbers."""
        tensor, quantization = self.tensor(name), self.quantizations.get(name)
        if quantization is None:
            return tensor.astype(np.float64)
        real: NDArray[np.float64] = quantization.scale * (tensor.astype(np.float64) - quantization.zero_point)
        return real


@dataclass(frozen=True)
class LayerDifference:
    """One layer of two runs, A and B.

    Args:
        name: of the layer, as in the user's module.
        steps: the largest difference in steps of B's quantization (of A's where B has none); None where neither is
            quantized. A whole number where both store integers of one quantization.
        exact: the share of elements that are equal, in [0, 1]; of a float and a stored tensor, equal when rounded.
        snr_db: the power of A over that of the difference, in decibels; None where nothing differs, or A is 0.
        own_steps: the largest difference of the layer by itself, in steps; None without an integer graph.
        misrounded: how many elements of the layer by itself are neither the graph's nor another correct rounding
            of the exact value; None without an integer graph.
        constants: in words, which of the layer's constants in B are other ones than in A; None where they are not
            known of both.
    """

    name: str
    steps: float | None
    exact: float
    snr_db: float | None
    own_steps: int | None = None
    misrounded: int | None = None
    constants: tuple[str, ...] | None = None

    def exceeds(self, limit: Limit) -> bool:
        """Whether the layer differs by more than `limit`: by itself where that is known.

        Other constants are too much where nothing but a rounding may differ.
        """
        if limit is None:
            return False
        if limit in (0, ROUNDING) and self.constants:
            return True
        if limit == ROUNDING:
            return bool(self.misrounded)
        found = self.own_steps if self.own_steps is not None else self.steps
        return self.exact < 1 if found is None else found > limit


def trace_graph(graph: IntegerGraph, inputs: NDArray[np.int8]) -> Trace:
    """Compute the integer graph on stored integers, int8 [N, *graph.input.shape]."""
    return Trace(
        "integer-graph", run_all(graph, inputs), graph.quantizations(), graph, constants=graph_constants(graph)
    )


def compare_layers(a: Trace, b: Trace) -> tuple[LayerDifference, ...]:
    """Compare every layer that both runs have, in A's order; fused ones as they are in the run that keeps them apart.

    Raises:
        UsageError: they have no layer in common, or one of another shape.
    """
    names = [name for name in a.names if name in b.names]
    if not names:
        raise UsageError("the two have no layer in common", remedy="Compare two forms of one network")
    for name in names:
        shapes = [list(trace.tensor(name).shape[1:]) for trace in (a, b)]
        if shapes[0] != shapes[1]:
            raise UsageError(f"the layer has shape {shapes[0]} in one and {shapes[1]} in the other", where=name)
    own = _own_differences(a, b)
    return tuple(_compare(name, a, b, own.get(name)) for name in names)


def first_divergent_layer(layers: Sequence[LayerDifference], limit: Limit = 0) -> str | None:
    """Return the name of the first layer that differs by more than `limit`, or None."""
    return next((layer.name for layer in layers if layer.exceeds(limit)), None)


def default_limit(a: Trace, b: Trace) -> Limit:
    """Return what two correct runs may differ by.

    Nothing, where both compute the integer graph's fixed point; `rounding`, where a runtime that rounds in its own way
    is compared with the graph; anything, where one is a float network.
    """
    if "torch" in (a.format, b.format):
        return None
    if (a.graph is None) == (b.graph is None):
        return 0
    other = b if a.graph is not None else a
    return ROUNDING if other.format in ROUNDING_SLACK else 0


def _compare(name: str, a: Trace, b: Trace, own: tuple[int, int] | None) -> LayerDifference:
    first, second = a.real(name), b.real(name)
    difference = np.abs(first - second)
    quantization = b.quantizations.get(name) or a.quantizations.get(name)
    steps: float | None = None
    if name in a.quantizations and a.quantizations.get(name) == b.quantizations.get(name):
        stored = np.abs(a.tensor(name).astype(np.int64) - b.tensor(name))
        steps, exact = int(stored.max()), float((stored == 0).mean())
    elif quantization is not None:
        steps = float(difference.max() / quantization.scale)
        exact = float((quantization.quantize(first) == quantization.quantize(second)).mean())
    else:
        exact = float((difference == 0).mean())
    signal, noise = float(np.square(first).sum()), float(np.square(difference).sum())
    snr = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
    own_steps, misrounded = own or (None, None)
    constants = None
    if name in a.constants and name in b.constants:
        constants = differing_constants(a.constants[name], b.constants[name])
    return LayerDifference(name, steps, exact, snr, own_steps, misrounded, constants)


def _own_differences(a: Trace, b: Trace) -> dict[str, tuple[int, int]]:
    """Return (largest difference, misrounded elements) of each layer by itself; nothing without an integer graph."""
    reference, other = (a, b) if a.graph is not None else (b, a)
    if reference.graph is None or "torch" in (a.format, b.format):
        return {}
    # Layers of which it is not known what they read where some are fused are judged where all are kept apart.
    return {
        **_by_themselves(reference.graph, reference.tensors, other.apart, other.format),
        **_by_themselves(reference.graph, reference.tensors, other.tensors, other.format),
    }


def _by_themselves(
    graph: IntegerGraph, given: Mapping[str, NDArray[Any]], traced: Mapping[str, NDArray[Any]], runtime: str
) -> dict[str, tuple[int, int]]:
    if graph.input_name not in traced:
        return {}
    known = {graph.input_name: traced[graph.input_name]}
    wrong = np.abs(known[graph.input_name].astype(np.int64) - given[graph.input_name])
    found = {graph.input_name: (int(wrong.max()), int((wrong > 0).sum()))}
    # Of layers that are not traced, what they are before they are rounded: a fused one need not be rounded.
    never_rounded: dict[str, NDArray[np.float64]] = {}
    for node in graph.nodes:
        types, actual = [graph.tensor(name) for name in node.inputs], traced.get(node.name)
        if actual is not None:
            known[node.name] = actual
        if any(name not in known for name in node.inputs):
            fits = isinstance(node.op, Add) and all(name in known or name in never_rounded for name in node.inputs)
            if not fits or actual is None:
                continue
        choices = _choices(node, known, never_rounded, types)
        expected = compute(node.op, choices[0], types, node.output, graph.rounding)
        if actual is None:
            exact = unrounded(node.op, choices[0], types, node.output)
            if exact is None:
                known[node.name] = expected
            else:
                never_rounded[node.name] = exact
            continue
        differs = expected != actual
        largest = int(np.abs(expected.astype(np.int64) - actual).max())
        if differs.any():
            slack = 0.5 + rounding_slack(runtime, node.op, choices[0], types, node.output)
            exacts = [unrounded(node.op, choice, types, node.output) for choice in choices]
            wrong_by_choice = [differs & (np.abs(actual - exact) > slack) for exact in exacts if exact is not None]
            differs = min(wrong_by_choice, key=np.sum, default=differs)
        found[node.name] = (largest, int(differs.sum()))
    return found


def _choices(
    node: Node,
    known: Mapping[str, NDArray[Any]],
    never_rounded: Mapping[str, NDArray[np.float64]],
    types: Sequence[TensorType],
) -> list[list[NDArray[Any]]]:
    """Return what a node may have read: of a fused input, what it is rounded to (half up, to even), or it itself."""

    def forms(name: str, tensor: TensorType) -> tuple[NDArray[Any], ...]:
        if name in known:
            return (known[name],)
        real, q = never_rounded[name], tensor.quantization
        half_up, to_even = (
            np.clip(value, q.qmin, q.qmax).astype(np.int8) for value in (np.floor(real + 0.5), np.rint(real))
        )
        return half_up, to_even, real

    return [list(choice) for choice in product(*(forms(*pair) for pair in zip(node.inputs, types, strict=True)))]
