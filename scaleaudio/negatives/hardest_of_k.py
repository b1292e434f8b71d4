"""The default adversary: among K displacements of the asked strength, the one that the encoder confuses most.

With s the cosine similarity and d_1 .. d_K drawn displacements, the negatives of x are the P = `num_kept` of the d_k(x)
with the greatest s(z(x), z(d_k(x))) among those that changed x. K = P takes all of them without asking the encoder.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from scaleaudio.negatives.base import Embed, Found
from scaleaudio.negatives.displace import FREQUENCY_FAMILIES, TIME_FAMILIES, Family, Fill, axis_of, moves
from scaleaudio.negatives.draw import Displacer
from scaleaudio.negatives.strengths import AXES, DisplacingSettings
from scaleaudio.types import Draws
from scaleaudio.views import Axis, ViewsConfig, dead_zone


class HardestOfK(DisplacingSettings):
    """K random displacements of each anchor; those whose projections lie closest to the anchor's are the negatives."""

    kind: Literal["hardest_of_k"] = "hardest_of_k"
    num_candidates: Annotated[int, Field(ge=1, le=64, description="K: displacements drawn for each clip")] = 4
    num_kept: Annotated[int, Field(ge=1, le=64, description="P: how many of them, the most confusing, are used")] = 1
    families: Annotated[tuple[Family, ...], Field(description="what may move, and how")] = (
        *FREQUENCY_FAMILIES,
        *TIME_FAMILIES,
    )
    fill: Annotated[Fill, Field(description="what a shift brings in: the clip's minimum, or its other end")] = "floor"
    shift_multiple: Annotated[
        int,
        Field(ge=1, description="shifts go by multiples of this many places; the encoder's total stride is hardest"),
    ] = 1

    @field_validator("families")
    @classmethod
    def _families_are_distinct(cls, families: tuple[Family, ...]) -> tuple[Family, ...]:
        if not families or len(set(families)) < len(families):
            raise ValueError("expected at least one family, each named once")
        return families

    @model_validator(mode="after")
    def _what_is_asked_exists(self) -> Self:
        if self.num_kept > self.num_candidates:
            raise ValueError(
                f"negatives.num_kept {self.num_kept}: only {self.num_candidates} are drawn; raise num_candidates"
            )
        for axis in AXES:
            if self.strength(axis) > 0 and not any(axis_of(family) in (axis, None) for family in self.families):
                raise ValueError(
                    f"{axis}_strength {self.strength(axis):g}: no family of {list(self.families)} moves along {axis}. "
                    f"Add one, or set {axis}_strength to 0."
                )
        return self

    @property
    def active_families(self) -> tuple[Family, ...]:
        """The families whose axis has a strength above 0: of frequency, then of time, then of both."""
        along_both = tuple(family for family in self.families if axis_of(family) is None)
        return (*self.along("frequency"), *self.along("time"), *along_both)

    @property
    def family_names(self) -> tuple[str, ...]:
        """The families that may be drawn."""
        return self.active_families

    def along(self, axis: Axis) -> tuple[Family, ...]:
        """The active families of one axis."""
        return tuple(f for f in self.families if axis_of(f) == axis and self.strength(axis) > 0)

    def check(self, views: ViewsConfig, num_mels: int, num_frames: int) -> None:
        """Refuses a strength that the positives themselves reach, or that a family cannot reach.

        Raises:
            ValueError: naming the config key, the strength and the dead zone.
        """
        super().check(views, num_mels, num_frames)
        for axis, length in zip(AXES, (num_mels, num_frames), strict=True):
            if self.strength(axis) > 0:
                strengths = self.strengths(axis, dead_zone(views, axis), 1.0)
                try:
                    moves(self.along(axis), length, strengths, self.fill, self.shift_multiple)
                except ValueError as error:
                    raise ValueError(f"negatives.{axis}_{error}") from error

    def build(self, views: ViewsConfig) -> HardestOfKAdversary:
        """The adversary that plays against these views."""
        return HardestOfKAdversary(self, views)


class HardestOfKAdversary:
    """Draws displacements and searches among them; holds no parameters."""

    def __init__(self, config: HardestOfK, views: ViewsConfig) -> None:
        """An adversary whose strength starts just outside the views' dead zone and ramps up to the config's."""
        self.config = config
        self.displacer = Displacer(config, views)

    def find(self, anchor_BFS: Tensor, embed: Embed, draws: Draws, ramp: float = 1.0) -> Found:
        """The most confusing displacements of each anchor; `embed` is called without gradient."""
        num, num_kept = self.config.num_candidates, self.config.num_kept
        candidates = self.displacer.draw(anchor_BFS, draws, ramp, num, back=self.config.control == "return")
        if num == num_kept:
            return candidates
        scored_NFS = torch.cat([anchor_BFS, candidates.mel_NFS])
        if self.config.score_stride > 1:
            scored_NFS = F.avg_pool1d(scored_NFS, self.config.score_stride)
        with torch.no_grad():
            z_ND = F.normalize(embed(scored_NFS).float(), dim=-1)
        z_BD, z_BKD = z_ND[: len(anchor_BFS)], z_ND[len(anchor_BFS) :].view(-1, num, z_ND.shape[1])
        similarity_BK = torch.einsum("bd,bkd->bk", z_BD, z_BKD)
        # a candidate that hardly changed is the most similar of all, and no negative
        similarity_BK = similarity_BK.masked_fill(~candidates.valid_N.view(-1, num), -2.0)
        best_BP = similarity_BK.topk(num_kept, dim=1).indices
        first_B1 = num * torch.arange(len(anchor_BFS), device=anchor_BFS.device)[:, None]
        best_N = (first_B1 + best_BP).flatten()
        return Found(*(of_each_N[best_N] for of_each_N in candidates))
