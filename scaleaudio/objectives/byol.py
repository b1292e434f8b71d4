"""BYOL (arXiv 2006.07733), which has no denominator, so that adversarial negatives meet a bounded hinge.

    2 - 2 s(q(a), sg z'(p)),  and a <-> p,  plus  weight * relu(s(a,n) - sg s(a,p) + margin)

A bare "-cos" would explode. With `negative_side` target the hinge compares what the views' loss compares,
relu(s(q(a), z'(n)) - sg s(q(a), z'(p)) + margin): the EMA target embeds the negative, and only the anchor moves.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from scaleaudio.objectives.base import AgainstNegatives, HeadConfig
from scaleaudio.objectives.pairs import Pairs
from scaleaudio.types import World


class BYOLConfig(AgainstNegatives):
    """2 - 2 s(q(a), sg z'(p)), and a <-> p, plus weight * relu(s(a,n) - sg s(a,p) + margin)."""

    kind: Literal["byol"] = "byol"
    margin: Annotated[float, Field(ge=0, description="how far below the positive a negative's similarity must lie")] = (
        0.2
    )
    negative_weight: Annotated[float, Field(gt=0, description="of the hinge beside the views' loss")] = 1.0
    negative_side: Annotated[
        Literal["online", "target"],
        Field(description="who embeds the negative: the trained network, or (compared with the prediction) its target"),
    ] = "online"
    projector: HeadConfig = HeadConfig(hidden_dim=4096, output_dim=256)
    predictor: HeadConfig = HeadConfig(hidden_dim=4096, output_dim=256)
    needs_target: ClassVar[bool] = True

    @model_validator(mode="after")
    def _the_target_has_no_gradient(self) -> Self:
        if self.negative_side == "target" and (self.negative_on != "projector" or self.negative_gradient == "negative"):
            raise ValueError(
                "objective.negative_side target: the EMA target has no gradient, so negatives act in the projection "
                "and on the anchor alone; set negative_on to projector and negative_gradient to both or anchor"
            )
        return self

    def build(self) -> BYOL:
        """The objective module."""
        return BYOL(self)


class BYOL(nn.Module):
    """Each view predicts the EMA target's projection of the other; negatives are pushed below the positives."""

    def __init__(self, config: BYOLConfig) -> None:
        """Builds the predictor."""
        super().__init__()
        self.config = config
        width = config.projector.output_dim
        self.predictor = config.predictor.build(width, width)

    def forward(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is the loss of the global batch."""
        assert pairs.target_anchor_BD is not None and pairs.target_positive_BD is not None
        predicted_ND = self.predictor(torch.cat([pairs.anchor_BD, pairs.positive_BD]))
        target_ND = torch.cat([pairs.target_positive_BD, pairs.target_anchor_BD]).detach()
        similarity_N = F.cosine_similarity(predicted_ND, target_ND)
        total: Tensor = (2 - 2 * similarity_N).sum()
        against = pairs.against
        if against is not None:
            num = len(pairs.anchor_BD)
            anchor_BD, positive_B = predicted_ND[:num], similarity_N[:num].detach()
            if self.config.negative_side == "online":
                anchor_BD = pairs.anchor_BD
                positive_B = F.cosine_similarity(pairs.anchor_BD, pairs.positive_BD).detach()
            negative_MP = against.similarity(anchor_BD, self.config.negative_gradient)
            hinge_MP = F.relu(negative_MP - positive_B[against.clip_M][:, None] + self.config.margin)
            total = total + self.config.negative_weight * (hinge_MP * against.valid_MP).mean(dim=1).sum()
        return total * world.size / sum(counts)
