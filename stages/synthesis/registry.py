"""The data-free methods that YAML can name. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdpipe.models.choice import check_named
from kdpipe.targets.errors import UsageError
from kdpipe.targets.registry import Registry

if TYPE_CHECKING:
    from kdpipe.stages.synthesis.base import Synthesizer
    from kdpipe.stages.training.ensemble import TeacherEnsemble
    from kdpipe.stages.training.precision import Precision


class SynthesisWeights(BaseModel):
    """Weights of the generator's loss terms (`kdpipe.stages.synthesis.losses`); 0 leaves a term out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    one_hot: float = Field(default=1.0, ge=0, description="teachers should be sure of each image")
    entropy: float = Field(default=5.0, ge=0, description="classes should be balanced; without it, images collapse")
    activation: float = Field(default=0.1, ge=0, description="teachers' features should be excited")
    batch_norm: float = Field(
        default=1.0,
        ge=0,
        description="teachers' batch norms should see familiar statistics; the mean over a teacher's layers, where "
        "papers have the sum",
    )


class MethodParameters(BaseModel):
    """What all methods have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=128, ge=8, le=65_536, description="images that are made a step")
    student_steps: int = Field(default=1, ge=1, le=10_000, description="steps of the student for each of the method's")
    warm_up: int = Field(default=0, ge=0, le=1_000_000, description="the method's steps before the student's first")


class NoiseParameters(MethodParameters):
    """Parameters of `noise`."""


class GeneratorParameters(MethodParameters, SynthesisWeights):
    """What all methods with a generator have: the loss weights of `SynthesisWeights`, and these."""

    adversarial: float = Field(default=0.0, ge=0, description="student and teachers should disagree")
    lr: float = Field(default=1e-3, gt=0, le=1, description="of the generator's Adam")
    latent: int = Field(default=64, ge=1, le=100_000, description="length of the generator's noise")
    channels: int = Field(default=64, ge=2, le=4096, description="maps in the generator")

    def weights(self) -> SynthesisWeights:
        """Return the weights of the terms that the teachers judge by themselves."""
        return SynthesisWeights(**{name: getattr(self, name) for name in SynthesisWeights.model_fields})


class DaflParameters(GeneratorParameters):
    """Parameters of `dafl`, with the weights that were published for MNIST.

    The entropy is in nats, as in the paper; the authors' code takes log10, with which their 5 is 2.17 here.
    """

    batch_norm: float = Field(default=0.0, ge=0, description="not among the published terms")


class DaflBatchNormParameters(GeneratorParameters):
    """Parameters of `dafl-batch-norm`."""


class DfqParameters(GeneratorParameters):
    """Parameters of `dfq`."""

    entropy: float = Field(default=20.0, ge=0, description="the balance of classes")
    activation: float = Field(default=0.0, ge=0, description="not among the published terms")
    adversarial: float = Field(default=1.0, ge=0, description="student and teachers should disagree")
    student_steps: int = Field(default=5, ge=1, le=10_000, description="steps of the student for each of the method's")


class FastParameters(GeneratorParameters):
    """Parameters of `fast`."""

    one_hot: float = Field(default=0.4, ge=0, description="teachers should be sure of each image")
    entropy: float = Field(default=0.0, ge=0, description="not among the published terms")
    activation: float = Field(default=0.0, ge=0, description="not among the published terms")
    batch_norm: float = Field(default=10.0, ge=0, description="teachers' batch norms should see familiar statistics")
    adversarial: float = Field(default=1.1, ge=0, description="they should, where they agreed on the class")
    lr: float = Field(default=5e-3, gt=0, le=1, description="of the generator in the inner steps")
    lr_latent: float = Field(default=0.015, gt=0, le=1, description="of the noise in the inner steps")
    lr_meta: float = Field(default=2e-3, gt=0, le=1, description="of the Adam that trains the initial values")
    inner_steps: int = Field(default=5, ge=1, le=10_000, description="from the initial values to a batch of images")
    bank: int = Field(default=20_000, ge=8, le=10_000_000, description="images kept for the student, the newest")
    student_steps: int = Field(default=10, ge=1, le=10_000, description="steps of the student for each of the method's")
    warm_up: int = Field(default=20, ge=0, le=1_000_000, description="the method's steps before the student's first")


@dataclass(frozen=True)
class MethodEntry:
    """A data-free method that can be named.

    Args:
        summary: one line.
        reference: the paper.
        parameters: what YAML may set.
        constructor: "module:class".
    """

    summary: str
    reference: str
    parameters: type[MethodParameters]
    constructor: str

    def build(
        self, parameters: MethodParameters, teachers: TeacherEnsemble, seed: int, precision: Precision
    ) -> Synthesizer:
        """Build the method.

        Args:
            parameters: an instance of `self.parameters`.
            teachers: the fixed discriminator; images are made on its device.
            seed: of the generator's weights and of all its noise.
            precision: what generator, teachers and student compute in.
        """
        module, _, name = self.constructor.partition(":")
        synthesizer: Synthesizer = getattr(import_module(module), name)(parameters, teachers, seed, precision)
        return synthesizer


METHODS: Registry[MethodEntry] = Registry("data-free method")

_GENERATOR = "kdpipe.stages.synthesis.generator_method:GeneratorMethod"

METHODS.register("noise")(
    MethodEntry(
        "independent pixels, nothing learned: the baseline",
        "Chen et al. 2019 (arXiv:1904.01186), table 1",
        NoiseParameters,
        "kdpipe.stages.synthesis.noise:Noise",
    )
)
METHODS.register("dafl")(
    MethodEntry(
        "a generator that the teachers judge by certainty, balance and activation",
        "Chen et al. 2019 (arXiv:1904.01186)",
        DaflParameters,
        _GENERATOR,
    )
)
METHODS.register("dafl-batch-norm")(
    MethodEntry(
        "dafl, and the statistics that the teachers' batch norms remember",
        "Chen et al. 2019; Yin et al. 2020 (arXiv:1912.08795)",
        DaflBatchNormParameters,
        _GENERATOR,
    )
)
METHODS.register("dfq")(
    MethodEntry(
        "a generator that also looks for images on which student and teachers disagree",
        "Choi et al. 2020 (arXiv:2005.04136)",
        DfqParameters,
        _GENERATOR,
    )
)
METHODS.register("fast")(
    MethodEntry(
        "meta-learned initial values from which a few steps lead to a batch of images; a bank of them",
        "Fang et al. 2022 (arXiv:2112.06253)",
        FastParameters,
        "kdpipe.stages.synthesis.fast_method:FastMethod",
    )
)


class MethodChoice(BaseModel):
    """A method's name and, flat beside it, its parameters: `{method: dfq, entropy: 10}`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str = Field(description="dafl, dafl-batch-norm, dfq, fast or noise; its parameters stand beside it")

    @model_validator(mode="after")
    def _check_parameters(self) -> MethodChoice:
        try:
            entry = METHODS[self.method]
        except UsageError as error:
            raise ValueError(str(error)) from None
        check_named(entry.parameters, self._given, f"parameter of {self.method}")
        return self

    @property
    def _given(self) -> Mapping[str, Any]:
        return self.model_extra or {}

    @property
    def entry(self) -> MethodEntry:
        """The method."""
        return METHODS[self.method]

    @property
    def parameters(self) -> MethodParameters:
        """The method's parameters with their defaults filled in."""
        return self.entry.parameters.model_validate(self._given)
