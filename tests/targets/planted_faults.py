"""A small network, and faults planted in its exported files: what a comparison layer by layer must find."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.graph import (
    Add,
    Conv2d,
    Flatten,
    IntegerGraph,
    Linear,
    Node,
    Quantization,
    TensorType,
    Weight,
)

PADDING = (1, 0, 0, 1)
FAULTS = {"padding": "down", "zero_point": "side", "bias": "side", "scale": "down"}
"""By fault, the layer in which it is planted. The padding is swapped, the zero point and one channel's bias are one too
high, one channel's scale is units in the last place off."""


def network() -> IntegerGraph:
    """A residual block. `down` has scales that are powers of two: many of its sums lie halfway between two integers."""
    rng = np.random.default_rng(3)

    def convolution(
        inputs: int, outputs: int, bits: int, scale: float, stride: int, padding: tuple[int, int, int, int]
    ) -> Conv2d:
        limit = 1 if bits == 2 else 3
        values = rng.integers(-limit, limit + 1, (outputs, inputs, 3, 3)).astype(np.int8)
        bias = rng.integers(-100, 100, outputs).astype(np.int32)
        weight = Weight(values, np.full(outputs, scale, np.float32), bits)
        return Conv2d(weight, bias, (stride, stride), padding)

    def step(scale: float, zero_point: int) -> Quantization:
        return Quantization(float(np.float32(scale)), zero_point)

    nodes = (
        Node("stem", convolution(2, 4, 8, 2.0**-4, 1, (1, 1, 1, 1)), ("x",), TensorType((4, 6, 6), step(2.0**-3, -5))),
        Node("down", convolution(4, 6, 2, 2.0**-4, 2, PADDING), ("stem",), TensorType((6, 3, 3), step(2.0**-4, 3))),
        Node("side", convolution(4, 6, 4, 0.06, 2, PADDING), ("stem",), TensorType((6, 3, 3), step(0.127, 7))),
        Node("sum", Add(), ("down", "side"), TensorType((6, 3, 3), step(0.2, 0))),
        Node("flat", Flatten(), ("sum",), TensorType((54,), step(0.2, 0))),
        Node(
            "head",
            Linear(
                Weight(rng.integers(-7, 8, (5, 54)).astype(np.int8), np.full(5, 0.05, np.float32), 4),
                rng.integers(-50, 50, 5).astype(np.int32),
            ),
            ("flat",),
            TensorType((5,), step(0.5, 0)),
        ),
    )
    source = TensorType((2, 6, 6), step(2.0**-5, -10))
    return IntegerGraph("faulty", "x", source, nodes, class_names=tuple("abcde"))


def plant(directory: Path, target: str, fault: str, units: int = 1) -> None:
    """Change one number in an export's files: a scale by so many units in the last place."""
    _PLANTERS[target](directory, fault, FAULTS[fault], units)


def _off(scale: float | np.floating, units: int) -> np.float32:
    """Return a scale that is so many units in its last place higher."""
    return np.float32(scale) + np.spacing(np.float32(scale)) * np.float32(units)


def _swapped(padding: Sequence[int]) -> list[int]:
    return [*padding[2:], *padding[:2]]


def _plant_onnx(directory: Path, fault: str, layer: str, units: int) -> None:
    import onnx
    from onnx import numpy_helper

    from kdpipe.targets.onnx import stored_name

    path = directory / "model.onnx"
    model = onnx.load(path)
    producers = {output: node for node in model.graph.node for output in node.output}
    rounding = producers[stored_name(layer)]
    convolution = producers[rounding.input[0]]
    weight, bias = (producers[name] for name in convolution.input[1:])

    def change(node: onnx.NodeProto, index: int, edit: Callable[[NDArray], None]) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[index])
        values = numpy_helper.to_array(tensor).copy()
        edit(values.reshape(-1))
        # Other nodes may read the same constant.
        model.graph.initializer.append(numpy_helper.from_array(values, "planted"))
        node.input[index] = "planted"

    def add_first(values: NDArray) -> None:
        values[0] += 1

    def off_first(values: NDArray) -> None:
        values[0] = _off(values[0], units)

    if fault == "padding":
        (pads,) = (attribute for attribute in convolution.attribute if attribute.name == "pads")
        pads.ints[:] = _swapped(list(pads.ints))
    elif fault == "zero_point":
        change(rounding, 2, add_first)
    elif fault == "bias":
        change(bias, 0, add_first)
    else:
        change(weight, 1, off_first)
    onnx.save(model, path)


