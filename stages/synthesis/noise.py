"""Noise as images: what a generator has to be better than."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.stages.synthesis.base import SynthesisStep, Synthesizer
from kdpipe.stages.synthesis.registry import MethodParameters
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.precision import FLOAT32, Precision
from kdpipe.stages.training.seeding import derive_seed


class Noise(Synthesizer):
    """`noise`: independent pixels of mean 0 and variance 1, as normalized images have; the baseline of DAFL's tables.

    There is nothing to train, so of the parameters only `batch_size`, `student_steps` and `warm_up` matter.
    """

    def __init__(
        self, params: MethodParameters, teachers: TeacherEnsemble, seed: int, precision: Precision = FLOAT32
    ) -> None:
        self._params = params
        self._precision = precision
        self._teachers = teachers
        self._noise = torch.Generator().manual_seed(derive_seed(seed, "noise"))

    @torch.no_grad()
    def step(self, student: nn.Module | None) -> SynthesisStep:
        """Return a fresh batch."""
        images = self.images(self._params.batch_size)
        return SynthesisStep(images, self._precision.compute(self._teachers, images), {})

    def images(self, count: int) -> Tensor:
        """Return fresh noise."""
        device = next(self._teachers.parameters()).device
        return torch.randn(count, *self._teachers.space.shape, generator=self._noise).to(device)

    def held_out(self) -> Tensor:
        """Return fresh noise."""
        return self.images(self._params.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state."""
        return {"noise": self._noise.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self._noise.set_state(state["noise"])
