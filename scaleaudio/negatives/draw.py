"""Random displacements of the asked families and strengths: what the adversary searches among."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scaleaudio.negatives.base import Found, changed
from scaleaudio.negatives.displace import (
    displace,
    motion,
    moves,
    random_lattice_size,
    returned,
    smooth_field,
    warp,
    way_back,
)
from scaleaudio.negatives.strengths import AXES
from scaleaudio.types import Draws
from scaleaudio.views import Axis, ViewsConfig, dead_zone

if TYPE_CHECKING:
    from scaleaudio.negatives.hardest_of_k import HardestOfK


class Displacer:
    """Draws displacements whose strength starts just outside the views' dead zone and ramps up to the config's."""

    def __init__(self, config: HardestOfK, views: ViewsConfig) -> None:
        """Holds no parameters."""
        self.config = config
        self._edges = {axis: dead_zone(views, axis) for axis in AXES}

    def draw(
        self, mel_MFS: Tensor, draws: Draws, ramp: float, num: int, *, back: bool, name: str = "negatives"
    ) -> Found:
        """`num` displacements of each clip.

        Args:
            mel_MFS: the clips.
            draws: their random numbers.
            ramp: how far the strength has come.
            num: K.
            back: whether each is moved back to where it was; it still counts as valid by how far it was.
            name: under which the random numbers are drawn.
        """
        uniform_N3 = draws.uniform(name, num, 3).flatten(0, 1)
        families = self.config.active_families
        family_N = (uniform_N3[:, 0] * len(families)).long()
        level_N = torch.zeros_like(family_N)
        if self.config.strength_levels > 1:
            level_N = (draws.uniform(f"{name}/level", num).flatten() * self.config.strength_levels).long()
        mel_NFS = mel_MFS.repeat_interleave(num, dim=0)
        size = (mel_MFS.shape[1], mel_MFS.shape[2])
        first = 0
        maps = []
        for axis, length in zip(AXES, size, strict=True):
            maps.append(self._maps(axis, length, ramp, family_N - first, level_N, uniform_N3[:, 1:]))
            first += len(self.config.along(axis))
        displaced_NFS = displace(mel_NFS, *maps)
        result_NFS = displace(mel_NFS, *(returned(map_NF) for map_NF in maps)) if back else displaced_NFS
        motion_N2 = torch.stack([motion(map_NF) for map_NF in maps], dim=1)
        if first < len(families):  # the smooth field is the last
            is_field_N = family_N == first
            lattice = 2 * draws.uniform(f"{name}/field", num, *random_lattice_size()).flatten(0, 1) - 1
            field = smooth_field(lattice, size, self.strength(ramp, level_N))
            warped_NFS = warp(mel_NFS, field)
            displaced_NFS = torch.where(is_field_N[:, None, None], warped_NFS, displaced_NFS)
            if back:
                warped_NFS = warp(warped_NFS, way_back(field))
            result_NFS = torch.where(is_field_N[:, None, None], warped_NFS, result_NFS)
            motion_N2 = torch.where(is_field_N[:, None], -field.mean(dim=(2, 3)), motion_N2)
        full_2 = [self.config.strength(axis) or 1.0 for axis in AXES]
        motion_N2 = torch.stack([motion_N2[:, k] / full for k, full in enumerate(full_2)], dim=1)
        return Found(
            result_NFS,
            changed(mel_NFS, displaced_NFS, self.config.min_change),
            family_N,
            motion_N2 * (not back),
        )

    def strength(self, ramp: float, level_N: Tensor) -> Tensor:
        """Strengths (N, 2) of these levels along frequency and time."""
        levels = [self.config.strengths(axis, self._edges[axis], ramp) for axis in AXES]
        return torch.tensor(levels).T.to(level_N.device, non_blocking=True)[level_N]

    def _maps(
        self, axis: Axis, length: int, ramp: float, family_N: Tensor, level_N: Tensor, uniform_N2: Tensor
    ) -> Tensor:
        names = self.config.along(axis)
        if not names:
            return torch.arange(length, device=family_N.device).expand(len(family_N), length)
        strengths = self.config.strengths(axis, self._edges[axis], ramp)
        table = moves(names, length, strengths, self.config.fill, self.config.shift_multiple, family_N.device)
        ours_N = (family_N >= 0) & (family_N < len(names))
        return table.draw(torch.where(ours_N, family_N + level_N * len(names), -1), uniform_N2)


def scarred(displacer: Displacer, mel_BFS: Tensor, draws: Draws, ramp: float, name: str) -> Tensor:
    """Spectrograms of which the share `artefact_positives` is displaced and moved back, to bear what negatives do."""
    scarred_BFS = displacer.draw(mel_BFS, draws, ramp, 1, back=True, name=f"artefacts/{name}").mel_NFS
    chosen_B = draws.uniform(f"artefacts/{name}/chosen") < displacer.config.artefact_positives
    return torch.where(chosen_B[:, None, None], scarred_BFS, mel_BFS)
