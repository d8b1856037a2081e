"""An integer graph as a directory of C99 sources that builds by itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.targets.artifact import FILE as ARTIFACT_FILE
from kdpipe.targets.artifact import ExportedArtifact, describe, kdpipe_version, write_artifact
from kdpipe.targets.c import c_text
from kdpipe.targets.c.cores import CONDITIONS, FEATURES, FPU, GENERIC, MVE
from kdpipe.targets.c.golden import make_golden_vectors
from kdpipe.targets.c.kernel_choice import OPERATORS as OPERATORS
from kdpipe.targets.c.layer import Field
from kdpipe.targets.c.layouts import NAMES as LAYOUTS
from kdpipe.targets.c.layouts import NO_BENCH, SOURCES, is_program, layout_texts, source_root
from kdpipe.targets.c.memory_plan import MemoryPlan
from kdpipe.targets.c.optimization import SPEED
from kdpipe.targets.c.packing import STORED_BITS, to_channels_last
from kdpipe.targets.c.program import Program, plan_program
from kdpipe.targets.c.steps import step_texts, whole_rows
from kdpipe.targets.c.storage import flattened_shape, size_of
from kdpipe.targets.errors import StorageError, UsageError, did_you_mean
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear, Quantization

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
LAYERS_FILE = "test/layers.json"
PORTABLE = "portable"
"""The folder with the same network for any core, where the sources are for one."""
_GOLDEN_SEED = 0


def export(
    graph: IntegerGraph,
    directory: Path,
    core: str = GENERIC,
    layout: str = SOURCES,
    bench: str = NO_BENCH,
    optimize: str = SPEED,
) -> list[Path]:
    """Write `graph` as C sources.

    Args:
        graph: the network.
        directory: where to write; made if it does not exist. Files of earlier exports with the same names are replaced.
        core: what to write it for, a name of `cores.py`.
        layout: how to arrange it, a name of `layouts.py`.
        bench: "cycles" to write bench/bench.c too, a program that prints each layer's cycles on a board.
        optimize: "size" to store ternary weights in 2 bits or fewer, whatever time that costs.

    Returns:
        The files, all below `directory`: model.h, model.c, model_weights.h, model_weights.c, the kernels that the
        network uses, CMakeLists.txt, README.md, test/ with golden vectors, and artifact.json. Constants of b-bit
        weights take b bits each (3-bit ones 4), rows of output channels being padded to 32-bit words. Where the
        core has kernels of its own, portable/ holds the same network for any core, which a host's test builds.

    Raises:
        UsageError: there is no such core, layout or optimization.
        UnsupportedError: a layer has no kernel (nothing has been written then); names the layer.
        StorageError: the directory can't be written.
    """
    texts = render(graph, core, layout, bench, optimize)
    paths = []
    try:
        for name, text in texts.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            paths.append(path)
        write_artifact(_describe(graph, texts, core, layout, optimize), directory)
        paths.append(directory / ARTIFACT_FILE)
    except OSError as error:
        raise StorageError(
            f"can't write the C sources ({error.strerror or error})",
            where=str(directory),
            remedy="Check that the directory is writable and the disk is not full",
        ) from None
    return paths


def _describe(graph: IntegerGraph, texts: Iterable[str], core: str, layout: str, optimize: str) -> ExportedArtifact:
    """Describe the export; what the build and its test need, but a device does not, is not counted as deployed."""
    deployed = [name for name in texts if is_program(name, layout)]
    artifact = describe(graph, target="c", files=deployed, input_type="int8", layout="NHWC", stored_bits=STORED_BITS)
    return replace(artifact, weight_bytes=constant_bytes(graph, core, optimize), core=core)


def render(
    graph: IntegerGraph,
    core: str = GENERIC,
    layout: str = SOURCES,
    bench: str = NO_BENCH,
    optimize: str = SPEED,
) -> dict[str, str]:
    """Return the text of each file that `export` writes, by its path in the export's directory."""
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}", remedy=did_you_mean(layout, LAYOUTS))
    program = plan_program(graph, core, optimize)
    environment = _environment()
    root = source_root(layout)
    values = {
        **_template_values(program),
        "core": core,
        "fpu": FPU in FEATURES[core],
        "mve": MVE in FEATURES[core],
        "condition": " && ".join(text for feature, text in CONDITIONS.items() if feature in FEATURES[core]),
        "portable_sources": [],
        "root": root,
        "layout": layout,
        "bench": bench != NO_BENCH,
    }
    texts = {f"{root}{name}": text for name, text in _program_texts(program, environment, values).items()}
    sources = _sources(texts)
    if FEATURES[core]:
        portable = plan_program(graph, GENERIC, optimize)
        portable_texts = _program_texts(portable, environment, _template_values(portable))
        texts.update({f"{PORTABLE}/{name}": text for name, text in portable_texts.items()})
        values["portable_sources"] = [f"{PORTABLE}/{name}" for name in _sources(portable_texts)]
    for path in ("CMakeLists.txt", "README.md", "test/golden.h", "test/test_model.c"):
        template = environment.get_template(f"{Path(path).name}.jinja")
        texts[path] = template.render(values, sources=sources)
    texts[".clang-tidy"] = environment.get_template("clang-tidy.jinja").render(values)
    if bench != NO_BENCH:
        texts["bench/bench.c"] = environment.get_template("bench.c.jinja").render(values)
    texts.update(layout_texts(layout, environment, {**values, "sources": sources}))
    texts[LAYERS_FILE] = _layers_json(program)
    return texts


