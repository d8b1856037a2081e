"""What exported files say of their layers is what the integer graph asks for, to the bit."""

from pathlib import Path

import numpy as np
import pytest
from fuzz.drawn_graphs import build_graph
from fuzz.examples import draw_examples

from kdpipe.targets.constants.comparison import differing_constants, graph_constants
from kdpipe.targets.constants.files import file_constants
from kdpipe.targets.errors import DeviceError, UnsupportedError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear

ROUNDING = {"Conv2d", "Linear", "Add", "Mul", "AveragePool2d", "Lookup", "Softmax", "Requantize"}
WEIGHTS = {"weights", "weight_scales", "bias"}
KINDS = {
    "onnx": {"scale", "zero_point", "input_scales"} | WEIGHTS,
    "openvino": {"scale", "zero_point", "weights", "weight_scales", "real_bias"}
    | {"levels", "limits", "coarse_steps", "window", "arguments"},
    "tflite": {"scale", "zero_point"} | WEIGHTS,
    "c": {"start", "multipliers", "shifts"},
}


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("onnx", {}),
        ("onnx", {"weights": "int8"}),
        ("openvino", {}),
        ("tflite", {}),
        ("tflite", {"weights": "int8", "io": "float32"}),
        ("c", {}),
        ("c", {"core": "cortex-m4"}),
        ("c", {"core": "cortex-m0plus"}),
    ],
)
def test_every_constant_is_the_graphs(target: str, options: dict[str, str], random_graph, tmp_path: Path) -> None:
    """On ordinary graphs and on extreme ones."""
    graphs: list[IntegerGraph] = [random_graph(seed) for seed in range(8)]
    graphs += [example.value for example in draw_examples(build_graph, 12, 0)]
    seen: set[str] = set()
    for number, graph in enumerate(graphs):
        directory = tmp_path / str(number)
        directory.mkdir()
        try:
            EXPORTERS[target].export(graph, directory, **options)
        except UnsupportedError:
            continue
        expected, found = graph_constants(graph), file_constants(directory, target)
        for layer, constants in found.items():
            assert differing_constants(expected[layer], constants) == (), (number, layer)
            seen |= set(constants)
        weighty = {node.name for node in graph.nodes if isinstance(node.op, Conv2d | Linear)}
        rounding = {node.name for node in graph.nodes if type(node.op).__name__ in ROUNDING}
        if "core" not in options:
            assert (weighty if target == "c" else rounding) <= set(found)
    assert seen == KINDS[target]


def test_what_differs_is_said_to_the_bit() -> None:
    scales = np.array([0.0625, 0.25, 0.5], np.float32)
    expected = {"weight_scales": scales, "scale": np.float32(1), "bias": np.arange(3), "shifts": np.arange(3)}
    found = {
        "weight_scales": np.nextafter(scales, np.float32([1, 0.25, 1])),
        "scale": np.float32(1),
        "bias": np.arange(2),
        "zero_point": np.int64(3),
    }
    assert differing_constants(expected, found) == (
        "weight scales[0] is 0x1.0000020000000p-4 instead of 0x1.0000000000000p-4, and 1 more",
        "bias: 2 instead of 3",
    )


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
def test_a_file_that_is_cut_short_is_an_error(target: str, random_graph, tmp_path: Path) -> None:
    (path, *_) = EXPORTERS[target].export(random_graph(0), tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DeviceError, match=path.name):
        file_constants(tmp_path, target)
