"""Gates: limits that a validation's figures must keep, declared per validation in pipeline.yaml.

Gates are no part of a stage's key: changing a limit evaluates it anew and runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdpipe.targets.devices.fit import flash_excess, ram_excess

Record = Mapping[str, Any]
"""A TargetRecord as JSON, as manifests store it."""

Figure = Callable[[Record], float | str]
"""Returns a gate's value, or the reason why there is none."""


@dataclass(frozen=True)
class Gate:
    """One kind of gate.

    Args:
        summary: what is limited, with its unit.
        is_minimum: whether the value must be at least the limit, instead of at most.
        highest: the largest limit that makes sense.
        figure: finds the value.
    """

    summary: str
    is_minimum: bool
    highest: float
    figure: Figure

    def holds(self, value: float, limit: float) -> bool:
        """Return whether `value` keeps `limit`. What is not a number keeps nothing."""
        return value >= limit if self.is_minimum else value <= limit


@dataclass(frozen=True)
class GateResult:
    """A gate that was evaluated.

    `value` is None when the figure is missing, and `reason` says why; of a value that breaks its limit, `reason` says
    what is in the way, where that is known.
    """

    name: str
    limit: float
    value: float | None
    passed: bool
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as in report.json."""
        result = {"name": self.name, "limit": self.limit, "value": self.value, "passed": self.passed}
        return result | ({"reason": self.reason} if self.reason else {})


def evaluate_gates(gates: Mapping[str, float], record: Record) -> list[GateResult]:
    """Compare a validation's figures with the limits declared for it.

    Args:
        gates: limits by the names of GATES. They take the place of the board's.
        record: what the validation found.
    """
    limits = {**record.get("limits", {}), **gates}
    return [_evaluate(name, limit, record) for name, limit in limits.items()]


def _evaluate(name: str, limit: float, record: Record) -> GateResult:
    value = GATES[name].figure(record)
    if isinstance(value, str):
        return GateResult(name, limit, None, False, value)
    if not math.isfinite(value):
        return GateResult(name, limit, None, False, f"the value is not a finite number ({value})")
    passed = GATES[name].holds(value, limit)
    explain = _EXPLANATIONS.get(name)
    if passed or explain is None or not record.get("layers"):
        return GateResult(name, limit, value, passed)
    return GateResult(name, limit, value, passed, explain(record["layers"], value - limit))


def _accuracy_drop(record: Record) -> float | str:
    if record.get("baseline_accuracy") is None:
        return "the validation has no baseline: give it one, such as `baseline: ${student.network}`"
    # Rounded as fractions of counts leave noise in the last bits, and a drop of exactly the limit is to pass.
    return round(float(record["baseline_accuracy"]) - float(record["accuracy"]), 12)


def _top1_agreement(record: Record) -> float | str:
    if not record.get("parity"):
        return "the validation has no reference: give it one, such as `reference: ${quantized.graph}`"
    return float(record["parity"]["top1_agreement"])


def _size_kib(record: Record) -> float | str:
    if not record["files"]:
        return f"{record['format']} has no deployable files"
    return float(sum(entry["bytes"] for entry in record["files"])) / 1024


def _latency_ms(record: Record) -> float | str:
    if not record.get("latency_ms"):
        return f"{record['device']} measures no latency"
    return float(record["latency_ms"]["median"])


def _optional(key: str, unit: float = 1.0) -> Figure:
    def figure(record: Record) -> float | str:
        if record.get(key) is None:
            return f"{record['device']} measures no {key.replace('_bytes', '')}"
        return float(record[key]) / unit

    return figure


_EXPLANATIONS: Mapping[str, Callable[[Sequence[Record], float], str]] = {
    "flash_kib": flash_excess,
    "ram_kib": ram_excess,
}
"""Of a limit that is broken: what is in the way."""

GATES: Mapping[str, Gate] = {
    "accuracy": Gate("top-1 accuracy, at least; a fraction", True, 1.0, lambda record: float(record["accuracy"])),
    "accuracy_drop": Gate("baseline's accuracy minus this one's, at most; a fraction", False, 1.0, _accuracy_drop),
    "top1_agreement": Gate("images with the reference's top-1, at least; a fraction", True, 1.0, _top1_agreement),
    "size_kib": Gate("deployable files, at most; KiB", False, math.inf, _size_kib),
    "flash_kib": Gate("code and constants in flash, at most; KiB", False, math.inf, _optional("flash_bytes", 1024)),
    "ram_kib": Gate("arena, other data and stack, at most; KiB", False, math.inf, _optional("ram_bytes", 1024)),
    "latency_ms": Gate("median of one inference, at most; ms", False, math.inf, _latency_ms),
    "cycles": Gate("estimated for one inference, at most", False, math.inf, _optional("cycles")),
}
