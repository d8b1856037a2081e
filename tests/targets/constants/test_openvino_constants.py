"""One unit in any number of an OpenVINO IR is noticed, and the layer named whose number it is."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from kdpipe.targets import openvino as exporter
from kdpipe.targets.constants.comparison import differing_constants, graph_constants
from kdpipe.targets.constants.openvino import read
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.graph import (
    Add,
    AveragePool2d,
    ChannelShuffle,
    Concat,
    Conv2d,
    Flatten,
    IntegerGraph,
    Linear,
    Lookup,
    MaxPool2d,
    Mul,
    Node,
    Operator,
    Quantization,
    Requantize,
    Slice,
    TensorType,
    Upsample,
    Weight,
)

pytest.importorskip("openvino")


def network() -> IntegerGraph:
    """Every kind of number: weights of each width, narrow ranges, coarse steps, and a convolution to one column."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = []

    def steps(scale: float, *rest: int) -> Quantization:
        return Quantization(float(np.float32(scale)), *rest)

    def add(name: str, op: Operator, inputs: str, shape: tuple[int, ...], q: Quantization) -> None:
        nodes.append(Node(name, op, tuple(inputs.split()), TensorType(shape, q)))

    def weights(bits: int, *shape: int) -> tuple[Weight, np.ndarray]:
        limit = 2 ** (bits - 1) - 1
        values = rng.integers(-limit, limit + 1, shape).astype(np.int8)
        scales = rng.uniform(0.01, 0.02, shape[0]).astype(np.float32)
        return Weight(values, scales, bits), rng.integers(-90, 90, shape[0]).astype(np.int32)

    q, narrow = steps(0.11, -3), steps(0.05, -20, -100, 27)
    add("wide", Conv2d(*weights(8, 4, 2, 3, 3), padding=(1, 1, 1, 0)), "x", (4, 6, 5), steps(0.2, -128, -128, 99))
    add("depthwise", Conv2d(*weights(4, 4, 1, 3, 3), (2, 2), (1, 1, 1, 1), groups=4), "wide", (4, 3, 3), q)
    add("ternary", Conv2d(*weights(2, 4, 4, 1, 1)), "depthwise", (4, 3, 3), steps(0.5, 4))
    add("sum", Add(), "depthwise ternary", (4, 3, 3), q)
    add("product", Mul(), "sum ternary", (4, 3, 3), q)
    add("finer", Requantize(), "product", (4, 3, 3), narrow)
    add("maximum", MaxPool2d((2, 2), (1, 1), (0, 0, 1, 1)), "finer", (4, 3, 3), narrow)
    add("mean", AveragePool2d((2, 1), (1, 2)), "maximum", (4, 2, 2), narrow)
    add("part", Slice(1, 3), "mean", (2, 2, 2), narrow)
    add("joined", Concat(), "part mean", (6, 2, 2), narrow)
    add("shuffled", ChannelShuffle(3), "joined", (6, 2, 2), narrow)
    add("large", Upsample((2, 3)), "shuffled", (6, 4, 6), narrow)
    add("column", Conv2d(*weights(3, 4, 6, 2, 6), (1, 2)), "large", (4, 3, 1), q)
    add("swish", Lookup("hard_swish"), "column", (4, 3, 1), q)
    add("flat", Flatten(), "swish", (12,), q)
    add("head", Linear(*weights(2, 5, 12)), "flat", (5,), steps(0.3, -7))
    return IntegerGraph("net", "x", TensorType((2, 6, 6), steps(0.03, 5, -90, 127)), tuple(nodes))


ATTRIBUTES = {
    "Clamp": ("min", "max"),
    "FakeQuantize": ("levels",),
    "Convolution": ("strides", "pads_begin", "pads_end", "dilations"),
    "GroupConvolution": ("strides", "pads_begin", "pads_end", "dilations"),
    "AvgPool": ("strides", "pads_begin", "pads_end", "kernel"),
    "MaxPool": ("strides", "pads_begin", "pads_end", "kernel"),
}


