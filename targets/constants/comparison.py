"""The constants of two forms of a network, layer by layer.

A scale that is one unit in its last place off moves nothing but sums that lie halfway between two steps, and those a
runtime rounds as it likes: no run shows it. The constants that stand in the file do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear, Node, Quantization
from kdpipe.targets.openvino_numbers import layer_constants, tensor_constants

LayerConstants = Mapping[str, NDArray[Any]]
"""By what they are: `scale` and `zero_point` of the output, and `input_scales`; of convolutions and linear layers also
`weights`, flat and output channels first, `weight_scales` and `bias`, or as C has them `multipliers`, `shifts` and
`start`, the bias with the zero point in it. OpenVINO's further ones are in `openvino_numbers`."""
Constants = Mapping[str, LayerConstants]
"""By layer; what a form of the network does not have, or can't tell, is absent."""


def graph_constants(graph: IntegerGraph) -> Constants:
    """Return the constants that an integer graph asks for."""
    source = graph.input.quantization
    with np.errstate(over="ignore"):  # what a target refuses may leave float32
        found = {graph.input_name: _of_tensor(source) | tensor_constants(source)}
        for node in graph.nodes:
            scales = np.array([graph.tensor(name).quantization.scale for name in node.inputs], np.float32)
            found[node.name] = {
                **_of_tensor(node.output.quantization),
                "input_scales": scales,
                **_of_weights(graph, node),
                **layer_constants(graph, node),
            }
    return found


def differing_constants(expected: LayerConstants, found: LayerConstants) -> tuple[str, ...]:
    """Say, for each of a layer's constants that both have, what differs: the first place of each, in hexadecimal."""
    said = []
    for name in expected:
        if name not in found:
            continue
        first, second = (np.atleast_1d(constants[name]) for constants in (expected, found))
        what = name.replace("_", " ")
        if first.shape != second.shape:
            said.append(f"{what}: {second.size} instead of {first.size}")
            continue
        places = np.flatnonzero(first != second)
        if len(places):
            where = f"{what}[{places[0]}]" if first.size > 1 else what
            values = (_in_full(value) for value in (second[places[0]], first[places[0]]))
            more = f", and {len(places) - 1} more" if len(places) > 1 else ""
            said.append(f"{where} is {' instead of '.join(values)}{more}")
    return tuple(said)


def _of_tensor(quantization: Quantization) -> dict[str, NDArray[Any]]:
    return {"scale": np.array(quantization.scale, np.float32), "zero_point": np.array(quantization.zero_point)}


def _of_weights(graph: IntegerGraph, node: Node) -> dict[str, NDArray[Any]]:
    op = node.op
    if not isinstance(op, Conv2d | Linear):
        return {}
    source, scales = graph.tensor(node.inputs[0]).quantization, op.weight.scales
    multipliers, shifts = quantize_multipliers(
        source.scale * scales.astype(np.float64) / node.output.quantization.scale
    )
    sums = op.weight.values.astype(np.int64).reshape(len(scales), -1).sum(axis=1)
    return {
        "weights": op.weight.values.reshape(-1),
        "weight_scales": scales,
        "bias": op.bias,
        "multipliers": multipliers,
        "shifts": shifts,
        "start": op.bias - source.zero_point * sums,
    }


def _in_full(value: np.number[Any]) -> str:
    """Return a number with every bit: float32 as C's %a has it."""
    return float(value).hex() if isinstance(value, np.floating) else str(int(value))
