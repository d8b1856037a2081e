"""The trained module against the integer graph lowered from it: the same arithmetic, compared tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from kdpipe.stages.quantization.activations import ActivationQuantizer, InputQuantizer
from kdpipe.stages.quantization.softmax import ProbabilityQuantizer
from kdpipe.stages.quantization.stored_operations import REARRANGEMENTS
from kdpipe.stages.quantization.weights import QuantizedConv2d, QuantizedLinear
from kdpipe.targets import reference
from kdpipe.targets.graph import IntegerGraph
from kdpipe.targets.lower import PATH

Quantizer = ActivationQuantizer | InputQuantizer | ProbabilityQuantizer

KEEPING = (nn.MaxPool2d, nn.AvgPool2d, *REARRANGEMENTS)
"""Modules without a quantizer of their own, whose output the integer graph stores as its input is stored."""


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


def stored_integers(module: fx.GraphModule, images: Tensor, graph: IntegerGraph) -> dict[str, NDArray[np.int64]]:
    """Return what a prepared module stores and returns, in evaluation mode, by the tensor's name.

    Args:
        module: prepared.
        images: float32 [N, C, H, W].
        graph: lowered from it; names and types the tensors.
    """
    found = {}
    for name, real in layer_outputs(module, images, graph.output_name).items():
        q = graph.tensor(name).quantization
        found[name] = np.rint(real / np.float32(q.scale)).astype(np.int64) + q.zero_point
    return found


@torch.no_grad()
def layer_outputs(module: fx.GraphModule, images: Tensor, output_name: str) -> dict[str, NDArray[np.float32]]:
    """Return the real numbers of every tensor of the integer graph that a prepared module computes, by its name.

    Args:
        module: prepared; run in evaluation mode, on its device.
        images: float32 [N, C, H, W].
        output_name: of what it returns, where that is none of its layers' own.
    """
    found: dict[str, NDArray[np.float32]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            part = module.get_submodule(str(n.target)) if n.op == "call_module" else None
            if isinstance(part, Quantizer):
                found[part.name] = result.cpu().numpy()
            elif n.target is torch.flatten or isinstance(part, KEEPING):
                found[n.meta[PATH]] = result.cpu().numpy()
            return result

    training = module.training
    module.eval()
    try:
        # Not every network has parameters; the input's quantizer has buffers.
        output = Recorder(module).run(images.to(next(module.buffers()).device)).cpu().numpy()
    finally:
        module.train(training)
    if not any(np.shares_memory(output, tensor) for tensor in found.values()):
        found[output_name] = output
    return found


def unquantize(prepared: fx.GraphModule) -> fx.GraphModule:
    """Let a prepared module compute the float network that it was made from, in place, and return it.

    Its weights must be the float network's. Layers keep the names that they have in the integer graph.
    """
    for part in prepared.modules():
        if isinstance(part, Quantizer):
            part.observe()
        elif isinstance(part, QuantizedConv2d | QuantizedLinear):
            part.weight_quantizer = nn.Identity()  # type: ignore[assignment]
    return prepared
