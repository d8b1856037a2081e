"""Numbers as people read them."""

from __future__ import annotations

import math

DASH = "–"  # noqa: RUF001 - the typographic dash is meant


def percent(fraction: float, decimals: int = 1) -> str:
    """Return a fraction as a percentage.

    >>> percent(0.9722)
    '97.2 %'
    """
    return f"{fraction * 100:.{decimals}f} %"


def share(fraction: float) -> str:
    """Return a share as a percentage that says 100 only where nothing is missing.

    >>> share(1.0), share(0.99999999), share(0.5)
    ('100 %', '99.9999 %', '50 %')
    """
    return f"{math.floor(fraction * 1e6) / 1e4:.6g} %"


def steps(value: float) -> str:
    """Return a difference in steps of a quantization.

    >>> steps(1), steps(2), steps(0.1234)
    ('1 step', '2 steps', '0.123 steps')
    """
    return f"{value:.3g} step" + ("" if value == 1 else "s")


def points(fraction: float) -> str:
    """Return a difference of fractions in percentage points.

    >>> points(0.0111)
    '1.11 points'
    """
    return f"{fraction * 100:.2f} points"


def size(count: float) -> str:
    """Return bytes in B, KiB or MiB.

    >>> size(512), size(20480), size(3 * 2**20)
    ('512 B', '20.0 KiB', '3.0 MiB')
    """
    if count < 1024:
        return f"{count:.0f} B"
    if count < 1024**2:
        return f"{count / 1024:.1f} KiB"
    return f"{count / 1024**2:.1f} MiB"


def duration(seconds: float) -> str:
    """Return a duration with the two units that matter.

    >>> duration(0.25), duration(12.34), duration(75), duration(7300)
    ('0.25 s', '12.3 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def count(value: float) -> str:
    r"""Return a count with thin spaces between thousands.

    >>> count(1234567).replace("\u2009", " ")
    '1 234 567'
    """
    return f"{value:,.0f}".replace(",", "\u2009")


def plural(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> plural(1, "stage"), plural(3, "stage")
    ('1 stage', '3 stages')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def figure(value: object) -> str:
    """Return any metric with about four significant digits.

    >>> figure(0.123456), figure(1e-7), figure(True), figure("ok"), figure(12)
    ('0.1235', '1e-07', 'yes', 'ok', '12')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if value.is_integer() and abs(value) < 1e15:
            return count(value)
        return f"{value:.4g}" if abs(value) < 10000 else count(value)
    if value is None:
        return DASH
    return str(value)


def tick(value: float) -> str:
    """Return an axis label.

    >>> tick(0.2), tick(5000), tick(2500000), tick(0.00065)
    ('0.2', '5k', '2.5M', '6.5e-4')
    """
    if 0 < abs(value) < 1e-3:  # zeros would take the room of two labels
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"
