"""The random graphs are worth comparing on: valid, varied, reproducible, and not saturated everywhere."""

from collections import Counter
from typing import get_args

import numpy as np

from kdpipe.targets import reference
from kdpipe.targets.graph import Operator


def test_they_are_reproducible(random_graph, random_inputs) -> None:
    first, second = random_graph(3), random_graph(3)
    inputs = random_inputs(first, 2)
    assert (reference.run(first, inputs) == reference.run(second, inputs)).all()


def test_they_cover_every_operator_and_width_and_their_outputs_vary(random_graph, random_inputs) -> None:
    operators, widths, activation_bits, flat = Counter(), Counter(), Counter(), 0
    for seed in range(200):
        graph = random_graph(seed)
        operators.update(type(node.op).__name__ for node in graph.nodes)
        widths.update(weight.bits for _, weight in graph.weights())
        activation_bits.update(node.output.quantization.bits for node in graph.nodes)
        outputs = reference.run(graph, random_inputs(graph, 8))
        flat += int(np.unique(outputs).size < 3)
    assert set(operators) == {operator.__name__ for operator in get_args(Operator)}
    assert set(widths) == {2, 3, 4, 8}
    assert {2, 4, 8} <= set(activation_bits)
    assert flat <= 50
