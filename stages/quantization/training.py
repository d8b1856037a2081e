"""How a network is quantized: prepare, calibrate, train, lower, compare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from kdpipe.stages.artifacts import ImageSpace, NetworkDescription, load_ensemble, load_network
from kdpipe.stages.base import Artifact, Inputs, Outcome, Rows, StageContext
from kdpipe.stages.data.batches import TensorBatches
from kdpipe.stages.knowledge.base import DistillationLoss, Knowledge
from kdpipe.stages.knowledge.loss_parameters import EpochWeights
from kdpipe.stages.knowledge.registry import LOSSES
from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.assignment import Assignment, assign
from kdpipe.stages.quantization.fidelity import Fidelity, compare
from kdpipe.stages.quantization.found_layers import find_layers
from kdpipe.stages.quantization.images import QuantizationImages, load_images
from kdpipe.stages.quantization.network import prepare_for, save_quantized_network
from kdpipe.stages.quantization.prepare import quantizers
from kdpipe.stages.quantization.progressive import at_least
from kdpipe.stages.quantization.sensitivities import load_sensitivity
from kdpipe.stages.quantization.speq import StochasticTeacher, finer_bits
from kdpipe.stages.quantization.statistics import estimate_statistics
from kdpipe.stages.quantize import SPEQ, QuantizeParams, SpeqParameters
from kdpipe.stages.training.loop import fit
from kdpipe.stages.training.metrics import MeanAgreement, predict
from kdpipe.stages.training.parallel import ALONE, Parallel
from kdpipe.stages.training.resume import GeneratorState, Resume
from kdpipe.stages.training.seeding import derive_seed
from kdpipe.targets.errors import DataError, placed
from kdpipe.targets.graph import IntegerGraph, Normalization
from kdpipe.targets.graph_files import save_graph
from kdpipe.targets.lower import lower

FINAL = "quantized"
"""Series of the last phase's history."""

STATISTICS_IMAGES = 16_384
"""Batch norms' statistics are the mean over so many images at most."""

AGREEMENT_IMAGES = 2048
"""The metric `agreement` is taken on so many at most: integer arithmetic is simulated, which is slow."""


@dataclass(frozen=True)
class Phase:
    """Part of the training at one least width.

    Args:
        name: of its series in the history.
        bits: nothing is narrower than this; None: every width is its own.
        epochs: passes over the images.
        before: epochs of the phases before.
        total: epochs of all phases.
    """

    name: str
    bits: int | None
    epochs: int
    before: int
    total: int


def plan_phases(params: QuantizeParams) -> list[Phase]:
    """Return the phases of progressive initialization, and the last one at the widths that are deployed."""
    each = params.progressive_epochs or params.epochs
    total = each * len(params.progressive) + params.epochs
    phases = [Phase(f"{bits} bits", bits, each, each * index, total) for index, bits in enumerate(params.progressive)]
    return [*phases, Phase(FINAL, None, params.epochs, total - params.epochs, total)]


def quantize(params: QuantizeParams, inputs: Inputs, context: StageContext, parallel: Parallel = ALONE) -> Outcome:
    """Do the work of the stage `quantize`.

    Raises:
        UnsupportedError: the network holds operations that can't be quantized; lists all of them.
        DataError: the images don't fit the network, or kd has no teachers.
        TrainingError: a loss term is not finite.
        GraphError: the trained network can't be lowered; names the layer.
        UsageError: a pattern of `bits` matches no layer, or the budget of automatic widths can't be met.
    """
    device = parallel.device(context.accelerator)
    network, description = load_float_network(inputs["network"])
    space = description.space
    assignment = _assign_widths(params, inputs, network, space)
    config = params.configuration() if assignment is None else assignment.config
    prepared = prepare_for(space, network.to(device, memory_format=torch.channels_last), config)
    data = load_images(
        inputs["samples"],
        inputs.get("teachers"),
        space,
        asked_by=next((name for name in params.losses if name != SPEQ and LOSSES[name].needs_teachers), None),
        shift=params.shift,
        flip=params.flip,
        device=device,
    )
    observed = data.images.first(params.calibration_images).to(device)
    history: dict[str, Rows] = {}
    for phase in plan_phases(params):
        with placed(phase.name if params.progressive else None), at_least(prepared, phase.bits):
            calibrate(prepared, observed)
            history[phase.name] = train_quantized(prepared, data, params, context, device, phase, parallel)
    estimate_statistics(prepared, data.first(STATISTICS_IMAGES).images)
    prepared.cpu().eval()

    graph = lower(
        prepared,
        space.shape,
        name=re.sub(r"\W", "_", description.model),
        rounding=params.rounding,
        class_names=space.classes,
        normalization=Normalization(space.mean, space.std),
    )
    fidelity = compare(prepared, graph, data.images.first(params.verified_images))
    context.log(f"integer graph: equal in {fidelity.worst[1]:.4%} of elements or more (least: {fidelity.worst[0]})")
    save_graph(graph, context.output("graph"))
    save_quantized_network(context.output("network"), prepared, description, config)
    metrics = _metrics(prepared, graph, fidelity, data, history[FINAL])
    if assignment is None:
        return Outcome(metrics=metrics, history=history)
    return Outcome(
        metrics=metrics | {"predicted_loss": assignment.predicted_loss, "assigned_bytes": assignment.total},
        history=history,
        grids={"Predicted loss by width, the layers' widths framed": assignment.grid},
    )


