"""Two artifacts run on the same images and compared layer by layer: what `kdpipe diff` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.targets.devices.registry import DEVICES

if TYPE_CHECKING:
    from kdpipe.targets.layer_differences import LayerDifference, Limit

SAMPLES = 32
"""Images that are compared if nothing else is said."""


@dataclass(frozen=True)
class ArtifactDifference:
    """What a comparison found.

    Args:
        a: the first artifact's format and device, such as "onnx on host".
        b: the second's.
        samples: how many images were run.
        limit: by how much a layer may differ; see `kdpipe.targets.layer_differences.Limit`.
        layers: in A's order.
        first_divergent_layer: the first that differs by more than the limit.
        fused: the layers that A's or B's runtime computes only together with those that read them; what is said
            of them comes from a run that keeps them apart.
    """

    a: str
    b: str
    samples: int
    limit: Limit
    layers: tuple[LayerDifference, ...]
    first_divergent_layer: str | None
    fused: tuple[str, ...]


def diff_artifacts(
    first: Path,
    second: Path,
    *,
    split: Path,
    devices: tuple[str, str] = ("host", "host"),
    samples: int | None = None,
    max_steps: int | None = None,
) -> ArtifactDifference:
    """Run two artifacts on the first images of a split and compare them layer by layer.

    Args:
        first: A: the directory of an export, an integer graph, or a float or quantized network, or a QDQ ONNX file.
        second: B, likewise.
        split: the directory of the images.
        devices: where A and B are run, names of `kdpipe ls devices`.
        samples: how many images; `SAMPLES`, or all where there are fewer, if None.
        max_steps: by how many steps a layer may differ; if None, what two correct runs of these formats may differ by.

    Raises:
        UsageError: a device is unknown or can't run its artifact, or the two have no layer in common.
        ArtifactError: a directory does not hold what it must.
        DataError: the images don't fit, or there are fewer than `samples`.
        DeviceError: a compiler, runtime or emulator failed.
        MissingDependencyError: one is not installed.
    """
    from kdpipe.stages.artifact_traces import trace_artifact
    from kdpipe.stages.artifacts import load_split
    from kdpipe.stages.quantized_artifact import first_images
    from kdpipe.targets.layer_differences import compare_layers, default_limit, first_divergent_layer
    from kdpipe.targets.model_files import as_graph_directory

    data = load_split(split)
    data = first_images(data, min(SAMPLES, len(data)) if samples is None else samples)
    for device in devices:
        DEVICES[device]
    traces = []
    for path, device in zip((first, second), devices, strict=True):
        with as_graph_directory(path) as artifact:
            traces.append(trace_artifact(artifact, device, data))
    a, b = traces
    layers = compare_layers(a, b)
    limit = default_limit(a, b) if max_steps is None else max_steps
    return ArtifactDifference(
        a=f"{a.format} on {devices[0]}",
        b=f"{b.format} on {devices[1]}",
        samples=len(data),
        limit=limit,
        layers=layers,
        first_divergent_layer=first_divergent_layer(layers, limit),
        fused=tuple(dict.fromkeys([*a.fused, *b.fused])),
    )
