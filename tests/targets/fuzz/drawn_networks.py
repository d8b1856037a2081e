"""Small torch networks, with batch norms as training may leave them, and how each is quantized."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fuzz.examples import Pick
from torch import Tensor, nn

from kdpipe.stages.quantization.configuration import QuantizationConfig

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Hardsigmoid, nn.Sigmoid),
)


@dataclass(frozen=True, eq=False)
class DrawnNetwork:
    """A network in evaluation mode, how it is quantized, and images [N, C, H, W] for it."""

    module: nn.Module
    config: QuantizationConfig
    images: Tensor


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Product(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * x


class SqueezeExcite(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.inner(F.adaptive_avg_pool2d(x, 1)))


class Concatenation(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(x), x], 1)


class Half(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.channels // 2 :]


class _Builder:
    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.channels, self.height, self.width = 2 * pick(1, 3), pick(4, 9), pick(4, 9)
        self.generator = torch.Generator().manual_seed(pick(0, 2**16))

    def layer(self, outputs: int, *, keeps_size: bool = False) -> nn.Module:
        """Return a convolution, a batch norm or none, and an activation or none."""
        pick, groups = self.pick, 1
        kernel, stride, dilation = pick(1, 3), 1, 1
        if pick(0, 2) == 2:
            groups, outputs = (self.channels, outputs * self.channels) if not keeps_size else (2, outputs)
        if keeps_size:
            padding: int | str = "same"
        else:
            stride, dilation, padding = pick(1, 2), pick(1, 2), pick(0, 2)
            if min(self.height, self.width) + 2 * padding < dilation * (kernel - 1) + 1:
                dilation, padding = 1, kernel // 2
        if outputs % groups or self.channels % groups:
            groups = 1
        normalized = pick(0, 3) > 0
        convolution = nn.Conv2d(
            *(self.channels, outputs, kernel, stride, padding, dilation, groups), bias=not normalized or pick(0, 1) == 1
        )
        parts: list[nn.Module] = [convolution]
        if normalized:
            parts.append(self.norm(outputs))
        parts.append(ACTIVATIONS[pick(0, len(ACTIVATIONS) - 1)]())
        return nn.Sequential(*parts)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        norm = nn.BatchNorm2d(channels)
        spread = (0.1, 1.0, 10.0)[self.pick(0, 2)]
        nn.init.uniform_(norm.weight, -1.0, 1.5, generator=self.generator)
        nn.init.normal_(norm.bias, std=0.3 * spread, generator=self.generator)
        norm.running_mean.normal_(std=0.5 * spread, generator=self.generator)
        norm.running_var.uniform_(0.05, 2.0 * spread, generator=self.generator)
        if self.pick(0, 5) == 5:
            norm.weight.data[0] = (0.0, 1e-12, -1e-4)[self.pick(0, 2)]
        if self.pick(0, 9) == 9:
            norm.running_var[-1] = 0.0
        return norm

    def step(self) -> nn.Module:
        """Return one operation."""
        pick, channels = self.pick, self.channels
        kind = pick(0, 9)
        if kind <= 1:
            return self.layer(2 * pick(1, 4))
        if kind == 2:
            return (Residual, Product)[pick(0, 1)](self.layer(channels, keeps_size=True))
        if kind == 3:
            return SqueezeExcite(nn.Sequential(nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1)))
        if kind == 4:
            return Concatenation(self.layer(2 * pick(1, 2), keeps_size=True))
        if kind == 5:
            return nn.MaxPool2d(2 + pick(0, 1), pick(1, 2), 1, ceil_mode=pick(0, 1) == 1)
        if kind == 6:
            return nn.AvgPool2d(min(2, self.height, self.width), pick(1, 2))
        if kind == 7:
            return nn.ChannelShuffle(2) if channels % 2 == 0 else nn.ReLU()
        if kind == 8:
            return nn.Upsample(scale_factor=2) if max(self.height, self.width) < 10 else nn.Identity()
        return Half(channels) if channels > 1 else nn.Hardswish()

    def build(self) -> tuple[nn.Module, Tensor]:
        images = torch.randn(8, self.channels, self.height, self.width, generator=self.generator)
        steps, value = [], images
        for _ in range(1 + self.pick(0, 4)):
            steps.append(self.step().eval())
            with torch.no_grad():
                value = steps[-1](value)
            self.channels, self.height, self.width = value.shape[1:]
        if self.pick(0, 1):
            steps.append(nn.AdaptiveAvgPool2d(1))
            self.height = self.width = 1
        steps += [nn.Flatten(), nn.Linear(self.channels * self.height * self.width, 2 + self.pick(0, 5))]
        return nn.Sequential(*steps).eval(), images


def build_network(pick: Pick) -> DrawnNetwork:
    """Return a network over what quantization knows, at drawn widths, in either rounding."""
    config = QuantizationConfig(
        weight_bits=(2, 3, 4, 8)[pick(0, 3)],
        activation_bits=(8, 4, 2)[pick(0, 2)],
        first_last_bits=(8, 2)[pick(0, 1)],
        rounding=("single", "tflite")[pick(0, 1)],  # type: ignore[arg-type]
    )
    builder = _Builder(pick)
    # What torch itself draws, the weights, depends on the picked numbers alone.
    with torch.random.fork_rng():
        torch.manual_seed(pick(0, 2**16))
        module, images = builder.build()
    return DrawnNetwork(module, config, images)
