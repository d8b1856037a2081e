"""The one training loop: a step function over batches, an optimizer on a schedule, a history of epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kdpipe.stages.base import Rows
from kdpipe.stages.training.parallel import ALONE, Parallel
from kdpipe.stages.training.parameters import OptimizationParams, make_optimizer
from kdpipe.stages.training.resume import Resume
from kdpipe.stages.training.schedules import Schedule, make_schedule
from kdpipe.stages.training.seeding import seeded
from kdpipe.targets.errors import TrainingError

B_co = TypeVar("B_co", covariant=True)
B = TypeVar("B")
Report = Callable[[int, Mapping[str, float]], None]


class Batches(Protocol[B_co]):
    """What can be iterated once an epoch and knows its number of batches."""

    @property
    def share(self) -> float:
        """The part of each batch that this process sees: 1 where it is alone."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[B_co]: ...


def fit(
    params: OptimizationParams,
    modules: Sequence[nn.Module],
    batches: Batches[B],
    step: Callable[[B], Mapping[str, Tensor]],
    *,
    seed: int,
    epochs: int | None = None,
    start_epoch: Callable[[int], None] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    report: Report | None = None,
    after_step: Callable[[], None] | None = None,
    resume: Resume | None = None,
    parallel: Parallel = ALONE,
) -> Rows:
    """Train modules in place as a stage's parameters say: `train` as every stage calls it.

    Args:
        params: epochs, optimizer and schedule.
        modules: what is trained, in training mode from here on; of their parameters those that require a gradient.
        batches: as in `train`, and so is the rest that is not named here.
        step: likewise.
        seed: of torch's global generators meanwhile, from which dropout draws.
        epochs: instead of the parameters'.
        start_epoch: as in `train`.
        evaluate: likewise.
        report: likewise.
        after_step: likewise.
        resume: likewise.
        parallel: the process; batch norms in the modules use the statistics of whole batches.

    Returns:
        A row an epoch.

    Raises:
        TrainingError: as `train` raises it.
    """
    for module in modules:
        module.train()
    with seeded(seed), parallel.synchronized(modules):
        return train(
            batches,
            step,
            make_optimizer(params, modules),
            make_schedule(params.schedule, params.warmup),
            epochs=params.epochs if epochs is None else epochs,
            start_epoch=start_epoch,
            evaluate=evaluate,
            report=report,
            after_step=after_step,
            resume=resume,
            parallel=parallel,
        )


def train(
    batches: Batches[B],
    step: Callable[[B], Mapping[str, Tensor]],
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    epochs: int,
    start_epoch: Callable[[int], None] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    report: Report | None = None,
    after_step: Callable[[], None] | None = None,
    resume: Resume | None = None,
    parallel: Parallel = ALONE,
) -> Rows:
    """Minimize the sum of the terms that `step` returns.

    Args:
        batches: iterated anew in each epoch.
        step: from a batch to scalar loss terms by name, their weights applied.
        optimizer: of everything that is trained; its groups' present learning rates are the initial ones.
        schedule: factor of the initial rates, given the share of all steps that is done.
        epochs: passes over the batches.
        start_epoch: called with the epoch's number (from 0) before it, to set modes or coefficients.
        evaluate: called after each epoch; its figures join the row.
        report: called after each epoch with the number of finished epochs and the row.
        after_step: called when the optimizer has changed the weights.
        resume: holds everything but the optimizer that the loop changes. What it finds of an earlier, killed loop is
            not done again; `report` is told how far that was.
        parallel: the process, whose part of each batch `batches` holds. `step` returns means over that part, and so
            does `evaluate`; gradients and rows are those of whole batches.

    Returns:
        A row an epoch: epoch (from 1), loss and, where there are several, each term (means over the epoch's
        steps), lr (of the last step), and what `evaluate` returned.

    Raises:
        TrainingError: a loss term is not finite (the parameters are then those before that step), or a parameter is
            not after an epoch.
    """
    initial = [group["lr"] for group in optimizer.param_groups]
    total = epochs * len(batches)
    if total == 0:
        raise TrainingError("there is no batch to train on", remedy="Give more images, or a smaller batch_size")
    rows: Rows = []
    done = 0
    step = parallel.start(step, (p for group in optimizer.param_groups for p in group["params"]))
    if resume is not None:
        resume.watch("optimizer", optimizer)
        rows, done = resume.load(parallel)
        if rows and report is not None:
            report(len(rows), rows[-1])
    for epoch in range(len(rows), epochs):
        if start_epoch is not None:
            start_epoch(epoch)
        sums: dict[str, Tensor] = {}
        factor = 1.0
        for batch in batches:
            factor = schedule(done / total)
            for group, rate in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = rate * factor
            terms = step(batch)
            _check_finite(terms, epoch, done)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
            optimizer.zero_grad(set_to_none=True)
            parallel.backward(torch.stack(list(terms.values())).sum(), batches.share)
            optimizer.step()
            done += 1
            if after_step is not None:
                after_step()
        _check_weights(optimizer, epoch, done)
        own = {name: float(value) / len(batches) for name, value in sums.items()}
        means = parallel.average(own, batches.share)
        row = {"epoch": float(epoch + 1), "loss": sum(means.values())}
        if len(means) > 1:
            row |= means
        row["lr"] = initial[0] * factor
        if evaluate is not None:
            row |= parallel.average(evaluate(), batches.share)
        rows.append(row)
        if resume is not None:
            resume.save(rows, done, parallel)
        if report is not None:
            report(epoch + 1, row)
    return rows


def _check_finite(terms: Mapping[str, Tensor], epoch: int, done: int) -> None:
    for name, value in terms.items():
        if not torch.isfinite(value):
            raise TrainingError(
                f"the loss term {name!r} is {float(value.detach())} at step {done + 1} (epoch {epoch + 1})",
                remedy="Lower the learning rate or that term's weight, or add warm-up",
            )


def _check_weights(optimizer: Optimizer, epoch: int, done: int) -> None:
    """A step may break the weights of a network whose loss was still finite, and the last step's nobody would see."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not torch.isfinite(parameter.detach()).all():
                raise TrainingError(
                    f"a weight of shape {list(parameter.shape)} is not finite after step {done} (epoch {epoch + 1})",
                    remedy="Lower the learning rate, or add warm-up",
                )
