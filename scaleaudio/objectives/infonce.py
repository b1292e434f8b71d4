"""InfoNCE (arXiv 1807.03748, symmetric as in arXiv 2002.05709) with adversarial negatives in its denominator.

    -log exp(s(a,p)/t) / [ sum over all clips' p of exp(s(a,p)/t) + weight * sum_n exp(alpha s(a,n)/t) ],  and a <-> p

That pushes a negative as far away as any other clip. With `negative_margin` m, max(s(a,n), sg s(a,p) - m) stands for
s(a,n), so that a negative which is m less similar than the positive is pushed no further.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scaleaudio.objectives.base import AgainstNegatives, HeadConfig
from scaleaudio.objectives.gathered import logsumexp_over_all
from scaleaudio.objectives.pairs import Pairs, gather
from scaleaudio.types import World


class InfoNCEConfig(AgainstNegatives):
    """-log exp(s(a,p)/t) / [sum over all clips' p of exp(s(a,.)/t) + weight * exp(alpha s(a,n)/t)], and a <-> p."""

    kind: Literal["infonce"] = "infonce"
    temperature: Annotated[float, Field(gt=0, description="t: the smaller, the more the most similar clips weigh")] = (
        0.15
    )
    alpha: Annotated[float, Field(ge=0, description="scales a negative's similarity")] = 1.0
    negative_weight: Annotated[float, Field(gt=0, description="how many other clips one negative counts as")] = 8.0
    negative_margin: Annotated[
        float | None,
        Field(ge=0, le=2, description="how far below the positive a negative is pushed; null: without end"),
    ] = None
    chunk_keys: Annotated[
        int,
        Field(
            ge=1,
            description="with more keys than that in the global batch, so many are looked at at a time and gathered "
            "again for the gradient: memory stays flat however many workers there are",
        ),
    ] = 16384
    projector: HeadConfig = HeadConfig()
    needs_target: ClassVar[bool] = False

    def build(self) -> InfoNCE:
        """The objective module."""
        return InfoNCE(self)


class InfoNCE(nn.Module):
    """Each anchor against the positives of the whole global batch and its own negatives."""

    def __init__(self, config: InfoNCEConfig) -> None:
        """Holds no parameters."""
        super().__init__()
        self.config = config

    def forward(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's anchors, scaled so that the mean over ranks is the loss of the global batch.

        Args:
            pairs: projections of this rank's clips.
            world: which rank this is.
            counts: clips on each rank.
        """
        one = self._one_way(pairs, world, counts)
        mirrored = pairs._replace(anchor_BD=pairs.positive_BD, positive_BD=pairs.anchor_BD)
        return 0.5 * (one + self._one_way(mirrored, world, counts)).sum() * world.size / sum(counts)

    def _one_way(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        a_BD, p_BD = F.normalize(pairs.anchor_BD, dim=-1), F.normalize(pairs.positive_BD, dim=-1)
        config, against = self.config, pairs.against
        if sum(counts) > config.chunk_keys:
            positive_B = (a_BD * p_BD).sum(dim=1) / config.temperature
            logits_BG = logsumexp_over_all(a_BD, p_BD, config.temperature, world, counts, config.chunk_keys)[:, None]
        else:
            keys_GD = gather(p_BD, world, counts)
            logits_BG = a_BD @ keys_GD.T / config.temperature
            own_B = torch.arange(len(a_BD), device=a_BD.device) + sum(counts[: world.rank])
            positive_B = logits_BG.gather(1, own_B[:, None]).squeeze(1)
        if against is not None:
            similarity_MP = against.similarity(pairs.anchor_BD, config.negative_gradient)
            if config.negative_margin is not None:
                reached_B = config.temperature * positive_B.detach() - config.negative_margin
                similarity_MP = torch.maximum(similarity_MP, reached_B[against.clip_M][:, None])
            negative_MP = math.log(config.negative_weight) + config.alpha * similarity_MP / config.temperature
            none_BP = logits_BG.new_full((len(a_BD), negative_MP.shape[1]), -math.inf)
            negative_BP = none_BP.index_copy(0, against.clip_M, negative_MP.masked_fill(~against.valid_MP, -math.inf))
            logits_BG = torch.cat([logits_BG, negative_BP], dim=1)
        return logits_BG.logsumexp(dim=1) - positive_B
