"""Axes of charts: from data to user units, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from data to user units.

    Args:
        low: the datum at `start`; positive where `logarithmic`.
        high: the datum at `end`, greater than `low`.
        start: user unit of `low`.
        end: user unit of `high`; smaller than `start` for an axis that points up.
        ticks: the data to label.
        logarithmic: whether equal ratios take equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, datum: float) -> float:
        """Return the user unit of `datum`; NaN where it has none."""
        if not math.isfinite(datum) or (self.logarithmic and datum <= 0):
            return math.nan
        if self.logarithmic:
            share = math.log(datum / self.low) / math.log(self.high / self.low)
        else:
            share = (datum - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def round_step(span: float, intervals: int) -> float:
    """Return the 1, 2 or 5 times a power of ten that divides `span` into about `intervals` parts.

    >>> round_step(0.9, 4), round_step(100, 5)
    (0.2, 20.0)
    """
    raw = span / max(1, intervals)
    power = 10.0 ** math.floor(math.log10(raw))
    factor = next((factor for factor, most in ((1, 1.5), (2, 3.5), (5, 7.5)) if raw / power < most), 10)
    return float(f"{factor * power:.6g}")


def linear(data: Iterable[float], start: float, end: float, intervals: int = 4, ceiling: float | None = None) -> Scale:
    """Return a linear scale whose ends are ticks around all finite `data`, but never above `ceiling`."""
    finite = [datum for datum in data if math.isfinite(datum)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
        if ceiling is not None and high > ceiling:
            low, high = ceiling - 2 * pad, ceiling
    step = round_step(high - low, intervals)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if ceiling is not None:
        last = max(first + 1, min(last, math.floor(ceiling / step + 1e-9)))
    ticks = tuple(float(f"{index * step:.10g}") for index in range(first, last + 1))
    return Scale(ticks[0], max(ticks[-1], high), start, end, ticks)


def logarithmic(data: Iterable[float], start: float, end: float) -> Scale:
    """Return a logarithmic scale around all positive `data`, ticked at 1, 2 and 5 times powers of ten."""
    positive = [datum for datum in data if math.isfinite(datum) and datum > 0] or [1.0]
    low, high = min(positive) / 1.5, max(positive) * 1.5
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    inside = tuple(tick for tick in ticks if low <= tick <= high)
    if len(inside) > 6:
        inside = tuple(10.0**decade for decade in decades if low <= 10.0**decade <= high)
    return Scale(low, high, start, end, inside, logarithmic=True)
