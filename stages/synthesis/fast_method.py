"""Fast data-free distillation: meta-learned initial values, and a bank of images (Fang et al. 2022)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.models.generator import Generator
from kdpipe.stages.synthesis.bank import ImageBank
from kdpipe.stages.synthesis.base import SynthesisStep, Synthesizer, checked_sum, frozen
from kdpipe.stages.synthesis.discriminator import Discriminator
from kdpipe.stages.synthesis.losses import disagreement_loss
from kdpipe.stages.synthesis.registry import FastParameters
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.precision import FLOAT32, Precision
from kdpipe.stages.training.seeding import derive_seed, seeded

BETAS = (0.5, 0.999)


class FastMethod(Synthesizer):
    """`fast` (arXiv:2112.06253, algorithm 1): each batch is optimized by itself, from initial values worth starting at.

    A step copies the generator and the latent vectors, adapts both to one batch in a few inner steps of Adam, and
    keeps the images with the lowest loss in the bank. The initial values are then moved by the gradient at the
    adapted ones (first-order MAML). Latent vectors start halfway between the learned ones and fresh noise, because
    equal starts would lead to equal batches. The student draws its batches from the whole bank.
    """

    def __init__(
        self, params: FastParameters, teachers: TeacherEnsemble, seed: int, precision: Precision = FLOAT32
    ) -> None:
        self._params = params
        self._precision = precision
        self._teachers = teachers
        self._device = next(teachers.parameters()).device
        self._noise = torch.Generator().manual_seed(derive_seed(seed, "noise"))
        with seeded(derive_seed(seed, "generator")):
            generator = Generator(teachers.space.shape, channels=params.channels, latent=params.latent)
        self.generator = generator.to(self._device, memory_format=torch.channels_last).train()
        self.latent = nn.Parameter(self.generator.noise(params.batch_size, self._noise))
        self._optimizer = torch.optim.Adam([*self.generator.parameters(), self.latent], lr=params.lr_meta, betas=BETAS)
        self.bank = ImageBank(params.bank, teachers.space.shape)
        self._steps = 0

    def step(self, student: nn.Module | None) -> SynthesisStep:
        """Adapt copies of the initial values to one batch, put it into the bank, and move the initial values."""
        made, generator, latent = self._adapt(student)
        for initial, adapted in zip(self.generator.parameters(), generator.parameters(), strict=True):
            initial.grad = adapted.grad
        self.latent.grad = latent.grad
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.bank.add(made.images)
        self._steps += 1
        return made

    def held_out(self) -> Tensor:
        """Return a batch that is adapted as in a step, but reaches neither the bank nor the initial values."""
        return self._adapt(None)[0].images

    def _adapt(self, student: nn.Module | None) -> tuple[SynthesisStep, Generator, Tensor]:
        """Return the best batch of the inner steps, and what they ended with, with the last gradients."""
        params = self._params
        generator = copy.deepcopy(self.generator)
        fresh = self.generator.noise(params.batch_size, self._noise)
        latent = ((self.latent.detach() + fresh) / 2**0.5).requires_grad_()
        inner = torch.optim.Adam(
            [{"params": generator.parameters(), "lr": params.lr}, {"params": [latent], "lr": params.lr_latent}],
            betas=BETAS,
        )
        best: tuple[float, SynthesisStep] | None = None
        with Discriminator.watching(self._teachers, params.weights(), self._precision) as discriminator:
            for _ in range(params.inner_steps):
                images = self._precision.compute(generator, latent)
                terms, logits = discriminator.judge(images)
                if student is not None and params.adversarial:
                    with frozen(student):
                        said = self._precision.compute(student, images)
                    terms["adversarial"] = params.adversarial * disagreement_loss(said, logits, only_agreed=True)
                loss = checked_sum(terms, self._steps + 1)
                if best is None or float(loss.detach()) < best[0]:
                    kept = {name: value.detach() for name, value in terms.items()}
                    best = float(loss.detach()), SynthesisStep(images.detach(), logits.detach(), kept)
                inner.zero_grad(set_to_none=True)
                loss.backward()
                inner.step()
        assert best is not None  # noqa: S101  # inner_steps is at least 1
        return best[1], generator, latent

    def images(self, count: int) -> Tensor:
        """Return images of the bank, drawn with replacement where it has too few."""
        return self.bank.draw(count, self._noise).to(self._device)

    def state_dict(self) -> dict[str, Any]:
        """Return the initial values, their optimizer, the noise and the bank."""
        return {
            "generator": self.generator.state_dict(),
            "latent": self.latent.detach(),
            "optimizer": self._optimizer.state_dict(),
            "noise": self._noise.get_state(),
            "bank": self.bank.state_dict(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.generator.load_state_dict(state["generator"])
        with torch.no_grad():
            self.latent.copy_(state["latent"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._noise.set_state(state["noise"])
        self.bank.load_state_dict(state["bank"])
        self._steps = state["steps"]
