"""The table of networks in the shapes of MLPerf Tiny on an emulated core: `python benchmarks/mcu`.

Every network is also compared with the integer reference, on the smallest and the largest input and on random ones: a
row of this project appears only if all outputs are equal to the bit.

With `--generators PYTHON`, an interpreter that has bakenn and emx-onnx-cgen, what these generate for the networks of
8 bits is built by the same compiler with the same flags, and run on the same emulator.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from generators import CMSIS_NN, GENERATORS, SECONDS_LIMIT, GeneratorError, measure_generated
from networks import NETWORKS, make_graph, make_inputs

from kdpipe.targets import reference
from kdpipe.targets.c.generator import export
from kdpipe.targets.c.optimization import NAMES as OPTIMIZATIONS
from kdpipe.targets.c.optimization import SIZE, SPEED
from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.cortex_m import CortexM
from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.errors import DeviceError

WIDTHS = {8: "8 bits", 4: "4 bits", 2: "ternary"}
TARGETS: dict[tuple[str, str, int], tuple[float, ...]] = {
    ("cortex-m4", "ResNet-8", 8): (12.5, 17.5, 95, 38),
    ("cortex-m4", "ResNet-8", 4): (10.5, 14.5, 56, 38),
    ("cortex-m4", "ResNet-8", 2): (7.0, 9.3, 43, 38),
    ("cortex-m4", "DS-CNN", 8): (3.2, 4.4, 37, 18),
    ("cortex-m4", "DS-CNN", 4): (3.2, 4.4, 27, 18),
    ("cortex-m4", "DS-CNN", 2): (2.7, 3.5, 22, 18),
    ("cortex-m0plus", "ResNet-8", 8): (50,),
    ("cortex-m0plus", "ResNet-8", 4): (33,),
    ("cortex-m0plus", "ResNet-8", 2): (31,),
    ("cortex-m0plus", "DS-CNN", 8): (14,),
    ("cortex-m0plus", "DS-CNN", 4): (11,),
    ("cortex-m0plus", "DS-CNN", 2): (11,),
    ("qemu-cortex-m55", "ResNet-8", 8): (3.0,),
    ("qemu-cortex-m55", "ResNet-8", 4): (3.3,),
    ("qemu-cortex-m55", "ResNet-8", 2): (3.4,),
    ("qemu-cortex-m55", "DS-CNN", 8): (1.0,),
    ("qemu-cortex-m55", "DS-CNN", 4): (1.1,),
    ("qemu-cortex-m55", "DS-CNN", 2): (1.1,),
}
"""Millions of instructions and of cycles, thousands of bytes of flash and of RAM: what the project set out to reach."""

_COUNTED = 2
HEAD = """\
Emulated {device}; instructions exact (mean of the smallest input and a random one), cycles by the
static model of `targets/devices/cycle_model.py` without waiting.
KB = 1000 bytes. Flash: the whole firmware; RAM: arena, input, output, other data and the stack's high-water mark.
Weights are drawn at random (seed {seed}) and never trained, those of the first and the last layer have 8 bits;
activations have 8 bits; rounding single. Every output of {count} inputs equals the integer reference.

| network | weights | sources for | M instructions | M cycles | flash, KB | RAM, KB |
| --- | --- | --- | --- | --- | --- | --- |"""


def measure(name: str, bits: int, core: str, device: str, seed: int, samples: int, optimize: str) -> Measurement:
    """Export, compile, run and compare one network.

    Raises:
        AssertionError: an output differs from the integer reference.
    """
    graph = make_graph(name, bits, seed)
    inputs = make_inputs(graph, samples, seed)
    with tempfile.TemporaryDirectory() as directory:
        export(graph, Path(directory), core, optimize=optimize)
        runner = DEVICES[device].create()
        if isinstance(runner, CortexM):
            runner = replace(runner, counted_samples=_COUNTED, seconds_limit=SECONDS_LIMIT)
        measurement = runner.measure(Path(directory), inputs)
    np.testing.assert_array_equal(measurement.outputs, reference.run(graph, inputs), err_msg=f"{name}, {bits} bits")
    return measurement


def row(name: str, width: str, sources: str, found: Measurement) -> str:
    """Return one line of the table."""
    counts = ["" if count is None else f"{count / 1e6:.2f}" for count in (found.instructions, found.cycles)]
    sizes = (found.flash_bytes or 0, found.ram_bytes or 0)
    figures = counts + [f"{size / 1000:.1f}" for size in sizes]
    return f"| {name} | {width} | {sources} | {' | '.join(figures)} |"


def print_generated(name: str, python: str, seed: int) -> None:
    """Print the lines of other generators' code for a network of 8 bits, on one random input."""
    graph = make_graph(name, 8, seed)
    inputs = make_inputs(graph, 1, seed)[-1:]
    for generator in GENERATORS:
        with tempfile.TemporaryDirectory() as directory:
            try:
                found, difference = measure_generated(generator, python, graph, inputs, Path(directory))
            except (GeneratorError, DeviceError) as error:
                print(f"| {name} | 8 bits | {generator.title} | {' '.join(str(error).split())} | | | |", flush=True)
                continue
        equal = "equal" if difference == 0 else f"off by {difference}"
        print(row(name, WIDTHS[8], f"{generator.title} ({equal})", found), flush=True)
    if name in CMSIS_NN:
        print(f"| {name} | 8 bits | CMSIS-NN, quoted | {' | '.join(map(str, CMSIS_NN[name]))} |", flush=True)


def layer_table(title: str, found: Measurement) -> str:
    """Return what each layer takes, as a table under a title."""
    lines = [f"\n{title}\n", "| layer | instructions | cycles | constants, bytes |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {layer.name} | {layer.instructions} | {layer.cycles or 0} | {layer.constant_bytes} |"
        for layer in found.layers or ()
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python benchmarks/mcu", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and inputs")
    parser.add_argument("--samples", type=int, default=2, help="random inputs, beside the two extreme ones")
    parser.add_argument("--device", default="cortex-m4", choices=sorted(set(DEVICES) - {"host"}), help="where to run")
    parser.add_argument("--cores", nargs="+", help="what to write the sources for: generic and the device's core")
    parser.add_argument("--widths", nargs="*", type=int, default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--optimize", default=SPEED, choices=OPTIMIZATIONS, help="what the sources are optimized for")
    parser.add_argument("--generators", metavar="PYTHON", help="interpreter that has bakenn and emx-onnx-cgen")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--layers", action="store_true", help="print what each layer takes, after the table")
    options = parser.parse_args(arguments)
    tables = []
    cores = options.cores or ["generic", options.device.removeprefix("qemu-")]
    print(HEAD.format(device=options.device, seed=options.seed, count=options.samples + 2))
    for name in options.networks:
        for bits, width in ((bits, WIDTHS[bits]) for bits in options.widths):
            for core in cores:
                found = measure(name, bits, core, options.device, options.seed, options.samples, options.optimize)
                sources = f"{core}, for size" if options.optimize == SIZE else core
                print(row(name, width, sources, found), flush=True)
                tables.append(layer_table(f"{name}, {width}, sources for {core}", found))
            limits = TARGETS.get((options.device, name, bits), ())
            targets = " | ".join([*(f"≤ {limit:g}" for limit in limits), *[""] * (4 - len(limits))])
            if limits:
                print(f"| {name} | {width} | *target* | {targets} |", flush=True)
        if options.generators:
            print_generated(name, options.generators, options.seed)
    if options.layers:
        print("\n".join(tables))


if __name__ == "__main__":
    main(sys.argv[1:])
