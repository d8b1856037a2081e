"""Widths of weights chosen by what they cost: the least predicted loss in a limited size. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kdpipe.stages.base import Grid
from kdpipe.stages.quantization.configuration import AUTO, Layer, QuantizationConfig, choose_widths
from kdpipe.stages.quantization.knapsack import Option, choose
from kdpipe.stages.quantization.sensitivities import Sensitivity
from kdpipe.targets.errors import UsageError, did_you_mean
from kdpipe.targets.exporters import EXPORTERS

INTEGER_GRAPH = "integer-graph"
UNUSED_BITS = 8
"""Stands in a configuration where a width was `AUTO` for layers that now have one each."""
BYTES_A_CHANNEL = 8
"""A float32 scale and an int32 bias, as kdpipe.targets.artifact counts them."""


@dataclass(frozen=True)
class Assignment:
    """The widths of all layers.

    Args:
        config: how the network is quantized, each chosen width under its layer's path.
        bits: by layer.
        total: bytes of weights, scales and biases.
        predicted_loss: what the rounded activations cost, and in addition each layer whose width was chosen.
        grid: the predicted losses with the layers' widths marked, for the report.
    """

    config: QuantizationConfig
    bits: Mapping[str, int]
    total: int
    predicted_loss: float
    grid: Grid


def assign(
    config: QuantizationConfig, layers: Mapping[str, Layer], sensitivity: Sensitivity, budget: int, target: str
) -> Assignment:
    """Choose a width for each layer where `config` says `AUTO`.

    Args:
        config: some of its widths are `AUTO`.
        layers: of the network, by path, in order.
        sensitivity: of the same network.
        budget: the most bytes that the weights, scales and biases of all layers may take.
        target: whose files are counted: onnx, openvino or tflite; or integer-graph, each weight at its own width.

    Raises:
        UsageError: the sensitivities are another network's, a pattern matches no layer, no layer is `AUTO`, or the
            budget can't be met; says what the least is.
    """
    _check_same(layers, sensitivity)
    widths = choose_widths(list(layers), {path for path, layer in layers.items() if layer.is_end}, config)
    stored = _Stored(target)
    fixed = {path: int(width.weights) for path, width in widths.items() if width.weights != AUTO}
    free = {path: sensitivity.layers[path].by_bits for path in layers if path not in fixed}
    if not free:
        raise UsageError("every layer has a width, none is auto", where="budget", remedy="Set weight_bits to auto")
    options = {
        path: [Option(stored.size(layers[path], bits), change.loss) for bits, change in by_bits.items()]
        for path, by_bits in free.items()
    }
    taken = {path: stored.size(layers[path], bits) for path, bits in fixed.items()}
    left = budget - sum(taken.values())
    least = sum(min(option.size for option in group) for group in options.values())
    if least > left:
        constants = BYTES_A_CHANNEL * sum(layers[path].channels for path in free)
        raise UsageError(
            f"{_kib(budget)} can't hold the weights: the least possible is {_kib(least + budget - left)}, of which "
            f"{_kib(budget - left)} are layers of fixed width and {_kib(constants)} the others' scales and biases",
            where="budget.size_kib",
            remedy="Raise it, let more layers be auto (first_last_bits, bits), or measure narrower widths",
        )
    picks = choose(list(options.values()), left)
    chosen = {path: list(free[path])[pick] for path, pick in zip(free, picks, strict=True)}
    bits = {path: fixed.get(path) or chosen[path] for path in layers}
    sizes = {path: stored.size(layers[path], bits[path]) for path in layers}
    before = sensitivity.before.loss
    return Assignment(
        config=_with_widths(config, chosen),
        bits=bits,
        total=sum(sizes.values()),
        predicted_loss=before + sum(free[path][width].loss - before for path, width in chosen.items()),
        grid=_grid(bits, sizes, free, sensitivity),
    )


class _Stored:
    """How many bytes a layer takes in a target's file."""

    def __init__(self, target: str) -> None:
        own: Mapping[int, int] = {bits: bits for bits in range(2, 9)}
        self._convolutions, self._linear = (own, own) if target == INTEGER_GRAPH else EXPORTERS[target].stored_bits()

    def size(self, layer: Layer, bits: int) -> int:
        """Return the bytes of weights, scales and biases."""
        stored = (self._linear if layer.is_linear else self._convolutions)[bits]
        return (layer.weights * stored + 7) // 8 + BYTES_A_CHANNEL * layer.channels


def _check_same(layers: Mapping[str, Layer], sensitivity: Sensitivity) -> None:
    remedy = "Measure the sensitivities of the network that is quantized"
    for path, layer in layers.items():
        if path not in sensitivity.layers:
            raise UsageError(
                f"there is no sensitivity of layer {path}",
                where="sensitivity",
                remedy=f"{remedy}. {did_you_mean(path, sensitivity.layers)}",
            )
        if sensitivity.layers[path].layer != layer:
            raise UsageError(f"layer {path} has another size there", where="sensitivity", remedy=remedy)
    if unknown := [path for path in sensitivity.layers if path not in layers]:
        raise UsageError(f"the network has no layer {unknown[0]}", where="sensitivity", remedy=remedy)


def _grid(bits: Mapping[str, int], sizes: Mapping[str, int], free: Collection[str], sensitivity: Sensitivity) -> Grid:
    widths = sorted({*sensitivity.widths, *bits.values()})
    return Grid(
        rows=tuple(bits),
        columns=tuple(f"{width} bits" for width in widths),
        values=tuple(
            tuple(by_bits[width].loss if width in by_bits else None for width in widths)
            for by_bits in (sensitivity.layers[path].by_bits for path in bits)
        ),
        notes=tuple(_kib(size) if path in free else f"{_kib(size)}, fixed" for path, size in sizes.items()),
        marked=tuple((index, widths.index(width)) for index, width in enumerate(bits.values())),
    )


def _with_widths(config: QuantizationConfig, chosen: Mapping[str, int]) -> QuantizationConfig:
    """Return a configuration without `AUTO`, the chosen widths under their layers' paths."""
    patterns: dict[str, dict[str, Any]] = {
        pattern: {key: value for key, value in given.items() if value != AUTO} for pattern, given in config.bits.items()
    }
    for path, bits in chosen.items():
        patterns[path] = {**patterns.get(path, {}), "weights": bits}
    return replace(
        config,
        weight_bits=UNUSED_BITS if config.weight_bits == AUTO else config.weight_bits,
        first_last_bits=UNUSED_BITS if config.first_last_bits == AUTO else config.first_last_bits,
        bits={pattern: given for pattern, given in patterns.items() if given},
    )


def _kib(size: int) -> str:
    return f"{size / 1024:.2f} KiB"
