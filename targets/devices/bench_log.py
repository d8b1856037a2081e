"""What a firmware's bench printed on a board: cycles by layer, measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from kdpipe.targets.errors import UsageError

_LINE = re.compile(r"(\d+) (\d+) (.+)")


@dataclass(frozen=True)
class BenchLog:
    """A board's figures.

    Args:
        name: of the network.
        runs: how many inferences were measured.
        cycles: for one inference by layer, in the order of execution: medians over the runs.
    """

    name: str
    runs: int
    cycles: tuple[tuple[str, int], ...]


def read_bench_log(path: Path) -> BenchLog:
    """Read what `bench/bench.c` of an export printed; other lines around it (a debugger's) are passed over.

    Raises:
        UsageError: the file can't be read, or holds no whole bench.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"can't read the bench's log ({error.strerror or error})", where=str(path)) from None
    header = next((index for index, line in enumerate(lines) if line.startswith("kdpipe bench ")), None)
    if header is None:
        raise _incomplete(path, "no line begins with 'kdpipe bench'")
    _, _, version, name = [*lines[header].split(), "", ""][:4]
    if version != "1":
        raise _incomplete(path, f"its version is {version!r}, this kdpipe reads 1")
    body = lines[header + 1 :]
    if "end" not in body:
        raise _incomplete(path, "its last line, 'end', is missing")
    found = [match for line in body[: body.index("end")] if (match := _LINE.fullmatch(line))]
    runs: dict[int, list[tuple[str, int]]] = {}
    for match in found:
        runs.setdefault(int(match[1]), []).append((match[3], int(match[2])))
    layers = [[layer for layer, _ in run] for run in runs.values()]
    if not layers or any(run != layers[0] for run in layers):
        raise _incomplete(path, "its runs do not have the same layers")
    by_layer = zip(*([cycles for _, cycles in run] for run in runs.values()), strict=True)
    return BenchLog(name, len(runs), tuple(zip(layers[0], map(_median, by_layer), strict=True)))


def _median(values: Sequence[int]) -> int:
    return round(median(values))


def _incomplete(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"not the whole output of a bench: {reason}",
        where=str(path),
        remedy="Save all that the firmware printed, from 'kdpipe bench' to 'end'",
    )
