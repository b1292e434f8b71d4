"""The embeddings that are kept contrasted as well, not only their projections, which are thrown away.

A projector can learn to tell what the embedding below it hardly shows. So the same softmax (`contrast.py`) may look at
the embeddings too, with or without adversarial negatives. They lie in a narrow cone (they are means of rectified
features), so each dimension is standardised over the batch first, as a linear probe would. Negatives without other
clips beside them are not offered here: one direction that tells displaced clips from others is all that they teach
then, and the embedding collapses towards it (docs/log.md). The other clips are those of the same lane: embeddings are
wider than projections, and so none of them has to travel between workers; only the two statistics do.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from scaleaudio.objectives.contrast import Contrast
from scaleaudio.objectives.pairs import Gradient, Pairs
from scaleaudio.types import Settings, World

_LEAST_DEVIATION = 0.05  # of a dimension, in mean deviations


class EmbeddingTermConfig(Settings):
    """How the embeddings are contrasted; negatives are among them where `negative_on` says so."""

    weight: Annotated[float, Field(gt=0, description="of this term beside the projections' loss")] = 1.0
    temperature: Annotated[float, Field(gt=0, description="of this term's softmax")] = 0.15
    negative_weight: Annotated[float, Field(gt=0, description="how many other clips one negative counts as")] = 1.0
    standardise: Annotated[
        bool,
        Field(description="each dimension by its mean and deviation over both views of the global batch, as constants"),
    ] = True

    def build(self, gradient: Gradient) -> EmbeddingTerm:
        """The term."""
        return EmbeddingTerm(self, gradient)


class EmbeddingTerm:
    """Each anchor's embedding nearer to its positive's than to its negatives' and to other clips'."""

    def __init__(self, config: EmbeddingTermConfig, gradient: Gradient) -> None:
        """Holds no parameters."""
        self.config = config
        self._contrast = Contrast(config.temperature, config.negative_weight, gradient=gradient)

    def __call__(self, pairs: Pairs, world: World, counts: list[int], lane_batch: int) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is that over the global batch.

        Args:
            pairs: embeddings of this rank's clips, whole lanes in order.
            world: which rank this is.
            counts: clips on each rank.
            lane_batch: clips of a lane.
        """
        if self.config.standardise:
            pairs = _standardised(pairs, world, counts)
        return self.config.weight * self._contrast.loss(pairs, world, counts, lane_batch)


def _standardised(pairs: Pairs, world: World, counts: list[int]) -> Pairs:
    with torch.no_grad():
        views_ND = torch.cat([pairs.anchor_BD, pairs.positive_BD]).double()  # as squares are subtracted
        sums_2D = torch.stack([views_ND.sum(dim=0), views_ND.square().sum(dim=0)])
        if world.size > 1:
            dist.all_reduce(sums_2D)
        mean_D, square_D = (sums_2D / (2 * sum(counts))).unbind()
        deviation_D = (square_D - mean_D.square()).clamp(min=0).sqrt()
        # a dimension that hardly any clip uses does not count for more than the others
        deviation_D = deviation_D.maximum(_LEAST_DEVIATION * deviation_D.mean()).clamp(min=1e-4)
        mean_D, deviation_D = mean_D.to(pairs.anchor_BD.dtype), deviation_D.to(pairs.anchor_BD.dtype)

    def standard(z_D: Tensor) -> Tensor:
        return (z_D - mean_D) / deviation_D

    against = pairs.against
    if against is not None:
        against = against._replace(z_MPD=standard(against.z_MPD))
    return Pairs(standard(pairs.anchor_BD), standard(pairs.positive_BD), against)
