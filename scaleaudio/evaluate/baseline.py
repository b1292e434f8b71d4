"""The encoder to beat: each mel band's mean and standard deviation over time, which know nothing of order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scaleaudio.frontend import FrontendConfig


class MelStatistics(nn.Module):
    """Mean and standard deviation over time of each log-mel band of the default front-end; nothing is learned."""

    def __init__(self) -> None:
        """Ready to use, in eval mode."""
        super().__init__()
        config = FrontendConfig()
        self.sample_rate_hz = config.sample_rate_hz
        self.embedding_dim = 2 * config.num_mels
        self.frontend = config.build()
        self.eval()

    def forward(self, wave_BT: Tensor) -> Tensor:
        """(B, 2 F): the means, then the standard deviations (0 for a clip of one frame)."""
        mel_BFS = self.frontend(wave_BT)
        return torch.cat((mel_BFS.mean(dim=-1), mel_BFS.std(dim=-1, correction=0)), dim=-1)
