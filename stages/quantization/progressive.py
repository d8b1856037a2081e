"""Progressive initialization: the network is trained at more bits first, and each width starts from the one before.

Zhuang et al. 2018, "Towards effective low-bitwidth convolutional neural networks" (arXiv:1711.00205), section 3.2;
for example 8, 4 and 3 bits before 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from kdpipe.stages.quantization.prepare import quantizers
from kdpipe.stages.quantization.weights import QuantizedConv2d, QuantizedLinear


@contextmanager
def at_least(prepared: nn.Module, bits: int | None) -> Iterator[None]:
    """Quantize weights and activations at no less than `bits` bits inside the context; None changes nothing.

    Weight steps are fitted anew on entry and on exit. Clips are not: calibrate them on images, inside and afterwards.
    """
    layers = [part for part in prepared.modules() if isinstance(part, QuantizedConv2d | QuantizedLinear)]
    parts = quantizers(prepared)
    weights, activations = [layer.weight_quantizer.bits for layer in layers], [part.bits for part in parts]

    def set_bits(least: int) -> None:
        for layer, own in zip(layers, weights, strict=True):
            layer.weight_quantizer.set_bits(max(own, least))
            layer.weight_quantizer.calibrate(layer.weight)
        for part, own in zip(parts, activations, strict=True):
            part.bits = part.precision = max(own, least)

    if bits is None:
        yield
        return
    set_bits(bits)
    try:
        yield
    finally:
        set_bits(0)
