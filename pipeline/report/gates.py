"""How gates are written: their direction and unit."""

from __future__ import annotations

from kdpipe.pipeline.gates import GATES
from kdpipe.pipeline.report import formatting
from kdpipe.pipeline.report.document import Target

_FRACTIONS = frozenset({"accuracy", "top1_agreement"})


def amount(name: str, value: float | None) -> str:
    """Return a gate's limit or value with its unit.

    >>> amount("flash_kib", 64), amount("accuracy_drop", 0.02), amount("accuracy", 0.97)
    ('64 KiB', '2.00 points', '97.0 %')
    """
    if value is None:
        return formatting.DASH
    if name in _FRACTIONS:
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
    gate = GATES.get(name)
    return "≥" if gate is not None and gate.is_minimum else "≤"


def limit_of(target: Target, name: str) -> float | None:
    """Return the limit of a target's gate, or None where it has no such gate."""
    return next((gate.limit for gate in target.gates if gate.name == name), None)


def sentence(target: str, gate: str, limit: float, value: float | None, reason: str | None = None) -> str:
    """Return a gate as one sentence.

    >>> sentence("mcu", "flash_kib", 64, 70.5)
    'mcu: flash_kib is 70.5 KiB, the limit is ≤ 64 KiB'
    """
    bound = f"the limit is {direction(gate)} {amount(gate, limit)}"
    if value is None:
        why = f" ({reason})" if reason else ""
        return f"{target}: {gate} was not measured{why}, {bound}"
    told = f"{target}: {gate} is {amount(gate, value)}, {bound}"
    return f"{told}: {reason}" if reason else told
