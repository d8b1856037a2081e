"""Many graphs' C exports in one program, so that a compiler runs once for all of them.

The sources are those that `kdpipe export c` writes, in one translation unit: only the kernels are shared, which carry a
network's name otherwise, and functions in assembly get the graph's name as well. Every layer's output is recorded.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from fuzz.drawn_graphs import fuzz_inputs
from numpy.typing import NDArray
from rows_everywhere import rows_everywhere

from kdpipe.targets import reference
from kdpipe.targets.c.cores import ARMV7M, DSP, FEATURES, MVE, THUMB
from kdpipe.targets.c.generator import LAYERS_FILE, render
from kdpipe.targets.c.packing import to_channels_first, to_channels_last
from kdpipe.targets.devices import firmware
from kdpipe.targets.devices.c_artifact import CArtifact
from kdpipe.targets.devices.c_compiler import compile_c, zig_compiler
from kdpipe.targets.devices.cortex_m import CORES
from kdpipe.targets.devices.qemu import BOARDS, QemuCortexM
from kdpipe.targets.devices.unicorn_machine import UnicornMachine
from kdpipe.targets.graph import IntegerGraph

KERNELS = Path(render.__code__.co_filename).parent / "kernels"
HOST = "host"
QEMU = {board.core: QemuCortexM(board) for board in BOARDS.values() if board.core not in CORES}
"""The cores that only QEMU emulates, compiled for by GCC."""
_INDEX = np.dtype("<i4")

_MAIN = """
typedef struct {
    int (*run)(int8_t *arena, const int8_t *input, int8_t *output);
    int32_t input, output, arena, recorded;
    const int32_t *starts; /* of what each layer gives, in what is recorded */
    int32_t layers;
} batch_network;

static const batch_network networks[] = {
%(entries)s
};

/* `input` begins with the network's number; what its layers gave is put into `output`, one after the other. */
int batch_run(const int8_t *input, int8_t *output)
{
    int32_t index, status;
    const batch_network *network;
    memcpy(&index, input, sizeof index);
    network = &networks[index];
    for (int32_t layer = 0; layer < network->layers; layer++) {
        recorded[layer] = output + network->starts[layer];
    }
#ifdef BATCH_HOST
    /* Each in memory of its own and of its size, so that a sanitizer sees what is beyond. */
    int8_t *const arena = malloc((size_t)network->arena);
    int8_t *const own_input = malloc((size_t)network->input);
    int8_t *const own_output = malloc((size_t)network->output);
    memcpy(own_input, input + sizeof index, (size_t)network->input);
    status = network->run(arena, own_input, own_output);
    free(arena);
    free(own_input);
    free(own_output);
#else
    /* No alignment is asked for. */
    static int8_t arena[BATCH_ARENA_SIZE + 3], own_output[BATCH_LARGEST_OUTPUT + 3];
    status = network->run(arena + index %% 4, input + sizeof index, own_output + index / 4 %% 4);
#endif
    return status;
}

#ifdef BATCH_HOST
int main(void)
{
    static int8_t input[BATCH_INPUT_SIZE], output[BATCH_OUTPUT_SIZE];
    int32_t index;
    while (fread(input, sizeof index, 1, stdin) == 1) {
        memcpy(&index, input, sizeof index);
        if (fread(input + sizeof index, 1, (size_t)networks[index].input, stdin) != (size_t)networks[index].input ||
            batch_run(input, output) != 0) {
            return 1;
        }
        fwrite(output, 1, (size_t)networks[index].recorded, stdout);
        fflush(stdout);
    }
    return 0;
}
#endif
"""
_HEAD = """
#include "model.h"

#include <stddef.h>
#include <string.h>
#ifdef BATCH_HOST
#include <stdio.h>
#include <stdlib.h>
#endif

/* Where what each layer gives next goes: it may give its output in parts. */
static int8_t *recorded[BATCH_LAYERS];

