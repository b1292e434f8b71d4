"""The rival of repulsion: a head that tells from the embeddings of anchor and negative how far what was moved.

Both tell the encoder that position matters; this one asks for the displacement itself, so that it needs no push. From
[e_a, e_n] a perceptron predicts the family, by cross entropy, and the mean signed motion along frequency and time, in
units of the strengths, by mean squared error (0 for what is merely rearranged):

    weight * (cross entropy + squared error)
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scaleaudio.objectives.pairs import Pairs
from scaleaudio.types import Settings, World


class PredictConfig(Settings):
    """The head that predicts displacements."""

    weight: Annotated[float, Field(gt=0, description="of this term beside the views' loss")] = 1.0
    hidden_dim: Annotated[int, Field(ge=1, description="width of the hidden layer")] = 512

    def build(self, embedding_dim: int, num_families: int) -> Predictor:
        """The head and its loss."""
        return Predictor(self, embedding_dim, num_families)


class Predictor(nn.Module):
    """Predicts each negative's displacement from the embeddings of the anchor and of the negative."""

    def __init__(self, config: PredictConfig, embedding_dim: int, num_families: int) -> None:
        """Builds the head: a logit a family, then the motion along frequency and time."""
        super().__init__()
        self.config = config
        self.head = nn.Sequential(
            nn.Linear(2 * embedding_dim, config.hidden_dim),
            nn.LayerNorm(config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, num_families + 2),
        )

    def forward(self, pairs: Pairs, family_N: Tensor, motion_N2: Tensor, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is that over the global batch.

        Args:
            pairs: embeddings.
            family_N: which family each negative is of, negatives of one clip side by side.
            motion_N2: mean signed motion along frequency and along time, in units of the strengths.
            world: which rank this is.
            counts: clips on each rank.
        """
        assert pairs.against is not None
        negative_MPD, valid_N = pairs.against.z_MPD, pairs.against.valid_MP.flatten()
        anchor_MPD = pairs.anchor_BD[pairs.against.clip_M][:, None].expand_as(negative_MPD)
        predicted_N = self.head(torch.cat([anchor_MPD, negative_MPD], dim=-1).flatten(0, 1)).float()
        loss_N = F.cross_entropy(predicted_N[:, :-2], family_N, reduction="none")
        loss_N = loss_N + (predicted_N[:, -2:] - motion_N2).square().sum(dim=1)
        num_kept = negative_MPD.shape[1]
        total: Tensor = self.config.weight * (loss_N * valid_N).sum() * world.size / (num_kept * sum(counts))
        return total
