"""What an artifact computes of a split's images, layer by layer, on whatever runs it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from kdpipe.stages.artifacts import Split, load_description, load_network, normalize
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.fidelity import layer_outputs, stored_integers, unquantize
from kdpipe.stages.quantization.network import load_quantized_network, prepare_for
from kdpipe.stages.quantized_artifact import check_fit, describe_artifact, stored_inputs
from kdpipe.stages.training.device import limited_threads
from kdpipe.targets.devices.formats import format_of, refuse_format
from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.devices.session import THREADS
from kdpipe.targets.devices.tracing import trace_on_device
from kdpipe.targets.errors import ArtifactError, UsageError
from kdpipe.targets.graph_files import load_graph
from kdpipe.targets.layer_differences import Trace, trace_graph
from kdpipe.targets.lower import lower

OUTPUT = "output"
"""What a float network's output is called where no layer of its own gives it."""


def trace_artifact(artifact: Path, device_name: str, data: Split) -> Trace:
    """Run an artifact on every image of `data` and return each layer's output.

    Args:
        artifact: the directory of an export, an integer graph, or a float or quantized network.
        device_name: a name of `kdpipe ls devices`.
        data: the images.

    Raises:
        UsageError: the device can't run the artifact, or it is an ensemble.
        ArtifactError: the directory does not hold what it must.
        DataError: the images don't fit.
        DeviceError: a compiler, runtime or emulator failed.
    """
    entry = DEVICES[device_name]
    artifact_format = format_of(artifact)
    if artifact_format not in entry.formats:
        refuse_format(device_name, artifact_format, entry.formats)
    if artifact_format == "torch":
        with limited_threads(THREADS):
            return _trace_network(artifact, data)
    quantized = describe_artifact(artifact)
    check_fit(artifact, quantized.input_shape, int(np.prod(quantized.output_shape)), quantized.classes, data)
    inputs = stored_inputs(quantized, data)
    if artifact_format == "integer-graph":
        return trace_graph(load_graph(artifact), inputs)
    if not quantized.tensors:
        raise ArtifactError(
            "an export of an earlier kdpipe, which does not say what its layers' integers stand for",
            where=str(artifact),
            remedy="Export it again",
        )
    return trace_on_device(entry.create(), artifact, artifact_format, inputs, quantized.tensors)


def _trace_network(directory: Path, data: Split) -> Trace:
    if (directory / "ensemble.json").is_file():
        raise UsageError(
            "an ensemble has the layers of several networks",
            where=str(directory),
            remedy="Give one member's directory, such as the ensemble's folder 0",
        )
    space = load_description(directory).space
    check_fit(directory, space.shape, len(space.classes), space.classes, data)
    images = normalize(data.images, space)
    if load_description(directory).quantization is None:
        return _trace_float(directory, images)
    prepared, description = load_quantized_network(directory)
    graph = lower(prepared, space.shape, name=re.sub(r"\W", "_", description.model))
    simulated = stored_integers(prepared, images, graph)
    quantizations = graph.quantizations()
    tensors = {name: simulated[name] for name in quantizations if name in simulated}
    return Trace("quantized-torch", tensors, quantizations)


def _trace_float(directory: Path, images: torch.Tensor) -> Trace:
    network, description = load_network(directory)
    # Prepared as if it were to be quantized, so that its layers are called what they are called in integer graphs.
    prepared = unquantize(prepare_for(description.space, network, QuantizationConfig()))
    return Trace("torch", layer_outputs(prepared, images, OUTPUT))
