"""ResNet for small images, as for CIFAR-10 in He et al. 2016 (arXiv:1512.03385), section 4.2."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.models.arguments import blocks_in_a_stage
from kdpipe.models.initialization import initialize_convolutions
from kdpipe.targets.errors import NetworkError


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, new channels are zero. It has no weights.

    Args:
        channels: channels to append.
        stride: distance of the pixels kept.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C + channels, ceil(H / stride), ceil(W / stride)]."""
        before = self.channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.channels - before))


class BasicBlock(nn.Module):
    """relu2(bn2(conv2(relu1(bn1(conv1(x))))) + shortcut(x)), both convolutions 3x3."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if shortcut == "pad":
                self.shortcut = PadShortcut(outputs - inputs, stride)
            else:
                convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.shortcut = nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(outputs)))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, `stages` stages named layer1, layer2, ... of basic blocks, global mean, one linear layer.

    Args:
        input_shape: [C, H, W].
        classes: number of logits.
        depth: 2 + 2 * stages * blocks in a stage: 8, 14, 20, 32, 56, 110 with three stages.
        width: channels of the stem and of the first stage.
        stages: stages; each after the first doubles the channels and halves the map.
        shortcut: `projection` or `pad`, used where a block's shape changes.

    Raises:
        NetworkError: no whole number of blocks has that depth, or the last stage would have no pixel left.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        depth: int = 20,
        width: int = 16,
        stages: int = 3,
        shortcut: str = "projection",
    ) -> None:
        super().__init__()
        try:
            blocks = blocks_in_a_stage(depth, stages)
        except ValueError as error:
            raise NetworkError(str(error)) from None
        if min(input_shape[1:]) < 2 ** (stages - 1):
            raise NetworkError(
                f"an image of {input_shape[1]}x{input_shape[2]} is too small for {stages} stages",
                remedy="Set fewer stages",
            )
        self.conv1 = nn.Conv2d(input_shape[0], width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self._layers = [f"layer{index + 1}" for index in range(stages)]
        inputs = width
        for index, name in enumerate(self._layers):
            outputs = width * 2**index
            strides = [1 if index == 0 else 2, *[1] * (blocks - 1)]
            channels = [inputs, *[outputs] * (blocks - 1)]
            self.add_module(
                name,
                nn.Sequential(*[BasicBlock(c, outputs, s, shortcut) for c, s in zip(channels, strides, strict=True)]),
            )
            inputs = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self._layers:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(self.pool(x), 1))
