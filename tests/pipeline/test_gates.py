from __future__ import annotations

from typing import Any

import pytest

from kdpipe.pipeline.gates import GATES, evaluate_gates

RECORD: dict[str, Any] = {
    "format": "c",
    "device": "cortex-m4",
    "files": [{"path": "model.c", "bytes": 1024}, {"path": "model.h", "bytes": 512}],
    "accuracy": 0.95,
    "samples": 360,
    "baseline_accuracy": 0.97,
    "latency_ms": {"median": 2.0, "p95": 3.0},
    "instructions": 900,
    "cycles": 1000,
    "flash_bytes": 65536,
    "ram_bytes": 8192,
    "parity": {"max_step_difference": 0, "top1_agreement": 0.995, "first_divergent_layer": None},
}

VALUES = {
    "accuracy": 0.95,
    "accuracy_drop": 0.02,
    "top1_agreement": 0.995,
    "size_kib": 1.5,
    "flash_kib": 64.0,
    "ram_kib": 8.0,
    "latency_ms": 2.0,
    "cycles": 1000.0,
}


LAYERS = [
    {"name": "first", "instructions": 400, "cycles": 500, "constant_bytes": 1024, "live_bytes": 6144},
    {"name": "last", "instructions": 500, "cycles": 500, "constant_bytes": 40960, "live_bytes": 2048},
]


def test_what_does_not_fit_is_told_by_layer() -> None:
    flash, ram = evaluate_gates({"flash_kib": 32, "ram_kib": 4}, {**RECORD, "layers": LAYERS})
    assert not flash.passed
    assert not ram.passed
    assert flash.reason is not None
    assert flash.reason.startswith("32.0 KiB too much; the largest constants are of last (40.0 KiB), first (1.0 KiB)")
    assert ram.reason is not None
    assert ram.reason.startswith("4.0 KiB too much; first needs most, 6.0 KiB")
    assert evaluate_gates({"flash_kib": 64}, {**RECORD, "layers": LAYERS})[0].reason is None


def test_a_board_sets_gates_and_declared_ones_take_their_place() -> None:
    record = {**RECORD, "limits": {"flash_kib": 128, "ram_kib": 4}}
    found = {gate.name: (gate.limit, gate.passed) for gate in evaluate_gates({"ram_kib": 16}, record)}
    assert found == {"flash_kib": (128, True), "ram_kib": (16, True)}
    assert [gate.passed for gate in evaluate_gates({}, record)] == [True, False]


def test_every_gate_is_tested() -> None:
    assert set(VALUES) == set(GATES)


@pytest.mark.parametrize("name", VALUES)
def test_a_value_at_its_limit_passes_and_beyond_it_fails(name: str) -> None:
    value = VALUES[name]
    worse = -1e-6 if GATES[name].is_minimum else 1e-6
    assert evaluate_gates({name: value}, RECORD)[0].passed
    stricter = evaluate_gates({name: value - worse}, RECORD)[0]
    assert (stricter.value, stricter.passed, stricter.reason) == (value, False, None)


@pytest.mark.parametrize(
    ("name", "missing", "reason"),
    [
        ("accuracy_drop", "baseline_accuracy", "has no baseline"),
        ("top1_agreement", "parity", "has no reference"),
        ("flash_kib", "flash_bytes", "cortex-m4 measures no flash"),
        ("ram_kib", "ram_bytes", "cortex-m4 measures no ram"),
        ("latency_ms", "latency_ms", "cortex-m4 measures no latency"),
        ("cycles", "cycles", "cortex-m4 measures no cycles"),
    ],
)
def test_a_missing_figure_fails_with_a_reason(name: str, missing: str, reason: str) -> None:
    result = evaluate_gates({name: 1.0}, {**RECORD, missing: None})[0]
    assert not result.passed
    assert result.value is None
    assert reason in (result.reason or "")
    assert result.to_json()["reason"] == result.reason


def test_no_files_and_no_number() -> None:
    assert evaluate_gates({"size_kib": 1.0}, {**RECORD, "files": []})[0].reason == "c has no deployable files"
    assert not evaluate_gates({"latency_ms": 1.0}, {**RECORD, "latency_ms": {"median": float("nan")}})[0].passed


def test_a_baseline_that_is_worse_is_no_drop() -> None:
    result = evaluate_gates({"accuracy_drop": 0.0}, {**RECORD, "baseline_accuracy": 0.9})[0]
    assert result.passed
    assert result.value == -0.05
