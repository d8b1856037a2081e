"""What the modules of a quantized torch network must offer to be lowered. No module here, and no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kdpipe.targets.graph import Operator, Quantization

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class ActivationQuantizer(Protocol):
    """A module that rounds real activations to the values that stored integers stand for."""

    def quantization(self) -> Quantization:
        """Return scale, zero point and range.

        Raises:
            GraphError: the scale is zero, negative or not finite; `where` names the tensor.
        """
        ...


@runtime_checkable
class QuantizedLayer(Protocol):
    """A convolution or linear module (with nn.Conv2d's or nn.Linear's attributes) that has integer weights."""

    def integer_weight(self) -> tuple[Tensor, Tensor, int]:
        """Return the stored weights, int8 in the weight's shape, their scales, float32 [O], and their width."""
        ...


@runtime_checkable
class StoredOperation(Protocol):
    """A module that computes something new of stored tensors; its output goes to a quantizer."""

    def integer_operator(self) -> Operator:
        """Return what computes it and requantizes; a Concat leaves requantizing to what stands before it."""
        ...


@runtime_checkable
class Rearrangement(Protocol):
    """A module that only moves stored integers."""

    def rearrangement(self) -> Operator:
        """Return what moves them."""
        ...


@runtime_checkable
class InactiveInEvaluation(Protocol):
    """A module that regularizes training and returns its input as it is in evaluation, as dropout does."""

    @property
    def only_in_training(self) -> bool:
        """True."""
        ...
