"""The adversary: among displacements of the asked strength, the one that the encoder confuses most with the anchor.

A registry by type: `NegativesConfig` is a union on `kind`, and each kind's `build()` makes its adversary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from scaleaudio.negatives.displace import (
    FREQUENCY_FAMILIES,
    TIME_FAMILIES,
    Family,
    Fill,
    axis_of,
    displace,
    moves,
    random_lattice_size,
    smooth_field,
    warp,
)
from scaleaudio.types import Draws, Settings
from scaleaudio.views import Axis, ViewsConfig, dead_zone

Strength = Annotated[float, Field(ge=0, le=1)]
Embed = Callable[[Tensor], Tensor]

_RAMP_LEVELS = 16  # maps are made anew when the ramp reaches the next level, not at every step


class Found(NamedTuple):
    """The negatives of one step.

    Attributes:
        mel_BFS: the displaced anchors.
        valid_B: False where the displacement hardly changed the clip, so that it means the same.
        family_B: index of the family that was chosen, into the config's active families.
    """

    mel_BFS: Tensor
    valid_B: Tensor
    family_B: Tensor


class NoNegatives(Settings):
    """The plain baseline: no adversary."""

    kind: Literal["none"] = "none"

    @property
    def active(self) -> bool:
        """Never."""
        return False


class HardestOfK(Settings):
    """K random displacements of each anchor; the one whose embedding lies closest to the anchor's is the negative."""

    kind: Literal["hardest_of_k"] = "hardest_of_k"
    frequency_strength: Strength = 0.15
    time_strength: Strength = 0.15
    num_candidates: Annotated[int, Field(ge=1, le=64)] = 4
    families: tuple[Family, ...] = (*FREQUENCY_FAMILIES, *TIME_FAMILIES)
    fill: Fill = "floor"
    batch_norm: Literal["split", "eval", "shared"] = "split"
    min_change: Annotated[float, Field(ge=0)] = 0.1

    @field_validator("families")
    @classmethod
    def _families_are_distinct(cls, families: tuple[Family, ...]) -> tuple[Family, ...]:
        if not families or len(set(families)) < len(families):
            raise ValueError("expected at least one family, each named once")
        return families

    @model_validator(mode="after")
    def _every_strength_has_a_family(self) -> HardestOfK:
        for axis in ("frequency", "time"):
            if self.strength(axis) > 0 and not any(axis_of(family) in (axis, None) for family in self.families):
                raise ValueError(
                    f"{axis}_strength {self.strength(axis):g}: no family of {list(self.families)} moves along {axis}. "
                    f"Add one, or set {axis}_strength to 0."
                )
        return self

    @property
    def active(self) -> bool:
        """Whether anything is displaced at all."""
        return self.frequency_strength > 0 or self.time_strength > 0

    @property
    def active_families(self) -> tuple[Family, ...]:
        """The families whose axis has a strength above 0, frequency families first."""
        along = {axis: [f for f in self.families if axis_of(f) == axis] for axis in ("frequency", "time", None)}
        names = (along["frequency"] if self.frequency_strength > 0 else []) + (
            along["time"] if self.time_strength > 0 else []
        )
        return (*names, *along[None])

    def strength(self, axis: Axis) -> float:
        """The strength along one axis."""
        return self.frequency_strength if axis == "frequency" else self.time_strength

    def check(self, views: ViewsConfig, num_mels: int, num_frames: int) -> None:
        """Refuses a strength that the positives themselves reach, or that a family cannot reach.

        Raises:
            ValueError: naming the config key, the strength and the dead zone.
        """
        sizes: dict[Axis, int] = {"frequency": num_mels, "time": num_frames}
        for axis, length in sizes.items():
            strength, edge = self.strength(axis), dead_zone(views, axis)
            if 0 < strength <= edge:
                raise ValueError(
                    f"negatives.{axis}_strength {strength:g}: inside the dead zone, because the views' own resize crop "
                    f"moves patterns by up to {edge:.3f} along {axis}. Raise the strength above {edge:.3f}, set it to "
                    f"0, or narrow views.resize_crop.{axis}_scale."
                )
            if strength > 0:
                try:
                    moves(self.along(axis), length, strength, self.fill)
                except ValueError as error:
                    raise ValueError(f"negatives.{axis}_{error}") from error

    def along(self, axis: Axis) -> tuple[Family, ...]:
        """The active families of one axis."""
        return tuple(family for family in self.active_families if axis_of(family) == axis)

    def build(self, views: ViewsConfig) -> Adversary:
        """The adversary that plays against these views."""
        return Adversary(self, views)


NegativesConfig = Annotated[HardestOfK | NoNegatives, Field(discriminator="kind")]


