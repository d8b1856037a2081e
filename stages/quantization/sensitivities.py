"""What a network loses when one layer is narrow: the artifact `sensitivity`, a JSON file. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kdpipe.stages.base import Grid
from kdpipe.stages.quantization.configuration import Layer
from kdpipe.targets.errors import ArtifactError
from kdpipe.targets.json_files import MALFORMED, read_json

FORMAT = 1
FILE = "sensitivity.json"


@dataclass(frozen=True)
class Change:
    """What the network says, compared with the float network on the same images.

    Args:
        loss: Kullback-Leibler divergence of its predictions from the float network's, in nats, mean over the images.
        agreement: share of images with the same largest logit.
        accuracy: share of images with the largest logit at the label; None without labels.
    """

    loss: float
    agreement: float
    accuracy: float | None = None


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer's weights at several widths, all other weights float.

    Args:
        layer: its size.
        by_bits: what changes, by the width of its weights.
    """

    layer: Layer
    by_bits: Mapping[int, Change]


@dataclass(frozen=True)
class Sensitivity:
    """The analysis of one network.

    Args:
        images: how many were looked at.
        activation_bits: width of what layers read, the first and the last left out.
        weight_scales: a step for each output `channel`, or one for the `layer`.
        before: what the rounded activations alone change, all weights being float.
        layers: by path, in the network's order.
        activations: by name of an activation quantizer, what changes at each width of it alone; or empty.
    """

    images: int
    activation_bits: int
    weight_scales: Literal["channel", "layer"]
    before: Change
    layers: Mapping[str, LayerSensitivity]
    activations: Mapping[str, Mapping[int, Change]]

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of weights that were measured, rising."""
        return tuple(sorted({bits for found in self.layers.values() for bits in found.by_bits}))


def save_sensitivity(directory: Path, found: Sensitivity) -> None:
    """Write the analysis into an existing directory."""
    document = {
        "format": FORMAT,
        "images": found.images,
        "activation_bits": found.activation_bits,
        "weight_scales": found.weight_scales,
        "before": asdict(found.before),
        "layers": [
            {"path": path, **asdict(entry.layer), "measured": _measured(entry.by_bits)}
            for path, entry in found.layers.items()
        ],
        "activations": [{"name": name, "measured": _measured(by_bits)} for name, by_bits in found.activations.items()],
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def load_sensitivity(directory: Path) -> Sensitivity:
    """Read an analysis.

    Raises:
        ArtifactError: the file is missing or unreadable, or a loss is no finite number; names the layer.
    """
    path = directory / FILE
    try:
        document = read_json(path)
        if document["format"] != FORMAT:
            raise ArtifactError(f"format {document['format']}, this kdpipe reads {FORMAT}", where=str(path))
        return Sensitivity(
            images=int(document["images"]),
            activation_bits=int(document["activation_bits"]),
            weight_scales=document["weight_scales"],
            before=_change(document["before"], "all layers", path),
            layers={str(entry["path"]): _layer(entry, path) for entry in document["layers"]},
            activations={
                str(entry["name"]): _by_bits(entry["measured"], f"activation {entry['name']}", path)
                for entry in document["activations"]
            },
        )
    except MALFORMED as error:
        raise ArtifactError(f"not a readable analysis of sensitivities ({error})", where=str(path)) from None


def loss_grid(found: Mapping[str, Mapping[int, Change]], figure: Literal["loss", "agreement", "accuracy"]) -> Grid:
    """Return one figure by layer (or activation) and width, as a heat map of the report."""
    widths = sorted({bits for by_bits in found.values() for bits in by_bits})
    return Grid(
        rows=tuple(found),
        columns=tuple(f"{bits} bits" for bits in widths),
        values=tuple(
            tuple(getattr(by_bits[bits], figure) if bits in by_bits else None for bits in widths)
            for by_bits in found.values()
        ),
    )


def _measured(by_bits: Mapping[int, Change]) -> list[dict[str, Any]]:
    return [{"bits": bits, **asdict(change)} for bits, change in by_bits.items()]


def _layer(entry: Mapping[str, Any], path: Path) -> LayerSensitivity:
    layer = Layer(int(entry["weights"]), int(entry["channels"]), bool(entry["is_linear"]), bool(entry["is_end"]))
    if layer.weights < 1 or layer.channels < 1:
        raise ArtifactError(f"layer {entry['path']} has no weights", where=str(path))
    return LayerSensitivity(layer, _by_bits(entry["measured"], f"layer {entry['path']}", path))


def _by_bits(measured: Sequence[Mapping[str, Any]], what: str, path: Path) -> dict[int, Change]:
    return {int(entry["bits"]): _change(entry, f"{what} at {entry['bits']} bits", path) for entry in measured}


def _change(entry: Mapping[str, Any], what: str, path: Path) -> Change:
    loss, agreement, accuracy = entry["loss"], entry["agreement"], entry["accuracy"]
    figures = (loss, agreement) if accuracy is None else (loss, agreement, accuracy)
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in figures):
        raise ArtifactError(
            f"{what}: the loss is not a finite number", where=str(path), remedy="Run the sensitivity stage again"
        )
    return Change(float(loss), float(agreement), None if accuracy is None else float(accuracy))
