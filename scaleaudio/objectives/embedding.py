"""Negatives repelled in the embedding that is kept, not only in the projection that is thrown away.

A projector can learn to see a displacement that the embedding below it hardly shows. With e the embeddings,

    weight * log(1 + w sum_n exp((s(e_a, e_n) - s(e_a, e_p)) / t)),

infonce with the negatives alone, which the projections' loss is added to. Embeddings lie in a narrow cone (they are
means of rectified features), so each dimension is standardised over the batch first, as a linear probe would.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from scaleaudio.objectives.pairs import Against, Gradient, Pairs, gather
from scaleaudio.types import Settings, World


class EmbeddingTermConfig(Settings):
    """How negatives are repelled in the embedding, where `negative_on` says so."""

    weight: Annotated[float, Field(gt=0, description="of this term beside the projections' loss")] = 1.0
    temperature: Annotated[float, Field(gt=0, description="t in the formula")] = 0.15
    negative_weight: Annotated[float, Field(gt=0, description="w in the formula")] = 1.0
    standardise: Annotated[
        bool, Field(description="each dimension to mean 0 and deviation 1 over the global batch")
    ] = True

    def build(self, gradient: Gradient) -> EmbeddingTerm:
        """The term."""
        return EmbeddingTerm(self, gradient)


class EmbeddingTerm:
    """Each anchor's embedding nearer to its positive's than to its negatives'."""

    def __init__(self, config: EmbeddingTermConfig, gradient: Gradient) -> None:
        """Holds no parameters."""
        self.config = config
        self._gradient = gradient

    def __call__(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is that over the global batch."""
        if self.config.standardise:
            pairs = _standardised(pairs, world, counts)
        assert pairs.against is not None
        config, against = self.config, pairs.against
        positive_B = F.cosine_similarity(pairs.anchor_BD, pairs.positive_BD)
        positive_M1 = positive_B[against.clip_M][:, None] / config.temperature
        negative_MP = math.log(config.negative_weight) + (
            against.similarity(pairs.anchor_BD, self._gradient) / config.temperature
        )
        negative_MP = negative_MP.masked_fill(~against.valid_MP, -math.inf)
        loss_M1 = torch.cat([positive_M1, negative_MP], dim=1).logsumexp(dim=1, keepdim=True) - positive_M1
        return config.weight * loss_M1.sum() * world.size / sum(counts)


def _standardised(pairs: Pairs, world: World, counts: list[int]) -> Pairs:
    assert pairs.against is not None
    with torch.no_grad():
        anchor_GD = gather(pairs.anchor_BD, world, counts)
        mean_D, deviation_D = anchor_GD.mean(dim=0), anchor_GD.std(dim=0, correction=0).clamp(min=1e-4)

    def standard(z_D: Tensor) -> Tensor:
        return (z_D - mean_D) / deviation_D

    against: Against = pairs.against._replace(z_MPD=standard(pairs.against.z_MPD))
    return Pairs(standard(pairs.anchor_BD), standard(pairs.positive_BD), against)
