"""Widths for a budget, from planted sensitivities."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.stages.quantization.assignment import assign
from kdpipe.stages.quantization.configuration import AUTO, Layer, QuantizationConfig, choose_widths
from kdpipe.stages.quantization.sensitivities import Change, LayerSensitivity, Sensitivity
from kdpipe.targets.errors import UsageError

LAYERS = {
    "conv1": Layer(72, 8, is_linear=False, is_end=True),
    "layer1.conv1": Layer(1152, 16, is_linear=False, is_end=False),
    "layer1.conv2": Layer(2304, 16, is_linear=False, is_end=False),
    "layer2.conv1": Layer(4609, 32, is_linear=False, is_end=False),
    "fc": Layer(320, 10, is_linear=True, is_end=True),
}
BEFORE = Change(0.125, 1.0)
PATHS = list(LAYERS)


def sensitivity(losses: dict[str, dict[int, float]]) -> Sensitivity:
    found = {
        path: LayerSensitivity(LAYERS[path], {bits: Change(loss, 0.5) for bits, loss in by_bits.items()})
        for path, by_bits in losses.items()
    }
    return Sensitivity(64, 8, "channel", BEFORE, found, {})


def planted(**scale: float) -> Sensitivity:
    """Losses that fall with the width, the faster the larger the layer's scale (1 if not given)."""
    return sensitivity(
        {path: {bits: scale.get(path.replace(".", "_"), 1.0) / bits**2 for bits in (2, 3, 4, 8)} for path in LAYERS}
    )


def size(path: str, bits: int) -> int:
    return (LAYERS[path].weights * bits + 7) // 8 + 8 * LAYERS[path].channels


def auto(**given) -> QuantizationConfig:
    return QuantizationConfig(weight_bits=AUTO, **given)


@given(
    losses=st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=4), min_size=5, max_size=5),
    budget=st.integers(0, 9000),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_is_the_best_of_all_assignments(losses, budget) -> None:
    measured = sensitivity(
        {path: dict(zip((2, 3, 4, 8), row, strict=True)) for path, row in zip(PATHS, losses, strict=True)}
    )
    every = []
    for widths in itertools.product((2, 3, 4, 8), repeat=5):
        if sum(map(size, PATHS, widths)) <= budget:
            every.append(sum(measured.layers[p].by_bits[b].loss for p, b in zip(PATHS, widths, strict=True)))
    config = auto(first_last_bits=AUTO)
    if not every:
        with pytest.raises(UsageError, match="can't hold the weights"):
            assign(config, LAYERS, measured, budget, "integer-graph")
        return
    found = assign(config, LAYERS, measured, budget, "integer-graph")
    assert found.total == sum(size(path, bits) for path, bits in found.bits.items()) <= budget
    loss = sum(measured.layers[path].by_bits[bits].loss for path, bits in found.bits.items())
    assert loss == pytest.approx(min(every), abs=1e-9)
    assert found.predicted_loss == pytest.approx(loss - 4 * BEFORE.loss, abs=1e-9)
    assert all(found.grid.columns[at] == f"{found.bits[found.grid.rows[row]]} bits" for row, at in found.grid.marked)


def test_the_chosen_widths_are_those_that_are_prepared() -> None:
    """Also where patterns overlap: what a pattern gives stays, what is auto is chosen, activations are left alone."""
    config = auto(
        activation_bits=4,
        bits={
            "layer1.*": {"weights": 3, "activations": 6},
            "layer1.conv2": {"weights": AUTO},
            "layer2.conv1": {"activations": 2},
        },
    )
    found = assign(config, LAYERS, planted(layer2_conv1=5.0), 4400, "integer-graph")
    assert AUTO not in (found.config.weight_bits, found.config.first_last_bits)
    widths = choose_widths(PATHS, {"conv1", "fc"}, found.config)
    assert {path: width.weights for path, width in widths.items()} == found.bits
    before = choose_widths(PATHS, {"conv1", "fc"}, config)
    assert {path: w.activations for path, w in widths.items()} == {path: w.activations for path, w in before.items()}
    assert found.bits["conv1"] == found.bits["fc"] == 8
    assert found.bits["layer1.conv1"] == 3
    assert [note.endswith("fixed") for note in found.grid.notes] == [True, True, False, False, True]


