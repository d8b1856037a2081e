"""Quantized networks as artifacts: a network directory whose description says how it was prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from kdpipe.stages.artifacts import (
    ImageSpace,
    NetworkDescription,
    build_network,
    load_description,
    load_weights,
    save_network,
)
from kdpipe.stages.quantization.configuration import QuantizationConfig
from kdpipe.stages.quantization.prepare import input_quantizer, prepare
from kdpipe.targets.errors import ArtifactError


def prepare_for(space: ImageSpace, network: nn.Module, config: QuantizationConfig) -> fx.GraphModule:
    """Prepare a network for images of `space`: the input's range is that of pixels, so no image is needed for it."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    prepared = prepare(network, torch.zeros(2, *space.shape, device=device), config)
    pairs = list(zip(space.mean, space.std, strict=True))
    input_quantizer(prepared).set_range(
        min((0.0 - mean) / std for mean, std in pairs), max((1.0 - mean) / std for mean, std in pairs)
    )
    return prepared


def save_quantized_network(
    directory: Path, prepared: fx.GraphModule, description: NetworkDescription, config: QuantizationConfig
) -> None:
    """Write a prepared network into an existing directory; `description` is the float network's."""
    save_network(directory, prepared, replace(description, quantization=asdict(config)))


def load_quantized_network(directory: Path) -> tuple[fx.GraphModule, NetworkDescription]:
    """Read a quantized network, prepared as it was, in evaluation mode and on the CPU.

    Raises:
        ArtifactError: a file is missing or unreadable, or the network is a float one.
        NetworkError: the weights do not fit the description.
    """
    description = load_description(directory)
    if description.quantization is None:
        raise ArtifactError("this is a float network, where a quantized one is expected", where=str(directory))
    config = _config(description.quantization, directory)
    prepared = prepare_for(description.space, build_network(description), config)
    load_weights(prepared, directory)
    return prepared.eval(), description


def _config(document: Mapping[str, Any], directory: Path) -> QuantizationConfig:
    try:
        return QuantizationConfig(**document)
    except TypeError as error:
        raise ArtifactError(f"its quantization is not readable ({error})", where=str(directory)) from None