class Adversary:
    """Draws displacements and searches among them; holds no parameters."""

    def __init__(self, config: HardestOfK, views: ViewsConfig) -> None:
        """An adversary whose strength starts just outside the views' dead zone and ramps up to the config's."""
        self.config = config
        self._edges: dict[Axis, float] = {axis: dead_zone(views, axis) for axis in ("frequency", "time")}

    def find(self, anchor_BFS: Tensor, embed: Embed, draws: Draws, ramp: float = 1.0) -> Found:
        """The most confusing displacement of each anchor.

        Args:
            anchor_BFS: the anchors' spectrograms.
            embed: spectrograms (N, F, S) -> what the search compares (N, D); is called without gradient.
            draws: the step's random numbers.
            ramp: how far the strength has come from the dead zone to its full value, in [0, 1].
        """
        num = self.config.num_candidates
        family_BK, mel_BKFS = self._candidates(anchor_BFS, draws, ramp)
        best_B = torch.zeros(len(anchor_BFS), dtype=torch.long, device=anchor_BFS.device)
        if num > 1:
            with torch.no_grad():
                z_ND = embed(torch.cat([anchor_BFS, mel_BKFS.flatten(0, 1)])).float()
                z_ND = nn.functional.normalize(z_ND, dim=-1)
            z_BD, z_BKD = z_ND[: len(anchor_BFS)], z_ND[len(anchor_BFS) :].view(-1, num, z_ND.shape[-1])
            best_B = torch.einsum("bd,bkd->bk", z_BD, z_BKD).argmax(dim=1)
        row_B = torch.arange(len(anchor_BFS), device=anchor_BFS.device)
        mel_BFS = mel_BKFS[row_B, best_B]
        return Found(mel_BFS, self._changed(anchor_BFS, mel_BFS), family_BK[row_B, best_B])

    def _candidates(self, anchor_BFS: Tensor, draws: Draws, ramp: float) -> tuple[Tensor, Tensor]:
        """Families (B, K) and displaced anchors (B, K, F, S)."""
        num = self.config.num_candidates
        uniform_BK3 = draws.uniform("negatives", num, 3)
        families = self.config.active_families
        family_N = (uniform_BK3[..., 0] * len(families)).long().flatten()
        repeated_NFS = anchor_BFS.repeat_interleave(num, dim=0)
        first = 0
        sources = []
        sizes: dict[Axis, int] = {"frequency": anchor_BFS.shape[1], "time": anchor_BFS.shape[2]}
        for axis, length in sizes.items():
            names = self.config.along(axis)
            sources.append(self._sources(axis, names, length, family_N - first, uniform_BK3.flatten(0, 1)[:, 1:], ramp))
            first += len(names)
        mel_NFS = displace(repeated_NFS, *sources)
        if first < len(families):  # the smooth field is the last
            lattice = draws.uniform("negatives/field", num, *random_lattice_size()).flatten(0, 1)
            field = smooth_field(lattice, (sizes["frequency"], sizes["time"]), self._strengths(ramp))
            mel_NFS = torch.where((family_N == first)[:, None, None], warp(repeated_NFS, field), mel_NFS)
        return family_N.view(-1, num), mel_NFS.view(-1, num, *anchor_BFS.shape[1:])

    def _sources(
        self, axis: Axis, names: tuple[Family, ...], length: int, family_N: Tensor, uniform_N2: Tensor, ramp: float
    ) -> Tensor:
        if not names:
            return torch.arange(length, device=family_N.device).expand(len(family_N), length)
        strength = self._strengths(ramp)[0 if axis == "frequency" else 1]
        return moves(names, length, strength, self.config.fill).to(family_N.device).draw(family_N, uniform_N2)

    def _strengths(self, ramp: float) -> tuple[float, float]:
        level = round(ramp * _RAMP_LEVELS) / _RAMP_LEVELS
        return self._ramped("frequency", level), self._ramped("time", level)

    def _ramped(self, axis: Axis, level: float) -> float:
        full, edge = self.config.strength(axis), self._edges[axis]
        return edge + (full - edge) * max(level, 1 / _RAMP_LEVELS) if full > 0 else 0.0

    def _changed(self, anchor_BFS: Tensor, mel_BFS: Tensor) -> Tensor:
        """Whether the displacement changed the clip by more than `min_change` of the clip's own spread.

        Silence and steady noise look the same wherever they are, so their displaced copy is no negative.
        """
        change_B = (mel_BFS - anchor_BFS).square().mean(dim=(1, 2))
        spread_B = anchor_BFS.var(dim=(1, 2), correction=0)
        return change_B > self.config.min_change * spread_B + 1e-6
