"""DAFL: a generator trained against frozen teachers, and the images that it leaves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdpipe.models.generator import Generator
from kdpipe.stages.artifacts import Samples, save_samples
from kdpipe.stages.base import Inputs, Outcome, Rows, StageContext
from kdpipe.stages.synthesis.discriminator import Discriminator
from kdpipe.stages.synthesis.losses import class_entropy
from kdpipe.stages.synthesis.picture import write_grid
from kdpipe.stages.synthesis.selection import balanced_choice
from kdpipe.stages.synthesize import SynthesizeParams
from kdpipe.stages.training.device import choose_device
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.metrics import predict
from kdpipe.stages.training.seeding import derive_seed, seeded
from kdpipe.targets.errors import TrainingError

ROWS = 40
GRID = 100


def synthesize(params: SynthesizeParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Do the work of the stage `synthesize`.

    Raises:
        TrainingError: a loss is not finite, or the images collapsed onto few classes.
    """
    device = choose_device(context.accelerator)
    teachers = TeacherEnsemble.load(inputs["teachers"].path).to(device)
    with seeded(derive_seed(context.seed, "generator")):
        generator = Generator(teachers.space.shape, channels=params.channels, latent=params.latent).to(device)
    noise = torch.Generator().manual_seed(derive_seed(context.seed, "noise"))
    with seeded(derive_seed(context.seed, "training")):
        images, history = train_generator(generator, teachers, params, noise, context)
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


def train_generator(
    generator: Generator,
    teachers: TeacherEnsemble,
    params: SynthesizeParams,
    noise: torch.Generator,
    context: StageContext,
) -> tuple[Tensor, Rows]:
    """Train the generator, and return the images of its later steps with the course of its losses.

    Keeping images from along the way, rather than drawing all from the last generator, gives a wider variety for
    nothing: each batch has already been made (the memory bank of CMI, Fang et al. 2021, arXiv:2105.08584).

    Returns:
        Normalized images [N, C, H, W] on the CPU, at least `count` of them, and rows of iteration, loss, terms and
        class entropy.
    """
    optimizer = torch.optim.Adam(generator.parameters(), lr=params.lr, betas=(0.5, 0.999))
    first_kept = min(
        int(params.keep_from * params.iterations),
        max(params.iterations - math.ceil(2 * params.count / params.batch_size), 0),
    )
    every = max(params.iterations // ROWS, 1)
    bank: list[Tensor] = []
    rows: Rows = []
    generator.train()
    with Discriminator.watching(teachers, params.weights) as discriminator:
        for iteration in range(1, params.iterations + 1):
            images = generator(generator.noise(params.batch_size, noise))
            terms, logits = discriminator.judge(images)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                bad = next((name for name, value in terms.items() if not torch.isfinite(value)), "loss")
                raise TrainingError(
                    f"the generator's loss term {bad!r} is not finite at iteration {iteration}",
                    remedy="Lower lr or that term's weight",
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if iteration > first_kept:
                bank.append(images.detach().cpu())
            if iteration % every == 0 or iteration == params.iterations:
                row = {"iteration": float(iteration), "loss": float(loss.detach())}
                row |= {name: float(value.detach()) for name, value in terms.items()}
                row["class_entropy"] = class_entropy(logits)
                rows.append(row)
                context.progress(
                    iteration,
                    params.iterations,
                    "iteration",
                    loss=row["loss"],
                    class_entropy=row["class_entropy"],
                )
    kept = sum(map(len, bank))
    with torch.no_grad():  # still with the batch's statistics, as in training
        while kept < params.count:
            bank.append(generator(generator.noise(params.batch_size, noise)).cpu())
            kept += len(bank[-1])
    return torch.cat(bank), rows


def collapsed(entropy: float, limit: float) -> TrainingError:
    """Return the error for images that teachers put into too few classes."""
    return TrainingError(
        f"the generator collapsed onto few classes: class entropy {entropy:.2f} of at most 1, limit {limit:g}",
        remedy="Raise weights.entropy or batch_size, lower lr, or train for more iterations",
    )
