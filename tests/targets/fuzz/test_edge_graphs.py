"""Graphs at the edges through every target, as the random ones; what each target promises is in `runtimes.py`."""

from dataclasses import replace
from pathlib import Path

import pytest
from fuzz.c_batch import HOST, Compilers, check_c
from fuzz.drawn_graphs import fuzz_inputs
from fuzz.edge_graphs import EDGES
from fuzz.runtimes import RUNTIMES


@pytest.mark.parametrize("runtime", list(RUNTIMES))
@pytest.mark.parametrize("edge", list(EDGES))
def test_runtimes(edge: str, runtime: str, tmp_path: Path) -> None:
    graph = EDGES[edge]()
    RUNTIMES[runtime](graph, fuzz_inputs(graph), tmp_path)


@pytest.mark.parametrize("core", [HOST, "cortex-m4", pytest.param("cortex-m0plus", marks=pytest.mark.slow)])
def test_c(core: str, compilers: Compilers) -> None:
    graphs = [replace(EDGES[edge](), rounding=rounding) for edge in EDGES for rounding in ("single", "tflite")]
    assert [[*EDGES][index // 2] for index in check_c(compilers, graphs, core)] == []
