"""The layers that are found are those that are quantized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.stages.quantization.configuration import Layer, QuantizationConfig
from kdpipe.stages.quantization.found_layers import find_layers
from kdpipe.stages.quantization.prepare import prepare
from kdpipe.stages.quantization.weights import QuantizedConv2d, QuantizedLinear


class PreActivation(nn.Module):
    """With a batch norm that follows no layer, and two layers that read the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(2, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 6, 3, groups=3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x) + self.shortcut(x)))
        return self.fc(torch.relu(self.body(x)).mean((2, 3)))


def test_paths_sizes_and_ends_are_those_of_the_prepared_network() -> None:
    network, example = PreActivation().eval(), torch.zeros(2, 2, 8, 8)
    found = find_layers(network, example)
    assert found == {
        "stem": Layer(108, 6, is_linear=False, is_end=True),
        "shortcut": Layer(12, 6, is_linear=False, is_end=True),
        "inserted.norm": Layer(6, 6, is_linear=False, is_end=False),
        "body": Layer(108, 6, is_linear=False, is_end=False),
        "fc": Layer(24, 4, is_linear=True, is_end=True),
    }
    prepared = prepare(network, example, QuantizationConfig(weight_bits=2, first_last_bits=8))
    layers = {n: m for n, m in prepared.named_modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)}
    assert {name: layer.weight.numel() for name, layer in layers.items()} == {n: x.weights for n, x in found.items()}
    assert {name: layer.weight_quantizer.bits == 8 for name, layer in layers.items()} == {
        name: layer.is_end for name, layer in found.items()
    }
