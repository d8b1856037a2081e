"""DAFL and DFQ: one generator from noise to images, trained step by step with the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.models.generator import Generator
from kdpipe.stages.synthesis.base import SynthesisStep, Synthesizer, checked_sum, frozen
from kdpipe.stages.synthesis.discriminator import Discriminator
from kdpipe.stages.synthesis.losses import disagreement_loss
from kdpipe.stages.synthesis.registry import GeneratorParameters
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.precision import FLOAT32, Precision
from kdpipe.stages.training.seeding import derive_seed, seeded


class GeneratorMethod(Synthesizer):
    """`dafl`, `dafl-batch-norm` and `dfq`: they differ in the weights of their terms only.

    The student is trained on the batch that the generator was just trained on, as DAFL's authors do, and on fresh
    ones where it takes more steps than the generator.
    """

    def __init__(
        self, params: GeneratorParameters, teachers: TeacherEnsemble, seed: int, precision: Precision = FLOAT32
    ) -> None:
        self._params = params
        self._precision = precision
        self._teachers = teachers
        device = next(teachers.parameters()).device
        with seeded(derive_seed(seed, "generator")):
            generator = Generator(teachers.space.shape, channels=params.channels, latent=params.latent)
        self.generator = generator.to(device, memory_format=torch.channels_last)
        self.generator.train()  # always with the batch's statistics
        self._optimizer = torch.optim.Adam(self.generator.parameters(), lr=params.lr, betas=(0.5, 0.999))
        self._noise = torch.Generator().manual_seed(derive_seed(seed, "noise"))
        self._steps = 0
        self._unused: Tensor | None = None

    def step(self, student: nn.Module | None) -> SynthesisStep:
        """Train the generator on one batch of noise."""
        images = self._made(self._params.batch_size)
        with Discriminator.watching(self._teachers, self._params.weights(), self._precision) as discriminator:
            terms, logits = discriminator.judge(images)
        if student is not None and self._params.adversarial:
            with frozen(student):
                said = self._precision.compute(student, images)
            terms["adversarial"] = self._params.adversarial * disagreement_loss(said, logits)
        loss = checked_sum(terms, self._steps + 1)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._steps += 1
        self._unused = images.detach()
        return SynthesisStep(self._unused, logits.detach(), {name: value.detach() for name, value in terms.items()})

    @torch.no_grad()
    def images(self, count: int) -> Tensor:
        """Return the batch of the last step, once, and then fresh ones."""
        batch, self._unused = self._unused, None
        if batch is not None and len(batch) == count:
            return batch
        return self._made(count)

    @torch.no_grad()
    def held_out(self) -> Tensor:
        """Return a batch from fresh noise."""
        return self._made(self._params.batch_size)

    def _made(self, count: int) -> Tensor:
        return self._precision.compute(self.generator, self.generator.noise(count, self._noise))

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimizer, noise and the batch that was not handed out yet."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "noise": self._noise.get_state(),
            "steps": self._steps,
            "unused": self._unused,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.generator.load_state_dict(state["generator"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._noise.set_state(state["noise"])
        self._steps = state["steps"]
        self._unused = state["unused"]
