"""Exponential moving averages of weights (Polyak and Juditsky 1992; as in Tarvainen and Valpola 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """a <- decay' * a + (1 - decay') * w after each step, of all floating-point entries of a network's state.

    decay' = min(decay, (1 + t) / (10 + t)) at step t, so that the random initial weights are soon forgotten. Whole
    numbers, such as batch norm's counters, are taken as they are.

    Args:
        network: the one that is trained.
        decay: in [0, 1); 0 follows the network exactly.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network
        self._decay = decay
        self._steps = 0
        self._average = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present state into the average."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps)) if self._decay else 0.0
        self._steps += 1
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self._average[name].lerp_(value, 1 - decay)
            else:
                self._average[name].copy_(value)

    def average(self) -> dict[str, Tensor]:
        """Return the averaged state of the network."""
        return self._average

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of steps."""
        return {"average": self._average, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self._steps = state["steps"]
        for name, value in self._average.items():
            value.copy_(state["average"][name])
