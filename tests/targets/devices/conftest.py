"""A small exported network for the devices' tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.targets.c.generator import export
from kdpipe.targets.graph import IntegerGraph


@pytest.fixture(scope="session")
def exported_graph(
    random_graph: Callable[..., IntegerGraph], tmp_path_factory: pytest.TempPathFactory
) -> tuple[IntegerGraph, Path]:
    """A graph with most operators and its C export; copy the directory before changing it."""
    graph = random_graph(0)
    directory = tmp_path_factory.mktemp("exported")
    export(graph, directory)
    return graph, directory
