"""The adversary that searches by gradient: a smooth field of displacements that ascends the similarity.

With W(x, f) the clip x warped by the field f, and f of root mean square `strength` along each axis,

    u <- u / |u| + step_size * g / |g|,   g = d s(z(x), z(W(x, f(u)))) / du,   f(u) = strength up(u) / rms(up u)

for each axis of a coarse lattice u, `num_steps` times from a random start. The field lies on a *shell*: on a ball the
best answer would be to do nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from scaleaudio.negatives.base import Embed, Found, changed
from scaleaudio.negatives.displace import random_lattice_size, smooth_field, warp, way_back
from scaleaudio.negatives.draw import Displacer
from scaleaudio.negatives.hardest_of_k import HardestOfK
from scaleaudio.negatives.strengths import AXES, DisplacingSettings
from scaleaudio.types import Draws
from scaleaudio.views import ViewsConfig


class FieldNegatives(DisplacingSettings):
    """A smooth displacement field that climbs to where the encoder confuses the clip most, at fixed strength."""

    kind: Literal["field"] = "field"
    num_steps: Annotated[int, Field(ge=0, le=64, description="ascents; each costs a forward and a backward pass")] = 2
    step_size: Annotated[float, Field(gt=0, description="of an ascent, where the lattice has length 1")] = 0.5

    def build(self, views: ViewsConfig) -> FieldAdversary:
        """The adversary that plays against these views."""
        return FieldAdversary(self, views)


class FieldAdversary:
    """Ascends the similarity over displacement fields; holds no parameters."""

    def __init__(self, config: FieldNegatives, views: ViewsConfig) -> None:
        """An adversary whose strength starts just outside the views' dead zone and ramps up to the config's."""
        self.config = config
        shared = {name: getattr(config, name) for name in DisplacingSettings.model_fields}
        self.displacer = Displacer(HardestOfK(families=("smooth_field",), **shared), views)

    def find(self, anchor_BFS: Tensor, embed: Embed, draws: Draws, ramp: float = 1.0) -> Found:
        """The warped anchors that the ascent arrives at; gradients are taken with respect to the lattice alone."""
        size, device = (anchor_BFS.shape[1], anchor_BFS.shape[2]), anchor_BFS.device
        config = self.config
        level_B = torch.zeros(len(anchor_BFS), dtype=torch.long, device=device)
        if config.strength_levels > 1:
            level_B = (draws.uniform("negatives/level") * config.strength_levels).long()
        strength_B2 = self.displacer.strength(ramp, level_B)
        lattice = 2 * draws.uniform("negatives/field", *random_lattice_size()) - 1
        seen_BFS = F.avg_pool1d(anchor_BFS, config.score_stride) if config.score_stride > 1 else anchor_BFS
        with torch.no_grad():
            z_BD = F.normalize(embed(seen_BFS).float(), dim=-1)
        for _ in range(config.num_steps):
            lattice = self._ascended(lattice, seen_BFS, z_BD, embed, strength_B2)
        field = smooth_field(lattice, size, strength_B2)
        mel_BFS = warp(anchor_BFS, field)
        valid_B = changed(anchor_BFS, mel_BFS, config.min_change)
        full_2 = [config.strength(axis) or 1.0 for axis in AXES]
        motion_B2 = torch.stack([-field[:, k].mean(dim=(1, 2)) / full for k, full in enumerate(full_2)], dim=1)
        if config.control == "return":
            mel_BFS, motion_B2 = warp(mel_BFS, way_back(field)), torch.zeros_like(motion_B2)
        return Found(mel_BFS, valid_B, torch.zeros_like(level_B), motion_B2)

    def _ascended(self, lattice: Tensor, anchor_BFS: Tensor, z_BD: Tensor, embed: Embed, strength_B2: Tensor) -> Tensor:
        with torch.enable_grad():
            lattice = lattice.detach().requires_grad_()
            similarity = self.similarity(lattice, anchor_BFS, z_BD, embed, strength_B2)
            # grad, not backward: the search must leave no gradient in the parameters
            (grad,) = torch.autograd.grad(similarity, lattice)
        return _unit(lattice.detach()) + self.config.step_size * _unit(grad)

    def similarity(
        self, lattice: Tensor, anchor_BFS: Tensor, z_BD: Tensor, embed: Embed, strength_B2: Tensor
    ) -> Tensor:
        """What is ascended: the sum over clips of the similarity between anchor and warped anchor."""
        field = smooth_field(lattice, (anchor_BFS.shape[1], anchor_BFS.shape[2]), strength_B2)
        warped_BD = embed(warp(anchor_BFS, field))
        return F.cosine_similarity(warped_BD.to(z_BD.dtype), z_BD).sum()


def _unit(lattice: Tensor) -> Tensor:
    """Each axis of each clip's lattice at length 1, or 0 where it has none."""
    return lattice / lattice.square().sum(dim=(2, 3), keepdim=True).sqrt().clamp(min=1e-12)
