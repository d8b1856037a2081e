"""What a step of quantization-aware training costs, as a ratio to the float step of the same network.

    python benchmarks/qat_step.py [--repetitions 10] [--batch 64] [--threads 1]

ResNet-20 on images of 32x32, float32, channels_last, SGD: float, quantized (2-bit weights, 8-bit activations), with
SPEQ and, where Brevitas is installed, the same network with Brevitas's convolutions and ReLUs (which round no sums and
no shortcuts, so it has less to do). All take turns in one process and
are timed by the CPU time of that process, so that other load disturbs the ratios little. Memory is what the forward
pass keeps for the backward one, each storage counted once, parameters left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.models.registry import MODELS
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.prepare import prepare
from kdpipe.stages.quantization.speq import StochasticTeacher, finer_bits
from kdpipe.stages.quantization.training import calibrate

CLASSES = 10
Loss = Callable[[], Tensor]


def resnet20() -> nn.Module:
    """Return the float network, with the same weights at each call."""
    torch.manual_seed(0)
    network = MODELS["resnet"].build(input_shape=(3, 32, 32), classes=CLASSES, depth=20, width=16)
    return network.to(memory_format=torch.channels_last).train()


def brevitas_resnet20() -> nn.Module | None:
    """Return the network with Brevitas's 2-bit weights and 8-bit activations in place, None without Brevitas."""
    try:
        from brevitas import nn as qnn
    except ImportError:
        return None
    network = resnet20()
    convolutions = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    for index, (name, layer) in enumerate(convolutions):
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size)
        quantized = qnn.QuantConv2d(
            *sizes,
            stride=layer.stride,
            padding=layer.padding,
            bias=False,
            weight_bit_width=2 if index else 8,
        )
        quantized.weight = layer.weight
        network.set_submodule(name, quantized)
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.ReLU):
            network.set_submodule(name, qnn.QuantReLU(bit_width=8))
    return network.to(memory_format=torch.channels_last).train()


def step(network: nn.Module, loss: Loss) -> Callable[[], None]:
    """Return one step of training."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return run


def kept_bytes(network: nn.Module, loss: Loss) -> int:
    """Return the bytes that the graph of `loss` keeps, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss()
    count = sum(kept.values())
    del total
    return count


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(given.batch, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (given.batch,), generator=generator)

    def quantized() -> nn.Module:
        prepared = prepare(resnet20(), images, QuantizationConfig(2, 8))
        calibrate(prepared, images)
        return prepared

    plain, speq = quantized(), quantized()
    teacher = StochasticTeacher(speq, finer_bits(8), 0.5, torch.Generator().manual_seed(0))

    def speq_loss() -> Tensor:
        logits, loss = teacher.student_and_loss(images, 4.0)
        return F.cross_entropy(logits, labels) + loss

    def loss_of(network: nn.Module) -> Loss:
        return lambda: F.cross_entropy(network(images), labels)

    networks = {"float": resnet20(), "kdpipe W2A8": plain}
    losses: dict[str, Loss] = {name: loss_of(network) for name, network in networks.items()}
    networks["kdpipe W2A8, SPEQ"], losses["kdpipe W2A8, SPEQ"] = speq, speq_loss
    brevitas = brevitas_resnet20()
    if brevitas is not None:
        networks["Brevitas W2A8"], losses["Brevitas W2A8"] = brevitas, loss_of(brevitas)

    steps = {name: step(network, losses[name]) for name, network in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(given.repetitions + 2):
        for name, run in steps.items():
            start = time.process_time()
            run()
            if repetition >= 2:  # the first ones allocate
                times[name].append(time.process_time() - start)
    memory = {name: kept_bytes(network, losses[name]) for name, network in networks.items()}
    print(f"{'':20}{'least ms':>10}{'median ms':>11}{'x least':>9}{'x median':>10}{'kept MiB':>10}{'x kept':>8}")
    least, median = min(times["float"]), statistics.median(times["float"])
    for name, values in times.items():
        low, middle = min(values), statistics.median(values)
        print(
            f"{name:20}{low * 1e3:10.0f}{middle * 1e3:11.0f}{low / least:9.2f}{middle / median:10.2f}"
            f"{memory[name] / 2**20:10.1f}{memory[name] / memory['float']:8.2f}"
        )
    if brevitas is None:
        print("Brevitas is not installed: pip install brevitas")


if __name__ == "__main__":
    main()
