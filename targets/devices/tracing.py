"""Intermediate tensors of an artifact, without changing what its runtime computes.

Asking a runtime for a layer's output can keep it from fusing that layer with the next one, and so change what comes
out in the end: OpenVINO, for one, adds a convolution's sums to the other branch of a residual block without rounding
them first, but rounds them where they are to be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.constants.files import file_constants
from kdpipe.targets.devices.base import Device
from kdpipe.targets.graph import Quantization
from kdpipe.targets.layer_differences import Trace

Tensors = dict[str, NDArray[Any]]
Run = Callable[[Sequence[str]], tuple[NDArray[Any], Tensors]]


def shown_layers(run: Run, names: Sequence[str], *, fused: bool, suspects: Collection[str] = ()) -> Tensors:
    """Return the tensors `names` of a model.

    Args:
        run: runs the model with these tensors as further outputs; returns its own output, and them.
        names: of the tensors.
        fused: leave out those that can't be shown without changing the model's own output.
        suspects: those that the runtime is expected to fuse: left out without being tried one by one.
    """
    if not fused:
        return run(names)[1]
    expected, _ = run(())
    found: Tensors = {}

    def show(group: Sequence[str]) -> None:
        output, tensors = run(group)
        if np.array_equal(output, expected):
            found.update(tensors)
        elif len(group) > 1:
            show(group[: len(group) // 2])
            show(group[len(group) // 2 :])

    output, tensors = run(names)
    if np.array_equal(output, expected):
        return tensors
    show([name for name in names if name not in suspects])
    return {name: found[name] for name in names if name in found}


def trace_on_device(
    device: Device,
    artifact: Path,
    artifact_format: str,
    inputs: NDArray[np.int8],
    quantizations: Mapping[str, Quantization],
) -> Trace:
    """Run an artifact as it is deployed and, where its runtime fuses layers, once more with all of them kept apart.

    The constants that its file has are read, too.

    Args:
        device: where to run it.
        artifact: its directory.
        artifact_format: its format.
        inputs: stored integers, int8 [N, *shape].
        quantizations: by layer of the integer graph, its input first, what stored integers stand for.
    """
    input_name = next(iter(quantizations))

    def in_order(tensors: Mapping[str, NDArray[np.int8]]) -> Tensors:
        # An input that a device does not show is what it was given.
        known = {input_name: inputs, **tensors}
        return {name: known[name] for name in quantizations if name in known}

    tensors = in_order(device.trace(artifact, inputs))
    apart: Tensors = {}
    if len(tensors) < len(quantizations):
        apart = in_order(device.trace(artifact, inputs, fused=False))
    constants = file_constants(artifact, artifact_format)
    return Trace(artifact_format, tensors, quantizations, apart=apart, constants=constants)
