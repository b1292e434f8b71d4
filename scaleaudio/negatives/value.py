"""A control, not the method: values are changed, not positions.

One step of the fast gradient sign method (arXiv 1412.6572) on the cells of the spectrogram, towards greater similarity.
At the clip x itself that is greatest and has no gradient, so the step starts from random signs d. A step of full length
overshoots by far; this one is as long as it takes to leave no change along the gradient:

    n = x + epsilon v / rms(v),   v = d + a sign(g),   a = -(d . g) / |g|_1

with g the gradient in y of s(z(x), z(y)) at y = x + epsilon d. It lies on a shell, as a
displacement does: the root mean square of the change is epsilon.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from scaleaudio.negatives.base import Embed, Found, NegativesSettings, changed
from scaleaudio.types import Draws
from scaleaudio.views import ViewsConfig


class ValueNegatives(NegativesSettings):
    """Values changed by epsilon, in a direction that the encoder hardly notices."""

    kind: Literal["value"] = "value"
    epsilon: Annotated[
        float,
        Field(
            ge=0, description="root mean square change, in standard deviations of the normalised mel; 0 switches it off"
        ),
    ] = 0.5

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self.epsilon > 0

    def build(self, views: ViewsConfig) -> ValueAdversary:
        """The adversary; it does not depend on the views."""
        return ValueAdversary(self)


class ValueAdversary:
    """One step on the values; holds no parameters."""

    def __init__(self, config: ValueNegatives) -> None:
        """Of fixed radius: there is no dead zone to start from."""
        self.config = config

    def find(self, anchor_BFS: Tensor, embed: Embed, draws: Draws, ramp: float = 1.0) -> Found:
        """Each anchor with its values changed by epsilon, times the ramp."""
        epsilon = self.config.epsilon * max(ramp, 1 / 16)
        sign_BFS = torch.where(draws.uniform("negatives/value", *anchor_BFS.shape[1:]) < 0.5, -1.0, 1.0)
        start_BFS = anchor_BFS + epsilon * sign_BFS
        with torch.no_grad():
            z_BD = embed(anchor_BFS).float()
        with torch.enable_grad():
            start_BFS = start_BFS.detach().requires_grad_()
            similarity = F.cosine_similarity(embed(start_BFS).float(), z_BD).sum()
            # grad, not backward: the search must leave no gradient in the parameters
            (grad_BFS,) = torch.autograd.grad(similarity, start_BFS)
        along_B11 = (sign_BFS * grad_BFS).sum(dim=(1, 2), keepdim=True)
        total_B11 = grad_BFS.abs().sum(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        change_BFS = sign_BFS - along_B11 / total_B11 * grad_BFS.sign()
        mel_BFS = anchor_BFS + epsilon * change_BFS / change_BFS.square().mean(dim=(1, 2), keepdim=True).sqrt()
        nothing_B = torch.zeros(len(anchor_BFS), dtype=torch.long, device=anchor_BFS.device)
        motion_B2 = torch.zeros(len(anchor_BFS), 2, device=anchor_BFS.device)
        return Found(mel_BFS, changed(anchor_BFS, mel_BFS, self.config.min_change), nothing_B, motion_B2)
