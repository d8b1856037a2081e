"""MobileNets: Howard et al. 2017 (arXiv:1704.04861) and Sandler et al. 2018 (arXiv:1801.04381)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.models.initialization import initialize_convolutions

_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels before they are scaled, and stride: table 1."""

_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels before they are scaled, blocks, and stride of the first of them: table 2."""


def scaled_channels(channels: int, width: float) -> int:
    """Return `channels` times `width`, to the nearest multiple of 8, but at least 8 and nine tenths of the product.

    As in the authors' code, of which the papers don't tell.
    """
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled if scaled >= 0.9 * channels * width else scaled + 8


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, activation: type[nn.Module]
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        activation(),
    ]


class MobileNetV1(nn.Module):
    """A convolution of stride 2, 13 depthwise-separable blocks, global mean and one linear layer.

    Args:
        input_shape: [C, H, W].
        classes: number of logits.
        width: factor of the channels. MLPerf Tiny's person detection has 0.25, 96x96 pixels and 2 classes.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], classes: int, width: float = 0.25) -> None:
        super().__init__()
        inputs = scaled_channels(32, width)
        layers = _convolution(input_shape[0], inputs, 3, 2, 1, nn.ReLU)
        for channels, stride in _V1_BLOCKS:
            outputs = scaled_channels(channels, width)
            layers += _convolution(inputs, inputs, 3, stride, inputs, nn.ReLU)
            layers += _convolution(inputs, outputs, 1, 1, 1, nn.ReLU)
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 depthwise, 1x1 without activation; plus the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers = _convolution(inputs, inner, 1, 1, 1, nn.ReLU6) if expansion > 1 else []
        layers += _convolution(inner, inner, 3, stride, inner, nn.ReLU6)
        layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        out: Tensor = self.layers(x)
        return out + x if self.is_residual else out


class MobileNetV2(nn.Module):
    """A convolution of stride 2, 17 inverted residuals, a 1x1 convolution, global mean and one linear layer.

    Args:
        input_shape: [C, H, W].
        classes: number of logits.
        width: factor of the channels; that of the last convolution is at least 1.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], classes: int, width: float = 0.35) -> None:
        super().__init__()
        inputs = scaled_channels(32, width)
        layers = _convolution(input_shape[0], inputs, 3, 2, 1, nn.ReLU6)
        for expansion, channels, blocks, first_stride in _V2_STAGES:
            outputs = scaled_channels(channels, width)
            for stride in (first_stride, *[1] * (blocks - 1)):
                layers.append(InvertedResidual(inputs, outputs, stride, expansion))
                inputs = outputs
        last = scaled_channels(1280, max(1.0, width))
        self.features = nn.Sequential(*layers, *_convolution(inputs, last, 1, 1, 1, nn.ReLU6))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))
