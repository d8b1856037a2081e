"""Other generators' C on the emulator of this project, with its compiler flags."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, shape_inference

from kdpipe.targets import onnx as onnx_export
from kdpipe.targets import reference, tflite
from kdpipe.targets.c.packing import to_channels_last
from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.c_artifact import CArtifact
from kdpipe.targets.devices.cortex_m import CortexM
from kdpipe.targets.graph import IntegerGraph

SECONDS_LIMIT = 1800.0
"""Of one inference: some of their programs take hundreds of millions of instructions."""

_STACK_BYTES = 12 << 20
"""emx-onnx-cgen keeps every tensor on the stack."""

_BAKENN = """\
#include "model.h"
#include "bknn_net.h"
static uint8_t arena[BKNN_NET_ARENA_SIZE + 1] __attribute__((aligned(BKNN_NET_ARENA_ALIGNMENT)));
int bench_run(const int8_t *input, int8_t *output) {
    bknn_net_infer(arena, input, output);
    return 0;
}
"""
_EMX = """\
#include "model.h"
#include "math.h"
void net(const float *input, float *output);
int bench_run(const int8_t *input, int8_t *output) {
    net((const float *)(const void *)input, (float *)(void *)output);
    return 0;
}
/* The functions of libm that its sources call; the compiler's runtime has the others. */
float nearbyintf(float x) {
    const float magic = x < 0.0f ? -8388608.0f : 8388608.0f;
    return __builtin_fabsf(x) < 8388608.0f ? (x + magic) - magic : x;
}
double nearbyint(double x) {
    const double magic = x < 0.0 ? -4503599627370496.0 : 4503599627370496.0;
    return __builtin_fabs(x) < 4503599627370496.0 ? (x + magic) - magic : x;
}
long long llrint(double x) {
    return (long long)nearbyint(x);
}
"""
_MATH_H = """\
float nearbyintf(float x);
double nearbyint(double x);
long long llrint(double x);
float fminf(float a, float b);
float fmaxf(float a, float b);
float roundf(float x);
double round(double x);
"""


@dataclass(frozen=True)
class Generator:
    """A way to get C for an 8-bit network.

    Args:
        title: as the table names it.
        tool: its name for `run_generator.py`.
        adapter: C that gives it this project's interface.
        is_float: whether input and output are float32, of a batch of images channels first.
        write_model: writes what it reads into a directory, and returns the file.
    """

    title: str
    tool: str
    adapter: str
    is_float: bool
    write_model: Callable[[IntegerGraph, Path], Path]


def _write_tflite(graph: IntegerGraph, directory: Path) -> Path:
    return next(path for path in tflite.export(graph, directory) if path.suffix == ".tflite")


def _write_qdq(graph: IntegerGraph, directory: Path) -> Path:
    """Write this project's ONNX with a batch of 1."""
    path = directory / "model.onnx"
    onnx_export.export(graph, directory)
    model = onnx.load(path)
    _set_batch(model)
    onnx.save(model, path)
    return path


def _write_qoperator(graph: IntegerGraph, directory: Path) -> Path:
    """Write the operators on integers that onnxruntime makes of this project's ONNX, with every tensor's type."""
    source, path = _write_qdq(graph, directory), directory / "integer.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    known = shape_inference.infer_shapes(onnx.load(source)).graph.value_info
    del model.graph.value_info[:]
    model.graph.value_info.extend(value for value in known if value.name in made)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            # onnxruntime spells out what is so by default, and emx-onnx-cgen does not know all of it.
            del node.attribute[:]
    onnx.save(model, path)
    return path


def _set_batch(model: ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


GENERATORS = (
    Generator("bakenn 1.0.0", "bakenn", _BAKENN, is_float=False, write_model=_write_tflite),
    Generator("emx-onnx-cgen 1.4.0", "emx", _EMX, is_float=True, write_model=_write_qoperator),
)


CMSIS_NN = {"ResNet-8": (29.87, 36.3, 102.8, 52), "DS-CNN": (7.84, 9.34, 54.7, 17)}
"""Quoted: CMSIS-NN of July 2026 by gcc 12.2 at -O3, counted on the same emulator with the same cycle model."""


class GeneratorError(Exception):
    """Its generator rejects the network, or what it wrote does not run."""


def measure_generated(
    generator: Generator, python: str, graph: IntegerGraph, inputs: np.ndarray, directory: Path
) -> tuple[Measurement, int]:
    """Return what the generator's code takes, and its largest difference from the integer reference in steps.

    Args:
        generator: of the C.
        python: the interpreter that has it.
        graph: a network of 8 bits.
        inputs: int8 [N, *shape].
        directory: an empty one.

    Raises:
        GeneratorError: it does not take the network.
    """
    # TFLite's arithmetic is what bakenn follows.
    graph = replace(graph, rounding="tflite")
    written = directory / "c"
    written.mkdir()
    model = generator.write_model(graph, directory)
    command = [python, str(Path(__file__).with_name("run_generator.py")), generator.tool, str(model), str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GeneratorError(done.stderr.strip().splitlines()[-1])
    quantization = graph.output.quantization
    given: np.ndarray[Any, Any] = to_channels_last(inputs, graph.input.shape)
    item = 1
    if generator.is_float:
        given = graph.input.quantization.dequantize(inputs).reshape(len(inputs), -1).view(np.int8)
        item = 4
    sizes = {"INPUT": given.shape[1], "OUTPUT": item * int(np.prod(graph.output.shape))}
    macros = "".join(f"#define BENCH_{which}_SIZE {size}\n" for which, size in sizes.items())
    (written / "model.h").write_text(f"#include <stdint.h>\n{macros}int bench_run(const int8_t *, int8_t *);\n")
    (written / "model.c").write_text(generator.adapter)
    (written / "math.h").write_text(_MATH_H)
    sources = tuple(sorted(written.glob("*.c")))
    program = CArtifact(written, sources, "bench", (sizes["INPUT"],), (sizes["OUTPUT"],), (), frozenset())
    stack = _STACK_BYTES if generator.is_float else 0x4000
    found = CortexM("cortex-m4", stack_bytes=stack, counted_samples=1, seconds_limit=SECONDS_LIMIT).measure_sources(
        program, given
    )
    outputs = found.outputs
    if generator.is_float:
        outputs = quantization.quantize(np.ascontiguousarray(outputs).view(np.float32))
    wanted = reference.run(graph, inputs)
    difference = np.abs(outputs.reshape(wanted.shape).astype(int) - wanted.astype(int)).max()
    return found, int(difference)
