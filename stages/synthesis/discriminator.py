"""The frozen teachers as what judges synthesized images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from kdpipe.stages.knowledge.taps import capture_inputs, classifier
from kdpipe.stages.synthesis.losses import (
    activation_loss,
    batch_norm_loss,
    information_entropy_loss,
    one_hot_loss,
)
from kdpipe.stages.synthesis.registry import SynthesisWeights
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.precision import FLOAT32, Precision


class Discriminator:
    """Loss terms of a batch of images, judged by all teachers: logits are averaged, the other terms too.

    Made by `watching`; the hooks live as long as its context.
    """

    def __init__(
        self,
        teachers: TeacherEnsemble,
        weights: SynthesisWeights,
        norms: list[list[nn.BatchNorm2d]],
        norm_inputs: dict[nn.Module, Tensor],
        feature_inputs: dict[nn.Module, Tensor],
        precision: Precision,
    ) -> None:
        self._teachers = teachers
        self._weights = weights
        self._norms = norms
        self._norm_inputs = norm_inputs
        self._feature_inputs = feature_inputs
        self._precision = precision

    @classmethod
    @contextmanager
    def watching(
        cls, teachers: TeacherEnsemble, weights: SynthesisWeights, precision: Precision = FLOAT32
    ) -> Iterator[Discriminator]:
        """Listen to the teachers' batch norms and classifiers, each only where its term has a weight.

        Whatever precision the teachers compute in, the terms are computed in float32.
        """
        norms = [
            [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
            for network in teachers.networks
        ]
        with ExitStack() as stack:
            watched = [m for layers in norms for m in layers] if weights.batch_norm else []
            norm_inputs = stack.enter_context(capture_inputs(watched))
            heads = [classifier(network) for network in teachers.networks] if weights.activation else []
            feature_inputs = stack.enter_context(capture_inputs(heads))
            yield cls(teachers, weights, norms, norm_inputs, feature_inputs, precision)

    def judge(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the weighted loss terms by name, and the mean logits [B, K], of normalized images [B, C, H, W].

        The batch-norm term is, for each teacher, the mean over its layers, so that a deep one does not outweigh a
        shallow one; then the sum over the teachers.
        """
        weights = self._weights
        logits = self._precision.compute(self._teachers, images)
        terms: dict[str, Tensor] = {}
        if weights.one_hot:
            terms["one_hot"] = weights.one_hot * one_hot_loss(logits)
        if weights.entropy:
            terms["entropy"] = weights.entropy * information_entropy_loss(logits)
        if self._feature_inputs:
            losses = [activation_loss(features.float().flatten(1)) for features in self._feature_inputs.values()]
            terms["activation"] = weights.activation * torch.stack(losses).mean()
        if self._norm_inputs:
            terms["batch_norm"] = weights.batch_norm * sum(
                (self._statistics(layers) for layers in self._norms if layers), torch.zeros((), device=images.device)
            )
        return terms, logits

    def _statistics(self, layers: list[nn.BatchNorm2d]) -> Tensor:
        means = [layer.running_mean for layer in layers]
        variances = [layer.running_var for layer in layers]
        return batch_norm_loss([self._norm_inputs[layer].float() for layer in layers], means, variances) / len(layers)
