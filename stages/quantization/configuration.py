"""How a network is quantized: widths by layer, gradients, the fixed point. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from kdpipe.targets.errors import UsageError, did_you_mean
from kdpipe.targets.fixed_point import Rounding

if TYPE_CHECKING:
    from kdpipe.stages.quantization.fake_quantize import ActivationGradient, WeightGradient
    from kdpipe.stages.quantization.weights import WeightTraining

AUTO: Literal["auto"] = "auto"
"""Stands for a width of weights that `kdpipe.stages.quantization.assignment` chooses."""

WeightWidth = int | Literal["auto"]

END_ACTIVATION_BITS = 8
"""Width of what the first and the last layer read."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as it will be quantized.

    Args:
        weights: how many.
        channels: of the output; each takes a scale and a bias.
        is_linear: rather than a convolution.
        is_end: it is the last, or reads the input.
    """

    weights: int
    channels: int
    is_linear: bool
    is_end: bool


@dataclass(frozen=True)
class Widths:
    """Of one layer.

    Args:
        weights: 2 (ternary), 3, 4 or 8; `AUTO` where it is still to be assigned.
        activations: 2 to 8, of what it reads.
    """

    weights: WeightWidth
    activations: int


@dataclass(frozen=True)
class QuantizationConfig:
    """How a module is quantized. Widths of weights may be `AUTO` until they are assigned.

    Args:
        weight_bits: 2 (ternary), 3, 4 or 8.
        activation_bits: 2 to 8, of what convolutions and linear layers read.
        first_last_bits: weight width of the layers that read the input and of the one that makes the output; what
            they read has 8 bits.
        rounding: of the fixed point in which the network is deployed and evaluated.
        bits: by pattern of layers' paths, what differs: {"weights": n}, {"activations": n} or both. Of several
            patterns that match a layer the longest counts, also before `first_last_bits`.
        weight_gradient: straight-through, lsq or ewgs; see `fake_quantize`.
        activation_gradient: pact, lsq or ewgs.
        ewgs_delta: EWGS's delta.
        weight_scales: a step for each output `channel`, or one for the `layer`.
    """

    weight_bits: WeightWidth = 2
    activation_bits: int = 8
    first_last_bits: WeightWidth = 8
    rounding: Rounding = "single"
    bits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weight_gradient: WeightGradient = "straight-through"
    activation_gradient: ActivationGradient = "pact"
    ewgs_delta: float = 1e-3
    weight_scales: Literal["channel", "layer"] = "channel"

    def weight_training(self) -> WeightTraining:
        """Return what weight quantizers are told."""
        from kdpipe.stages.quantization.weights import WeightTraining

        return WeightTraining(self.weight_gradient, self.weight_scales, self.ewgs_delta)


def choose_widths(layers: Sequence[str], ends: Collection[str], config: QuantizationConfig) -> dict[str, Widths]:
    """Return each layer's widths.

    Args:
        layers: paths of all convolutions and linear layers.
        ends: those of the first and the last.
        config: widths and patterns: `*` stands for any characters, dots too, `?` for one, `[ab]` for one of these.

    Raises:
        UsageError: a pattern matches no layer.
    """
    for pattern in config.bits:
        if not any(fnmatchcase(path, pattern) for path in layers):
            raise UsageError(
                f"no convolution or linear layer of the network matches {pattern!r}",
                where="bits",
                remedy=did_you_mean(pattern, layers),
            )
    # by length, not by their order in the file, which is no part of a stage's key
    patterns = sorted(config.bits.items(), key=lambda item: (_literal_length(item[0]), item[0]))
    chosen = {}
    for path in layers:
        weights = config.first_last_bits if path in ends else config.weight_bits
        activations = END_ACTIVATION_BITS if path in ends else config.activation_bits
        for pattern, given in patterns:
            if fnmatchcase(path, pattern):
                weights, activations = given.get("weights", weights), given.get("activations", activations)
        chosen[path] = Widths(weights, activations)
    return chosen


def _literal_length(pattern: str) -> int:
    """Return how many of a pattern's characters stand for themselves; more than any pattern's if all do."""
    wild = sum(pattern.count(character) for character in "*?[]")
    return len(pattern) - wild if wild else 1 << 16