def _sources(texts: Iterable[str]) -> list[str]:
    return sorted((name for name in texts if name.endswith((".c", ".S"))), key=lambda name: (name.count("/"), name))


def _program_texts(program: Program, environment: Environment, values: dict[str, Any]) -> dict[str, str]:
    """Return the files of the program itself: what a firmware needs."""
    texts = {
        name: environment.get_template(f"{name}.jinja").render(values)
        for name in ("model.h", "model.c", "model_weights.h", "model_weights.c")
    }
    texts["kernels/kernel_config.h"] = environment.get_template("kernel_config.h.jinja").render(values)
    assemblies = program.assemblies
    for assembly, name in assemblies.items():
        template = environment.get_template("specialized.S.jinja")
        texts[f"kernels/{name}.S"] = template.render(values, assembly=assembly, function=name)
    files = {name for layer in program.layers.values() for name in layer.files} | _row_files(program)
    for name in sorted(files):
        # Kernels for one core are kept apart here, and lie beside the others in what is written.
        texts[f"kernels/{Path(name).name}"] = (_HERE / "kernels" / name).read_text(encoding="utf-8")
    return texts


def _row_files(program: Program) -> set[str]:
    """Return the files that chains need, beside those of their layers."""
    return {"rows.h"} if program.chains else set()


def arena_plan(graph: IntegerGraph, core: str = GENERIC) -> MemoryPlan:
    """Return where the exported program keeps its tensors and scratch, without its input and output."""
    return plan_program(graph, core).storage.plan


def arena_bytes(graph: IntegerGraph, core: str = GENERIC) -> int:
    """Return the bytes of working memory that the exported program needs, without its input and output."""
    return arena_plan(graph, core).size


def constant_bytes(graph: IntegerGraph, core: str = GENERIC, optimize: str = SPEED) -> dict[str, int]:
    """Return the bytes of constants in flash, as `values` (packed weights) and `scales_and_biases`."""
    layers = plan_program(graph, core, optimize).layers.values()
    values = sum(layer.arrays["weights"].nbytes for layer in layers if "weights" in layer.arrays)
    total = sum(array.nbytes for layer in layers for array in layer.arrays.values())
    return {"values": values, "scales_and_biases": total - values}