void batch_record(int layer, const int8_t *data, int32_t size)
{
    memcpy(recorded[layer], data, (size_t)size);
    recorded[layer] += size;
}
"""


@dataclass(frozen=True)
class RecordedLayer:
    """A layer's output as a program records it: name, shape, and the [C, H, W] in whose [H, W, C] order it lies."""

    name: str
    shape: tuple[int, ...]
    channels_last: tuple[int, ...] | None

    def restore(self, values: NDArray[np.int8]) -> NDArray[np.int8]:
        ordered = to_channels_first(values[None], self.channels_last)[0] if self.channels_last else values
        return ordered.reshape(self.shape)


@dataclass(frozen=True)
class Batch:
    """Graphs of one rounding as the sources of one program.

    Args:
        program: the sources, as those of one network that takes a request and gives an answer.
        layers: of each graph, in order.
    """

    program: CArtifact
    layers: tuple[tuple[RecordedLayer, ...], ...]


class Compilers:
    """Builds programs below a directory; kernels are compiled once for each core and rounding.

    Args:
        directory: for everything that is written.
        host: command of the C compiler of this machine, with sanitizers where it has them.
    """

    def __init__(self, directory: Path, host: Sequence[str]) -> None:
        self._directory = directory
        self._host = [*host, "-std=gnu99", "-O1", "-DBATCH_HOST"]
        self._kernels: dict[tuple[str, str], Path] = {}
        self._count = 0

    def run(
        self, graphs: Sequence[IntegerGraph], inputs: Sequence[NDArray[np.int8]], core: str
    ) -> list[dict[str, NDArray[np.int8]]]:
        """Return, for each graph, every layer's output on its inputs, int8 [N, *shape].

        Args:
            graphs: of one rounding.
            inputs: for each graph, int8 [N, *graph.input.shape].
            core: `HOST`, or one of `CORES` or of `QEMU`, for whose own kernels the sources are written.
        """
        self._count += 1
        directory = self._directory / f"batch{self._count}"
        batch = self._write(graphs, core, directory)
        requests = [
            (index, np.array([index], _INDEX).tobytes() + row.tobytes())
            for index, (graph, values) in enumerate(zip(graphs, inputs, strict=True))
            for row in to_channels_last(values, graph.input.shape)
        ]
        run = self._run_on_host if core == HOST else self._run_in_qemu if core in QEMU else self._run_on_core
        answers = run(batch, [request for _, request in requests], core)
        found: list[list[dict[str, NDArray[np.int8]]]] = [[] for _ in graphs]
        for (index, _), answer in zip(requests, answers, strict=True):
            found[index].append(_split(answer, batch.layers[index]))
        return [{name: np.stack([run[name] for run in runs]) for name in runs[0]} for runs in found]

    def _write(self, graphs: Sequence[IntegerGraph], core: str, directory: Path) -> Batch:
        (directory / "kernels").mkdir(parents=True)
        parts, entries, layers, rows, largest = [_HEAD], [], [], [], {"INPUT": 0, "OUTPUT": 0, "ARENA": 0}
        for index, graph in enumerate(graphs):
            name = f"g{index}"
            # Half of the graphs, told by what they are, so that one that fails does so alone.
            with rows_everywhere(sum(map(len, graph.quantizations())) % 2 == 1):
                optimize = ("speed", "size")[len(graph.nodes) % 2]
                texts = render(replace(graph, name=name), "generic" if core == HOST else core, optimize=optimize)
            texts = {path: text for path, text in texts.items() if not path.startswith("portable/")}
            # What is in assembly and not among the kernels is written for a layer.
            assembly = {Path(path) for path in texts if path.endswith(".S")}
            functions = sorted(path.stem for path in assembly if not any(KERNELS.glob(f"*/{path.name}")))
            rows += [_assembly(texts, function, name, len(rows) + place) for place, function in enumerate(functions)]
            texts = {path: _renamed(text, functions, name) for path, text in texts.items()}
            parts.append(_program(texts, name))
            macros = dict(re.findall(r"#define G\d+_(INPUT|OUTPUT|ARENA)_SIZE (\d+)", texts["model.h"]))
            largest = {key: max(value, int(macros[key])) for key, value in largest.items()}
            described = json.loads(texts[LAYERS_FILE])["layers"]
            ends = list(accumulate((int(np.prod(layer["shape"])) for layer in described), initial=0))
            parts.append(f"static const int32_t {name}_starts[] = {{{', '.join(map(str, ends[:-1]))}}};\n")
            own = (macros["INPUT"], macros["OUTPUT"], macros["ARENA"], ends[-1], f"{name}_starts", len(described))
            entries.append(f"    {{{name}_run_in, {', '.join(map(str, own))}}},")
            layers.append(
                tuple(
                    RecordedLayer(
                        layer["name"], tuple(layer["shape"]), layer["channels_last"] and tuple(layer["channels_last"])
                    )
                    for layer in described
                )
            )
        config = texts["kernels/kernel_config.h"].replace(f"{name}_kernel_", "batch_kernel_")
        _copy_kernels(core, directory / "kernels", config, "*.h")
        recorded = max(sum(int(np.prod(layer.shape)) for layer in each) for each in layers)
        sizes = {
            "BATCH_INPUT_SIZE": largest["INPUT"] + _INDEX.itemsize,
            "BATCH_OUTPUT_SIZE": recorded,
            "BATCH_ARENA_SIZE": largest["ARENA"],
            "BATCH_LARGEST_OUTPUT": largest["OUTPUT"],
            "BATCH_LAYERS": max(len(each) for each in layers),
        }
        header = "#include <stdint.h>\nint batch_run(const int8_t *input, int8_t *output);\n"
        header += "".join(f"#define {key} {value}\n" for key, value in sizes.items())
        (directory / "model.h").write_text(header)
        main = _MAIN % {"entries": "\n".join(entries)}
        (directory / "model.c").write_text("".join([*parts, main]))
        if rows:
            text = '#include "kernel_config.h"\n' + "".join(rows)
            (directory / "kernels" / "rows.S").write_text(text)
        sources = [directory / "model.c", *([directory / "kernels" / "rows.S"] if rows else [])]
        sources.append(self._compiled_kernels(core, graphs[0].rounding, config))
        shapes = (sizes["BATCH_INPUT_SIZE"],), (recorded,)
        needs = FEATURES.get(core, frozenset())
        return Batch(CArtifact(directory, tuple(sources), "batch", *shapes, (), needs), tuple(layers))

    def _compiled_kernels(self, core: str, rounding: str, config: str) -> Path:
        if (core, rounding) not in self._kernels:
            directory = self._directory / f"kernels-{core}-{rounding}"
            directory.mkdir()
            _copy_kernels(core, directory, config, "*.*")
            names = sorted(path.name for path in directory.glob("*.[cS]"))
            compile_c([*self._compiler(core), "-r", "-nostdlib", *names, "-o", "kernels.o"], directory)
            self._kernels[core, rounding] = directory / "kernels.o"
        return self._kernels[core, rounding]

    def _compiler(self, core: str) -> list[str]:
        if core == HOST:
            return self._host
        if core in QEMU:
            compiler = QEMU[core].compiler()
        else:
            compiler = [*zig_compiler(), "-target", "thumb-freestanding-eabi", f"-mcpu={CORES[core][0]}"]
        include = Path(firmware.__file__).parent / "firmware_sources" / "include"
        return [*compiler, *firmware._FLAGS, "-I", str(include)]

    def _run_on_host(self, batch: Batch, requests: Sequence[bytes], core: str) -> list[bytes]:
        directory, sources = batch.program.directory, map(str, batch.program.sources)
        compile_c([*self._host, "-I", str(directory), *sources, "-o", "batch"], directory)
        result = subprocess.run([str(directory / "batch")], input=b"".join(requests), capture_output=True)
        if result.returncode != 0:
            raise ProgramError(result.stderr.decode(errors="replace"))
        sizes = [sum(int(np.prod(layer.shape)) for layer in layers) for layers in batch.layers]
        answers, start = [], 0
        for request in requests:
            size = sizes[int(np.frombuffer(request, _INDEX, 1)[0])]
            answers.append(result.stdout[start : start + size])
            start += size
        return answers

    def _run_on_core(self, batch: Batch, requests: Sequence[bytes], core: str) -> list[bytes]:
        image = firmware.build_firmware(batch.program, CORES[core][0], batch.program.directory)
        machine = UnicornMachine(image, CORES[core][1], None, instruction_limit=0, seconds_limit=60.0)
        return [machine.run(request, batch.program.output_size) for request in requests]

    def _run_in_qemu(self, batch: Batch, requests: Sequence[bytes], core: str) -> list[bytes]:
        directory, size = batch.program.directory, batch.program.input_shape[0]
        image = QEMU[core].build(batch.program, directory)
        packed = np.frombuffer(b"".join(request.ljust(size, b"\0") for request in requests), np.int8).reshape(-1, size)
        records = QEMU[core].run(batch.program, image, directory / "run", packed)
        return [row.tobytes() for row in records["output"]]


