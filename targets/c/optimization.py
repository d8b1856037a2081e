"""What C sources are optimized for."""

from __future__ import annotations

from typing import Literal, get_args

Optimization = Literal["speed", "size"]
SPEED: Optimization = "speed"
SIZE: Optimization = "size"
"""Ternary weights take 2 bits or fewer, whatever time that costs."""

NAMES: tuple[str, ...] = get_args(Optimization)
