"""How an artifact is run on a device with a split's images, and what is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdpipe.stages.artifact_traces import trace_artifact
from kdpipe.stages.artifacts import ImageSpace, Split, load_description, load_network, load_split, normalize
from kdpipe.stages.base import TargetRecord
from kdpipe.stages.device_choice import Clock
from kdpipe.stages.quantization.network import load_quantized_network
from kdpipe.stages.quantization.prepare import input_quantizer
from kdpipe.stages.quantized_artifact import (
    Quantized,
    check_fit,
    describe_artifact,
    files_of,
    first_images,
    stored_inputs,
)
from kdpipe.stages.training.device import limited_threads
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.targets.devices.base import Device
from kdpipe.targets.devices.c_artifact import load_arena
from kdpipe.targets.devices.formats import format_of, refuse_format
from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.devices.session import BATCH, THREADS, measure_session
from kdpipe.targets.devices.tracing import trace_on_device
from kdpipe.targets.errors import UsageError
from kdpipe.targets.graph import Normalization
from kdpipe.targets.graph_files import load_graph
from kdpipe.targets.layer_differences import LayerDifference, compare_layers, first_divergent_layer, trace_graph
from kdpipe.targets.model_files import as_graph_directory
from kdpipe.targets.parity import Parity, compare

TRACED_SAMPLES = 4
"""Images that differ from the reference and are traced, to show layer by layer where they begin to."""

Progress = Callable[[int, int], None]


def validate_on_device(
    artifact: Path,
    *,
    device_name: str,
    split: Path,
    reference: Path | None,
    baseline: Path | None,
    samples: int | None,
    clock: Clock | None,
    workers: int,
    progress: Progress | None,
) -> TargetRecord:
    """Do what `kdpipe.stages.validate.validate_artifact` says."""
    entry = DEVICES[device_name]
    artifact_format = format_of(artifact)
    if artifact_format not in entry.formats:
        refuse_format(device_name, artifact_format, entry.formats)
    data = first_images(load_split(split), samples)
    baseline_accuracy = None if baseline is None else _accuracy_on_host(baseline, data)
    if artifact_format == "torch":
        if _is_quantized_network(artifact):
            with nullcontext() if reference is None else as_graph_directory(reference) as graph:
                return _validate_simulated(artifact, device_name, data, graph, baseline_accuracy)
        if reference is not None:
            raise UsageError(
                "a float network has no integer reference", where=str(artifact), remedy="Leave the reference out"
            )
        return _validate_float(artifact, device_name, data, baseline_accuracy, progress)
    with nullcontext() if reference is None else as_graph_directory(reference) as graph:
        return _validate_quantized(
            describe_artifact(artifact),
            device_name,
            entry.create(workers),
            data,
            graph,
            baseline_accuracy,
            clock,
            progress,
        )


def _accuracy(outputs: NDArray[Any], data: Split) -> float:
    winners = outputs.reshape(len(outputs), -1).argmax(axis=1)
    return float((winners == data.labels.numpy()).mean())


def _latency(milliseconds: Sequence[float]) -> Mapping[str, float] | None:
    if not milliseconds:
        return None
    median, high = np.percentile(np.asarray(milliseconds), [50, 95])
    return {"median": float(median), "p95": float(high)}


def _validate_quantized(
    quantized: Quantized,
    device_name: str,
    device: Device,
    data: Split,
    reference: Path | None,
    baseline_accuracy: float | None,
    clock: Clock | None,
    progress: Progress | None,
) -> TargetRecord:
    check_fit(quantized.path, quantized.input_shape, int(np.prod(quantized.output_shape)), quantized.classes, data)
    inputs = stored_inputs(quantized, data)
    # The reference first: whether it belongs to the artifact is known at once, a device can take minutes.
    expected = None if reference is None else _reference_outputs(reference, quantized, inputs)
    measured = device.measure(quantized.path, inputs, progress)
    parity = None
    if reference is not None and expected is not None:
        found = compare(expected, measured.outputs)
        layers: tuple[LayerDifference, ...] = ()
        if found.differing.size:
            layers = _compare_layers(quantized, device, reference, inputs[found.differing[:TRACED_SAMPLES]])
        parity = _parity(found, layers)
    return TargetRecord(
        format=quantized.format,
        device=device_name,
        files=quantized.files,
        accuracy=_accuracy(measured.outputs, data),
        samples=len(data),
        baseline_accuracy=baseline_accuracy,
        latency_ms=_latency([clock.milliseconds(c) for c in measured.sample_cycles] if clock else measured.latency_ms),
        clock=asdict(clock) if clock and measured.sample_cycles else None,
        layers=tuple(asdict(layer) for layer in measured.layers) if measured.layers is not None else None,
        arena=asdict(load_arena(quantized.path)) if quantized.format == "c" else None,
        instructions=measured.instructions,
        cycles=measured.cycles,
        flash_bytes=measured.flash_bytes,
        ram_bytes=measured.ram_bytes,
        parity=parity,
        weight_bytes=quantized.weight_bytes,
    )


def _parity(found: Parity, layers: Sequence[LayerDifference]) -> Mapping[str, Any]:
    return {
        "max_step_difference": found.max_step_difference,
        "top1_agreement": found.top1_agreement,
        "first_divergent_layer": first_divergent_layer(layers),
        "layers": [asdict(layer) for layer in layers],
    }


def _compare_layers(
    quantized: Quantized, device: Device, reference: Path, inputs: NDArray[np.int8]
) -> tuple[LayerDifference, ...]:
    expected = trace_graph(load_graph(reference), inputs)
    traced = trace_on_device(device, quantized.path, quantized.format, inputs, expected.quantizations)
    return compare_layers(expected, traced)


def _reference_outputs(reference: Path, quantized: Quantized, inputs: NDArray[np.int8]) -> NDArray[np.int8]:
    described = describe_artifact(reference)
    if (described.input_shape, described.input, described.output_shape) != (
        quantized.input_shape,
        quantized.input,
        quantized.output_shape,
    ):
        raise UsageError(
            "the reference is another network's: its input or output differs from the artifact's",
            where=str(reference),
            remedy="Give the integer graph that the artifact was exported from",
        )
    return _host().measure(reference, inputs).outputs


def _host() -> Device:
    return DEVICES["host"].create()


def _accuracy_on_host(network: Path, data: Split) -> float:
    if format_of(network) == "torch":
        return _accuracy(_run_torch(_load_torch(network, data), data), data)
    quantized = describe_artifact(network)
    check_fit(network, quantized.input_shape, int(np.prod(quantized.output_shape)), quantized.classes, data)
    return _accuracy(_host().measure(network, stored_inputs(quantized, data)).outputs, data)


@dataclass(frozen=True)
class _TorchNetwork:
    """A network or ensemble as a session; its images are normalized already, and its outputs stay real."""

    module: torch.nn.Module
    space: ImageSpace

    def prepare(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return inputs

    def infer(self, prepared: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            logits: NDArray[Any] = self.module(torch.from_numpy(prepared)).numpy()
        return logits

    def store(self, raw: NDArray[Any]) -> NDArray[Any]:
        return raw


def _is_quantized_network(artifact: Path) -> bool:
    return (artifact / "network.json").is_file() and load_description(artifact).quantization is not None


def _load_torch(artifact: Path, data: Split) -> _TorchNetwork:
    module: torch.nn.Module
    if _is_quantized_network(artifact):
        module, description = load_quantized_network(artifact)
        space = description.space
    elif (artifact / "ensemble.json").is_file():
        ensemble = TeacherEnsemble.load(artifact)
        module, space = ensemble, ensemble.space
    else:
        module, description = load_network(artifact)
        space = description.space
    check_fit(artifact, space.shape, len(space.classes), space.classes, data)
    return _TorchNetwork(module, space)


def _images(network: _TorchNetwork, data: Split) -> NDArray[np.float32]:
    images: NDArray[np.float32] = normalize(data.images, network.space).numpy()
    return images


def _run_torch(network: _TorchNetwork, data: Split) -> NDArray[np.float32]:
    images = _images(network, data)
    return np.concatenate([network.infer(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def _validate_float(
    artifact: Path, device_name: str, data: Split, baseline_accuracy: float | None, progress: Progress | None
) -> TargetRecord:
    network = _load_torch(artifact, data)
    with limited_threads(THREADS):
        measured = measure_session(network, _images(network, data), progress)
    return TargetRecord(
        format="torch",
        device=device_name,
        files=files_of(artifact),
        accuracy=_accuracy(measured.outputs, data),
        samples=len(data),
        baseline_accuracy=baseline_accuracy,
        latency_ms=_latency(measured.latency_ms),
    )


def _validate_simulated(
    artifact: Path, device_name: str, data: Split, reference: Path | None, baseline_accuracy: float | None
) -> TargetRecord:
    """Run a quantized network in torch. Its time says nothing about what is deployed, so that it is not taken."""
    prepared, description = load_quantized_network(artifact)
    space = description.space
    check_fit(artifact, space.shape, len(space.classes), space.classes, data)
    network = _TorchNetwork(prepared, space)
    with limited_threads(THREADS):
        outputs = _run_torch(network, data)
        parity = None
        if reference is not None:
            simulated = Quantized(
                artifact,
                "torch",
                space.shape,
                input_quantizer(prepared).quantization(),
                (len(space.classes),),
                space.classes,
                Normalization(space.mean, space.std),
                files_of(artifact),
                {},  # its weights are kept as floats
                {},
            )
            parity = _simulated_parity(simulated, outputs, reference, data)
    return TargetRecord(
        format="torch",
        device=device_name,
        files=files_of(artifact),
        accuracy=_accuracy(outputs, data),
        samples=len(data),
        baseline_accuracy=baseline_accuracy,
        parity=parity,
    )


def _simulated_parity(
    simulated: Quantized, outputs: NDArray[np.float32], reference: Path, data: Split
) -> Mapping[str, Any]:
    inputs = stored_inputs(simulated, data)
    expected = _reference_outputs(reference, simulated, inputs)
    graph = load_graph(reference)
    stored = graph.output.quantization
    integers = np.rint(outputs / np.float32(stored.scale)) + stored.zero_point
    found = compare(expected, integers.clip(stored.qmin, stored.qmax).astype(np.int8).reshape(expected.shape))
    layers: tuple[LayerDifference, ...] = ()
    if found.differing.size:
        chosen = found.differing[:TRACED_SAMPLES]
        few = Split(data.name, data.images[chosen], data.labels[chosen], data.space)
        layers = compare_layers(trace_graph(graph, inputs[chosen]), trace_artifact(simulated.path, "host", few))
    return _parity(found, layers)
