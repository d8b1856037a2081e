"""Fixtures of everything that is compared with the integer reference."""

from collections.abc import Callable

import layer_differences as differences
import numpy as np
import pytest
import random_graphs
from numpy.typing import NDArray

from kdpipe.targets.graph import IntegerGraph


@pytest.fixture(scope="session")
def random_graph() -> Callable[..., IntegerGraph]:
    """`random_graph(seed, rounding=..., weight_bits=..., operators=..., narrow=..., depth=..., input_shape=...)`."""
    return random_graphs.random_graph


@pytest.fixture(scope="session")
def random_inputs() -> Callable[..., NDArray[np.int8]]:
    """`random_inputs(graph, count, seed)`: stored integers over the whole of the input's range."""
    return random_graphs.random_inputs


@pytest.fixture(scope="session")
def layer_differences() -> Callable[..., dict[str, int]]:
    """`layer_differences(graph, trace, rounding=None)`: by layer, the largest difference from the reference."""
    return differences.layer_differences
