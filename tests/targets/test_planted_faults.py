"""A fault in an exported file is found, and the layer that it is in is named: for each exporter and kind of fault."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.devices.tracing import trace_on_device
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.layer_differences import (
    Trace,
    compare_layers,
    default_limit,
    first_divergent_layer,
    trace_graph,
)

TARGETS = ("onnx", "openvino", "tflite", "c")


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planted_faults", Path(__file__).parent / "planted_faults.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inputs(faults: ModuleType, random_inputs) -> NDArray[np.int8]:
    return random_inputs(faults.network(), 64)


@pytest.fixture(scope="module")
def reference(faults: ModuleType, inputs: NDArray[np.int8]) -> Trace:
    return trace_graph(faults.network(), inputs)


@pytest.fixture(scope="module", params=TARGETS)
def intact(request: pytest.FixtureRequest, faults, inputs, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return trace(faults, exported(faults, request.param, tmp_path_factory.mktemp("intact")), request.param, inputs)


def exported(faults: ModuleType, target: str, directory: Path) -> Path:
    EXPORTERS[target].export(faults.network(), directory)
    return directory


def trace(faults: ModuleType, directory: Path, target: str, inputs: NDArray[np.int8], device: str = "host") -> Trace:
    return trace_on_device(DEVICES[device].create(), directory, target, inputs, faults.network().quantizations())


def test_an_intact_export_has_no_divergent_layer(reference, intact) -> None:
    layers = compare_layers(reference, intact)
    assert [layer.name for layer in layers if layer.name != "flat"] == ["x", "stem", "down", "side", "sum", "head"]
    assert first_divergent_layer(layers, default_limit(reference, intact)) is None
    assert first_divergent_layer(compare_layers(intact, intact)) is None


def test_a_sum_that_openvino_fuses_is_told_from_a_fault(faults, inputs, reference, tmp_path) -> None:
    directory = exported(faults, "openvino", tmp_path)
    fused = trace(faults, directory, "openvino", inputs)
    assert fused.fused == ("down", "side")
    # What is shown belongs to the output of the model as it is deployed; with every layer shown there is another.
    deployed = DEVICES["host"].create().measure(directory, inputs).outputs
    np.testing.assert_array_equal(fused.tensors["head"], deployed)
    assert (fused.apart["head"] != deployed).any()
    layers = {layer.name: layer for layer in compare_layers(reference, fused)}
    assert (layers["sum"].own_steps, layers["sum"].misrounded) == (1, 0)


@pytest.mark.parametrize("fault", ["padding", "zero_point", "bias"])
def test_a_fault_is_found(fault, faults, inputs, reference, intact, tmp_path) -> None:
    directory = exported(faults, intact.format, tmp_path)
    faults.plant(directory, intact.format, fault)
    faulty = trace(faults, directory, intact.format, inputs)
    for expected in (reference, intact):
        found = first_divergent_layer(compare_layers(expected, faulty), default_limit(expected, faulty))
        assert found == faults.FAULTS[fault], expected.format


def test_a_scale_off_in_its_last_place_is_found(faults, inputs, reference, intact, tmp_path) -> None:
    directory = exported(faults, intact.format, tmp_path)
    faults.plant(directory, intact.format, "scale")
    faulty = trace(faults, directory, intact.format, inputs)
    for expected in (reference, intact):
        layers = compare_layers(expected, faulty)
        assert first_divergent_layer(layers, default_limit(expected, faulty)) == faults.FAULTS["scale"], expected.format
        assert {layer.name for layer in layers if layer.constants} == {faults.FAULTS["scale"]}
        # Who allows a step allows what never comes to one.
        assert first_divergent_layer(layers, 1) is None


ONE_IN_64 = 2**17


def test_a_scale_off_by_more_is_found_by_what_it_computes(faults, inputs, reference, intact, tmp_path) -> None:
    directory = exported(faults, intact.format, tmp_path)
    faults.plant(directory, intact.format, "scale", 1 if intact.format == "c" else ONE_IN_64)
    faulty = replace(trace(faults, directory, intact.format, inputs), constants={})
    found = first_divergent_layer(compare_layers(reference, faulty), default_limit(reference, faulty))
    assert found == faults.FAULTS["scale"]


def test_a_fault_is_found_on_an_emulated_core(faults, inputs, reference, tmp_path) -> None:
    pytest.importorskip("unicorn")
    directory = exported(faults, "c", tmp_path)
    faults.plant(directory, "c", "bias")
    layers = compare_layers(reference, trace(faults, directory, "c", inputs, "cortex-m4"))
    assert first_divergent_layer(layers) == faults.FAULTS["bias"]
