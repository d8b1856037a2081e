"""Latency of our ONNX and OpenVINO exports against the runtimes' own quantization tools at 8 bits.

    python benchmarks/latency.py [--networks resnet20 ...] [--repetitions 60] [--nncf PYTHON]

The same float network is quantized by kdpipe (at 8 and at 2 bits) and by onnxruntime's quantize_static (QDQ, signed
weights per channel, after its own pre-processing; once with signed and once with unsigned activations, of which the
faster counts) and, where `--nncf` gives the Python of an environment with nncf and openvino, by NNCF's post-training
quantization. All models of a runtime take turns in one process, on one thread, with one image of random numbers, and
are timed by the CPU time of that process, so that other load disturbs the ratios little. Each is loaded several times,
and the copies take turns too: where in memory a model comes to lie is worth some 20 %. A ratio is one of medians over
the turns, ours / theirs: below 1 ours is faster. The networks are not trained: integer kernels take the
same time whatever the weights are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mcu.networks import make_network, quantize
from torch import nn

from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph import IntegerGraph

Shape = tuple[int, int, int]
NETWORKS: dict[str, tuple[str, dict[str, Any], Shape, int]] = {
    "resnet20": ("resnet", {"depth": 20, "width": 16}, (3, 32, 32), 10),
    "mobilenet_v2": ("torchvision:mobilenet_v2", {}, (3, 96, 96), 1000),
    "resnet18": ("torchvision:resnet18", {}, (3, 96, 96), 1000),
}
"""By name: the model, its arguments, the input's [C, H, W] and the number of classes."""
BITS = (8, 2)
KINDS = ("QInt8", "QUInt8")
CALIBRATION_IMAGES = 8
WARM_UP = 5
COPIES = 6

Run = Callable[[], Any]


@dataclass
class Calibration:
    """Images for quantize_static, one at a time."""

    images: Iterator[np.ndarray]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input, or None after the last."""
        image = next(self.images, None)
        return None if image is None else {"input": image[None]}


def write_float(network: nn.Module, shape: Shape, path: Path) -> None:
    """Write the float network as ONNX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "opset_version": 17}
        torch.onnx.export(network.eval(), (torch.zeros(1, *shape),), str(path), dynamo=False, **options)


def quantize_static(path: Path, images: np.ndarray, activations: str, folder: Path) -> Path:
    """Return onnxruntime's own 8-bit model of the float network at `path`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process
    from onnxruntime.quantization import quantize_static as quantize_file

    CalibrationDataReader.register(Calibration)
    prepared, quantized = folder / "prepared.onnx", folder / f"static-{activations}.onnx"
    quant_pre_process(str(path), str(prepared))
    quantize_file(
        str(prepared),
        str(quantized),
        Calibration(iter(images)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
    )
    return quantized


def onnxruntime_run(path: Path, image: np.ndarray) -> Run:
    """Return one inference on onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": image})


def openvino_run(path: Path, image: np.ndarray) -> Run:
    """Return one inference on OpenVINO."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({model.inputs[0]: list(image.shape)})
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([image])


def take_turns(models: dict[str, Callable[[], Run]], repetitions: int) -> dict[str, list[float]]:
    """Return milliseconds of CPU time by name, one figure a turn: the mean of as many runs as take some 10 ms.

    Args:
        models: by name, what loads a copy of the model.
        repetitions: turns of each model.
    """
    copies: dict[str, list[Run]] = {name: [] for name in models}
    for _ in range(COPIES):
        for name, load in models.items():
            copies[name].append(load())
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repetitions):
        # In either order, so that none always follows the same other.
        for name in list(models) if turn % 2 else list(models)[::-1]:
            run = copies[name][turn // 2 % COPIES]
            for _ in range(WARM_UP):
                run()
            began = time.perf_counter()
            run()
            count = max(1, round(0.01 / (time.perf_counter() - began)))
            began_cpu = time.process_time_ns()
            for _ in range(count):
                run()
            times[name].append((time.process_time_ns() - began_cpu) / 1e6 / count)
    return times


def print_rows(network: str, runtime: str, times: dict[str, list[float]], theirs: list[str]) -> None:
    """Print a row of Markdown for each model."""
    best = min(theirs, key=lambda name: statistics.median(times[name]), default=None)
    for name, figures in times.items():
        ratio = "-"
        if best is not None:
            ratio = f"{statistics.median(figures) / statistics.median(times[best]):.2f}"
        print(f"| {network} | {runtime} | {name} | {statistics.median(figures):.3f} | {ratio} |", flush=True)


def exported(graph: IntegerGraph, target: str, folder: Path) -> Path:
    """Export, and return the directory."""
    directory = folder / f"{target}-{graph.name}"
    directory.mkdir()
    EXPORTERS[target].export(graph, directory)
    return directory


def measure(name: str, repetitions: int, nncf: Path | None, folder: Path) -> None:
    """Quantize a network in every way, and print how fast each is."""
    model, arguments, shape, classes = NETWORKS[name]
    float_path = folder / "float.onnx"
    write_float(make_network(model, arguments, shape, classes), shape, float_path)
    images = np.random.default_rng(0).normal(size=(CALIBRATION_IMAGES, *shape)).astype(np.float32)
    graphs = {
        bits: quantize(make_network(model, arguments, shape, classes), shape, bits, f"w{bits}", CALIBRATION_IMAGES)
        for bits in BITS
    }
    image = images[:1]
    runs = {f"ours, {bits} bits": exported(graph, "onnx", folder) / "model.onnx" for bits, graph in graphs.items()}
    theirs = {f"quantize_static, {kind}": quantize_static(float_path, images, kind, folder) for kind in KINDS}
    sessions = {label: partial(onnxruntime_run, path, image) for label, path in {**runs, **theirs}.items()}
    print_rows(name, "onnxruntime", take_turns(sessions, repetitions), list(theirs))
    runs = {f"ours, {bits} bits": exported(graph, "openvino", folder) / "model.xml" for bits, graph in graphs.items()}
    theirs = {}
    if nncf is not None:
        np.save(folder / "images.npy", images)
        script = Path(__file__).with_name("nncf_int8.py")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([str(nncf), str(script), str(folder)], check=True, capture_output=True, env=environment)
        theirs = {"NNCF": folder / "nncf.xml"}
    sessions = {label: partial(openvino_run, path, image) for label, path in {**runs, **theirs}.items()}
    print_rows(name, "OpenVINO", take_turns(sessions, repetitions), list(theirs))


def main() -> None:
    """Parse the command line and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--repetitions", type=int, default=60, help="turns of each model")
    parser.add_argument("--nncf", type=Path, help="the Python of an environment with nncf and openvino")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | runtime | model | ms | ratio |\n| --- | --- | --- | --- | --- |")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, arguments.repetitions, arguments.nncf, Path(folder))


if __name__ == "__main__":
    main()
