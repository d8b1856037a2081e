"""Distillation with a generator at work: method and student are trained in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from kdpipe.stages.artifacts import NetworkDescription, Samples, build_network, save_network, save_samples
from kdpipe.stages.base import Inputs, Outcome, StageContext
from kdpipe.stages.data.batches import augmentation
from kdpipe.stages.data_free_distill import DataFreeDistillParams
from kdpipe.stages.knowledge.response import distillation_loss
from kdpipe.stages.synthesis.bank import ImageBank
from kdpipe.stages.synthesis.base import Synthesizer
from kdpipe.stages.synthesis.dafl import GRID, collapsed
from kdpipe.stages.synthesis.losses import class_entropy
from kdpipe.stages.synthesis.picture import write_grid
from kdpipe.stages.synthesis.selection import balanced_choice
from kdpipe.stages.training.averaging import WeightAverage
from kdpipe.stages.training.candidates import Candidates, agreement
from kdpipe.stages.training.device import choose_device
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.loop import fit
from kdpipe.stages.training.metrics import MeanAgreement, predict
from kdpipe.stages.training.precision import choose_precision
from kdpipe.stages.training.resume import GeneratorState, Resume
from kdpipe.stages.training.seeding import derive_seed, seeded

HELD_OUT = 4096
"""Images at most that a checkpoint is chosen by: the newest."""


class SynthesizedBatches:
    """An epoch of images for the student, each `student_steps` batches of them after a step of the method.

    Beside the images are the teachers' logits about them, where the method's step found them out, or else None.

    The method's whole step, its backward pass included, is done before the student sees a batch: the student's step
    would change the weights that an adversarial method's gradient goes through.

    Args:
        method: makes the images.
        student: what adversarial methods work against.
        params: of the stage.
    """

    def __init__(self, method: Synthesizer, student: nn.Module, params: DataFreeDistillParams) -> None:
        self._method = method
        self._student = student
        self._params = params
        self._settings = params.synthesis.parameters
        self._is_warm = False
        self._terms: dict[str, list[Tensor]] = {}
        self._said: list[Tensor] = []

    share = 1.0

    def __len__(self) -> int:
        return self._params.iterations * self._settings.student_steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        if not self._is_warm:
            for _ in range(self._settings.warm_up):
                self._method.step(None)
            self._is_warm = True
        for _ in range(self._params.iterations):
            step = self._method.step(self._student)
            for name, value in step.terms.items():
                self._terms.setdefault(name, []).append(value)
            self._said.append(step.logits.softmax(dim=1).mean(dim=0))
            for _ in range(self._settings.student_steps):
                images = self._method.images(self._params.batch_size)
                yield images, step.logits if images is step.images else None

    def summary(self) -> dict[str, float]:
        """Return the mean of each of the generator's terms, and the class entropy, since the last call."""
        row = {f"generator_{name}": float(torch.stack(values).mean()) for name, values in self._terms.items()}
        row["class_entropy"] = class_entropy(torch.stack(self._said).mean(dim=0, keepdim=True).log())
        self._terms.clear()
        self._said.clear()
        return row

    def state_dict(self) -> dict[str, bool]:
        """Return whether the warm-up is over."""
        return {"is_warm": self._is_warm}

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        """Go back to a state."""
        self._is_warm = state["is_warm"]


