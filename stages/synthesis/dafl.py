"""DAFL: a generator trained against frozen teachers, and the images that it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdpipe.stages.artifacts import Samples, save_samples
from kdpipe.stages.base import Inputs, Outcome, Rows, StageContext
from kdpipe.stages.synthesis.base import Synthesizer
from kdpipe.stages.synthesis.generator_method import GeneratorMethod
from kdpipe.stages.synthesis.losses import class_entropy
from kdpipe.stages.synthesis.picture import write_grid
from kdpipe.stages.synthesis.registry import GeneratorParameters
from kdpipe.stages.synthesis.selection import balanced_choice
from kdpipe.stages.synthesize import SynthesizeParams
from kdpipe.stages.training.device import choose_device
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.metrics import predict
from kdpipe.stages.training.resume import Resume
from kdpipe.stages.training.seeding import derive_seed, seeded
from kdpipe.targets.errors import TrainingError

ROWS = 40
GRID = 100
ROWS_A_STATE = 4
"""Rows of the history after which a killed stage would go on: the images make the state large."""


def synthesize(params: SynthesizeParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Do the work of the stage `synthesize`.

    Raises:
        TrainingError: a loss is not finite, or the images collapsed onto few classes.
    """
    device = choose_device(context.accelerator)
    teachers = TeacherEnsemble.load(inputs["teachers"].path).to(device, memory_format=torch.channels_last)
    settings = GeneratorParameters(
        **params.weights.model_dump(),
        batch_size=params.batch_size,
        lr=params.lr,
        latent=params.latent,
        channels=params.channels,
    )
    method = GeneratorMethod(settings, teachers, context.seed)
    with seeded(derive_seed(context.seed, "training")):
        images, history = train_generator(method, params, context)
        logits = predict(teachers, images)
    # of all images: the choice below would make a collapse look balanced
    entropy = class_entropy(logits)
    if entropy < params.collapse_below:
        raise collapsed(entropy, params.collapse_below)
    chosen = balanced_choice(
        logits, params.count, torch.Generator().manual_seed(derive_seed(context.seed, "selection"))
    )
    samples = Samples(images[chosen], logits[chosen], teachers.space)
    directory = context.output("samples")
    save_samples(directory, samples)
    write_grid(directory / "grid.png", samples.images[:GRID], teachers.space)
    shares = torch.bincount(samples.logits.argmax(dim=1), minlength=len(teachers.space.classes)) / len(samples)
    return Outcome(
        metrics={
            "images": len(samples),
            "class_entropy": entropy,
            "smallest_class_share": float(shares.min()),
            "confidence": float(samples.logits.softmax(dim=1).amax(dim=1).mean()),
        },
        history={"generator": history},
        figures={"Synthesized images": "samples/grid.png"},
    )


def train_generator(method: Synthesizer, params: SynthesizeParams, context: StageContext) -> tuple[Tensor, Rows]:
    """Train the generator, and return the images of its later steps with the course of its losses.

    Keeping images from along the way, rather than drawing all from the last generator, gives a wider variety for
    nothing: each batch has already been made (the memory bank of CMI, Fang et al. 2021, arXiv:2105.08584). A killed
    stage goes on from where its state was last written.

    Returns:
        Normalized images [N, C, H, W] on the CPU, at least `count` of them, and rows of iteration, loss, terms and
        class entropy.
    """
    first_kept = min(
        int(params.keep_from * params.iterations),
        max(params.iterations - math.ceil(2 * params.count / params.batch_size), 0),
    )
    every = max(params.iterations // ROWS, 1)
    bank = _Kept()
    resume = Resume(context.scratch(), "generator", {"method": method, "bank": bank})
    rows, done = resume.load()
    for iteration in range(done + 1, params.iterations + 1):
        step = method.step(None)
        if iteration > first_kept:
            bank.add(step.images)
        if iteration % every == 0 or iteration == params.iterations:
            terms = {name: float(value) for name, value in step.terms.items()}
            row = {"iteration": float(iteration), "loss": sum(terms.values()), **terms}
            row["class_entropy"] = class_entropy(step.logits)
            rows.append(row)
            shown = {name: row[name] for name in ("loss", "class_entropy")}
            if len(rows) % ROWS_A_STATE == 0:
                resume.save(rows, iteration)
            context.progress(iteration, params.iterations, "iteration", **shown)
    method.images(params.batch_size)  # the last batch, which is in the bank
    while len(bank) < params.count:
        bank.add(method.images(params.batch_size))
    return bank.all(), rows


class _Kept:
    """The images of the later steps, on the CPU."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def add(self, images: Tensor) -> None:
        self._batches.append(images.cpu())

    def all(self) -> Tensor:
        return torch.cat(self._batches)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._batches = list(state["batches"])


def collapsed(entropy: float, limit: float, weights: str = "weights") -> TrainingError:
    """Return the error for images that teachers put into too few classes; `weights` is the key above `entropy`."""
    return TrainingError(
        f"the generator collapsed onto few classes: class entropy {entropy:.2f} of at most 1, limit {limit:g}",
        remedy=f"Raise {weights}.entropy or batch_size, lower lr, or train for more iterations",
    )
