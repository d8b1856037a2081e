"""Batch norms that follow no layer of their own, as in DenseNet and in residual blocks with pre-activation."""

from __future__ import annotations

from torch import nn

from kdpipe.stages.quantization.normalized import Normalized
from kdpipe.stages.quantization.tracing import SCOPE
from kdpipe.targets.lower import PATH, SHAPE


def give_a_layer(result: Normalized) -> None:
    """Put a depthwise 1x1 convolution of ones before every nn.BatchNorm2d that no layer stands before.

    The norm is absorbed into its scales like any other: one multiplication a channel, on the integers that are stored
    before it. The ones are not trained: the norm's own parameters do what they could.
    """
    for node in list(result.graph.nodes):
        norm = result.module(node)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.all_input_nodes[0]
        if isinstance(result.module(before), nn.Conv2d | nn.Linear) and len(before.users) == 1:
            continue
        channels = norm.num_features
        ones = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        nn.init.ones_(ones.weight).requires_grad_(False)
        statistics = norm.running_mean
        path = result.insert(node.meta[PATH], ones.to(statistics.device if statistics is not None else None))
        with result.graph.inserting_before(node):
            layer = result.graph.call_module(path, (before,))
        layer.meta.update({SCOPE: node.meta.get(SCOPE, ""), PATH: node.meta[PATH], SHAPE: node.meta.get(SHAPE)})
        node.replace_input_with(before, layer)
