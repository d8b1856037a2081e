"""Which layers are computed by rows, and that no byte of the arena is written over while it is needed."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from rows_everywhere import rows_everywhere

from kdpipe.targets.c import row_chains
from kdpipe.targets.c.program import Program, plan_program
from kdpipe.targets.c.row_chains import is_by_row
from kdpipe.targets.c.storage import INPUT, OUTPUT, size_of
from kdpipe.targets.graph import Add, AveragePool2d, IntegerGraph, MaxPool2d, Node, Quantization, Requantize, TensorType


class Memory:
    """An arena that knows which row of which tensor each byte holds."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.owner: dict[int, tuple[str, int]] = {}

    def places(self, tensor: str, row: int) -> range | None:
        """Return the bytes of a row, or of all of a tensor that has no rows; None outside of the arena."""
        storage, shape = self.program.storage, self.program.graph.tensor(tensor).shape
        place = storage.place[tensor]
        if place in (INPUT, OUTPUT):
            return None
        height = shape[1] if len(shape) == 3 else 1
        row_bytes = size_of(shape) // height
        start = storage.plan.offsets[place] + row % storage.rings.get(tensor, height) * row_bytes
        assert start + row_bytes <= storage.plan.size
        return range(start, start + row_bytes)

    def write(self, tensor: str, row: int) -> None:
        self.owner.update(dict.fromkeys(self.places(tensor, row) or (), (self.name(tensor), row)))

    def holds(self, tensor: str, row: int) -> bool:
        return all(self.owner.get(byte) == (self.name(tensor), row) for byte in self.places(tensor, row) or ())

    def name(self, tensor: str) -> str:
        while tensor in self.program.storage.views:
            tensor = next(node for node in self.program.graph.nodes if node.name == tensor).inputs[0]
        return tensor

    def scratch(self, tensor: str) -> None:
        storage = self.program.storage
        if tensor in storage.scratch:
            start = storage.plan.offsets[storage.scratch[tensor]]
            size = self.program.layers[tensor].scratch
            self.owner.update(dict.fromkeys(range(start, start + size), (f"scratch of {tensor}", 0)))


def height_of(graph: IntegerGraph, tensor: str) -> int:
    shape = graph.tensor(tensor).shape
    return shape[1] if len(shape) == 3 else 1


def run(program: Program) -> None:
    """Compute nothing, but read and write every row as the program does."""
    graph, memory = program.graph, Memory(program)
    for step, node in enumerate(graph.nodes):
        chain = next((chain for chain in program.chains if chain.first <= step <= chain.last), None)
        if chain is None:
            if node.name in program.storage.views:
                continue
            memory.scratch(node.name)
            for name in node.inputs:
                source = memory.name(name)
                assert all(memory.holds(source, row) for row in range(height_of(graph, source))), node.name
            for row in range(height_of(graph, node.name)):
                memory.write(node.name, row)
        elif chain.first == step:
            run_chain(memory, chain)


def run_chain(memory: Memory, chain: row_chains.RowChain) -> None:
    done, kept = [0] * len(chain.layers), [set() for _ in chain.layers]
    for number in chain.schedule.turns:
        layer = chain.layers[number]
        rows = range(done[number], min(layer.height, done[number] + layer.step))
        if not rows.start:
            memory.scratch(layer.name)
        for reading in layer.readings:
            wanted = {
                y
                for row in rows
                for y in range(
                    row * reading.stride - reading.before, row * reading.stride - reading.before + reading.span
                )
                if 0 <= y < reading.height
            }
            for y in wanted - (kept[number] if layer.keeps else set()):
                assert memory.holds(reading.tensor, y), (layer.name, rows, reading.tensor, y)
            if layer.keeps:
                kept[number] |= wanted
        for row in rows:
            memory.write(layer.name, row)
        done[number] = rows.stop
        scratch = memory.program.storage.scratch.get(layer.name)
        if scratch is not None:
            start = memory.program.storage.plan.offsets[scratch]
            assert memory.owner[start] == (f"scratch of {layer.name}", 0)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("core", ["generic", "cortex-m4"])
