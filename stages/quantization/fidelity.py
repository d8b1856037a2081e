"""The trained module against the integer graph lowered from it: the same arithmetic, compared tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from kdpipe.stages.quantization.activations import ActivationQuantizer, InputQuantizer
from kdpipe.stages.quantization.softmax import ProbabilityQuantizer
from kdpipe.targets import reference
from kdpipe.targets.graph import IntegerGraph, Quantization


@dataclass(frozen=True)
class Fidelity:
    """How the integer reference agrees with the module in evaluation mode.

    Args:
        exact: by tensor of the integer graph, the share of elements that are equal.
        max_step_difference: the largest difference of any stored integer.
        top1_agreement: the share of images with the same largest logit.
    """

    exact: dict[str, float]
    max_step_difference: int
    top1_agreement: float

    @property
    def worst(self) -> tuple[str, float]:
        """The tensor with the smallest share of equal elements, and that share."""
        return min(self.exact.items(), key=lambda item: item[1])


def compare(module: fx.GraphModule, graph: IntegerGraph, images: Tensor) -> Fidelity:
    """Run both on the same images.

    Args:
        module: prepared and trained; run in evaluation mode, on its device.
        graph: lowered from it.
        images: normalized, float32 [N, C, H, W].
    """
    simulated = stored_integers(module, images, graph)
    computed = reference.run_all(graph, graph.input.quantization.quantize(images.cpu().numpy()))
    exact: dict[str, float] = {}
    largest = 0
    for name, integers in simulated.items():
        difference = np.abs(integers - computed[name].astype(np.int64))
        exact[name] = float((difference == 0).mean())
        largest = max(largest, int(difference.max()))
    output = simulated[graph.output_name].argmax(axis=1) == computed[graph.output_name].argmax(axis=1)
    return Fidelity(exact, largest, float(output.mean()))


@torch.no_grad()
def stored_integers(module: fx.GraphModule, images: Tensor, graph: IntegerGraph) -> dict[str, NDArray[np.int64]]:
    """Return what a prepared module stores behind its quantizers and returns, in evaluation mode, by the tensor's name.

    Args:
        module: prepared.
        images: float32 [N, C, H, W].
        graph: lowered from it; names and types the output, which need not be a quantizer's.
    """
    found: dict[str, NDArray[np.int64]] = {}

    def to_integers(real: Tensor, q: Quantization) -> NDArray[np.int64]:
        stored: NDArray[np.int64] = np.rint(real.cpu().numpy() / np.float32(q.scale)).astype(np.int64) + q.zero_point
        return stored

    class Recorder(fx.Interpreter):
        def call_module(self, target, args, kwargs):  # type: ignore[no-untyped-def]
            result = super().call_module(target, args, kwargs)
            quantizer = module.get_submodule(target)
            if isinstance(quantizer, ActivationQuantizer | InputQuantizer | ProbabilityQuantizer):
                found[quantizer.name] = to_integers(result, quantizer.quantization())
            return result

    training = module.training
    module.eval()
    try:
        returned = Recorder(module).run(images.to(next(module.parameters()).device))
        found[graph.output_name] = to_integers(returned, graph.output.quantization)
    finally:
        module.train(training)
    return found
