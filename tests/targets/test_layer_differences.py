"""Two runs compared layer by layer: the figures, the first layer that diverges, and each layer by itself."""

from dataclasses import replace

import numpy as np
import pytest

from kdpipe.targets.devices.host import create
from kdpipe.targets.devices.tracing import shown_layers, trace_on_device
from kdpipe.targets.errors import UsageError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph import IntegerGraph, Linear, Quantization, TensorType, Weight
from kdpipe.targets.layer_differences import (
    LayerDifference,
    Trace,
    compare_layers,
    default_limit,
    first_divergent_layer,
    trace_graph,
)
from kdpipe.targets.rounding_slack import FLOAT_SLACK, rounding_slack
from kdpipe.targets.unrounded import unrounded

STEP = Quantization(0.5, 1)


def stored(*values: int) -> np.ndarray:
    return np.array([values], np.int8)


def test_the_figures_of_a_layer() -> None:
    a = Trace("c", {"x": stored(1, 3, 5, 7)}, {"x": STEP})
    b = Trace("c", {"x": stored(1, 3, 5, 4)}, {"x": STEP})
    (layer,) = compare_layers(a, b)
    # Real numbers 0, 1, 2, 3 and 0, 1, 2, 1.5: 10 log10(14 / 2.25).
    assert layer == LayerDifference("x", 3, 0.75, pytest.approx(7.9397, abs=1e-3), None, None)
    assert first_divergent_layer([layer], 2) == "x"
    assert first_divergent_layer([layer], 3) is None
    assert first_divergent_layer([layer], None) is None


def test_differences_do_not_overflow() -> None:
    wide = Quantization(1.0, 0)
    a, b = (Trace("c", {"x": stored(value)}, {"x": wide}) for value in (-128, 127))
    assert compare_layers(a, b)[0].steps == 255


def test_a_float_network_is_compared_in_steps_of_the_other() -> None:
    a = Trace("torch", {"x": np.array([[0.1, 1.4]], np.float32)})
    b = Trace("onnx", {"x": stored(1, 3)}, {"x": STEP})
    for pair in ((a, b), (b, a)):
        (layer,) = compare_layers(*pair)
        # 0.1 rounds to 0, which is stored as 1; 1.4 to 1.5, but 1.0 is stored.
        assert layer.steps == pytest.approx(0.8)
        assert layer.exact == 0.5
        assert default_limit(*pair) is None
    (layer,) = compare_layers(a, a)
    assert (layer.steps, layer.exact, layer.snr_db) == (None, 1.0, None)


def test_two_quantizations_are_compared_as_real_numbers() -> None:
    a = Trace("c", {"x": stored(3)}, {"x": STEP})
    b = Trace("c", {"x": stored(3)}, {"x": Quantization(0.25, 0)})
    assert compare_layers(a, b)[0].steps == 1.0


def test_what_has_nothing_in_common_is_refused() -> None:
    a, b = (Trace("c", {name: stored(0)}, {name: STEP}) for name in "xy")
    with pytest.raises(UsageError, match="no layer in common"):
        compare_layers(a, b)
    with pytest.raises(UsageError, match=r"shape \[1\] in one and \[2\]"):
        compare_layers(a, Trace("c", {"x": stored(0, 0)}, {"x": STEP}))


def test_the_first_divergent_layer_is_named(random_graph, random_inputs) -> None:
    graph: IntegerGraph = random_graph(6, depth=3, operators=("conv",), narrow=False)
    a = trace_graph(graph, random_inputs(graph, 4))
    tensors = dict(a.tensors)
    assert first_divergent_layer(compare_layers(a, a)) is None
    names = [node.name for node in graph.nodes]
    for name in (names[-1], names[1]):
        tensors[name] = tensors[name] ^ np.int8(1)
        layers = compare_layers(a, Trace("c", tensors, a.quantizations))
        assert first_divergent_layer(layers) == name
        assert first_divergent_layer(layers, "rounding") == name
    # What is not traced can't be compared, nor what reads it be judged by itself.
    del tensors[names[1]]
    layers = compare_layers(a, Trace("c", tensors, a.quantizations))
    assert [layer.name for layer in layers] == [graph.input_name, names[0], *names[2:]]
    assert [layer.own_steps is None for layer in layers][:3] == [False, False, True]
    assert first_divergent_layer(layers) == names[-1]


