"""Deep mutual learning, DML (Zhang et al. 2018, arXiv:1706.00384): online distillation among peers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.artifacts import NetworkDescription, build_network, save_ensemble, save_network
from kdpipe.stages.base import Inputs, Outcome, StageContext
from kdpipe.stages.data.batches import TensorBatches, shift
from kdpipe.stages.data.stored_images import store_images
from kdpipe.stages.mutual import MutualParams
from kdpipe.stages.training.loop import fit
from kdpipe.stages.training.metrics import MeanAgreement
from kdpipe.stages.training.parallel import ALONE, Parallel
from kdpipe.stages.training.precision import choose_precision
from kdpipe.stages.training.resume import GeneratorState, Resume
from kdpipe.stages.training.seeding import derive_seed, seeded


def mutual_losses(logits: Tensor, temperature: float) -> Tensor:
    """T^2 / (n - 1) sum_{j != i} KL(softmax(z_j / T) || softmax(z_i / T)) of each peer i (equations 4 and 6).

    The peers' predictions are targets, through which no gradient goes. The paper updates one peer after the other;
    here all learn from the same forward pass.

    Args:
        logits: of n peers, [n, B, K].
        temperature: T; the paper has 1.

    Returns:
        [n], mean over B.
    """
    peers = len(logits)
    ours = F.log_softmax(logits / temperature, dim=2)
    targets = ours.detach()
    # [j, i, B]: what i lacks of j; on the diagonal it is 0
    divergences = (targets.exp()[:, None] * (targets[:, None] - ours[None, :])).sum(dim=3)
    return temperature**2 * divergences.sum(dim=0).mean(dim=1) / (peers - 1)


def learn_mutually(params: MutualParams, inputs: Inputs, context: StageContext, parallel: Parallel = ALONE) -> Outcome:
    """Do the work of the stage `mutual`.

    Raises:
        NetworkError: a member does not fit the images.
        TrainingError: a loss term is not finite.
    """
    device = parallel.device(context.accelerator)
    images, labels, _ = store_images(inputs["samples"])
    space = images.given
    descriptions = [NetworkDescription(member.model, member.arguments, space) for member in params.members]
    members = []
    for index, description in enumerate(descriptions):
        with seeded(derive_seed(context.seed, "member", index)):
            members.append(build_network(description).to(device, memory_format=torch.channels_last))
    precision = choose_precision(params.precision, device, space.shape, members)
    order = torch.Generator().manual_seed(derive_seed(context.seed, "batches"))
    batches = TensorBatches(
        (images.pixels, labels),
        params.batch_size,
        order,
        augment=shift(params.shift, fill=images.black) if params.shift else None,
        device=device,
        parallel=parallel,
    )
    correct = [MeanAgreement() for _ in members]

    def step(batch: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        pixels, truth = batch
        seen = images.seen(pixels)
        logits = torch.stack([precision.compute(member, seen) for member in members])
        for of_member, each in zip(correct, logits, strict=True):
            of_member.add(each, truth)
        hard = [F.cross_entropy(each, truth) for each in logits]
        soft = params.weight * mutual_losses(logits, params.temperature)
        return {f"ce_{index}": loss for index, loss in enumerate(hard)} | {
            f"mutual_{index}": loss for index, loss in enumerate(soft)
        }

    def evaluate() -> dict[str, float]:
        return {f"accuracy_{index}": of_member.take() for index, of_member in enumerate(correct)}

    def report(done: int, row: Mapping[str, float]) -> None:
        context.progress(done, params.epochs, "epoch", loss=row["loss"], accuracy=row["accuracy_0"])

    rows = fit(
        params,
        members,
        batches,
        step,
        seed=derive_seed(context.seed, "training"),
        evaluate=evaluate,
        report=report,
        resume=Resume(
            context.scratch(), "members", {"members": nn.ModuleList(members), "batches": GeneratorState(order)}
        ),
        parallel=parallel,
    )
    finished = [member.cpu().eval() for member in members]
    save_network(context.output("network"), finished[0], descriptions[0])
    save_ensemble(context.output("ensemble"), list(zip(finished, descriptions, strict=True)))
    figures = {name: rows[-1][name] for name in rows[-1] if name.startswith(("accuracy_", "mutual_"))}
    parameters = {f"parameters_{i}": sum(p.numel() for p in member.parameters()) for i, member in enumerate(finished)}
    return Outcome(
        metrics={"images": len(images), "precision": precision.name, "loss": rows[-1]["loss"], **parameters, **figures},
        history={"mutual": rows},
    )
