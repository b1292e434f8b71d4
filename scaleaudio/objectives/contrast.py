"""One softmax over positives, other clips and adversarial negatives, in whatever space the vectors lie.

    -log exp(s(a,p)/t) / [ sum over all clips' p of exp(s(a,p)/t) + w sum_n exp(alpha s(a,n)/t) ],  and a <-> p

with s the cosine similarity (arXiv 1807.03748, symmetric as in arXiv 2002.05709).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scaleaudio.objectives.gathered import logsumexp_over_all
from scaleaudio.objectives.pairs import Gradient, Pairs, gather
from scaleaudio.types import World

CHUNK_KEYS = 16384


class Contrast(NamedTuple):
    """The formula's constants.

    Attributes:
        temperature: t.
        negative_weight: w.
        alpha: scales a negative's similarity.
        margin: how far below the positive a negative is pushed; None: without end.
        gradient: which side a negative's similarity moves.
        chunk_keys: with more keys than that in the global batch, so many are looked at at a time.
    """

    temperature: float
    negative_weight: float
    alpha: float = 1.0
    margin: float | None = None
    gradient: Gradient = "both"
    chunk_keys: int = CHUNK_KEYS

    def loss(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is the loss of the global batch.

        Args:
            pairs: the vectors of this rank's clips.
            world: which rank this is.
            counts: clips on each rank.
        """
        one = self._one_way(pairs, world, counts)
        mirrored = pairs._replace(anchor_BD=pairs.positive_BD, positive_BD=pairs.anchor_BD)
        return 0.5 * (one + self._one_way(mirrored, world, counts)).sum() * world.size / sum(counts)

    def _one_way(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        a_BD, p_BD = F.normalize(pairs.anchor_BD, dim=-1), F.normalize(pairs.positive_BD, dim=-1)
        against = pairs.against
        if sum(counts) > self.chunk_keys:
            positive_B = (a_BD * p_BD).sum(dim=1) / self.temperature
            logits_BG = logsumexp_over_all(a_BD, p_BD, self.temperature, world, counts, self.chunk_keys)[:, None]
        else:
            keys_GD = gather(p_BD, world, counts)
            logits_BG = a_BD @ keys_GD.T / self.temperature
            own_B = torch.arange(len(a_BD), device=a_BD.device) + sum(counts[: world.rank])
            positive_B = logits_BG.gather(1, own_B[:, None]).squeeze(1)
        if against is not None:
            similarity_MP = against.similarity(pairs.anchor_BD, self.gradient)
            if self.margin is not None:
                reached_B = self.temperature * positive_B.detach() - self.margin
                similarity_MP = torch.maximum(similarity_MP, reached_B[against.clip_M][:, None])
            negative_MP = math.log(self.negative_weight) + self.alpha * similarity_MP / self.temperature
            none_BP = logits_BG.new_full((len(a_BD), negative_MP.shape[1]), -math.inf)
            negative_BP = none_BP.index_copy(0, against.clip_M, negative_MP.masked_fill(~against.valid_MP, -math.inf))
            logits_BG = torch.cat([logits_BG, negative_BP], dim=1)
        return logits_BG.logsumexp(dim=1) - positive_B
