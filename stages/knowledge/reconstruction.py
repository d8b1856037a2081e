"""The reconstruction analysis of FEED (Park and Kwak 2019, arXiv:1909.10754): whose knowledge a student holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdpipe.stages.artifacts import load_network
from kdpipe.stages.base import Inputs, Outcome, Rows, StageContext
from kdpipe.stages.data.batches import TensorBatches
from kdpipe.stages.knowledge.factor_transfer import factor_loss, match_size, seeded_translator
from kdpipe.stages.knowledge.images import load_images
from kdpipe.stages.knowledge.tapping import choose_taps
from kdpipe.stages.knowledge.teacher_outputs import teacher_outputs
from kdpipe.stages.reconstruction import ReconstructionParams
from kdpipe.stages.training.device import choose_device
from kdpipe.stages.training.ensemble import TeacherEnsemble, load_teachers
from kdpipe.stages.training.loop import Report, fit
from kdpipe.stages.training.resume import GeneratorState, Resume
from kdpipe.stages.training.seeding import derive_seed
from kdpipe.targets.errors import DataError

BATCH = 256


def measure_reconstruction(params: ReconstructionParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Do the work of the stage `reconstruction`.

    Student and teachers are frozen. For each teacher a fresh translator is fitted from the student's map to the
    teacher's by the normalized L1 of `factor_loss`, and measured by it on images that it was not fitted on. Of two
    students with equal taps the one with the lower figure holds more of that teacher.

    Raises:
        DataError: the images don't fit the networks, or are too few to hold some out.
        NetworkError: a tap does not exist.
        TrainingError: the loss is not finite.
    """
    device = choose_device(context.accelerator)
    teachers = load_teachers(inputs["teachers"]).to(device)
    network, description = load_network(inputs["network"].path)
    student = TeacherEnsemble([(network, description)]).to(device)
    data = load_images(inputs["samples"], teachers.space)
    ours = load_images(inputs["samples"], student.space)
    tapping = choose_taps(
        ["feed"],
        (network, description),
        teachers,
        data.images.first(2).to(device),
        student_tap=params.student_tap,
        teacher_taps=params.teacher_taps,
    )
    with torch.no_grad():
        student_maps = torch.cat(
            [
                teacher_outputs(student, [tapping.student], images.to(device)).features[0].cpu()
                for images in ours.images.split(BATCH)
            ]
        )
        by_batch = [
            [feature.cpu() for feature in teacher_outputs(teachers, tapping.teachers, images.to(device)).features]
            for images in data.images.split(BATCH)
        ]
    teacher_maps = [torch.cat(maps) for maps in zip(*by_batch, strict=True)]

    order = torch.randperm(
        len(student_maps), generator=torch.Generator().manual_seed(derive_seed(context.seed, "held out"))
    )
    held = round(params.held_out * len(order))
    if not 0 < held < len(order):
        raise DataError(f"{len(order)} images are too few to hold out {params.held_out:.0%} of them")
    history: dict[str, Rows] = {}
    for index, maps in enumerate(teacher_maps):

        def report(done: int, row: Mapping[str, float], before: int = index * params.epochs) -> None:
            shown = {key: row[key] for key in ("loss", "held_out")}
            context.progress(before + done, len(teacher_maps) * params.epochs, "epoch", **shown)

        history[f"teacher-{index}"] = _fit_translator(
            params,
            (student_maps, maps),
            order[held:],
            order[:held],
            derive_seed(context.seed, index),
            device,
            report,
            Resume(context.scratch(), f"translator-{index}", {}),
        )
    figures = {f"reconstruction_{index}": rows[-1]["held_out"] for index, rows in enumerate(history.values())}
    return Outcome(
        metrics={
            **figures,
            "reconstruction": sum(figures.values()) / len(figures),
            "images": len(order) - held,
            "held_out_images": held,
        },
        history=history,
    )


def _fit_translator(
    params: ReconstructionParams,
    maps: tuple[Tensor, Tensor],
    fitted: Tensor,
    held: Tensor,
    seed: int,
    device: torch.device,
    report: Report,
    resume: Resume,
) -> Rows:
    """Fit one translator and return a row an epoch, with its figure on the images that were held out."""
    student, teacher = match_size(*maps)
    translator = seeded_translator(student.shape[1], teacher.shape[1], derive_seed(seed, "translator")).to(device)
    generator = torch.Generator().manual_seed(derive_seed(seed, "batches"))
    batches = TensorBatches((student[fitted], teacher[fitted]), params.batch_size, generator, device=device)
    resume.watch("translator", translator)
    resume.watch("batches", GeneratorState(generator))

    def step(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"l1": factor_loss(translator(batch[0]), batch[1])}

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        total = 0.0
        for rows in held.split(BATCH):
            total += float(factor_loss(translator(student[rows].to(device)), teacher[rows].to(device))) * len(rows)
        return {"held_out": total / len(held)}

    return fit(
        params,
        [translator],
        batches,
        step,
        seed=derive_seed(seed, "training"),
        evaluate=evaluate,
        report=report,
        resume=resume,
    )
