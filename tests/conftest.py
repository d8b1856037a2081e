"""Fixtures of everything that is compared with the integer reference."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.targets import reference
from kdpipe.targets.graph import IntegerGraph


@pytest.fixture(scope="session")
def random_graphs() -> ModuleType:
    """The module random_graphs.py, which importlib mode leaves off the path."""
    spec = importlib.util.spec_from_file_location(
        "random_graphs", Path(__file__).parent / "targets" / "random_graphs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def random_graph(random_graphs: ModuleType) -> Callable[..., IntegerGraph]:
    """`random_graph(seed, rounding=..., weight_bits=..., operators=..., narrow=..., depth=..., input_shape=...)`."""
    return random_graphs.random_graph


@pytest.fixture(scope="session")
def random_inputs(random_graphs: ModuleType) -> Callable[..., NDArray[np.int8]]:
    """`random_inputs(graph, count, seed)`: stored integers over the whole of the input's range."""
    return random_graphs.random_inputs


@pytest.fixture(scope="session")
def layer_differences() -> Callable[..., dict[str, int]]:
    """`layer_differences(graph, trace, rounding=None)`: by layer, the largest difference from the reference.

    Each layer is computed from what the traced run itself gave it, so that differences don't add up.
    """

    def differences(
        graph: IntegerGraph, trace: dict[str, NDArray[np.int8]], rounding: str | None = None
    ) -> dict[str, int]:
        known, found = dict(trace), {}
        for node in graph.nodes:
            types = [graph.tensor(name) for name in node.inputs]
            inputs = [known[name] for name in node.inputs]
            expected = reference.compute(node.op, inputs, types, node.output, rounding or graph.rounding)
            if node.name in trace:
                found[node.name] = int(np.abs(expected.astype(int) - trace[node.name]).max())
            known.setdefault(node.name, expected)
        return found

    return differences
