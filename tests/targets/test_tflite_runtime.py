"""TFLite on tflite-runtime 2.14.0, the last release of the package that many devices have.

It needs CPython 3.11 at most and NumPy below 2, so an environment of its own: made with pip, or given by its Python in
the variable KDPIPE_TFLITE_RUNTIME.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets import reference
from kdpipe.targets import tflite as exporter
from kdpipe.targets.devices.host_litert import channels_first, with_outputs
from kdpipe.targets.tflite_writer import stored_tensors

pytest.importorskip("ai_edge_litert")
REQUIREMENTS = ("tflite-runtime==2.14.0", "numpy<2")
GRAPHS = 12
VARIANTS = {
    "int8": {"weights": "int8"},
    "packed": {"weights": "packed"},
    "float": {"weights": "packed", "io": "float32"},
}


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with tflite-runtime."""
    if given := os.environ.get("KDPIPE_TFLITE_RUNTIME"):
        return Path(given)
    if sys.version_info[:2] != (3, 11):
        pytest.skip("tflite-runtime 2.14.0 has no wheel for this Python; 3.11 is needed")
    folder = tmp_path_factory.mktemp("tflite-runtime")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
    installed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if installed.returncode:
        pytest.skip(f"pip can't get tflite-runtime: {installed.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_our_files_run(
    variant: str, interpreter: Path, random_graph, random_inputs, layer_differences, tmp_path: Path
) -> None:
    graphs = [random_graph(seed, rounding="tflite") for seed in range(GRAPHS)]
    inputs = [random_inputs(graph, 6) for graph in graphs]
    tensors = []
    for seed, (graph, stored) in enumerate(zip(graphs, inputs, strict=True)):
        content = exporter.build_model(graph, **VARIANTS[variant])
        stored_in_file = stored_tensors(content)
        traced = with_outputs(content, list(stored_in_file.values()))
        tensors.append(list(stored_in_file))
        images = graph.input.quantization.dequantize(stored) if variant == "float" else stored
        for name, model in {"plain": content, "traced": traced}.items():
            (tmp_path / f"{name}-{seed}.tflite").write_bytes(model)
            np.save(tmp_path / f"{name}-{seed}.npy", images.transpose(0, 2, 3, 1))
    script = Path(__file__).with_name("run_tflite_runtime.py")
    subprocess.run([str(interpreter), str(script), str(tmp_path)], check=True, timeout=300)
    assert not {path.stem: path.read_text() for path in tmp_path.glob("*.error")}
    for seed, (graph, stored) in enumerate(zip(graphs, inputs, strict=True)):
        with np.load(tmp_path / f"plain-{seed}.reference.npz") as outputs:
            (found,) = outputs.values()
        expected = reference.run(graph, stored)
        wanted = graph.output.quantization.dequantize(expected) if variant == "float" else expected
        assert (found == wanted).all(), f"seed {seed}"
        with np.load(tmp_path / f"traced-{seed}.optimized.npz") as outputs:
            _, *shown = outputs.values()
            trace = dict(zip(tensors[seed], map(channels_first, shown), strict=True))
        differences = layer_differences(graph, {graph.input_name: stored, **trace})
        assert max(differences.values()) <= 1, f"seed {seed}"