def test_a_layer_that_only_reads_what_differs_is_exact_by_itself(random_graph, random_inputs) -> None:
    graph: IntegerGraph = random_graph(6, depth=3)
    inputs = random_inputs(graph, 4)
    a = trace_graph(graph, inputs)
    b = replace(trace_graph(graph, inputs ^ np.int8(1)), format="c", graph=None)
    by_name = {layer.name: layer for layer in compare_layers(a, b)}
    assert by_name[graph.input_name].own_steps == 1
    assert by_name[graph.nodes[0].name].steps > 0
    assert {layer.own_steps for name, layer in by_name.items() if name != graph.input_name} == {0}


def test_default_limits(random_graph, random_inputs) -> None:
    graph = random_graph(0)
    reference = trace_graph(graph, random_inputs(graph, 1))

    def limit(other: str) -> object:
        return default_limit(reference, Trace(other, reference.tensors, reference.quantizations))

    assert [limit(name) for name in ("c", "integer-graph")] == [0, 0]
    assert {limit(name) for name in ("onnx", "openvino", "tflite", "quantized-torch")} == {"rounding"}
    assert limit("torch") is None
    assert default_limit(Trace("onnx", {}), Trace("tflite", {})) == 0


def test_unrounded_numbers_round_to_the_references(random_graph, random_inputs) -> None:
    seen = set()
    for seed in range(20):
        graph = random_graph(seed, rounding="single")
        trace = trace_graph(graph, random_inputs(graph, 2))
        for node in graph.nodes:
            values = [trace.tensors[name] for name in node.inputs]
            exact = unrounded(node.op, values, [graph.tensor(name) for name in node.inputs], node.output)
            if exact is not None:
                seen.add(type(node.op).__name__)
                assert np.abs(exact - trace.tensors[node.name]).max() <= 0.5 + 1e-4, node
    assert seen == {"Conv2d", "Linear", "Add", "Mul", "Lookup", "Softmax", "AveragePool2d", "Requantize"}


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
def test_runtimes_round_within_their_slack(target, random_graph, random_inputs, tmp_path) -> None:
    """What keeps a correct runtime from being blamed."""
    for seed in range(20):
        graph = random_graph(seed, rounding=("single", "tflite")[seed % 2])
        EXPORTERS[target].export(graph, tmp_path)
        inputs = random_inputs(graph, 4)
        a = trace_graph(graph, inputs)
        b = trace_on_device(create(), tmp_path, target, inputs, graph.quantizations())
        assert first_divergent_layer(compare_layers(a, b), default_limit(a, b)) is None, seed


def test_slack_of_two_roundings() -> None:
    source = TensorType((1,), Quantization(1.0, 0))
    weight = Weight(np.ones((2, 1), np.int8), np.array([0.4, 1.0], np.float32), 8)
    layer = Linear(weight, np.zeros(2, np.int32))
    assert rounding_slack("onnx", layer, [stored(1)], [source], source) == FLOAT_SLACK
    # 0.4 is 0.8 shifted once: the first rounding is to halves. 1.0 needs no shift to the right.
    slack = rounding_slack("tflite", layer, [stored(1)], [source], source)
    np.testing.assert_allclose(slack, [0.25 + FLOAT_SLACK, FLOAT_SLACK])


def test_showing_a_layer_must_not_change_the_output() -> None:
    """A runtime that computes something else as soon as `b` or `d` is shown."""
    asked = []

    def run(names):
        asked.append(tuple(names))
        return np.array(bool({"b", "d"} & set(names))), {name: np.array(ord(name)) for name in names}

    assert list(shown_layers(run, "abcde", fused=True)) == ["a", "c", "e"]
    assert asked[0] == ()
    asked.clear()
    assert list(shown_layers(run, "abcde", fused=True, suspects="bde")) == ["a", "c"]
    assert asked == [(), tuple("abcde"), ("a", "c")]
    assert list(shown_layers(run, "abcde", fused=False)) == list("abcde")
    assert asked[-1] == tuple("abcde")
