"""How a student is distilled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdpipe.stages.artifacts import ImageSpace, NetworkDescription, build_network, save_ensemble, save_network
from kdpipe.stages.base import Artifact, Inputs, Outcome, Rows, StageContext
from kdpipe.stages.data.batches import TensorBatches, augmentation
from kdpipe.stages.distill import DistillParams
from kdpipe.stages.knowledge.base import DistillationLoss, Knowledge, Said
from kdpipe.stages.knowledge.images import TrainingImages, load_images
from kdpipe.stages.knowledge.loss_parameters import EpochWeights
from kdpipe.stages.knowledge.output_cache import CachedOutputs, cache_outputs
from kdpipe.stages.knowledge.registry import LOSSES
from kdpipe.stages.knowledge.starting_point import extended
from kdpipe.stages.knowledge.tapping import choose_taps, tapped_shapes
from kdpipe.stages.knowledge.taps import Taps, observing
from kdpipe.stages.knowledge.teacher_outputs import teacher_outputs, unflatten
from kdpipe.stages.training.averaging import WeightAverage
from kdpipe.stages.training.ensemble import TeacherEnsemble, load_teachers
from kdpipe.stages.training.loop import fit
from kdpipe.stages.training.metrics import MeanAgreement
from kdpipe.stages.training.parallel import ALONE, Parallel
from kdpipe.stages.training.precision import Precision, choose_precision
from kdpipe.stages.training.resume import GeneratorState, Resume
from kdpipe.stages.training.seeding import derive_seed, seeded
from kdpipe.targets.errors import DataError, placed

SURVEY_BATCH = 128


class TeacherSurvey:
    """Passes over all images and what the teachers say about them, from the cache or anew.

    Args:
        teachers: the ensemble.
        taps: of each teacher.
        data: the images.
        cached: the tensors that `cache_outputs` returned, or none.
        device: where the teachers are.
        precision: what they compute in.
    """

    def __init__(
        self,
        teachers: TeacherEnsemble,
        taps: Sequence[Taps],
        data: TrainingImages,
        cached: Sequence[Tensor],
        device: torch.device,
        precision: Precision,
    ) -> None:
        self._teachers = teachers
        self._taps = taps
        self._data = data
        self._cached = cached
        self._device = device
        self._precision = precision

    def __call__(self, generator: torch.Generator | None = None) -> Iterator[Said]:
        """Start a pass: in the images' order, or in one drawn from a CPU generator."""
        count = len(self._data.images)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for rows in order.split(SURVEY_BATCH):
            if self._cached:
                said = unflatten([tensor[rows].to(self._device) for tensor in self._cached], self._taps)
            else:
                images = self._data.images.seen(self._data.images.pixels[rows].to(self._device))
                said = teacher_outputs(self._teachers, self._taps, images, self._precision)
            choice = said.logits.mean(dim=0).argmax(dim=1)
            labels = choice if self._data.labels is None else self._data.labels[rows].to(self._device)
            yield Said(said.logits, said.features, labels, rows.to(self._device))


def distill(params: DistillParams, inputs: Inputs, context: StageContext, parallel: Parallel = ALONE) -> Outcome:
    """Do the work of the stage `distill`.

    Raises:
        DataError: the images don't fit the teachers.
        NetworkError: a tap does not exist, or the student does not fit the images.
        TrainingError: a loss term is not finite, or a paraphraser reconstructs too little.
    """
    device = parallel.device(context.accelerator)
    teachers = load_teachers(inputs["teachers"]).to(device, memory_format=torch.channels_last)
    data = load_images(inputs["samples"], teachers.space, further=_is_lifelong(params))
    _check_classes(params, teachers.space, data.space)
    students: list[nn.Module] = []
    history: dict[str, Rows] = {}
    metrics: dict[str, float | int | str | bool] = {}
    for generation in range(params.generations):
        seed = context.seed if not generation else derive_seed(context.seed, "generation", generation)
        with seeded(derive_seed(seed, "student")):
            student, description = _new_student(params, inputs.get("initial"), data.space)
        student.to(device, memory_format=torch.channels_last)
        taught = params
        if generation:
            teachers = TeacherEnsemble([(students[-1], description)]).to(device, memory_format=torch.channels_last)
            # it is looked at where the student is, being the same network
            taps = None if params.student_tap is None else (params.student_tap,)
            taught = params.model_copy(update={"teacher_taps": taps})
        ending = f"-{generation + 1}" if params.generations > 1 else ""
        with placed(f"generation {generation + 1}" if ending else None):
            rows, figures = _train(
                taught, (student, description), teachers, data, context, seed, generation, device, parallel
            )
        students.append(student.cpu().eval())
        history[f"student{ending}"] = rows
        metrics |= {f"{name}{ending.replace('-', '_')}": value for name, value in figures.items()}
        if ending:
            metrics[f"agreement{ending.replace('-', '_')}"] = rows[-1]["agreement"]
    save_network(context.output("network"), students[-1], description)
    if params.generations > 1:
        save_ensemble(context.output("ensemble"), [(student, description) for student in students])
    return Outcome(
        metrics={
            "parameters": sum(p.numel() for p in students[-1].parameters()),
            "images": len(data.images),
            "loss": rows[-1]["loss"],
            "agreement": rows[-1]["agreement"],
            **metrics,
        },
        history=history,
    )


def _is_lifelong(params: DistillParams) -> bool:
    return any(LOSSES[name].category == "lifelong" for name in params.losses)


def _check_classes(params: DistillParams, known: ImageSpace, learned: ImageSpace) -> None:
    unfit = [name for name in params.losses if LOSSES[name].equal_classes]
    if unfit and len(learned.classes) > len(known.classes):
        raise DataError(
            f"{unfit[0]} compares all {len(learned.classes)} classes, of which the teachers know {len(known.classes)}",
            remedy="Use lwf, ce, or losses on features",
        )


