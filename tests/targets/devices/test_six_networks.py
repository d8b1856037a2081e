"""The networks of benchmarks/mcu: their arenas, and their C against the integer reference.

All inputs of all widths: `python -m pytest tests/targets/devices/test_six_networks.py -m slow`.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.targets import reference
from kdpipe.targets.c.generator import arena_plan, export
from kdpipe.targets.devices import cortex_m, host_c
from kdpipe.targets.graph import IntegerGraph

torch = pytest.importorskip("torch")


@lru_cache
def networks() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "mcu" / "networks.py"
    spec = importlib.util.spec_from_file_location("mcu_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def graph(name: str, bits: int) -> IntegerGraph:
    return networks().make_graph(name, bits, images=4)


NAMES = ["ResNet-8", "DS-CNN", "MobileNetV1", "MobileNetV2", "Autoencoder", "Digits"]
SMALL = ["DS-CNN", "Autoencoder", "Digits"]


def extreme_inputs(network: IntegerGraph, count: int, seed: int = 0) -> NDArray[np.int8]:
    """Return inputs of the smallest and the largest value alone: one of them, alternating along each axis, drawn."""
    shape, limits = network.input.shape, network.input.quantization
    choices = [np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)]
    axes = [*np.indices(shape), np.arange(np.prod(shape)).reshape(shape)]
    choices += [axis % 2 == parity for axis in axes for parity in (0, 1)]
    rng = np.random.default_rng(seed)
    choices += list(rng.random((count - len(choices), *shape)) < 0.5)
    return np.where(np.stack(choices), limits.qmax, limits.qmin).astype(np.int8)


def random_inputs(network: IntegerGraph, count: int, seed: int = 0) -> NDArray[np.int8]:
    limits = network.input.quantization
    rng = np.random.default_rng(seed)
    return rng.integers(limits.qmin, limits.qmax + 1, (count, *network.input.shape)).astype(np.int8)


def test_the_table_has_six_networks() -> None:
    assert list(networks().NETWORKS) == NAMES


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_arenas_are_within_5_percent_of_what_lives_at_once(name: str, bits: int) -> None:
    check_arena(graph(name, bits))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_large_arenas_are_within_5_percent_of_what_lives_at_once(name: str, bits: int) -> None:
    check_arena(graph(name, bits))


def check_arena(network: IntegerGraph) -> None:
    for core in ("generic", "cortex-m4"):
        plan = arena_plan(network, core)
        assert plan.lower_bound <= plan.size <= 1.05 * plan.lower_bound


@pytest.mark.parametrize("name", ["Autoencoder", "Digits"])
def test_c_equals_the_reference_on_a_few_inputs(name: str, tmp_path: Path) -> None:
    network = graph(name, 2)
    inputs = np.concatenate([random_inputs(network, 4), extreme_inputs(network, 12)])
    export(network, tmp_path)
    outputs = host_c.create().measure(tmp_path, inputs).outputs
    np.testing.assert_array_equal(outputs, reference.run(network, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_c_equals_the_reference_on_random_and_extreme_inputs(name: str, bits: int, tmp_path: Path) -> None:
    for package in ("unicorn", "ziglang", "elftools", "capstone"):
        pytest.importorskip(package)
    network = graph(name, bits)
    inputs = np.concatenate([random_inputs(network, 100), extreme_inputs(network, 100)])
    expected = np.concatenate([reference.run(network, batch) for batch in np.array_split(inputs, 20)])
    export(network, tmp_path / "generic")
    found = host_c.create().measure(tmp_path / "generic", inputs).outputs
    np.testing.assert_array_equal(found, expected, err_msg="for any core")
    export(network, tmp_path / "cortex-m4", "cortex-m4")
    device = cortex_m.CortexM("cortex-m4", counted_samples=1, seconds_limit=1200.0)
    found = device.measure(tmp_path / "cortex-m4", inputs).outputs
    np.testing.assert_array_equal(found, expected, err_msg="for cortex-m4")
