"""Networks in the shapes of MLPerf Tiny and others, as integer graphs that look trained without having been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kdpipe.models.registry import MODELS
from kdpipe.stages.quantization.prepare import QuantizationConfig, input_quantizer, prepare
from kdpipe.stages.quantization.statistics import estimate_statistics
from kdpipe.stages.quantization.training import calibrate
from kdpipe.targets.graph import IntegerGraph
from kdpipe.targets.lower import lower

_IMAGES = 64
NETWORKS = {
    "ResNet-8": ("resnet", {"depth": 8, "width": 16}, (3, 32, 32), 10),
    "DS-CNN": ("ds-cnn", {"kernel": (10, 4)}, (1, 49, 10), 12),
    "MobileNetV1": ("mobilenet-v1", {"width": 0.25}, (3, 96, 96), 2),
    "MobileNetV2": ("mobilenet-v2", {"width": 0.35}, (3, 96, 96), 2),
    "Autoencoder": ("mlp", {"hidden": (128, 128, 128, 128, 8, 128, 128, 128, 128)}, (1, 5, 128), 640),
    "Digits": ("resnet", {"depth": 8, "width": 8}, (1, 8, 8), 10),
}
"""By name: the model, its arguments, the input's [C, H, W] and the number of classes."""


def make_graph(name: str, weight_bits: int, seed: int = 0, images: int = _IMAGES) -> IntegerGraph:
    """Return a network of `NETWORKS`, quantized and calibrated on that many images of noise."""
    model, arguments, shape, classes = NETWORKS[name]
    network = make_network(model, arguments, shape, classes, seed)
    return quantize(network, shape, weight_bits, name.lower().replace("-", "_"), images)


def make_network(
    model: str, arguments: Mapping[str, Any], shape: tuple[int, int, int], classes: int, seed: int = 0
) -> nn.Module:
    """Return a network with weights as drawn at the start of training.

    Batch norms get random scales and offsets, so that the channels differ as those of a trained network do.
    """
    torch.manual_seed(seed)
    network = MODELS[model].build(input_shape=shape, classes=classes, **arguments)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return network


def quantize(
    network: nn.Module, shape: tuple[int, int, int], weight_bits: int, name: str, images: int = _IMAGES
) -> IntegerGraph:
    """Return a network quantized and calibrated on noise; weights of the first and the last layer have 8 bits."""
    prepared = prepare(network, torch.zeros(2, *shape), QuantizationConfig(weight_bits=weight_bits))
    input_quantizer(prepared).set_range(-2.0, 2.0)
    noise = torch.randn(images, *shape).clamp(-2.0, 2.0)
    calibrate(prepared, noise)
    estimate_statistics(prepared, noise)
    return lower(prepared.eval(), shape, name=name)


def make_inputs(graph: IntegerGraph, count: int, seed: int = 0) -> np.ndarray:
    """Return the smallest and the largest input, and random ones: int8 [2 + count, *shape]."""
    limits, shape = graph.input.quantization, graph.input.shape
    generator = np.random.default_rng(seed)
    extremes = [np.full((1, *shape), value, dtype=np.int8) for value in (limits.qmin, limits.qmax)]
    drawn = generator.integers(limits.qmin, limits.qmax + 1, (count, *shape)).astype(np.int8)
    return np.concatenate([*extremes, drawn])
