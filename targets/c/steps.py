"""The text of a program's calls: layers as a whole, and chains of layers by rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdpipe.targets.c import c_text
from kdpipe.targets.c.program import Program
from kdpipe.targets.c.row_chains import is_by_row
from kdpipe.targets.c.row_schedule import RowChain, fold_turns
from kdpipe.targets.c.storage import INPUT, OUTPUT, Storage, size_of


def step_texts(program: Program) -> list[dict[str, Any]]:
    """Return what model.c says for each node that is computed as a whole, and for each chain, in order."""
    chains = {chain.first: chain for chain in program.chains}
    texts: list[dict[str, Any]] = []
    step = 0
    while step < len(program.graph.nodes):
        chain = chains.get(step)
        texts.append(_whole(program, step) if chain is None else _chain(program, chain))
        step = step + 1 if chain is None else chain.last + 1
    return texts


def whole_rows(program: Program) -> list[tuple[str, int, int]]:
    """Return the constants that stand for all rows of an output: name, rows of the output, rows of the input."""
    by_rows = {
        program.graph.nodes[step].name
        for chain in program.chains
        for step in range(chain.first, chain.last + 1)
        if not is_by_row(program.graph, program.graph.nodes[step])
    }
    found = {layer.rows for name, layer in program.layers.items() if layer.rows is not None and name not in by_rows}
    return [(_whole_rows(program.graph.name, *rows), *rows) for rows in sorted(found)]


def _whole_rows(name: str, count: int, in_rows: int) -> str:
    return f"{name}_rows_{count}_{in_rows}"


def _whole(program: Program, step: int) -> dict[str, Any]:
    node = program.graph.nodes[step]
    inputs = [_pointer(program.storage, name) for name in node.inputs]
    output = _pointer(program.storage, node.name)
    return {
        "index": step,
        "name": node.name,
        "call": node.name in program.layers,
        **_call(program, step, inputs, output),
        "result": output,
        "size": size_of(node.output.shape),
    }


def _call(program: Program, step: int, inputs: Sequence[str], output: str, rows: str = "") -> dict[str, Any]:
    """Return the kernel and its arguments after the layer's constants; `rows` of a kernel that computes some rows."""
    node = program.graph.nodes[step]
    layer = program.layers.get(node.name)
    if layer is None:
        return {"kernel": "", "arguments": []}
    arguments = [f"(const int8_t *const[]){c_text.braces(inputs)}"] if layer.inputs_as_array else list(inputs)
    if layer.rows is not None:
        arguments.insert(0, f"&{rows or _whole_rows(program.graph.name, *layer.rows)}")
    arguments.append(output)
    if node.name in program.storage.scratch:
        arguments.append(f"arena + {program.storage.plan.offsets[program.storage.scratch[node.name]]}")
    return {"kernel": layer.kernel, "arguments": arguments}


def _pointer(storage: Storage, tensor: str) -> str:
    place = storage.place[tensor]
    return place if place in (INPUT, OUTPUT) else f"arena + {storage.plan.offsets[place]}"


@dataclass(frozen=True)
class _Cursor:
    """A place that moves through a tensor by rows.

    Args:
        variable: its name in C.
        step: bytes that it moves by.
        ring: bytes after which it starts again, or 0 where it never does.
    """

    variable: str
    step: int
    ring: int

    @property
    def stands(self) -> bool:
        """Whether it never moves."""
        return self.step % self.ring == 0 if self.ring else self.step == 0

    @property
    def offset(self) -> str:
        """What is added to the tensor's address."""
        return "" if self.stands else f" + {self.variable}"

    @property
    def advance(self) -> str:
        """The statement that moves it."""
        if self.ring:
            return f"{self.variable} = kdp_after({self.variable}, {self.step}, {self.ring});"
        return f"{self.variable} += {self.step};"


def _chain(program: Program, chain: RowChain) -> dict[str, Any]:
    members = [_member(program, chain, number) for number in range(len(chain.layers))]
    turns = fold_turns(chain.schedule.turns)
    return {
        "first": chain.first,
        "last": chain.last,
        "turns": turns,
        "turns_body": c_text.numbers_body(turns.listed),
        "members": members,
        "variables": [variable for member in members for variable in member["variables"]],
    }


def _member(program: Program, chain: RowChain, number: int) -> dict[str, Any]:
    graph, storage, step = program.graph, program.storage, chain.first + number
    node, layer = graph.nodes[step], chain.layers[number]
    by_row = is_by_row(graph, node)
    row_bytes = size_of(node.output.shape) // layer.height
    to = _Cursor(f"to{step}", layer.step * row_bytes, storage.rings.get(node.name, 0) * row_bytes)
    cursors, inputs = [to], []
    for index, reading in enumerate(layer.readings):
        pointer = _pointer(storage, reading.tensor)
        if by_row:
            in_bytes = size_of(graph.tensor(reading.tensor).shape) // reading.height
            ring = storage.rings.get(reading.tensor, 0) * in_bytes
            cursors.append(_Cursor(f"from{step}_{index}", reading.stride * in_bytes, ring))
            pointer += cursors[-1].offset
        inputs.append(pointer)
    rows = ""
    if not by_row:
        last = f"done{step} + {layer.step}"
        if layer.height % layer.step:
            last = f"{last} < {layer.height} ? {last} : {layer.height}"
        reading = layer.readings[0]
        rows = c_text.braces([f"done{step}", last, str(storage.rings.get(reading.tensor, reading.height))])
    moving = [cursor for cursor in cursors if not cursor.stands]
    variables = [*([] if by_row else [f"done{step}"]), *(cursor.variable for cursor in moving)]
    return {
        "index": step,
        "name": node.name,
        "rows": rows,
        **_call(program, step, inputs, f"{_pointer(storage, node.name)}{to.offset}", "rows" if rows else ""),
        "result": f"{_pointer(storage, node.name)}{to.offset}",
        "size": f"(rows.last - rows.first) * {row_bytes}" if layer.height % layer.step else layer.step * row_bytes,
        "variables": variables,
        "advances": [*([] if by_row else [f"done{step} += {layer.step};"]), *(cursor.advance for cursor in moving)],
    }