def distill_online(params: DataFreeDistillParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Do the work of the stage `data-free-distill`.

    Raises:
        NetworkError: the student does not fit the images.
        TrainingError: a loss term is not finite, or the images collapsed onto few classes.
    """
    device = choose_device(context.accelerator)
    teachers = TeacherEnsemble.load(inputs["teachers"].path).to(device, memory_format=torch.channels_last)
    description = NetworkDescription(params.model.model, params.model.arguments, teachers.space)
    with seeded(derive_seed(context.seed, "student")):
        student = build_network(description).to(device, memory_format=torch.channels_last)
    # the generator's gradient goes through the teachers, so that they count as the student does
    precision = choose_precision(params.precision, device, teachers.space.shape, [student, teachers])
    method = params.synthesis.entry.build(params.synthesis.parameters, teachers, context.seed, precision)
    batches = SynthesizedBatches(method, student, params)
    moves = torch.Generator().manual_seed(derive_seed(context.seed, "augmentation"))
    black = [-mean / std for mean, std in zip(teachers.space.mean, teachers.space.std, strict=True)]
    augment = augmentation(params.shift, params.flip, fill=black)
    average = WeightAverage(student, params.ema_decay) if params.checkpoint == "ema" else None
    candidates = Candidates(student, params.candidates) if params.checkpoint == "agreement" else None
    held_out = ImageBank(HELD_OUT, teachers.space.shape)
    agreed = MeanAgreement()

    def step(batch: tuple[Tensor, Tensor | None]) -> Mapping[str, Tensor]:
        images, said = batch
        images = augment(images, moves) if augment is not None else images
        if said is None or augment is not None:
            with torch.no_grad():
                said = precision.compute(teachers, images)
        logits = precision.compute(student, images)
        agreed.add(logits, said.argmax(dim=1))
        target = (said / params.temperature).softmax(dim=1)
        return {"kd": distillation_loss(logits, target, params.temperature)}

    def evaluate() -> dict[str, float]:
        row = {"agreement": agreed.take(), **batches.summary()}
        if row["class_entropy"] < params.collapse_below:
            raise collapsed(row["class_entropy"], params.collapse_below, "synthesis")
        if candidates is not None:
            candidates.add(candidates.latest + 1)
            held_out.add(method.held_out())
        return row

    def report(done: int, row: Mapping[str, float]) -> None:
        shown = {name: row[name] for name in ("loss", "agreement", "class_entropy")}
        context.progress(done, params.epochs, "epoch", **shown)

    parts = {"student": student, "method": method, "warm-up": batches, "augmentation": GeneratorState(moves)}
    if average is not None:
        parts["average"] = average
    if candidates is not None:
        parts |= {"candidates": candidates, "held-out": held_out}
    history = fit(
        params,
        [student],
        batches,
        step,
        seed=derive_seed(context.seed, "training"),
        evaluate=evaluate,
        report=report,
        after_step=average.update if average is not None else None,
        resume=Resume(context.scratch(), "student", parts),
    )
    if average is not None:
        student.load_state_dict(average.average())
    chosen: dict[str, float] = {}
    if candidates is not None:
        images = held_out.all()
        found, share = candidates.choose(images, predict(teachers, images))
        chosen = {"chosen_epoch": found, "held_out_agreement": share}
    save_network(context.output("network"), student.cpu().eval(), description)
    samples = final_samples(method, teachers, params, context.seed)
    directory = context.output("samples")
    save_samples(directory, samples)
    write_grid(directory / "grid.png", samples.images[:GRID], teachers.space)
    return Outcome(
        metrics={
            "parameters": sum(p.numel() for p in student.parameters()),
            "precision": precision.name,
            "loss": history[-1]["loss"],
            "agreement": agreement(student, samples.images, samples.logits),
            "class_entropy": history[-1]["class_entropy"],
            "images": len(samples),
            **chosen,
        },
        history={"student": history},
        figures={"Synthesized images": "samples/grid.png"},
    )


def final_samples(method: Synthesizer, teachers: TeacherEnsemble, params: DataFreeDistillParams, seed: int) -> Samples:
    """Draw images from the trained method, twice as many as are kept, and choose of every class alike."""
    drawn = 0
    parts: list[Tensor] = []
    while drawn < 2 * params.count:
        parts.append(method.images(params.synthesis.parameters.batch_size).cpu())
        drawn += len(parts[-1])
    images = torch.cat(parts)
    logits = predict(teachers, images)
    order = torch.Generator().manual_seed(derive_seed(seed, "selection"))
    chosen = balanced_choice(logits, params.count, order)
    return Samples(images[chosen], logits[chosen], teachers.space)
