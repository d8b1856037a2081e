"""Which tensor lies where."""

from collections.abc import Callable

import numpy as np
import pytest

from kdpipe.targets.c.storage import INPUT, OUTPUT, Storage, assign_storage, flattened_shape, is_view, size_of
from kdpipe.targets.graph import (
    Add,
    Flatten,
    IntegerGraph,
    Linear,
    MaxPool2d,
    Mul,
    Node,
    Quantization,
    Requantize,
    TensorType,
    Weight,
)


def _offset(storage: Storage, name: str) -> int:
    return storage.plan.offsets[storage.place[name]]


def _linear(outputs: int, inputs: int) -> Linear:
    weight = Weight(np.ones((outputs, inputs), dtype=np.int8), np.full(outputs, 0.1, dtype=np.float32), 2)
    return Linear(weight, np.zeros(outputs, dtype=np.int32))


def test_flattening_costs_nothing_before_a_linear_layer(chain: Callable[..., IntegerGraph]) -> None:
    pool = MaxPool2d((1, 1), (1, 1))
    steps = [("pool", pool, (2, 3, 3)), ("flat", Flatten(), (18,)), ("fc", _linear(4, 18), (4,))]
    graph = chain((2, 3, 3), steps)
    storage = assign_storage(graph, {})
    assert storage.views == {"flat"}
    assert flattened_shape(graph, "flat") == (2, 3, 3)
    assert storage.place["flat"] == storage.place["pool"]
    assert (storage.place["input"], storage.place["fc"]) == (INPUT, OUTPUT)
    assert storage.plan.size == 20  # 18 bytes, aligned


def test_flattening_keeps_its_order_for_anything_else(chain: Callable[..., IntegerGraph]) -> None:
    steps = [("flat", Flatten(), (18,)), ("scale", Requantize(), (18,)), ("fc", _linear(4, 18), (4,))]
    graph = chain((2, 3, 3), steps)
    assert not is_view(graph, graph.nodes[0])
    assert flattened_shape(graph, "flat") is None


@pytest.mark.parametrize("flattenings", [1, 2])
def test_an_output_that_only_renames_the_input_is_copied(chain: Callable[..., IntegerGraph], flattenings: int) -> None:
    graph = chain((1, 3, 3), [(f"flat{index}", Flatten(), (9,)) for index in range(flattenings)])
    storage = assign_storage(graph, {})
    assert storage.place[graph.output_name] == OUTPUT
    assert graph.output_name not in storage.views


def test_tensors_named_like_places_do_not_collide(chain: Callable[..., IntegerGraph]) -> None:
    pool = MaxPool2d((1, 1), (1, 1))
    graph = chain((1, 2, 2), [(name, pool, (1, 2, 2)) for name in ("output", "scratch output", "tensor output", "z")])
    storage = assign_storage(graph, {"output": 8})
    assert storage.place["z"] == OUTPUT
    assert len({storage.place[name] for name in ("output", "scratch output", "tensor output")}) == 3
    assert storage.scratch["output"] not in storage.place.values()


def test_an_addition_overwrites_the_input_that_dies() -> None:
    kind = TensorType((1, 4, 4), Quantization(0.5, 0))
    pool = MaxPool2d((1, 1), (1, 1))
    nodes = (
        Node("a", pool, ("input",), kind),
        Node("b", pool, ("a",), kind),
        Node("sum", Add(), ("a", "b"), kind),
        Node("again", Add(), ("sum", "a"), kind),
        Node("end", pool, ("again",), kind),
    )
    graph = IntegerGraph("net", "input", kind, nodes)
    storage = assign_storage(graph, {})
    assert _offset(storage, "sum") == _offset(storage, "b")  # a is still read
    assert _offset(storage, "again") in (_offset(storage, "sum"), _offset(storage, "a"))
    assert storage.plan.size == 2 * size_of(kind.shape)


@pytest.mark.parametrize("seed", range(60))
def test_no_layer_writes_over_what_is_still_read(random_graph: Callable[..., IntegerGraph], seed: int) -> None:
    """Replays the graph with one owner a byte: every tensor must still own its bytes at its last read."""
    graph = random_graph(seed)
    storage = assign_storage(graph, {node.name: 8 for node in graph.nodes})
    owner: dict[int, str] = {}
    for node in graph.nodes:
        for name in node.inputs:
            assert _owned_by(name, storage, graph, owner)
        scratch = storage.plan.offsets.get(storage.scratch.get(node.name, ""))
        if scratch is not None and node.name not in storage.views:
            owner.update(dict.fromkeys(range(scratch, scratch + 8), f"scratch of {node.name}"))
            # Scratch is written while the inputs are read.
            assert all(_owned_by(name, storage, graph, owner) for name in node.inputs)
        if storage.place[node.name] not in (INPUT, OUTPUT):
            start = storage.plan.offsets[storage.place[node.name]]
            owner.update(dict.fromkeys(range(start, start + size_of(node.output.shape)), node.name))


def _owned_by(name: str, storage: object, graph: IntegerGraph, owner: dict[int, str]) -> bool:
    place = storage.place[name]
    if place in (INPUT, OUTPUT):
        return True
    start = storage.plan.offsets[place]
    return all(owner.get(start + index) == name for index in range(size_of(graph.tensor(name).shape)))


def test_a_product_overwrites_its_first_factor_only(chain: Callable[..., IntegerGraph]) -> None:
    """The second factor may be one number a channel: too small to hold the product."""
    kind, small = TensorType((2, 3, 3), Quantization(0.5, 0)), TensorType((2, 1, 1), Quantization(0.5, 0))
    nodes = (
        Node("map", MaxPool2d((1, 1), (1, 1)), ("input",), kind),
        Node("gate", MaxPool2d((3, 3), (1, 1)), ("map",), small),
        Node("product", Mul(), ("map", "gate"), kind),
        Node("again", Mul(), ("input", "product"), kind),
        Node("last", Requantize(), ("again",), kind),
    )
    storage = assign_storage(IntegerGraph("net", "input", kind, nodes), {})
    assert _offset(storage, "product") == _offset(storage, "map") != _offset(storage, "gate")
    assert _offset(storage, "again") != _offset(storage, "product")


def test_kernels_that_can_write_over_their_input_do(chain: Callable[..., IntegerGraph]) -> None:
    pool = MaxPool2d((1, 1), (1, 1))
    graph = chain((1, 3, 3), [(name, pool, (1, 3, 3)) for name in "abcd"])
    assert assign_storage(graph, {}).plan.size == 24
    storage = assign_storage(graph, {}, {"b", "c"})
    assert _offset(storage, "a") == _offset(storage, "b") == _offset(storage, "c")
    assert storage.plan.size == 12
