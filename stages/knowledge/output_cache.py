"""Teachers' outputs for all images, computed once and kept in memory-mapped files."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdpipe.stages.data.stored_images import StoredImages
from kdpipe.stages.knowledge.taps import Taps
from kdpipe.stages.knowledge.teacher_outputs import flatten, teacher_outputs
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.precision import FLOAT32, Precision

MIB = 2**20
_PREFIX = "teacher-outputs-"
_TENSORS = "tensors.json"


@dataclass(frozen=True)
class CachedOutputs:
    """What the teachers say about all images.

    Args:
        tensors: each [N, ...], for `unflatten`; views of files, of which only the rows that are read are loaded.
        seconds: that computing them took; 0 where an earlier, killed run had done it.
    """

    tensors: tuple[Tensor, ...]
    seconds: float

    @property
    def mib(self) -> float:
        """The size of the files."""
        return sum(tensor.nbytes for tensor in self.tensors) / MIB


@torch.no_grad()
def cache_outputs(
    scratch: Path,
    name: str,
    teachers: TeacherEnsemble,
    taps: Sequence[Taps],
    images: StoredImages,
    *,
    limit_mib: int,
    precision: Precision = FLOAT32,
    batch_size: int = 512,
) -> CachedOutputs | None:
    """Compute the teachers' outputs for all images, or find those of an earlier run.

    The files get their place when they are complete. Those of another name are removed.

    Args:
        scratch: the stage's, which belongs to its key: what lies there is of the same teachers, taps and images.
        name: of these outputs in the stage.
        teachers: the ensemble.
        taps: of each teacher.
        images: as the teachers see them.
        limit_mib: what the files may take.
        precision: what the teachers compute in.
        batch_size: images at a time.

    Returns:
        None if they would take more than the limit.
    """
    directory = scratch / f"{_PREFIX}{name}"
    if directory.is_dir():
        return CachedOutputs(_open(directory), 0.0)
    for old in scratch.glob(f"{_PREFIX}*"):
        shutil.rmtree(old, ignore_errors=True)
    started = time.perf_counter()
    device = next(teachers.parameters()).device
    partial = scratch / f"{_PREFIX}{name}.partial"
    files: list[np.memmap] = []
    done = 0
    for chunk in images.split(batch_size):
        said = teacher_outputs(teachers, taps, chunk.to(device), precision)
        part = [tensor.cpu().numpy() for tensor in flatten(said, taps)]
        if not files:
            if sum(array[0].nbytes for array in part) * len(images) > limit_mib * MIB:
                return None
            files = _create(partial, part, len(images))
        for file, array in zip(files, part, strict=True):
            file[done : done + len(array)] = array
        done += len(chunk)
    for file in files:
        file.flush()
    del file, files  # Windows does not rename what is mapped
    partial.rename(directory)
    return CachedOutputs(_open(directory), time.perf_counter() - started)


def _create(directory: Path, part: Sequence[np.ndarray], count: int) -> list[np.memmap]:
    directory.mkdir(parents=True)
    described = [{"type": array.dtype.str, "shape": [count, *array.shape[1:]]} for array in part]
    (directory / _TENSORS).write_text(json.dumps(described), encoding="utf-8")
    return [
        np.memmap(directory / f"{index}.bin", array.dtype, "w+", shape=(count, *array.shape[1:]))
        for index, array in enumerate(part)
    ]


def _open(directory: Path) -> tuple[Tensor, ...]:
    described = json.loads((directory / _TENSORS).read_text(encoding="utf-8"))
    # copy-on-write: torch has no tensors that can't be written, and the files must not be
    return tuple(
        torch.from_numpy(np.memmap(directory / f"{index}.bin", tensor["type"], "c", shape=tuple(tensor["shape"])))
        for index, tensor in enumerate(described)
    )