def _new_student(
    params: DistillParams, initial: Artifact | None, space: ImageSpace
) -> tuple[nn.Module, NetworkDescription]:
    """Build the student that is to learn the classes of `space`, or take the initial network."""
    if initial is not None:
        return extended(initial, space)
    assert params.model is not None  # noqa: S101  # DistillParams has checked it
    description = NetworkDescription(params.model.model, params.model.arguments, space)
    return build_network(description), description


def _train(
    params: DistillParams,
    member: tuple[nn.Module, NetworkDescription],
    teachers: TeacherEnsemble,
    data: TrainingImages,
    context: StageContext,
    seed: int,
    generation: int,
    device: torch.device,
    parallel: Parallel,
) -> tuple[Rows, Mapping[str, float | str]]:
    """Train one student in place; return a row an epoch, and what its losses found out before."""
    student = member[0]
    few = data.images.first(2).to(device)
    precision = choose_precision(params.precision, device, data.space.shape, [student])
    tapping = choose_taps(
        list(params.losses),
        member,
        teachers,
        few,
        student_tap=params.student_tap,
        teacher_taps=params.teacher_taps,
    )
    shapes = replace(tapped_shapes(tapping, student, teachers, few), images=len(data.images))
    parameters = params.loss_parameters()
    losses: dict[str, DistillationLoss] = {
        name: LOSSES[name].build(values, shapes, derive_seed(seed, "loss", name)).to(device)
        for name, values in parameters.items()
    }
    for loss in losses.values():
        loss.attach(student, list(teachers.networks))
    augment = augmentation(params.shift, params.flip, fill=data.images.black)
    kept = None
    if augment is None:
        kept = parallel.first(
            lambda: cache_outputs(
                context.scratch(),
                str(generation),
                teachers,
                tapping.teachers,
                data.images,
                limit_mib=params.cache_mib,
                precision=precision,
            )
        )
    context.log(_about_cache(kept, params.epochs))
    cached = kept.tensors if kept is not None else ()
    survey = TeacherSurvey(teachers, tapping.teachers, data, cached, device, precision)
    found: dict[str, float | str] = {
        "precision": precision.name,
        "teacher_passes": params.epochs if kept is None else 1,
        "teacher_outputs_mib": 0.0 if kept is None else kept.mib,
    }
    with seeded(derive_seed(seed, "preparation")):
        for name, loss in losses.items():
            found |= {f"{name}_{key}": value for key, value in loss.prepare(survey).items()}

    labels = data.labels if data.labels is not None else torch.full((len(data.images),), -1)
    order = torch.Generator().manual_seed(derive_seed(seed, "batches"))
    batches = TensorBatches(
        [data.images.pixels, labels, torch.arange(len(data.images)), *cached],
        params.batch_size,
        order,
        augment=augment,
        device=device,
        parallel=parallel,
    )
    agreed = MeanAgreement()
    weights = EpochWeights(parameters, params.epochs)

    def evaluate() -> dict[str, float]:
        return {"agreement": agreed.take()}

    def report(done: int, row: Mapping[str, float]) -> None:
        before, total = generation * params.epochs, params.generations * params.epochs
        context.progress(before + done, total, "epoch", loss=row["loss"], agreement=row["agreement"])

    with observing(student, tapping.student) as observer:

        def step(batch: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
            pixels, truth, indices, *known = batch
            images = data.images.seen(pixels)
            if known:
                said = unflatten(known, tapping.teachers)
            else:
                said = teacher_outputs(teachers, tapping.teachers, images, precision)
            logits = precision.compute(student, images)
            seen = observer.seen().float()
            choice = said.logits.mean(dim=0).argmax(dim=1)
            agreed.add(logits[:, : said.logits.shape[2]], choice)  # of further classes the teachers can say nothing
            knowledge = Knowledge(
                student_logits=logits,
                student_feature=seen.feature,
                teacher_logits=said.logits,
                teacher_features=said.features,
                labels=choice if data.labels is None else truth,
                student_layers=seen.layers,
                teacher_layers=said.layers,
                student_embedding=seen.embedding,
                teacher_embeddings=said.embeddings,
                indices=indices,
                progress=weights.progress,
            )
            return {name: weights.now[name] * loss(knowledge) for name, loss in losses.items()}

        drawing = [order, *(generator for loss in losses.values() for generator in loss.generators())]
        average = WeightAverage(student, params.ema_decay) if params.checkpoint == "ema" else None
        resume = Resume(
            context.scratch(),
            f"student-{generation}",
            {"student": student, "losses": nn.ModuleDict(losses)}
            | ({"average": average} if average is not None else {})
            | {f"generator-{index}": GeneratorState(generator) for index, generator in enumerate(drawing)},
        )
        rows = fit(
            params,
            [student, *losses.values()],
            batches,
            step,
            seed=derive_seed(seed, "training"),
            start_epoch=weights.start,
            evaluate=evaluate,
            report=report,
            after_step=average.update if average is not None else None,
            resume=resume,
            parallel=parallel,
        )
    if average is not None:
        student.load_state_dict(average.average())
    return rows, found


def _about_cache(kept: CachedOutputs | None, epochs: int) -> str:
    if kept is None:
        return "the teachers' outputs are computed for each batch"
    if not kept.seconds:
        return f"the teachers' outputs are cached: {kept.mib:.1f} MiB of an earlier run"
    said = f"the teachers' outputs are cached: {kept.mib:.1f} MiB in {kept.seconds:.1f} s"
    saved = kept.seconds * (epochs - 1)
    return f"{said}, which saves about {saved:.1f} s in {epochs} epochs" if epochs > 1 else said
