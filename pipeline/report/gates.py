"""How gates are written: their direction and unit."""

from __future__ import annotations

from kdpipe.pipeline.report import formatting
from kdpipe.pipeline.report.document import Gate, Target

MINIMA = frozenset({"accuracy", "top1_agreement"})


def amount(name: str, value: float | None) -> str:
    """Return a gate's limit or value with its unit.

    >>> amount("flash_kib", 64), amount("accuracy_drop", 0.02), amount("accuracy", 0.97)
    ('64 KiB', '2.00 points', '97.0 %')
    """
    if value is None:
        return formatting.DASH
    if name in MINIMA:
        return formatting.percent(value, 2 if name == "top1_agreement" else 1)
    if name == "accuracy_drop":
        return formatting.points(value)
    if name.endswith("_kib"):
        return f"{value:.4g} KiB"
    if name.endswith("_ms"):
        return f"{value:.4g} ms"
    return formatting.figure(float(value))


def direction(name: str) -> str:
    """Return the sign between a value and its limit.

    >>> direction("accuracy"), direction("ram_kib")
    ('≥', '≤')
    """
    return "≥" if name in MINIMA else "≤"


def limit_of(target: Target, name: str) -> float | None:
    """Return the limit of a target's gate, or None where it has no such gate."""
    return next((gate.limit for gate in target.gates if gate.name == name), None)


def sentence(target: Target, gate: Gate) -> str:
    """Return a gate as one sentence: 'mcu: accuracy_drop is 3.10 points, the limit is ≤ 2.00 points'."""
    limit = f"the limit is {direction(gate.name)} {amount(gate.name, gate.limit)}"
    if gate.value is None:
        why = f" ({gate.reason})" if gate.reason else ""
        return f"{target.name}: {gate.name} was not measured{why}, {limit}"
    return f"{target.name}: {gate.name} is {amount(gate.name, gate.value)}, {limit}"
