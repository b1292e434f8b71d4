"""What every adversary is: settings, how it is asked, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from scaleaudio.types import Draws, Settings
from scaleaudio.views import ViewsConfig

Embed = Callable[[Tensor], Tensor]


class Found(NamedTuple):
    """The negatives of one step: N = P for each clip, those of one clip side by side.

    Attributes:
        mel_NFS: the displaced clips.
        valid_N: False where the displacement hardly changed the clip, so that it means the same.
        family_N: index of the family that was chosen, into the config's `family_names`.
        motion_N2: mean signed motion of the content along frequency and along time, in units of the strengths; 0 for
            what is merely rearranged.
    """

    mel_NFS: Tensor
    valid_N: Tensor
    family_N: Tensor
    motion_N2: Tensor

    def shares(self, family_names: tuple[str, ...]) -> dict[str, Tensor]:
        """The share of each family, where there are several: what the adversary finds confusing."""
        if len(family_names) == 1:
            return {}
        family_Q1 = torch.arange(len(family_names), device=self.family_N.device)[:, None]
        share_Q = (self.family_N == family_Q1).float().mean(dim=1)  # bincount would wait for the device
        return {f"negatives/family_{name}": share for name, share in zip(family_names, share_Q, strict=True)}


class Adversary(Protocol):
    """Finds negatives; holds no parameters."""

    def find(self, anchor_BFS: Tensor, embed: Embed, draws: Draws, ramp: float = 1.0) -> Found:
        """The negatives of each anchor.

        Args:
            anchor_BFS: the anchors' spectrograms.
            embed: spectrograms (N, F, S) -> what the search compares (N, D), in eval mode.
            draws: the random numbers of these clips.
            ramp: how far the strength has come from the dead zone to its full value, in [0, 1].
        """
        ...


class NoNegatives(Settings):
    """The plain baseline: no adversary."""

    kind: Literal["none"] = "none"

    @property
    def active(self) -> bool:
        """Never."""
        return False

    def check(self, views: ViewsConfig, num_mels: int, num_frames: int) -> None:
        """There is nothing to refuse."""


class NegativesSettings(Settings):
    """What every adversary can be told."""

    fraction: Annotated[
        float, Field(gt=0, le=1, description="share of the clips that negatives are made for; the rest cost nothing")
    ] = 1.0
    batch_norm: Annotated[
        Literal["views", "split", "eval", "shared"],
        Field(
            description="what normalises negatives in BatchNorm. views: the statistics of the step's views; shared: "
            "one batch with the views, whose running statistics then hold negatives too; split: their own; eval: the "
            "running ones (by these two a clip is embedded otherwise than among the views)"
        ),
    ] = "views"
    min_change: Annotated[
        float, Field(ge=0, description="change, over the clip's own spread, below which a clip is no negative")
    ] = 0.1

    @property
    def active(self) -> bool:
        """Whether there are negatives at all."""
        return True

    @property
    def family_names(self) -> tuple[str, ...]:
        """The kinds of displacement that there are to tell apart."""
        return ("displaced",)

    def check(self, views: ViewsConfig, num_mels: int, num_frames: int) -> None:
        """Refuses what cannot work with these views and spectrograms.

        Raises:
            ValueError: naming the config key.
        """

    def build(self, views: ViewsConfig) -> Adversary:
        """The adversary that plays against these views."""
        raise NotImplementedError

    def rows(self, num_clips: int, lane_batch: int) -> Tensor:
        """Which clips of whole lanes get negatives: the first of each lane, at least one.

        A lane's order is random, so that these are other clips in every epoch; and they are the same for every number
        of workers.
        """
        count = max(1, round(self.fraction * lane_batch))
        return torch.arange(num_clips).view(-1, lane_batch)[:, :count].flatten()


def changed(anchor_NFS: Tensor, displaced_NFS: Tensor, min_change: float) -> Tensor:
    """Whether each clip was changed by more than `min_change` of its own spread.

    Silence and steady noise look the same wherever they are, so their displaced copy is no negative.
    """
    change_N = (displaced_NFS - anchor_NFS).square().mean(dim=(1, 2))
    spread_N = anchor_NFS.var(dim=(1, 2), correction=0)
    return change_N > min_change * spread_N + 1e-6
