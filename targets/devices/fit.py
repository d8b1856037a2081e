"""Why a firmware does not fit, and what to lower: said by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMED = 3


def flash_excess(layers: Sequence[Mapping[str, Any]], excess_kib: float) -> str:
    """Return a clause about a firmware that takes `excess_kib` more flash than there is.

    Args:
        layers: `LayerCost`s as JSON.
        excess_kib: positive.

    >>> flash_excess([{"name": "a", "constant_bytes": 512}, {"name": "b", "constant_bytes": 4096}], 1.5)
    '1.5 KiB too much; the largest constants are of b (4.0 KiB), a (0.5 KiB): lower their weight bits or channels'
    """
    largest = sorted(layers, key=lambda layer: -layer["constant_bytes"])[:_NAMED]
    named = ", ".join(f"{layer['name']} ({layer['constant_bytes'] / 1024:.1f} KiB)" for layer in largest)
    return f"{excess_kib:.1f} KiB too much; the largest constants are of {named}: lower their weight bits or channels"


def ram_excess(layers: Sequence[Mapping[str, Any]], excess_kib: float) -> str:
    """Return a clause about a firmware that takes `excess_kib` more RAM than there is; arguments as `flash_excess`.

    >>> ram_excess([{"name": "a", "live_bytes": 2048}, {"name": "b", "live_bytes": 4096}], 2)
    '2.0 KiB too much; b needs most, 4.0 KiB of arena at once: lower the channels or the size of the image there'
    """
    fullest = max(layers, key=lambda layer: layer["live_bytes"])
    return (
        f"{excess_kib:.1f} KiB too much; {fullest['name']} needs most, {fullest['live_bytes'] / 1024:.1f} KiB of arena "
        "at once: lower the channels or the size of the image there"
    )
