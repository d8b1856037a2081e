"""The artifact `sensitivity`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.stages.quantization.configuration import Layer
from kdpipe.stages.quantization.sensitivities import (
    FILE,
    Change,
    LayerSensitivity,
    Sensitivity,
    load_sensitivity,
    loss_grid,
    save_sensitivity,
)
from kdpipe.targets.errors import ArtifactError

FOUND = Sensitivity(
    images=32,
    activation_bits=4,
    weight_scales="layer",
    before=Change(0.01, 0.9, 0.8),
    layers={
        "conv": LayerSensitivity(Layer(72, 8, False, True), {2: Change(0.3, 0.5, 0.4), 8: Change(0.1, 1.0, 1 / 3)}),
        "fc": LayerSensitivity(Layer(80, 10, True, True), {2: Change(0.2, 0.6)}),
    },
    activations={"conv": {4: Change(0.05, 0.7)}},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_sensitivity(tmp_path, FOUND)
    assert load_sensitivity(tmp_path) == FOUND
    assert FOUND.widths == (2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["layers"][1]["measured"][0].update(loss=float("nan")), "layer fc at 2 bits: the loss is not a"),
        (lambda d: d["layers"][0]["measured"][1].update(loss=None), "layer conv at 8 bits"),
        (lambda d: d["layers"][0]["measured"][1].update(accuracy="a"), "layer conv at 8 bits"),
        (lambda d: d["activations"][0]["measured"][0].update(loss=float("inf")), "activation conv at 4 bits"),
        (lambda d: d["before"].update(loss=None), "all layers: the loss"),
        (lambda d: d["layers"][0].update(weights=0), "layer conv has no weights"),
        (lambda d: d["layers"][0].pop("measured"), "not a readable analysis"),
        (lambda d: d.update(layers=3), "not a readable analysis"),
        (lambda d: d.update(format=2), "format 2, this kdpipe reads 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change, message: str) -> None:
    save_sensitivity(tmp_path, FOUND)
    document = json.loads((tmp_path / FILE).read_text())
    change(document)
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_sensitivity(tmp_path)
    assert caught.value.where == str(tmp_path / FILE)


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(ArtifactError, match="not a readable analysis"):
        load_sensitivity(tmp_path)


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_sensitivity(tmp_path, replace(FOUND, before=Change(float("nan"), 1.0)))
    assert list(tmp_path.iterdir()) == []


def test_the_grid_has_a_dash_where_nothing_was_measured() -> None:
    grid = loss_grid({path: entry.by_bits for path, entry in FOUND.layers.items()}, "loss")
    assert (grid.rows, grid.columns) == (("conv", "fc"), ("2 bits", "8 bits"))
    assert grid.values == ((0.3, 0.1), (0.2, None))
