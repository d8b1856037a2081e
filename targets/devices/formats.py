"""Which format an artifact has, told by the files that lie in its directory."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from kdpipe.targets.artifact import FILE, read_artifact
from kdpipe.targets.errors import ArtifactError, UsageError
from kdpipe.targets.graph_files import STRUCTURE_FILE

_BY_FILE = {
    STRUCTURE_FILE: "integer-graph",
    "network.json": "torch",
    "ensemble.json": "torch",
}


def format_of(artifact: Path) -> str:
    """Return the format of an artifact: an export's target, integer-graph, or torch for networks.

    Raises:
        ArtifactError: the directory is missing, holds no artifact, or its artifact.json is unreadable.
    """
    if (artifact / FILE).is_file():
        return read_artifact(artifact).target
    for file, name in _BY_FILE.items():
        if (artifact / file).is_file():
            return name
    reason = "no artifact that can be run here" if artifact.is_dir() else "there is no such directory"
    raise ArtifactError(
        reason, where=str(artifact), remedy="Give the directory of an export, such as runs/NAME/export/onnx"
    )


def format_of_kind(kind: str) -> str:
    """Return the format of a kind of artifact: its own name, or torch for networks, quantized ones too."""
    return "torch" if kind in ("network", "ensemble", "quantized-network") else kind


def refuse_format(device: str, artifact_format: str, formats: tuple[str, ...]) -> NoReturn:
    """Say that a device can't run a format, and what it can.

    Raises:
        UsageError: always.
    """
    runs = "torch networks" if artifact_format == "torch" else artifact_format
    raise UsageError(f"the device {device} can't run {runs}", remedy=f"It runs {', '.join(formats)}")