def test_the_sensitive_layer_is_wide() -> None:
    budget = sum(size(path, 4 if path == "layer1.conv2" else 2) for path in LAYERS)
    found = assign(auto(first_last_bits=AUTO), LAYERS, planted(layer1_conv2=1e3), budget, "integer-graph")
    assert found.bits["layer1.conv2"] == 4
    assert set(found.bits.values()) == {2, 4}


def test_a_target_is_counted_as_it_stores() -> None:
    budget = sum(size(path, 3) for path in LAYERS)
    free = auto(first_last_bits=AUTO)
    assert assign(free, LAYERS, planted(), budget, "integer-graph").total <= budget
    onnx = assign(free, LAYERS, planted(), budget, "onnx")
    # 3-bit weights would be stored in 4, where 4-bit ones lose less
    assert 3 not in onnx.bits.values()
    assert onnx.total <= budget
    # TFLite stores ternary convolutions in 4 bits and linear layers in 8: there nothing is smaller than this
    least = sum(size(path, 8 if layer.is_linear else 4) for path, layer in LAYERS.items())
    assert assign(free, LAYERS, planted(), least, "tflite").total == least
    with pytest.raises(UsageError, match="can't hold"):
        assign(free, LAYERS, planted(), least - 1, "tflite")


def test_an_impossible_budget_is_refused_with_the_least_possible() -> None:
    fixed = size("conv1", 8) + size("fc", 8)
    free = [path for path, layer in LAYERS.items() if not layer.is_end]
    least = fixed + sum(size(path, 2) for path in free)
    assert assign(auto(), LAYERS, planted(), least, "onnx").total == least
    with pytest.raises(UsageError) as caught:
        assign(auto(), LAYERS, planted(), least - 1, "onnx")
    channels = sum(LAYERS[path].channels for path in free)
    assert f"the least possible is {least / 1024:.2f} KiB" in caught.value.message
    assert f"{fixed / 1024:.2f} KiB are layers of fixed width" in caught.value.message
    assert f"{8 * channels / 1024:.2f} KiB the others' scales" in caught.value.message
    assert caught.value.where == "budget.size_kib"
    assert "first_last_bits" in str(caught.value.remedy)


def test_a_width_that_was_not_measured_may_be_fixed() -> None:
    measured = sensitivity({path: {2: 1.0, 4: 0.5} for path in LAYERS})
    found = assign(auto(), LAYERS, measured, 10_000, "onnx")
    assert found.bits == {path: 8 if layer.is_end else 4 for path, layer in LAYERS.items()}
    assert found.grid.columns == ("2 bits", "4 bits", "8 bits")
    assert found.grid.values[0] == (1.0, 0.5, None)


def test_what_does_not_fit_together_is_refused() -> None:
    others = dict(LAYERS)
    others["layer3.conv1"] = others.pop("layer2.conv1")
    with pytest.raises(UsageError, match=r"no sensitivity of layer layer3\.conv1") as caught:
        assign(auto(), others, planted(), 10_000, "onnx")
    assert "Did you mean layer2.conv1?" in str(caught.value.remedy)
    fewer = {path: layer for path, layer in LAYERS.items() if path != "fc"}
    with pytest.raises(UsageError, match="the network has no layer fc"):
        assign(auto(), fewer, planted(), 10_000, "onnx")
    wider = {**LAYERS, "fc": Layer(640, 20, is_linear=True, is_end=True)}
    with pytest.raises(UsageError, match="layer fc has another size"):
        assign(auto(), wider, planted(), 10_000, "onnx")
    with pytest.raises(UsageError, match="none is auto"):
        assign(QuantizationConfig(bits={"*": {"weights": 4}}), LAYERS, planted(), 10_000, "onnx")
    with pytest.raises(UsageError, match="matches 'layer9"):
        assign(auto(bits={"layer9.*": {"weights": 4}}), LAYERS, planted(), 10_000, "onnx")
