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

from kdpipe.stages.artifacts import ImageSpace, Split, load_description, load_network, load_split, normalize
from kdpipe.stages.base import TargetRecord
from kdpipe.stages.device_choice import Clock
from kdpipe.stages.quantization import fidelity
from kdpipe.stages.quantization.network import load_quantized_network
from kdpipe.stages.quantization.prepare import input_quantizer
from kdpipe.stages.training.device import limited_threads
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.targets.artifact import read_artifact, weight_bytes
from kdpipe.targets.devices.base import Device
from kdpipe.targets.devices.formats import format_of, refuse_format
from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.devices.session import BATCH, THREADS, measure_session
from kdpipe.targets.errors import DataError, UsageError
from kdpipe.targets.graph import IntegerGraph, Normalization, Quantization
from kdpipe.targets.graph_files import load_graph
from kdpipe.targets.model_files import as_graph_directory
from kdpipe.targets.parity import compare, first_divergent_layer

TRACED_SAMPLES = 4
"""Images that differ from the reference and are traced, to name the layer where they begin to."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Quantized:
    """What has to be known of a quantized artifact to run it on images.

    Args:
        path: its directory.
        format: onnx, openvino, tflite, c or integer-graph.
        input_shape: [C, H, W].
        input: quantization of the input.
        output_shape: without the batch.
        classes: names of the outputs, or empty.
        normalization: of the input, where known.
        files: deployable files with their bytes.
        weight_bytes: what its weights alone need, and their scales and biases.
    """

    path: Path
    format: str
    input_shape: tuple[int, ...]
    input: Quantization
    output_shape: tuple[int, ...]
    classes: tuple[str, ...]
    normalization: Normalization | None
    files: tuple[tuple[str, int], ...]
    weight_bytes: Mapping[str, int]


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
    data = _first(load_split(split), samples)
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
            _describe(artifact), device_name, entry.create(workers), data, graph, baseline_accuracy, clock, progress
        )


def _first(split: Split, samples: int | None) -> Split:
    if samples is None:
        return split
    if samples > len(split):
        raise DataError(f"the split {split.name!r} has {len(split)} images, fewer than the {samples} asked for")
    return Split(split.name, split.images[:samples], split.labels[:samples], split.space)


def _describe(artifact: Path) -> Quantized:
    artifact_format = format_of(artifact)
    if artifact_format == "integer-graph":
        graph = load_graph(artifact)
        return Quantized(
            artifact,
            artifact_format,
            graph.input.shape,
            graph.input.quantization,
            graph.output.shape,
            graph.class_names,
            graph.normalization,
            _files(artifact),
            weight_bytes(graph, {node.name: weight.bits for node, weight in graph.weights()}),
        )
    described = read_artifact(artifact)
    return Quantized(
        artifact,
        artifact_format,
        described.input.shape,
        described.input.quantization,
        described.output.shape,
        described.classes,
        described.normalization,
        described.sizes(artifact),
        described.weight_bytes,
    )


def _files(directory: Path) -> tuple[tuple[str, int], ...]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return tuple((path.relative_to(directory).as_posix(), path.stat().st_size) for path in paths)


def _check_fit(where: Path, shape: Sequence[int], outputs: int, classes: Sequence[str], data: Split) -> None:
    if tuple(shape) != data.space.shape:
        raise DataError(
            f"takes images of shape {list(shape)}, but the split {data.name!r} has {list(data.space.shape)}",
            where=str(where),
        )
    if outputs != len(data.space.classes):
        raise DataError(
            f"tells {outputs} classes apart, but the split {data.name!r} has {len(data.space.classes)}",
            where=str(where),
        )
    if classes and tuple(classes) != data.space.classes:
        raise DataError(
            f"its classes are {_few(classes)}, but the split {data.name!r} has {_few(data.space.classes)}",
            where=str(where),
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _stored_inputs(quantized: Quantized, data: Split) -> NDArray[np.int8]:
    """Return the images as the network's stored integers, normalized as it was trained (or as the split says)."""
    space = data.space
    if quantized.normalization is not None:
        space = ImageSpace(space.shape, space.classes, quantized.normalization.mean, quantized.normalization.std)
    return quantized.input.quantize(normalize(data.images, space).numpy())


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
    _check_fit(quantized.path, quantized.input_shape, int(np.prod(quantized.output_shape)), quantized.classes, data)
    inputs = _stored_inputs(quantized, data)
    # The reference first: whether it belongs to the artifact is known at once, a device can take minutes.
    expected = None if reference is None else _reference_outputs(reference, quantized, inputs)
    measured = device.measure(quantized.path, inputs, progress)
    parity = None
    if reference is not None and expected is not None:
        found = compare(expected, measured.outputs)
        layer = None
        if found.differing.size:
            differing = inputs[found.differing[:TRACED_SAMPLES]]
            layer = first_divergent_layer(load_graph(reference), device.trace(quantized.path, differing), differing)
        parity = {
            "max_step_difference": found.max_step_difference,
            "top1_agreement": found.top1_agreement,
            "first_divergent_layer": layer,
        }
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
        instructions=measured.instructions,
        cycles=measured.cycles,
        flash_bytes=measured.flash_bytes,
        ram_bytes=measured.ram_bytes,
        parity=parity,
        weight_bytes=quantized.weight_bytes,
    )


def _reference_outputs(reference: Path, quantized: Quantized, inputs: NDArray[np.int8]) -> NDArray[np.int8]:
    described = _describe(reference)
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
    quantized = _describe(network)
    _check_fit(network, quantized.input_shape, int(np.prod(quantized.output_shape)), quantized.classes, data)
    return _accuracy(_host().measure(network, _stored_inputs(quantized, data)).outputs, data)


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
    _check_fit(artifact, space.shape, len(space.classes), space.classes, data)
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
        files=_files(artifact),
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
    _check_fit(artifact, space.shape, len(space.classes), space.classes, data)
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
                _files(artifact),
                {},  # its weights are kept as floats
            )
            expected = _reference_outputs(reference, simulated, _stored_inputs(simulated, data))
            parity = _simulated_parity(network, outputs, load_graph(reference), expected, data)
    return TargetRecord(
        format="torch",
        device=device_name,
        files=_files(artifact),
        accuracy=_accuracy(outputs, data),
        samples=len(data),
        baseline_accuracy=baseline_accuracy,
        parity=parity,
    )


def _simulated_parity(
    network: _TorchNetwork, outputs: NDArray[np.float32], graph: IntegerGraph, expected: NDArray[np.int8], data: Split
) -> Mapping[str, Any]:
    stored = graph.output.quantization
    integers = np.rint(outputs / np.float32(stored.scale)) + stored.zero_point
    found = compare(expected, integers.clip(stored.qmin, stored.qmax).astype(np.int8).reshape(expected.shape))
    layer = None
    if found.differing.size:
        differing = torch.from_numpy(_images(network, data)[found.differing[:TRACED_SAMPLES]])
        exact = fidelity.compare(network.module, graph, differing).exact
        layer = next((node.name for node in graph.nodes if exact.get(node.name, 1.0) < 1), None)
    return {
        "max_step_difference": found.max_step_difference,
        "top1_agreement": found.top1_agreement,
        "first_divergent_layer": layer,
    }