def _plant_openvino(directory: Path, fault: str, layer: str, units: int) -> None:
    path, constants = directory / "model.xml", directory / "model.bin"
    tree = ElementTree.parse(path)  # noqa: S314 - our own file
    layers = {element.get("id"): element for element in tree.iter("layer")}
    sources = {(e.get("to-layer"), e.get("to-port")): e.get("from-layer") for e in tree.iter("edge")}

    def inputs(element: ElementTree.Element) -> list[ElementTree.Element]:
        found = element.find("input")
        return [layers[sources[element.get("id"), port.get("id")]] for port in ([] if found is None else found)]

    (rounding,) = (e for e in layers.values() if e.get("name") == layer and e.get("type") == "FakeQuantize")
    sums, *limits = inputs(rounding)
    convolution, bias = inputs(sums)
    weights = inputs(convolution)[1]
    content = bytearray(constants.read_bytes())

    def stored(constant: ElementTree.Element) -> NDArray[np.float32]:
        offset, size = (int(constant.find("data").get(name)) for name in ("offset", "size"))
        return np.frombuffer(bytes(content[offset : offset + size]), np.float32).copy()

    def first(constant: ElementTree.Element) -> np.float32:
        return stored(constant)[0]

    def change(constant: ElementTree.Element, difference: np.float32) -> None:
        values = stored(constant)
        values[0] += difference
        # Constants of equal bytes share their place in the file: this one gets a place of its own, aligned.
        content.extend(bytes(-len(content) % 64))
        constant.find("data").set("offset", str(len(content)))
        content.extend(values.tobytes())

    step = (first(limits[1]) - first(limits[0])) / np.float32(255)
    if fault == "padding":
        data = convolution.find("data")
        begin, end = data.get("pads_begin"), data.get("pads_end")
        data.set("pads_begin", end)
        data.set("pads_end", begin)
    elif fault == "zero_point":
        # What goes in is rounded with the same two constants: what comes out gets two of its own.
        for port, limit in zip((3, 4), limits[2:], strict=True):
            planted = deepcopy(limit)
            planted.set("id", str(1000 + port))
            planted.set("name", f"planted{port}")
            tree.find("layers").append(planted)
            (edge,) = (
                e for e in tree.iter("edge") if (e.get("to-layer"), e.get("to-port")) == (rounding.get("id"), str(port))
            )
            edge.set("from-layer", planted.get("id"))
            change(planted, step)
    elif fault == "bias":
        change(bias, np.float32(2.0**-3) * first(inputs(weights)[1]))
    else:
        scale = inputs(weights)[1]
        change(scale, _off(first(scale), units) - first(scale))
    constants.write_bytes(content)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _plant_tflite(directory: Path, fault: str, layer: str, units: int) -> None:
    from kdpipe.targets.tflite_model import pack_model, unpack_model

    path = directory / "model.tflite"
    model = unpack_model(path.read_bytes())
    (graph,) = model.subgraphs
    tensors = {tensor.name.decode(): tensor for tensor in graph.tensors}

    def change(name: str, dtype: type, edit: Callable[[NDArray], None]) -> None:
        buffer = model.buffers[tensors[name].buffer]
        values = np.frombuffer(bytes(buffer.data), dtype).copy()
        edit(values)
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)

    def swap(values: NDArray) -> None:
        values[2:6] = [values[3], values[2], values[5], values[4]]

    def add_first(values: NDArray) -> None:
        values[0] += 1

    if fault == "padding":
        change(f"{layer}/padding", np.int32, swap)
    elif fault == "zero_point":
        quantization = tensors[f"{layer}/stored"].quantization
        quantization.zeroPoint = quantization.zeroPoint + 1
    elif fault == "bias":
        change(f"{layer}/bias", np.int32, add_first)
    else:
        quantization = tensors[f"{layer}/weight"].quantization
        quantization.scale = np.array([_off(quantization.scale[0], units), *quantization.scale[1:]], np.float32)
    path.write_bytes(pack_model(model))


def _plant_c(directory: Path, fault: str, layer: str, units: int) -> None:
    path = directory / "model_weights.c"
    text = path.read_text(encoding="utf-8")
    index = [node.name for node in network().nodes].index(layer)

    def change(pattern: str, edit: Callable[[list[int]], list[int]]) -> str:
        found = re.search(pattern, text)
        numbers = ", ".join(map(str, edit([int(number) for number in found[1].split(",")])))
        return text[: found.start(1)] + numbers + text[found.end(1) :]

    def add_first(numbers: list[int]) -> list[int]:
        return [numbers[0] + 1, *numbers[1:]]

    if fault == "padding":
        # Of top and left; the sizes say the rest.
        pattern = rf"_layer{index} = {{(?:-?\d+, ){{10}}(\d+, \d+),"
        changed = change(pattern, lambda numbers: numbers[::-1])
    elif fault == "zero_point":
        changed = change(rf"{{faulty_multipliers{index}, faulty_shifts{index}, (-?\d+),", add_first)
    elif fault == "bias":
        changed = change(rf"faulty_bias{index}\[\d+\] = {{\s*(-?\d+),", add_first)
    else:
        # The scale's last place, in the fixed point that C has it in.
        changed = change(rf"faulty_multipliers{index}\[\d+\] = {{\s*(\d+),", lambda numbers: [numbers[0] + units])
    assert changed != text
    path.write_text(changed, encoding="utf-8")


_PLANTERS = {"onnx": _plant_onnx, "openvino": _plant_openvino, "tflite": _plant_tflite, "c": _plant_c}