def check_c(compilers: Compilers, graphs: Sequence[IntegerGraph], core: str) -> list[int]:
    """Return the indices of the graphs of which any layer differs from the reference, by how their C computes it."""
    failing = []
    for rounding in ("single", "tflite"):
        chosen = [index for index, graph in enumerate(graphs) if graph.rounding == rounding]
        if not chosen:
            continue
        inputs = [fuzz_inputs(graphs[index]) for index in chosen]
        found = compilers.run([graphs[index] for index in chosen], inputs, core)
        for index, values, layers in zip(chosen, inputs, found, strict=True):
            expected = reference.run_all(graphs[index], values)
            if not all(np.array_equal(layers[node.name], expected[node.name]) for node in graphs[index].nodes):
                failing.append(index)
    return failing


class ProgramError(Exception):
    """The program for this machine failed; has what a sanitizer said."""


_FOLDERS = {THUMB: "armv6m", ARMV7M: "armv7m", DSP: "cortex_m4", MVE: "mve"}
"""Of kernels, by the feature of a core that they are for."""


def _copy_kernels(core: str, directory: Path, config: str, pattern: str) -> None:
    features = FEATURES.get(core, frozenset())
    folders = ("", *(folder for feature, folder in _FOLDERS.items() if feature in features))
    for folder in folders:
        for path in (KERNELS / folder).glob(pattern):
            shutil.copy(path, directory / path.name)
    (directory / "kernel_config.h").write_text(config)


