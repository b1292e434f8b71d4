"""InfoNCE (arXiv 1807.03748, symmetric as in arXiv 2002.05709) with adversarial negatives in its denominator.

    -log exp(s(a,p)/t) / [ sum over all clips' p of exp(s(a,p)/t) + weight * sum_n exp(alpha s(a,n)/t) ],  and a <-> p

That pushes a negative as far away as any other clip. With `negative_margin` m, max(s(a,n), sg s(a,p) - m) stands for
s(a,n), so that a negative which is m less similar than the positive is pushed no further.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from scaleaudio.objectives.base import AgainstNegatives, HeadConfig
from scaleaudio.objectives.contrast import CHUNK_KEYS, Contrast
from scaleaudio.objectives.pairs import Pairs
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

    def forward(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is the loss of the global batch."""
        config = self.config
        return Contrast(
            config.temperature,
            config.negative_weight,
            config.alpha,
            config.negative_margin,
            config.negative_gradient,
            config.chunk_keys,
        ).loss(pairs, world, counts)
