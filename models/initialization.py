"""How the weights of a new network are drawn."""

from __future__ import annotations

from torch import nn


def initialize_convolutions(network: nn.Module) -> None:
    """Draw convolutions for ReLU networks (He et al. 2015, arXiv:1502.01852, fan-out), in place.

    Batch norms keep torch's scale 1 and shift 0, linear layers torch's uniform distribution.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