@cache
def _environment() -> Environment:
    """Return the templates; compiling them takes longer than filling them in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # What is written is C, not HTML; every text that comes from outside goes through the comment or cell filter.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(_HERE / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["comment"] = c_text.comment_text
    environment.filters["literal"] = c_text.string_literal
    environment.filters["cell"] = c_text.table_cell
    return environment


def _template_values(program: Program) -> dict[str, Any]:
    graph = program.graph
    golden = make_golden_vectors(graph, np.random.default_rng(_GOLDEN_SEED))
    return {
        "name": graph.name,
        "upper": graph.name.upper(),
        "version": kdpipe_version(),
        "rounding": graph.rounding,
        "weight_bits": {node.name: weight.bits for node, weight in graph.weights()},
        "key": graph.metadata.get("key", ""),
        "mean": graph.normalization.mean if graph.normalization else (),
        "classes": graph.class_names,
        "input_layout": _layout(graph.input.shape),
        "input_dims": _memory_shape(graph.input.shape),
        "output_layout": _layout(graph.output.shape),
        "output_dims": _memory_shape(graph.output.shape),
        "macros": _macros(program),
        "steps": step_texts(program),
        "whole_rows": whole_rows(program),
        "names": [node.name for node in graph.nodes],
        "headers": sorted(
            {layer.header for layer in program.layers.values()} | {"kernel_config.h"} | _row_files(program)
        ),
        "constants": _constants(program),
        "assemblies": [(assembly.argument, function) for assembly, function in program.assemblies.items()],
        "layers": [_readme_row(program, node.name) for node in graph.nodes],
        "constant_bytes": sum(array.nbytes for layer in program.layers.values() for array in layer.arrays.values()),
        "arena_size": program.storage.plan.size,
        "arena_bound": program.storage.plan.lower_bound,
        "buffers": _buffers(program.storage.plan),
        "input_size": size_of(graph.input.shape),
        "output_size": size_of(graph.output.shape),
        "count": len(golden.inputs),
        "inputs": [c_text.int8_body(row) for row in to_channels_last(golden.inputs, graph.input.shape)],
        "outputs": [c_text.int8_body(row) for row in to_channels_last(golden.outputs, graph.output.shape)],
    }


def _layout(shape: tuple[int, ...]) -> str:
    return "[height][width][channels]" if len(shape) == 3 else "in order"


def _memory_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def _macros(program: Program) -> list[tuple[str, str]]:
    graph = program.graph
    macros: list[tuple[str, int]] = []
    if len(graph.input.shape) == 3:
        macros += zip(("INPUT_HEIGHT", "INPUT_WIDTH", "INPUT_CHANNELS"), _memory_shape(graph.input.shape), strict=True)
    macros += [("INPUT_SIZE", size_of(graph.input.shape)), ("OUTPUT_SIZE", size_of(graph.output.shape))]
    # An array of no elements is not C.
    macros += [("ARENA_SIZE", max(1, program.storage.plan.size))]
    texts = [(label, str(value)) for label, value in macros]
    texts += _quantization_macros("INPUT", graph.input.quantization)
    texts += _quantization_macros("OUTPUT", graph.output.quantization)
    if graph.normalization:
        texts.append(("MEAN", c_text.braces(map(c_text.float_literal, graph.normalization.mean))))
        texts.append(("STD", c_text.braces(map(c_text.float_literal, graph.normalization.std))))
    return texts


def _quantization_macros(which: str, quantization: Quantization) -> list[tuple[str, str]]:
    return [
        (f"{which}_SCALE", c_text.float_literal(quantization.scale)),
        (f"{which}_ZERO_POINT", f"({quantization.zero_point})"),
        (f"{which}_MIN", f"({quantization.qmin})"),
        (f"{which}_MAX", f"({quantization.qmax})"),
    ]


def _constants(program: Program) -> list[dict[str, Any]]:
    name = program.graph.name
    functions = program.assemblies
    constants = []
    for index, node in enumerate(program.graph.nodes):
        layer = program.layers.get(node.name)
        if layer is None:
            continue
        symbols = {label: f"{name}_{label}{index}" for label in layer.arrays}
        initialized = dict(symbols)
        if layer.assembly is not None:
            initialized["row"] = f"KDP({functions[layer.assembly]})"
        constants.append(
            {
                "index": index,
                "name": node.name,
                "struct": layer.struct,
                "arrays": [
                    {
                        "c_type": array.c_type,
                        "symbol": symbols[label],
                        "length": array.values.size,
                        "body": c_text.array_body(array),
                    }
                    for label, array in layer.arrays.items()
                ],
                "initializer": _initializer(layer.fields, initialized),
            }
        )
    return constants


def _initializer(fields: Sequence[Field], symbols: dict[str, str]) -> str:
    texts = []
    for member in fields:
        if isinstance(member, list):
            texts.append(_initializer(member, symbols))
        elif isinstance(member, str):
            texts.append(symbols[member.removeprefix("@")])
        else:
            texts.append(c_text.integer(member))
    return c_text.braces(texts)


def _readme_row(program: Program, name: str) -> dict[str, str]:
    layer = program.layers.get(name)
    if layer is None:
        return {"name": name, "kernel": "none: same memory", "weights": ""}
    op = layer.node.op
    weights = ""
    if isinstance(op, Conv2d | Linear):
        weights = f"{op.weight.values.size} of {op.weight.bits} bits"
    return {"name": name, "kernel": layer.kernel, "weights": weights}


def _layers_json(program: Program) -> str:
    """Describe the layers by their numbers: what a trace hands over, and what each of them needs.

    `channels_last` is the [C, H, W] in whose [H, W, C] order the values lie, or null where they are in order. `call` is
    whether it calls a kernel, `constant_bytes` what its constants take in flash, `live_bytes` what lives in the arena
    while it runs. `turns` are the layers' numbers in the order of execution: layers that are computed by rows take many
    turns. `arena` has where each buffer lies, in bytes, and the layers in whose time it is needed, by number.
    """
    graph, plan = program.graph, program.storage.plan
    entries = []
    for index, node in enumerate(graph.nodes):
        shape = node.output.shape
        last = shape if len(shape) == 3 else flattened_shape(graph, node.name)
        layer = program.layers.get(node.name)
        entries.append(
            {
                "index": index,
                "name": node.name,
                "shape": shape,
                "channels_last": last,
                "call": layer is not None,
                "constant_bytes": sum(array.nbytes for array in layer.arrays.values()) if layer else 0,
                "live_bytes": plan.live_bytes(index),
            }
        )
    arena = {"bytes": plan.size, "lower_bound": plan.lower_bound, "buffers": _buffers(plan)}
    turns = " ".join(map(str, program.turns))
    return json.dumps({"format": 2, "layers": entries, "turns": turns, "arena": arena}, indent=1) + "\n"


def _buffers(plan: MemoryPlan) -> list[dict[str, Any]]:
    return [
        {
            "name": buffer.name,
            "offset": plan.offsets[buffer.name],
            "bytes": buffer.size,
            "first": buffer.first,
            "last": buffer.last,
        }
        for buffer in plan.buffers
    ]