class File:
    """An IR's two files, of which copies with one other number are written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.text = (directory / "model.xml").read_bytes()
        self.constants = (directory / "model.bin").read_bytes()

    def faults(self) -> Iterator[tuple[str, str]]:
        """Plant one fault after the other; yield what it is and the layer that it is in."""
        for index, element in enumerate(ElementTree.fromstring(self.text).iter("layer")):  # noqa: S314 - our own file
            kind = element.get("type")
            for name in ATTRIBUTES.get(kind, ()):
                yield f"{kind} {name}", self._write(index, lambda e, name=name: self._change(e.find("data"), name))
            if kind == "Const":
                yield f"{element.get('name')}", self._write(index, self._extend)

    def _write(self, index: int, edit) -> str:
        tree = ElementTree.fromstring(self.text)  # noqa: S314 - our own file
        element = list(tree.iter("layer"))[index]
        (self.directory / "model.bin").write_bytes(self.constants + (edit(element) or b""))
        (self.directory / "model.xml").write_bytes(ElementTree.tostring(tree))
        return self._layer(tree, element)

    @staticmethod
    def _change(data: ElementTree.Element, name: str) -> None:
        first, *rest = data.get(name).split(",")
        real = name in ("min", "max")
        changed = repr(float(np.nextafter(np.float32(first), np.float32(np.inf)))) if real else str(int(first) + 1)
        data.set(name, ",".join([changed, *rest]))
        if name == "pads_begin":  # the shape stays
            first, *rest = data.get("pads_end").split(",")
            data.set("pads_end", ",".join([str(int(first) - 1), *rest]))

    def _extend(self, element: ElementTree.Element) -> bytes:
        """Give a constant a place of its own behind all others, and return what is written there."""
        data = element.find("data")
        offset, size = int(data.get("offset")), int(data.get("size"))
        content = bytearray(self.constants[offset : offset + size])
        if data.get("element_type") == "f32":
            values = np.frombuffer(content, np.float32).copy()
            values[-1] = np.nextafter(values[-1], np.float32(np.inf))
            content = bytearray(values.tobytes())
        else:
            content[0] ^= 1
        filling = -len(self.constants) % 64
        data.set("offset", str(len(self.constants) + filling))
        return bytes(filling) + bytes(content)

    @staticmethod
    def _layer(tree: ElementTree.Element, element: ElementTree.Element) -> str:
        """Follow the edges to the first tensor that is a layer's output, and return the layer's name."""
        elements = {each.get("id"): each for each in tree.iter("layer")}
        readers = {edge.get("from-layer"): edge.get("to-layer") for edge in tree.iter("edge")}
        while True:
            names = [port.get("names", "") for port in element.iter("port")]
            for name in ",".join(names).split(","):
                if name.endswith("/output"):
                    return name.removesuffix("/output")
            element = elements[readers[element.get("id")]]


def test_one_unit_in_any_number_is_noticed_with_its_layer(tmp_path: Path) -> None:
    graph = network()
    exporter.export(graph, tmp_path)
    expected = graph_constants(graph)

    def differing() -> dict[str, tuple[str, ...]] | None:
        try:
            found = read(tmp_path)
        except DeviceError:
            return None
        assert found.keys() == expected.keys()
        words = {layer: differing_constants(expected[layer], constants) for layer, constants in found.items()}
        return {layer: said for layer, said in words.items() if said}

    assert differing() == {}
    kinds: dict[str, set[str]] = {}
    for what, layer in File(tmp_path).faults():
        found = differing()
        if found is None:
            # OpenVINO itself refuses what changes a shape.
            assert what.partition(" ")[2] or layer in ("part", "large", "column"), what
            continue
        assert found.keys() == {layer}, what
        kinds.setdefault(layer, set()).update(re.split(r" is |\[|:", words)[0] for words in found[layer])
    weighty = {"weights", "weight scales", "real bias", "levels", "scale"}
    assert kinds == {
        "x": {"limits", "levels", "scale"},
        "wide": weighty | {"limits", "window"},
        "depthwise": weighty | {"window"},
        "ternary": weighty | {"window"},
        "sum": {"coarse steps", "levels", "scale"},
        "product": {"coarse steps", "levels", "scale"},
        "finer": {"levels", "scale"},
        "maximum": {"window"},
        "mean": {"levels", "limits", "scale"},
        "large": {"arguments"},
        "column": weighty | {"window"},
        "swish": {"levels", "scale"},
        "flat": {"arguments"},
        "head": weighty,
    }
