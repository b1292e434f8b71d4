"""InfoNCE: the softmax of `contrast.py` over projections, with the keys of all workers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from scaleaudio.objectives.base import AgainstNegatives, HeadConfig
from scaleaudio.objectives.contrast import CHUNK_KEYS, Contrast
from scaleaudio.objectives.pairs import Pairs
from scaleaudio.types import World


class InfoNCEConfig(AgainstNegatives):
    """The formula of `scaleaudio.objectives.contrast`, over projections."""

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
    ] = CHUNK_KEYS
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
        self._contrast = Contrast(
            temperature=config.temperature,
            negative_weight=config.negative_weight,
            alpha=config.alpha,
            margin=config.negative_margin,
            gradient=config.negative_gradient,
            chunk_keys=config.chunk_keys,
        )

    def forward(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is the loss of the global batch.

        Args:
            pairs: projections of this rank's clips.
            world: which rank this is.
            counts: clips on each rank.
        """
        return self._contrast.loss(pairs, world, counts)
