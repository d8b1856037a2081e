"""How a student is distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdpipe.stages.artifacts import (
    ImageSpace,
    NetworkDescription,
    build_network,
    load_samples,
    load_split,
    save_network,
)
from kdpipe.stages.base import Artifact, Inputs, Outcome, StageContext
from kdpipe.stages.data.batches import TensorBatches, shift
from kdpipe.stages.distill import DistillParams
from kdpipe.stages.knowledge.base import FeatureShapes, Knowledge
from kdpipe.stages.knowledge.registry import LOSSES
from kdpipe.stages.knowledge.taps import capture
from kdpipe.stages.knowledge.teacher_outputs import (
    TeacherOutputs,
    cache_outputs,
    check_feature_map,
    teacher_outputs,
)
from kdpipe.stages.training.device import choose_device
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.loop import train
from kdpipe.stages.training.parameters import make_optimizer
from kdpipe.stages.training.schedules import make_schedule
from kdpipe.stages.training.seeding import derive_seed, seeded
from kdpipe.targets.errors import DataError, NetworkError


@dataclass(frozen=True)
class TrainingImages:
    """Images as the teachers see them, float32 [N, C, H, W], and labels [N], or None for synthesized ones."""

    images: Tensor
    labels: Tensor | None


def distill(params: DistillParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Do the work of the stage `distill`.

    Raises:
        DataError: the images don't fit the teachers.
        NetworkError: a tap does not exist, or the student does not fit the images.
        TrainingError: a loss term is not finite.
    """
    device = choose_device(context.accelerator)
    teachers = TeacherEnsemble.load(inputs["teachers"].path).to(device)
    data = _load_images(inputs["samples"], teachers.space)
    description = NetworkDescription(params.model.model, params.model.arguments, teachers.space)
    with seeded(derive_seed(context.seed, "student")):
        student = build_network(description).to(device)
    taps = _teacher_taps(params, teachers) if _uses_features(params) else ()
    student_tap = (params.student_tap or description.feature) if taps else None
    shapes = _feature_shapes(student, student_tap, teachers, taps, data.images[:2].to(device)) if student_tap else None
    losses = {
        name: LOSSES[name].build(values, shapes, derive_seed(context.seed, "loss", name)).to(device)
        for name, values in params.loss_parameters().items()
    }

    cached = None
    if params.shift == 0:
        cached = cache_outputs(teachers, taps, data.images, limit_mib=params.cache_mib)
    context.log("the teachers' outputs are " + ("cached" if cached is not None else "computed for each batch"))
    labels = data.labels if data.labels is not None else torch.full((len(data.images),), -1)
    black = [-mean / std for mean, std in zip(teachers.space.mean, teachers.space.std, strict=True)]
    batches = TensorBatches(
        [data.images, labels, *(cached or [])],
        params.batch_size,
        torch.Generator().manual_seed(derive_seed(context.seed, "batches")),
        augment=shift(params.shift, fill=black) if params.shift else None,
        device=device,
    )
    weights = {name: entry.weight for name, entry in params.loss_parameters().items()}

    agreed: list[Tensor] = []
    with capture(student, [student_tap] if student_tap else []) as tapped:

        def step(batch: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
            images, truth, *known = batch
            if known:
                said = TeacherOutputs(known[0].transpose(0, 1), tuple(known[1:]))
            else:
                said = teacher_outputs(teachers, taps, images)
            logits = student(images)
            choice = said.logits.mean(dim=0).argmax(dim=1)
            agreed.append((logits.detach().argmax(dim=1) == choice).float().mean())
            knowledge = Knowledge(
                student_logits=logits,
                student_feature=tapped[student_tap] if student_tap else None,
                teacher_logits=said.logits,
                teacher_features=said.features,
                labels=choice if data.labels is None else truth,
            )
            return {name: weights[name] * loss(knowledge) for name, loss in losses.items()}

        def evaluate() -> dict[str, float]:
            agreement = float(torch.stack(agreed).mean())
            agreed.clear()
            return {"agreement": agreement}

        def report(done: int, row: Mapping[str, float]) -> None:
            context.progress(done, params.epochs, "epoch", loss=row["loss"], agreement=row["agreement"])

        student.train()
        with seeded(derive_seed(context.seed, "training")):
            history = train(
                batches,
                step,
                make_optimizer(params, [student, *losses.values()]),
                make_schedule(params.schedule, params.warmup),
                epochs=params.epochs,
                evaluate=evaluate,
                report=report,
            )
    student = student.cpu().eval()
    save_network(context.output("network"), student, description)
    return Outcome(
        metrics={
            "parameters": sum(p.numel() for p in student.parameters()),
            "images": len(data.images),
            "loss": history[-1]["loss"],
            "agreement": history[-1]["agreement"],
        },
        history={"student": history},
    )


def _load_images(artifact: Artifact, space: ImageSpace) -> TrainingImages:
    """Read samples or a split, checked against what the teachers see."""
    if artifact.kind == "split":
        split = load_split(artifact.path)
        found, result = split.space, TrainingImages(_as_seen(split.normalized(), split.space, space), split.labels)
    else:
        samples = load_samples(artifact.path)
        found, result = samples.space, TrainingImages(_as_seen(samples.images, samples.space, space), None)
    if found.shape != space.shape:
        raise DataError(f"images of shape {list(found.shape)} for teachers that see {list(space.shape)}")
    if len(found.classes) != len(space.classes):
        raise DataError(f"the images have {len(found.classes)} classes, the teachers {len(space.classes)}")
    return result


def _as_seen(images: Tensor, given: ImageSpace, space: ImageSpace) -> Tensor:
    """Convert normalized images from one mean and std to another's."""
    if (given.mean, given.std) == (space.mean, space.std) or len(given.mean) != len(space.mean):
        return images

    def by_channel(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)

    pixels = images * by_channel(given.std) + by_channel(given.mean)
    return (pixels - by_channel(space.mean)) / by_channel(space.std)


def _teacher_taps(params: DistillParams, teachers: TeacherEnsemble) -> tuple[str, ...]:
    if params.teacher_taps is None:
        return tuple(description.feature for description in teachers.descriptions)
    if len(params.teacher_taps) != len(teachers):
        raise NetworkError(
            f"teacher_taps names {len(params.teacher_taps)} modules for {len(teachers)} teachers",
            remedy="Give one path for each teacher",
        )
    return params.teacher_taps


def _uses_features(params: DistillParams) -> bool:
    return any(LOSSES[name].uses_features for name in params.losses)


@torch.no_grad()
def _feature_shapes(
    student: nn.Module, student_tap: str, teachers: TeacherEnsemble, taps: Sequence[str], images: Tensor
) -> FeatureShapes:
    """Find the taps' shapes by a forward pass of a few images."""
    student.eval()  # they must not reach the batch norms' statistics
    with capture(student, [student_tap]) as tapped:
        student(images)
    check_feature_map(student_tap, tapped[student_tap])
    said = teacher_outputs(teachers, taps, images)
    return FeatureShapes(_chw(tapped[student_tap]), tuple(_chw(feature) for feature in said.features))


def _chw(feature: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = feature.shape
    return channels, height, width
