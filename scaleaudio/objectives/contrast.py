"""One softmax over positives, other clips and adversarial negatives, in whatever space the vectors lie.

    -log exp(s(a,p)/t) / [ sum over all clips' p of exp(s(a,p)/t) + w sum_n exp(alpha s(a,n)/t) ],  and a <-> p

with s the cosine similarity (arXiv 1807.03748, symmetric as in arXiv 2002.05709). That pushes a negative as far away as
any other clip. With a margin m, max(s(a,n), sg s(a,p) - m) stands for s(a,n): one that is m less similar than the
positive is pushed no further.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scaleaudio.objectives.gathered import logsumexp_over_all
from scaleaudio.objectives.pairs import Against, Gradient, Pairs, gather
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

    def loss(self, pairs: Pairs, world: World, counts: list[int], lane_batch: int | None = None) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is the loss of the global batch.

        Args:
            pairs: the vectors of this rank's clips.
            world: which rank this is.
            counts: clips on each rank.
            lane_batch: clips of a lane. With it the other clips are those of the same lane, which needs no other worker
                and is the same for any number of them; without it they are those of all workers.
        """
        a_BD, p_BD = F.normalize(pairs.anchor_BD, dim=-1), F.normalize(pairs.positive_BD, dim=-1)
        keys_GD: Sequence[Tensor | None] = (None, None)
        if lane_batch is None and sum(counts) <= self.chunk_keys:  # both ways' keys travel together
            keys_GD = gather(torch.cat([p_BD, a_BD], dim=1), world, counts).chunk(2, dim=1)
        total_B = torch.zeros_like(a_BD[:, 0])
        for (one_BD, other_BD), key_GD in zip(((a_BD, p_BD), (p_BD, a_BD)), keys_GD, strict=True):
            positive_B, logits_BG = self._logits(one_BD, other_BD, key_GD, world, counts, lane_batch)
            total_B = total_B + self._with_negatives(one_BD, pairs.against, positive_B, logits_BG)
        return 0.5 * total_B.sum() * world.size / sum(counts)

    def _with_negatives(self, a_BD: Tensor, against: Against | None, positive_B: Tensor, logits_BG: Tensor) -> Tensor:
        """Each anchor's loss (B), its negatives beside the logits of the keys."""
        if against is not None:
            similarity_MP = against.similarity(a_BD, self.gradient)
            if self.margin is not None:
                reached_B = self.temperature * positive_B.detach() - self.margin
                similarity_MP = torch.maximum(similarity_MP, reached_B[against.clip_M][:, None])
            negative_MP = math.log(self.negative_weight) + self.alpha * similarity_MP / self.temperature
            none_BP = logits_BG.new_full((len(a_BD), negative_MP.shape[1]), -math.inf)
            negative_BP = none_BP.index_copy(0, against.clip_M, negative_MP.masked_fill(~against.valid_MP, -math.inf))
            logits_BG = torch.cat([logits_BG, negative_BP], dim=1)
        return logits_BG.logsumexp(dim=1) - positive_B

    def _logits(
        self,
        a_BD: Tensor,
        p_BD: Tensor,
        key_GD: Tensor | None,
        world: World,
        counts: list[int],
        lane_batch: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Those of the positives (B), and those of all keys (B, G) or, in chunks, their log-sum-exp (B, 1)."""
        first = 0
        if lane_batch is not None:
            a_LPD, p_LPD = (z_BD.view(-1, lane_batch, z_BD.shape[1]) for z_BD in (a_BD, p_BD))
            logits_BG = (a_LPD @ p_LPD.mT).flatten(0, 1) / self.temperature
        elif key_GD is None:
            positive_B = (a_BD * p_BD).sum(dim=1) / self.temperature
            sum_B = logsumexp_over_all(a_BD, p_BD, self.temperature, world, counts, self.chunk_keys)
            return positive_B, sum_B[:, None]
        else:
            logits_BG = a_BD @ key_GD.T / self.temperature
            first = sum(counts[: world.rank])
        own_B = (torch.arange(len(a_BD), device=a_BD.device) + first) % logits_BG.shape[1]
        return logits_BG.gather(1, own_B[:, None]).squeeze(1), logits_BG
