"""How the members of an ensemble are trained or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.artifacts import (
    ImageSpace,
    NetworkDescription,
    Split,
    build_network,
    load_split,
    normalize,
    save_ensemble,
)
from kdpipe.stages.base import Inputs, Outcome, Rows, StageContext
from kdpipe.stages.data.batches import TensorBatches, augmentation
from kdpipe.stages.data.stored_images import StoredImages
from kdpipe.stages.teachers import Member, TeachersParams
from kdpipe.stages.training.checkpoints import load_state, read_checkpoint, rename_modules
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.loop import Report, fit
from kdpipe.stages.training.metrics import MeanAgreement, accuracy, predict
from kdpipe.stages.training.parallel import ALONE, Parallel
from kdpipe.stages.training.parameters import OptimizationParams
from kdpipe.stages.training.precision import FLOAT32, Precision, choose_precision
from kdpipe.stages.training.resume import GeneratorState, Resume
from kdpipe.stages.training.seeding import derive_seed, seeded
from kdpipe.targets.errors import DataError, placed


def make_ensemble(params: TeachersParams, inputs: Inputs, context: StageContext, parallel: Parallel = ALONE) -> Outcome:
    """Do the work of the stage `teacher-ensemble`."""
    split = load_split(inputs["train"].path) if inputs.get("train") else None
    validation = load_split(inputs["validation"].path) if inputs.get("validation") else None
    if (
        split
        and validation
        and (split.space.shape, split.space.classes)
        != (
            validation.space.shape,
            validation.space.classes,
        )
    ):
        raise DataError("train and validation differ in their images' shape or their classes")
    members: list[tuple[nn.Module, NetworkDescription]] = []
    history: dict[str, Rows] = {}
    metrics: dict[str, float | int | str | bool] = {}
    trained = [member for member in params.members if member.trained_here]
    finished = 0
    for index, member in enumerate(params.members):
        description = NetworkDescription(member.model, member.arguments, _space(member, params, split))
        where = f"members.{index} ({member.model})"
        with seeded(derive_seed(context.seed, "teacher", index)), placed(where):
            network = build_network(description)
            if member.checkpoint is not None:
                path = context.file(member.checkpoint)
                state = rename_modules(read_checkpoint(path), member.rename, where=str(path))
                load_state(network, state, where=str(path))
                context.log(f"teacher {index}: {member.model} from {path.name}")
            if member.trained_here and split is not None:

                def report(done: int, row: Mapping[str, float], before: int = finished * params.epochs) -> None:
                    shown = {key: row[key] for key in ("loss", "accuracy") if key in row}
                    context.progress(before + done, len(trained) * params.epochs, "epoch", **shown)

                seed = derive_seed(context.seed, "batches", index)
                device = parallel.device(context.accelerator)
                precision = choose_precision(params.precision, device, description.space.shape, [network])
                metrics[f"precision_{index}"] = precision.name
                history[f"teacher-{index}"] = train_classifier(
                    network,
                    replace(split, space=description.space),
                    params,
                    seed=seed,
                    pixels=params.shift,
                    mirror=params.flip,
                    device=device,
                    report=report,
                    resume=Resume(context.scratch(), f"teacher-{index}", {}),
                    parallel=parallel,
                    precision=precision,
                )
                finished += 1
        network = network.cpu().eval()
        members.append((network, description))
        metrics[f"parameters_{index}"] = sum(p.numel() for p in network.parameters())
        if validation is not None:
            logits = predict(network, normalize(validation.images, description.space))
            metrics[f"accuracy_{index}"] = accuracy(logits, validation.labels)
    save_ensemble(context.output("ensemble"), members)
    if validation is not None:
        ensemble = TeacherEnsemble(members)
        logits = predict(ensemble, normalize(validation.images, ensemble.space))
        metrics["accuracy"] = accuracy(logits, validation.labels)
    return Outcome(metrics=metrics, history=history)


def train_classifier(
    network: nn.Module,
    split: Split,
    params: OptimizationParams,
    *,
    seed: int,
    pixels: int,
    mirror: bool = False,
    device: torch.device,
    report: Report | None = None,
    resume: Resume | None = None,
    parallel: Parallel = ALONE,
    precision: Precision = FLOAT32,
) -> Rows:
    """Train a network on labelled images by cross entropy, in place, and return a row an epoch.

    Args:
        network: its outputs are logits [B, K].
        split: images and labels, normalized as the network is to see them.
        params: epochs, batch size, optimizer and schedule.
        seed: of the batches' order, the augmentation and dropout.
        pixels: random moves of up to so many pixels.
        mirror: random flips.
        device: where the network is trained, and left.
        report: called after each epoch.
        resume: of this network's loop, without parts.
        parallel: the process.
        precision: what the network computes in.
    """
    seen = StoredImages(split.images, split.space, split.space).seen
    generator = torch.Generator().manual_seed(seed)
    batches = TensorBatches(
        (split.images, split.labels),
        params.batch_size,
        generator,
        augment=augmentation(pixels, mirror),
        device=device,
        parallel=parallel,
    )
    correct = MeanAgreement()

    def step(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels = batch
        logits = precision.compute(network, seen(images))
        correct.add(logits, labels)
        return {"cross_entropy": F.cross_entropy(logits, labels)}

    def evaluate() -> dict[str, float]:
        return {"accuracy": correct.take()}

    network.to(device, memory_format=torch.channels_last)
    if resume is not None:
        resume.watch("network", network)
        resume.watch("batches", GeneratorState(generator))
    return fit(
        params,
        [network],
        batches,
        step,
        seed=derive_seed(seed, "training"),
        evaluate=evaluate,
        report=report,
        resume=resume,
        parallel=parallel,
    )


def _space(member: Member, params: TeachersParams, split: Split | None) -> ImageSpace:
    if split is None:
        shape, classes = params.input_shape, params.classes
    else:
        shape, classes = split.space.shape, split.space.classes
    mean = member.mean if member.mean is not None or split is None else split.space.mean
    std = member.std if member.std is not None or split is None else split.space.std
    return ImageSpace(shape, classes, mean, std)  # type: ignore[arg-type]  # TeachersParams has checked them
