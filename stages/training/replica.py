"""One of several processes that train together by DistributedDataParallel, through Lightning Fabric."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from kdpipe.stages.training.device import choose_device
from kdpipe.stages.training.parallel import B, Step, shared_rows
from kdpipe.stages.training.seeding import derive_seed
from kdpipe.stages.training.synchronized_norm import synchronized_norms

T = TypeVar("T")
LOOPBACK = ("lo", "lo0")
LONG = timedelta(days=7)


class Replica:
    """A process of `count`, on this machine: a kdpipe.stages.training.parallel.Parallel.

    Args:
        fabric: launched.
        store: of the process group, for what may take longer than a collective operation.
        beats: counts, by rank, how often a process met the others: where one hangs, its number stays behind.
    """

    def __init__(self, fabric: Fabric, store: dist.Store, beats: MutableSequence[int]) -> None:
        self._fabric = fabric
        self._store = store
        self._beats = beats
        self._waits = 0

    @property
    def rank(self) -> int:
        """Its number, from 0."""
        return self._fabric.global_rank

    @property
    def count(self) -> int:
        """How many there are."""
        return self._fabric.world_size

    def device(self, accelerator: str) -> torch.device:
        """Return the device of this process."""
        return self._fabric.device

    def rows(self, total: int) -> slice:
        """Return this process's rows of a batch."""
        return shared_rows(total, self.rank, self.count)

    def start(self, step: Step[B], parameters: Iterable[nn.Parameter]) -> Step[B]:
        """Return the step inside DistributedDataParallel; from here on every process draws other random numbers."""
        if self.rank:
            torch.manual_seed(derive_seed(torch.initial_seed(), "rank", self.rank))
        wrapped = self._fabric.setup_module(_StepModule(step, parameters), move_to_device=False)

        def run(batch: B) -> Mapping[str, Tensor]:
            self._beat()
            terms = wrapped(batch)
            self._beat()
            return terms

        return run

    def backward(self, loss: Tensor, share: float) -> None:
        """Compute the gradients' mean over the processes, each weighted by its share."""
        self._fabric.backward(loss * (share * self.count))
        self._beat()

    def average(self, figures: Mapping[str, float], share: float) -> dict[str, float]:
        """Return the mean over the processes, each weighted by its share."""
        values = [value * share for value in figures.values()]
        summed = self._sum(torch.tensor(values, dtype=torch.float64, device=self._fabric.device))
        return dict(zip(figures, summed.tolist(), strict=True))

    def synchronized(self, modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        """Let the modules' batch norms use the statistics of whole batches inside the context."""
        return synchronized_norms(modules, self._stack, self._sum)

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do `work` first; it may take any time."""
        self._waits += 1
        key = f"first-{self._waits}"
        if self.rank:
            self._store.wait([key], LONG)
            return work()
        result = work()
        self._store.set(key, "done")
        return result

    def gather(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return every process's tensor by rank."""
        stacked = self._stack(tensor.to(self._fabric.device)).to(tensor.device)
        return [part.clone() for part in stacked]  # torch crashes on a generator's state that lies inside a tensor

    def _stack(self, tensor: Tensor) -> Tensor:
        # a sum with zeros is exact, and an operation that every backend has
        parts = tensor.new_zeros(self.count, *tensor.shape)
        parts[self.rank] = tensor
        return self._sum(parts)

    def _sum(self, tensor: Tensor) -> Tensor:
        self._beat()
        dist.all_reduce(tensor)
        self._beat()
        return tensor

    def _beat(self) -> None:
        self._beats[self.rank] += 1


class _StepModule(nn.Module, Generic[B]):
    """A step and what it trains, as DistributedDataParallel wants it: its gradients come in the module's backward."""

    def __init__(self, step: Step[B], parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self._step = step

    def forward(self, batch: B) -> Mapping[str, Tensor]:
        """Return the loss terms."""
        return self._step(batch)


def join(
    rank: int, count: int, accelerator: str, meeting: Path, timeout: timedelta, beats: MutableSequence[int]
) -> Replica:
    """Return this process as number `rank` of `count`; waits for the others.

    It changes this process's environment, and so must be a process of its own.

    Args:
        rank: from 0.
        count: processes on this machine.
        accelerator: as in `choose_device`; of several devices each process takes one.
        meeting: a file that does not exist, the same for all.
        timeout: after which a collective operation fails where another process does not take part.
        beats: by rank, 0.
    """
    os.environ["LOCAL_RANK"] = str(rank)
    loopback = next((name for _, name in socket.if_nameindex() if name in LOOPBACK), None)
    if loopback is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback  # nothing is sent or opened outside this machine
    kind = choose_device(accelerator).type
    backend = "nccl" if kind == "cuda" and sys.platform == "linux" else "gloo"
    store = dist.FileStore(str(meeting), count)
    store.set_timeout(timeout)
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    # which parameters the losses leave out is not known; those keep no gradient, as in one process
    strategy = DDPStrategy(cluster_environment=LightningEnvironment(), timeout=timeout, find_unused_parameters=True)
    fabric = Fabric(accelerator=kind, devices=count, strategy=strategy)
    fabric.launch()
    return Replica(fabric, store, beats)
