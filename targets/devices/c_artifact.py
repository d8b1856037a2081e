"""The C target's export as devices see it: what to compile, and how tensors lie in its memory."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.c.cores import FEATURES, GENERIC, missing_features
from kdpipe.targets.c.generator import LAYERS_FILE
from kdpipe.targets.c.packing import to_channels_first, to_channels_last
from kdpipe.targets.errors import ArtifactError, DeviceError
from kdpipe.targets.json_files import MALFORMED, read_json

MAIN_SOURCE = "model.c"
"""Where the network's function is, in whatever folder."""


@dataclass(frozen=True)
class ProgramLayer:
    """A step of the generated program, and the tensor that a traced one hands over.

    Args:
        name: in the integer graph.
        shape: in the integer graph.
        channels_last: the [C, H, W] in whose [H, W, C] order the values lie, or None where they are in order.
        call: whether it calls a kernel; a view of another tensor does not.
        constant_bytes: of flash.
        live_bytes: of the arena, while it runs.
    """

    name: str
    shape: tuple[int, ...]
    channels_last: tuple[int, ...] | None
    call: bool
    constant_bytes: int
    live_bytes: int

    def restore(self, values: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return `values [N, size]`, as they lie in memory, as [N, *shape]."""
        if self.channels_last is not None:
            values = to_channels_first(values, self.channels_last)
        return values.reshape(len(values), *self.shape)


@dataclass(frozen=True)
class ArenaBuffer:
    """A piece of the arena.

    Args:
        name: of its tensor or scratch.
        offset: its first byte.
        bytes: its size.
        first: the number of the layer that writes it.
        last: the number of the last layer that reads it.
    """

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Working memory of the generated program, without its input and output.

    Args:
        bytes: its size.
        lower_bound: bytes that live at once in the fullest layer.
        buffers: what lies in it.
        layers: names of the layers, by number.
    """

    bytes: int
    lower_bound: int
    buffers: tuple[ArenaBuffer, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class CArtifact:
    """A directory of C sources, read and checked.

    Args:
        directory: where it is.
        sources: the files to compile.
        name: prefix of its symbols.
        input_shape: without the batch, channels first.
        output_shape: without the batch, channels first.
        layers: by layer number.
        needs: features of the core that the sources were written for, see `cores.py`.
        turns: the layers' numbers in the order of execution; those that are computed by rows take many turns.
    """

    directory: Path
    sources: tuple[Path, ...]
    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    layers: tuple[ProgramLayer, ...]
    needs: frozenset[str]
    turns: tuple[int, ...] = ()

    @property
    def include(self) -> Path:
        """The directory of model.h."""
        return next(source.parent for source in self.sources if source.name == MAIN_SOURCE)

    @property
    def program_functions(self) -> tuple[str, ...]:
        """The functions that call the layers' kernels, one after the other."""
        return (f"{self.name}_run", f"{self.name}_run_in")

    def definitions(self, *, traced: bool) -> dict[str, str]:
        """Return the preprocessor definitions of the export itself."""
        return {f"{self.name.upper()}_TRACE": "1"} if traced else {}

    def pack_inputs(self, inputs: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return `inputs [N, *input_shape]` in memory order, int8 [N, size].

        Raises:
            DeviceError: the inputs have another shape or type.
        """
        if inputs.dtype != np.int8 or inputs.shape[1:] != self.input_shape:
            raise DeviceError(
                f"takes int8 [N, {', '.join(map(str, self.input_shape))}], got {inputs.dtype} {list(inputs.shape)}",
                where=str(self.directory),
            )
        packed: NDArray[np.int8] = to_channels_last(inputs, self.input_shape)
        return packed

    def unpack_outputs(self, outputs: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return `outputs [N, size]`, as they lie in memory, as [N, *output_shape]."""
        unpacked: NDArray[np.int8] = to_channels_first(outputs, self.output_shape)
        return unpacked

    @property
    def input_size(self) -> int:
        """Bytes of the input."""
        return math.prod(self.input_shape)

    @property
    def output_size(self) -> int:
        """Bytes of the output."""
        return math.prod(self.output_shape)

    @property
    def calls(self) -> tuple[int, ...]:
        """The numbers of the layers whose kernels are called, in that order."""
        return tuple(number for number in self.turns if self.layers[number].call)

    def layer_after(self, turns: int) -> str | None:
        """Return the name of the layer whose turn it is when so many have been taken, or None after the last."""
        return self.layers[self.turns[turns]].name if turns < len(self.turns) else None

    def unpack_trace(self, recorded: Sequence[Sequence[NDArray[np.int8]]]) -> dict[str, NDArray[np.int8]]:
        """Return the tensors by name, [N, *shape], from those recorded: for each of N runs, one for each turn."""
        parts: dict[int, list[NDArray[np.int8]]] = {index: [] for index in range(len(self.layers))}
        for turn, number in enumerate(self.turns):
            parts[number].append(np.stack([run[turn] for run in recorded]).reshape(len(recorded), -1))
        return {
            layer.name: layer.restore(np.concatenate(parts[index], axis=1)) for index, layer in enumerate(self.layers)
        }


def load_c_artifact(directory: Path, core: str) -> CArtifact:
    """Read the C export in `directory`, to be run on `core`, a name of `targets/c/cores.py`.

    Raises:
        ArtifactError: it is not one, or a file is missing or unreadable, or it was written for a core that can do
            what this one can't.
    """
    described = read_artifact(directory)
    if described.target != "c":
        raise ArtifactError(
            f"an export for {described.target}, not C sources",
            where=str(directory),
            remedy="Give the directory of the export's target c",
        )
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", described.name):
        raise ArtifactError(f"the network's name {described.name!r} is not an identifier", where=str(directory))
    described.sizes(directory)
    built_for = described.core or GENERIC
    if built_for not in FEATURES:
        raise ArtifactError(f"sources for an unknown core, {built_for!r}", where=str(directory))
    if missing := missing_features(built_for, core):
        where = "this machine" if core == GENERIC else core
        raise ArtifactError(
            f"the sources are for {built_for}, and use what {where} lacks: {', '.join(sorted(missing))}",
            where=str(directory),
            remedy=f"Run them on {built_for}, or export with --core {core}",
        )
    layers, turns = _load_layers(directory / LAYERS_FILE)
    sources = tuple(directory / name for name in described.files if name.endswith((".c", ".S")))
    if not any(source.name == MAIN_SOURCE for source in sources):
        raise ArtifactError(f"{MAIN_SOURCE} is not among its files", where=str(directory), remedy="Export it again")
    shapes = (described.input.shape, described.output.shape)
    return CArtifact(directory, sources, described.name, *shapes, layers, FEATURES[built_for], turns)


def load_arena(directory: Path) -> Arena:
    """Read how the C export in `directory` uses its memory.

    Raises:
        ArtifactError: it does not tell.
    """
    path = directory / LAYERS_FILE
    try:
        document = read_json(path)
        arena = document["arena"]
        return Arena(
            int(arena["bytes"]),
            int(arena["lower_bound"]),
            tuple(
                ArenaBuffer(str(buffer["name"]), *(int(buffer[key]) for key in ("offset", "bytes", "first", "last")))
                for buffer in arena["buffers"]
            ),
            tuple(str(layer["name"]) for layer in document["layers"]),
        )
    except MALFORMED as error:
        raise _unreadable(path, error) from None


def _load_layers(path: Path) -> tuple[tuple[ProgramLayer, ...], tuple[int, ...]]:
    """Return the layers, and the order of execution."""
    try:
        document = read_json(path)
        layers = tuple(
            ProgramLayer(
                str(layer["name"]),
                tuple(int(size) for size in layer["shape"]),
                layer["channels_last"] and tuple(int(size) for size in layer["channels_last"]),
                bool(layer["call"]),
                int(layer["constant_bytes"]),
                int(layer["live_bytes"]),
            )
            for layer in document["layers"]
        )
        turns = tuple(int(number) for number in document["turns"].split())
    except MALFORMED as error:
        raise _unreadable(path, error) from None
    if set(turns) != set(range(len(layers))):
        raise _unreadable(path, ValueError("turns of other layers"))
    return layers, turns


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"not a readable list of layers ({error})", where=str(path), remedy="Export it again")