@pytest.mark.parametrize("seed", range(40))
def test_nothing_that_is_needed_is_written_over(
    seed: int, core: str, everywhere: bool, random_graph: Callable[..., IntegerGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_chains, "MOST_ADDED", math.inf)
    with rows_everywhere(everywhere):
        run(plan_program(random_graph(seed, channel_step=4), core))


def test_random_graphs_have_chains(random_graph: Callable[..., IntegerGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_chains, "MOST_ADDED", math.inf)
    programs = [plan_program(random_graph(seed, channel_step=4), "generic") for seed in range(40)]
    assert sum(len(program.chains) > 0 for program in programs) > 10
    assert sum(len(program.storage.rings) for program in programs) > 20


def residual(convolution: Callable[..., object], kind: TensorType) -> IntegerGraph:
    """A residual block between two maps, and a mean."""
    channels = kind.shape[0]
    options = {"padding": (1, 1, 1, 1)}
    first, second = (convolution((channels, channels, 3, 3), bits=8, seed=seed, **options) for seed in (0, 1))
    mean = AveragePool2d(kind.shape[1:], (1, 1))
    nodes = (
        Node("map", Requantize(), ("input",), kind),
        Node("conv1", first, ("map",), kind),
        Node("conv2", second, ("conv1",), kind),
        Node("sum", Add(), ("map", "conv2"), kind),
        Node("mean", mean, ("sum",), TensorType((channels, 1, 1), kind.quantization)),
    )
    return IntegerGraph("net", "input", kind, nodes)


def test_a_residual_block_needs_one_map(convolution: Callable[..., object]) -> None:
    graph = residual(convolution, TensorType((16, 32, 32), Quantization(0.0625, -3)))
    program = plan_program(graph, "generic")
    # The map, which the sum overwrites; three rows and one of the convolutions, and two patches for each.
    assert program.storage.rings == {"conv1": 3, "conv2": 1}
    assert program.storage.plan.size == 32 * 512 + 4 * 512 + 2 * 2 * 144 == program.storage.plan.lower_bound
    core = plan_program(graph, "cortex-m4")
    assert core.storage.plan.size < 26000


def test_small_layers_are_not_worth_their_turns(convolution: Callable[..., object]) -> None:
    graph = residual(convolution, TensorType((4, 8, 8), Quantization(0.0625, -3)))
    assert plan_program(graph, "generic").chains == ()


@pytest.mark.parametrize("seed", range(20))
def test_the_division_is_the_best_one(seed: int) -> None:
    """Against every way to cut the steps into pieces."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 7))
    single = rng.integers(1, 50, count).tolist()
    pieces = {
        (first, last): (
            int(rng.integers(1, 50)),
            float(rng.integers(1, 9)),
            row_chains.RowChain(first, (None,) * (last + 1 - first)),
        )
        for first, last in combinations(range(count), 2)
        if rng.random() < 0.6
    }

    def divisions(start: int) -> list[tuple[int, float]]:
        if start == count:
            return [(0, 0.0)]
        found = [(max(single[start], size), added) for size, added in divisions(start + 1)]
        for (first, last), (bytes_, cost, _) in pieces.items():
            if first == start:
                found += [(max(bytes_, size), cost + added) for size, added in divisions(last + 1)]
        return found

    chains = row_chains._divide(single, pieces)
    covered = {step for chain in chains for step in range(chain.first, chain.last + 1)}
    size = max(
        [bytes_ for step, bytes_ in enumerate(single) if step not in covered]
        + [pieces[c.first, c.last][0] for c in chains]
    )
    added = sum(pieces[chain.first, chain.last][1] for chain in chains)
    assert (size, added) == min(divisions(0))


def test_pools_and_pointwise_layers_take_part(random_graph: Callable[..., IntegerGraph]) -> None:
    kinds: set[type] = set()
    with rows_everywhere():
        for seed in range(30):
            program = plan_program(random_graph(seed), "generic")
            for chain in program.chains:
                kinds |= {type(node.op) for node in program.graph.nodes[chain.first : chain.last + 1]}
    assert {MaxPool2d, AveragePool2d, Add, Requantize} <= kinds


def test_what_is_by_row(convolution: Callable[..., object]) -> None:
    kind = TensorType((4, 8, 8), Quantization(0.0625, -3))
    line = convolution((4, 4, 1, 3), bits=8, padding=(0, 1, 0, 1))
    nodes = (
        Node("line", line, ("input",), kind),
        Node("window", convolution((4, 4, 3, 1), bits=8, padding=(1, 0, 1, 0)), ("line",), kind),
        Node(
            "padded",
            convolution((4, 4, 1, 1), bits=8, padding=(1, 0, 0, 0)),
            ("window",),
            TensorType((4, 9, 8), kind.quantization),
        ),
    )
    graph = IntegerGraph("net", "input", kind, nodes)
    assert [is_by_row(graph, node) for node in nodes] == [True, False, False]
