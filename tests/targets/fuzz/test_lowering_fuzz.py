"""Random quantized torch networks: what is simulated, tensor by tensor, is what the lowered integer graph computes."""

from collections import Counter

import numpy as np
import pytest
import torch
from fuzz.conftest import SLICE
from fuzz.drawn_networks import DrawnNetwork, build_network
from fuzz.examples import draw_examples, shrink

from kdpipe.stages.quantization.activations import calibrating
from kdpipe.stages.quantization.fidelity import Fidelity, compare
from kdpipe.stages.quantization.prepare import input_quantizer, prepare
from kdpipe.targets.errors import GraphError
from kdpipe.targets.lower import lower


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def fidelity(network: DrawnNetwork) -> Fidelity:
    prepared = prepare(network.module, network.images[:2], network.config)
    input_quantizer(prepared).set_range(-3, 3)
    with torch.no_grad(), calibrating(prepared):
        prepared(network.images)
    prepared.eval()
    shape = tuple(network.images.shape[1:])
    graph = lower(prepared, shape, name="g", rounding=network.config.rounding)
    return compare(prepared, graph, network.images)


def fails(network: DrawnNetwork) -> bool:
    try:
        return fidelity(network).max_step_difference > 1
    except GraphError:
        return False


def test_simulated_networks_equal_their_integer_graphs(lowering_slice: int, count: Counter[str]) -> None:
    """Every layer to one step, and of all elements at least 99.9 % exactly."""
    shares, failing = [], []
    for example in draw_examples(build_network, SLICE, lowering_slice):
        try:
            found = fidelity(example.value)
        except GraphError as error:
            count[f"refused: lowering, {error.message[:40]}"] += 1
            continue
        count["networks lowered"] += 1
        shares += found.exact.values()
        if found.max_step_difference > 1:
            failing.append(example)
    if failing:
        network = shrink(build_network, failing[0], fails)
        pytest.fail(f"{len(failing)} networks differ. The first, shrunk: {network.module} {network.config}", False)
    assert np.mean(shares) >= 0.999
