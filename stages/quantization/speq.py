"""SPEQ: self-distillation from the same network with stochastically finer activations.

Boo et al. 2021, "Stochastic Precision Ensemble: Self-Knowledge Distillation for Quantized Deep Neural Networks"
(arXiv:2009.14502). Teacher and student share the quantized weights. For each batch every layer l of the teacher draws

    b_l = teacher_bits with probability u, else n_A

and, with z_T = stopgrad f(x; Q(W), b) and z_S = f(x; Q(W), n_A),

    L_speq = T^2 * (1 - cos(softmax(z_T / T), softmax(z_S / T))).

The paper's high precision is 8 bits, which for n_A = 8 would make teacher and student one. There the finer precision
is float: activations clipped as the student's are, but not rounded. At 8 bits rounding changes little, so the term is
small; it was published for 2 to 4 bits, and only there a gain has to be expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.quantization.activations import FLOAT_BITS, ActivationQuantizer
from kdpipe.stages.quantization.prepare import WIDE_BITS, quantizers
from kdpipe.stages.quantization.weights import WeightQuantizer


def finer_bits(activation_bits: int) -> int:
    """Return the precision of the stochastic teacher's fine layers: 8 bits, or float where the student has 8."""
    return WIDE_BITS if activation_bits < WIDE_BITS else FLOAT_BITS


def speq_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * (1 - cos(softmax(z_T / T), softmax(z_S / T))), mean over B.

    Args:
        teacher_logits: [B, K]; no gradient flows into them.
        student_logits: [B, K].
        temperature: T > 0.

    Returns:
        A scalar in [0, T^2].
    """
    teacher = F.softmax(teacher_logits.detach() / temperature, dim=1)
    student = F.softmax(student_logits / temperature, dim=1)
    return temperature**2 * (1 - F.cosine_similarity(teacher, student, dim=1)).mean()


def draw_precisions(
    parts: Sequence[ActivationQuantizer], bits: int, probability: float, generator: torch.Generator
) -> list[int]:
    """Draw b_l for each quantizer: `bits` with the probability, its own otherwise, or where it is as fine already."""
    fine = torch.rand(len(parts), generator=generator) < probability
    return [bits if take and part.bits < bits else part.bits for part, take in zip(parts, fine.tolist(), strict=True)]


@contextmanager
def as_teacher(prepared: nn.Module, precisions: Sequence[int]) -> Iterator[None]:
    """Run `prepared` with other activation precisions, leaving no trace in it.

    Batch norm uses the batch's statistics, as the student does, but its running ones stay as they are; weight steps
    do not follow; no gradient is kept.
    """
    parts = quantizers(prepared)
    norms = [m for m in prepared.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.track_running_stats]
    weights = [m for m in prepared.modules() if isinstance(m, WeightQuantizer) and m.follow]
    try:
        for part, bits in zip(parts, precisions, strict=True):
            part.precision = bits
        for norm in norms:
            norm.track_running_stats = False
        for weight in weights:
            weight.follow = False
        with torch.no_grad():
            yield
    finally:
        for part in parts:
            part.precision = part.bits
        for norm in norms:
            norm.track_running_stats = True
        for weight in weights:
            weight.follow = True


class StochasticTeacher:
    """The teacher f(x; Q(W), b) of a prepared module.

    Args:
        prepared: in training mode when it is called.
        bits: of the fine layers; see `finer_bits`.
        probability: u, that a layer is fine.
        generator: a CPU generator, the source of the draws.
    """

    def __init__(self, prepared: nn.Module, bits: int, probability: float, generator: torch.Generator) -> None:
        self.prepared = prepared
        self.bits = bits
        self.probability = probability
        self.generator = generator
        self._dropout = any(isinstance(m, nn.Dropout | nn.Dropout2d) for m in prepared.modules())

    def student_and_loss(self, images: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Run student and teacher on one batch.

        Where no layer drew another precision than its own the two are one, and the loss is exactly 0.

        Args:
            images: [B, ...].
            temperature: T > 0.

        Returns:
            The student's logits [B, K] and L_speq.
        """
        masks = torch.get_rng_state() if self._dropout else None
        cuda_masks = torch.cuda.get_rng_state(images.device) if self._dropout and images.is_cuda else None
        student = self.prepared(images)
        parts = quantizers(self.prepared)
        precisions = draw_precisions(parts, self.bits, self.probability, self.generator)
        if all(part.bits == bits for part, bits in zip(parts, precisions, strict=True)):
            return student, student.new_zeros(())
        with as_teacher(self.prepared, precisions), torch.random.fork_rng(enabled=self._dropout):
            if masks is not None:
                torch.set_rng_state(masks)
            if cuda_masks is not None:
                torch.cuda.set_rng_state(cuda_masks, images.device)
            teacher = self.prepared(images)
        return student, speq_loss(teacher, student, temperature)