def _split(answer: bytes, layers: Sequence[RecordedLayer]) -> dict[str, NDArray[np.int8]]:
    values, found, start = np.frombuffer(answer, np.int8), {}, 0
    for layer in layers:
        size = int(np.prod(layer.shape))
        found[layer.name] = layer.restore(values[start : start + size])
        start += size
    return found


def _program(texts: Mapping[str, str], name: str) -> str:
    """Return a network's sources as a part of one file, its layers' outputs recorded."""
    upper = name.upper()
    own = r'#include "model(_weights)?\.h"\n'
    files = ("model.h", "model_weights.h", "model_weights.c", "model.c")
    body = "".join(re.sub(own, "", texts[file]) for file in files)
    definitions = f"#define {upper}_TRACE\n#define {upper}_NO_STATIC_ARENA\n#define {name}_trace batch_record\n"
    return f"\n{definitions}{body}#undef TRACE\n"


def _renamed(text: str, functions: Sequence[str], name: str) -> str:
    for function in functions:
        text = text.replace(f"KDP({function})", f"KDP({name}_{function})")
    return text


def _assembly(texts: Mapping[str, str], function: str, name: str, number: int) -> str:
    """Return a function in assembly as a part of one file: no macro and no label is left behind."""
    text = _renamed(texts[f"kernels/{function}.S"], [function], name)
    text = text.replace('#include "kernel_config.h"\n', "")
    while (included := re.sub(r'#include "(.+)"', lambda found: texts[f"kernels/{found[1]}"], text)) != text:
        text = included
    text = re.sub(r"\.L(\w+)", rf".L{number}_\1", text)
    undefined = {f"#undef {macro}" for macro in re.findall(r"#define (\w+)", text)}
    undefined |= {f".purgem {macro}" for macro in re.findall(r"\.macro\s+(\w+)", text)}
    return "\n".join([text, "        .ltorg", *sorted(undefined), ""])
