"""Paraphrasers of Factor Transfer (Kim et al. 2018, arXiv:1802.04977, section 3.1): a teacher's map in few factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.knowledge.base import Survey, one_a_teacher
from kdpipe.stages.knowledge.factor_transfer import SLOPE, make_translator
from kdpipe.stages.knowledge.loss_parameters import ParaphrasedParameters
from kdpipe.stages.training.seeding import derive_seed
from kdpipe.targets.errors import TrainingError

HELD_OUT = 8  # one image in so many is not trained on


class Paraphraser(nn.Module):
    """An autoencoder of feature maps: three 3x3 convolutions C -> C -> m -> m, and their mirror, LeakyReLU 0.1.

    Args:
        channels: C.
        factors: m.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = make_translator(channels, factors)
        layers: list[nn.Module] = []
        for before, after in ((factors, factors), (factors, channels), (channels, channels)):
            layers += [nn.ConvTranspose2d(before, after, 3, 1, 1), nn.LeakyReLU(SLOPE)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same, reconstructed."""
        return self.decoder(self.encoder(x))


class Paraphrasers(nn.Module):
    """A paraphraser for each teacher, trained before the student and frozen then.

    Args:
        channels: of each teacher's map.
        parameters: how they are made and trained.
        seed: of their weights and of the batches' order.
    """

    def __init__(self, channels: Sequence[int], parameters: ParaphrasedParameters, seed: int) -> None:
        super().__init__()
        self.settings = parameters
        self.factors = [max(1, round(parameters.paraphraser_channels * count)) for count in channels]
        self.seed = seed
        self.networks = one_a_teacher(
            lambda sizes: Paraphraser(*sizes), zip(channels, self.factors, strict=True), seed, "paraphraser"
        )
        self.requires_grad_(False)

    def encode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return each teacher's factors [B, m_i, H_i, W_i] of its map."""
        return [network.encoder(feature) for network, feature in zip(self.networks, features, strict=True)]

    def fit(self, survey: Survey) -> Mapping[str, float]:
        """Train all by L1 with Adam, and freeze them.

        Returns:
            `reconstruction_i` by teacher: L1 on images not trained on, as a share of the map's mean magnitude.

        Raises:
            TrainingError: one reconstructs hardly better than zeros would.
        """
        self.requires_grad_(True)
        optimizer = torch.optim.Adam(self.parameters(), lr=self.settings.paraphraser_lr)
        order = torch.Generator().manual_seed(derive_seed(self.seed, "order"))
        for _ in range(self.settings.paraphraser_epochs):
            for said in survey(order):
                trained = said.indices % HELD_OUT != 0
                if not trained.any():
                    continue
                losses = [
                    F.l1_loss(network(feature[trained]), feature[trained])
                    for network, feature in zip(self.networks, said.teacher_features, strict=True)
                ]
                optimizer.zero_grad(set_to_none=True)
                torch.stack(losses).sum().backward()
                optimizer.step()
        self.requires_grad_(False)
        shares = self._held_out(survey)
        for index, share in enumerate(shares):
            if not share <= self.settings.reconstruction:
                raise TrainingError(
                    f"the paraphraser of teacher {index} is off by {share:.0%} of its map's mean magnitude "
                    f"(at most {self.settings.reconstruction:.0%} is allowed)",
                    remedy="Raise paraphraser_epochs or paraphraser_channels, or change paraphraser_lr",
                )
        return {f"reconstruction_{index}": share for index, share in enumerate(shares)}

    @torch.no_grad()
    def _held_out(self, survey: Survey) -> list[float]:
        errors = [0.0] * len(self.networks)
        magnitudes = [0.0] * len(self.networks)
        for said in survey():
            held = said.indices % HELD_OUT == 0
            for index, (network, feature) in enumerate(zip(self.networks, said.teacher_features, strict=True)):
                errors[index] += float((network(feature[held]) - feature[held]).abs().sum())
                magnitudes[index] += float(feature[held].abs().sum())
        return [error / max(size, 1e-12) for error, size in zip(errors, magnitudes, strict=True)]
