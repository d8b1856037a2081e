"""What an iteration of DAFL costs, as a ratio to the paper's equations written down plainly, in the same run.

    python benchmarks/dafl_step.py [--repetitions 3] [--iterations 20] [--batch 128] [--threads 1]

An iteration is a step of the generator (Chen et al. 2019, arXiv:1904.01186, equations 2 to 5: one-hot, activation and
information-entropy losses through the frozen teacher) and a step of the student on the same images (equation 1). Both
sides have the same networks and optimizers: teacher ResNet-20, student ResNet-8, the paper's generator, 32x32 images;
the plain one computes in float32, kdpipe in that, its default, and, on CPUs with AMX, in bfloat16. It runs its stage
`data-free-distill` with the method `dafl`, its rows and its saved states included; the first epoch is not counted. All
take turns in one process and are timed by its CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from kd_step import SPACE, Clock
from torch import Tensor

from kdpipe.models.generator import Generator
from kdpipe.stages.artifacts import NetworkDescription, build_network, save_ensemble
from kdpipe.stages.base import Artifact
from kdpipe.stages.data_free_distill import STAGE, DataFreeDistillParams
from kdpipe.stages.training.precision import has_amx

EPOCHS = 3
TEACHER = NetworkDescription("resnet", {"depth": 20}, SPACE)
STUDENT = NetworkDescription("resnet", {"depth": 8}, SPACE)
ONE_HOT, ENTROPY, ACTIVATION, LATENT = 0.05, 5.0, 0.01, 1000


def kdpipe_iterations(folder: Path, iterations: int, batch: int, threads: int, precision: str) -> list[float]:
    """Return the CPU seconds of an iteration, an entry an epoch, by the stage."""
    params = DataFreeDistillParams(
        teachers="teachers",
        model={"model": "resnet", "depth": 8},
        synthesis={
            "method": "dafl",
            "one_hot": ONE_HOT,
            "entropy": ENTROPY,
            "activation": ACTIVATION,
            "batch_size": batch,
            "latent": LATENT,
            "channels": 128,
        },
        iterations=iterations,
        batch_size=batch,
        temperature=1,
        epochs=EPOCHS,
        count=10,
        collapse_below=0,
        precision=precision,
    )
    with tempfile.TemporaryDirectory() as name:
        clock = Clock(Path(name), threads)
        STAGE.run(params, {"teachers": Artifact("ensemble", folder)}, clock)
    return [float(seconds) / iterations for seconds in np.diff(clock.ends)]


def plain_iterations(iterations: int, batch: int) -> list[float]:
    """Return the CPU seconds of an iteration, an entry an epoch, of the paper's equations as they stand."""
    teacher, student = build_network(TEACHER).eval(), build_network(STUDENT).train()
    generator = Generator(SPACE.shape, channels=128, latent=LATENT).train()
    seen: list[Tensor] = []
    teacher.fc.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.02)
    of_student = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    taken = []
    for _ in range(EPOCHS):
        started = time.process_time()
        for _ in range(iterations):
            images = generator(torch.randn(batch, LATENT))
            seen.clear()
            logits = teacher(images)
            one_hot = F.cross_entropy(logits, logits.argmax(dim=1))
            activation = -seen[0].abs().mean()
            mean = logits.softmax(dim=1).mean(dim=0)
            entropy = (mean * mean.log()).sum()
            loss = ONE_HOT * one_hot + ACTIVATION * activation + ENTROPY * entropy
            said = student(images.detach())
            distillation = F.kl_div(F.log_softmax(said, 1), logits.detach().softmax(1), reduction="batchmean")
            of_generator.zero_grad()
            of_student.zero_grad()
            (loss + distillation).backward()
            of_generator.step()
            of_student.step()
        taken.append((time.process_time() - started) / iterations)
    return taken[1:]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=20, help="in an epoch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sides = {"kdpipe": "float32", **({"kdpipe, bfloat16": "bfloat16"} if has_amx() else {})}
    times: dict[str, list[float]] = {"plain": [], **{side: [] for side in sides}}
    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        save_ensemble(Path(name), [(build_network(TEACHER), TEACHER)])
        for _ in range(given.repetitions):
            times["plain"] += plain_iterations(given.iterations, given.batch)
            for side, precision in sides.items():
                times[side] += kdpipe_iterations(Path(name), given.iterations, given.batch, given.threads, precision)
    print(f"{'':18}{'median ms':>11}{'least ms':>10}{'times as fast':>15}")
    middle = statistics.median(times["plain"])
    for side, values in times.items():
        median = statistics.median(values)
        print(f"{side:18}{median * 1e3:11.0f}{min(values) * 1e3:10.0f}{middle / median:15.2f}")


if __name__ == "__main__":
    main()
