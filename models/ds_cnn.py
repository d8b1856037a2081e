"""Depthwise-separable convolutions of one width, as in Zhang et al. 2017, "Hello Edge" (arXiv:1711.07128)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.models.initialization import initialize_convolutions
from kdpipe.targets.errors import NetworkError


def _separable(channels: int) -> list[nn.Module]:
    """One block: 3x3 depthwise, then 1x1, each with batch norm and ReLU."""
    return [
        nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def _padding(size: int, kernel: int) -> int:
    """Return the padding on either side with which stride 2 gives half of `size`, rounded up."""
    outside = 2 * (-(-size // 2) - 1) + kernel - size
    return max(0, -(-outside // 2))


class DsCnn(nn.Module):
    """A convolution of stride 2, then depthwise-separable blocks, global mean and one linear layer.

    Args:
        input_shape: [C, H, W], at least 2x2 pixels.
        classes: number of logits.
        width: channels of every layer.
        blocks: depthwise-separable blocks.
        kernel: height and width of the first convolution's kernel. MLPerf Tiny's keyword spotting has (10, 4).

    Raises:
        NetworkError: the image is smaller than 2x2 pixels.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        width: int = 64,
        blocks: int = 4,
        kernel: tuple[int, int] = (3, 3),
    ) -> None:
        super().__init__()
        if min(input_shape[1:]) < 2:
            raise NetworkError(f"an image of {input_shape[1]}x{input_shape[2]} is too small for ds-cnn")
        padding = (_padding(input_shape[1], kernel[0]), _padding(input_shape[2], kernel[1]))
        layers: list[nn.Module] = [
            nn.Conv2d(input_shape[0], width, kernel, 2, padding, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        for _ in range(blocks):
            layers += _separable(width)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))
