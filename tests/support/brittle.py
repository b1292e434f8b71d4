"""An adversary that goes wrong once, as a user's own part may."""

from __future__ import annotations

import math

from torch import Tensor

from scaleaudio.negatives import Found, HardestOfK, HardestOfKAdversary
from scaleaudio.negatives.base import Embed
from scaleaudio.types import Draws
from scaleaudio.views import ViewsConfig


class Brittle(HardestOfKAdversary):
    """Finds negatives that are no numbers at the `at`-th step that it is asked for, the first being 0."""

    def __init__(self, views: ViewsConfig, at: int) -> None:
        """Has not been asked yet."""
        super().__init__(HardestOfK(num_candidates=1), views)
        self._left = at

    def find(self, anchor_BFS: Tensor, embed: Embed, draws: Draws, ramp: float = 1.0) -> Found:
        """See Adversary."""
        found = super().find(anchor_BFS, embed, draws, ramp)
        self._left -= 1
        return found if self._left != -1 else found._replace(mel_NFS=found.mel_NFS * math.nan)