def _assign_widths(params: QuantizeParams, inputs: Inputs, network: nn.Module, space: ImageSpace) -> Assignment | None:
    """Choose the widths that are auto; None where none is."""
    if params.budget is None or not params.has_auto():
        return None
    sensitivity = load_sensitivity(inputs["sensitivity"].path)
    layers = find_layers(network, torch.zeros(2, *space.shape))
    return assign(params.configuration(), layers, sensitivity, int(params.budget.size_kib * 1024), params.budget.target)


@torch.no_grad()
def calibrate(prepared: fx.GraphModule, images: Tensor) -> None:
    """Set every activation clip by the activations of `images [N, C, H, W]`, with batch statistics.

    Raises:
        GraphError: only zeros, or values that are not finite, reach a quantizer; names the layer.
    """
    prepared.train()
    with calibrating(prepared):
        prepared(images)
    for quantizer in quantizers(prepared):
        quantizer.quantization()


def train_quantized(
    prepared: fx.GraphModule,
    data: QuantizationImages,
    params: QuantizeParams,
    context: StageContext,
    device: torch.device,
    phase: Phase,
    parallel: Parallel,
) -> Rows:
    """Train a calibrated network in place and return a row an epoch."""
    # a seed of its own for each phase
    seed = context.seed if phase.bits is None else derive_seed(context.seed, phase.name)
    parameters = params.loss_parameters()
    losses: dict[str, DistillationLoss] = {
        name: LOSSES[name].build(values, None, derive_seed(seed, "loss", name))
        for name, values in parameters.items()
        if name != SPEQ
    }
    weights = EpochWeights(parameters, phase.epochs)
    speq = parameters.get(SPEQ)
    order = torch.Generator().manual_seed(derive_seed(seed, "batches"))
    precisions = torch.Generator().manual_seed(derive_seed(seed, "precisions"))
    teacher = _stochastic_teacher(prepared, speq, max(params.activation_bits, phase.bits or 0), precisions)
    batches = TensorBatches(
        data.tensors(), params.batch_size, order, augment=data.augment, device=device, parallel=parallel
    )
    agreed = MeanAgreement()

    def step(batch: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        pixels, labels, *known = batch
        images = data.images.seen(pixels)
        terms: dict[str, Tensor] = {}
        if teacher is not None and isinstance(speq, SpeqParameters):
            student, loss = teacher.student_and_loss(images, speq.temperature)
            terms[SPEQ] = weights.now[SPEQ] * loss
        else:
            student = prepared(images)
        agreed.add(student, labels)
        knowledge = Knowledge(
            student, None, data.said(pixels, known).unsqueeze(0), (), labels, progress=weights.progress
        )
        return {name: weights.now[name] * loss(knowledge) for name, loss in losses.items()} | terms

    def evaluate() -> dict[str, float]:
        return {"agreement": agreed.take()}

    def report(done: int, row: Mapping[str, float]) -> None:
        context.progress(phase.before + done, phase.total, "epoch", loss=row["loss"], agreement=row["agreement"])

    drawing = [order, precisions, *(generator for loss in losses.values() for generator in loss.generators())]
    return fit(
        params,
        [prepared],
        batches,
        step,
        seed=derive_seed(seed, "training"),
        epochs=phase.epochs,
        start_epoch=weights.start,
        evaluate=evaluate,
        report=report,
        resume=Resume(
            context.scratch(),
            FINAL if phase.bits is None else f"{FINAL}-{phase.bits}",
            {"network": prepared, "losses": nn.ModuleDict(losses)}
            | {f"generator-{index}": GeneratorState(generator) for index, generator in enumerate(drawing)},
        ),
        parallel=parallel,
    )


def _stochastic_teacher(
    prepared: fx.GraphModule, speq: object, activation_bits: int, generator: torch.Generator
) -> StochasticTeacher | None:
    if not isinstance(speq, SpeqParameters):
        return None
    return StochasticTeacher(prepared, speq.teacher_bits or finer_bits(activation_bits), speq.probability, generator)


def load_float_network(artifact: Artifact) -> tuple[nn.Module, NetworkDescription]:
    """Read a float network, or the only member of an ensemble.

    Raises:
        DataError: the ensemble has several members.
    """
    if artifact.kind == "network":
        return load_network(artifact.path)
    members = load_ensemble(artifact.path)
    if len(members) > 1:
        raise DataError(
            f"an ensemble of {len(members)} networks, where one is to be quantized",
            remedy="Distill it into one network, or give an ensemble of one member",
        )
    return members[0]


def _metrics(
    prepared: fx.GraphModule, graph: IntegerGraph, fidelity: Fidelity, data: QuantizationImages, history: Rows
) -> dict[str, float | int | str | bool]:
    weights = [weight for _, weight in graph.weights()]
    ternary = [weight.values for weight in weights if weight.bits == 2]
    seen = data.first(AGREEMENT_IMAGES)
    agreement = (predict(prepared, seen.images).argmax(dim=1) == seen.labels).float().mean()
    metrics: dict[str, float | int | str | bool] = {
        "images": len(data.images),
        "loss": history[-1]["loss"],
        "agreement": float(agreement),
        "weights": sum(weight.values.size for weight in weights),
        "weight_bytes": sum(weight.packed_bytes for weight in weights),
        "scale_and_bias_bytes": sum(8 * weight.scales.size for weight in weights),
        "integer_exact": fidelity.worst[1],
        "integer_max_step_difference": fidelity.max_step_difference,
        "integer_top1_agreement": fidelity.top1_agreement,
    }
    if ternary:
        zeros = sum(int((values == 0).sum()) for values in ternary)
        metrics["ternary_sparsity"] = zeros / sum(values.size for values in ternary)
    return metrics
