"""What every encoder is, and the two layers that they share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaleaudio.recompute import recomputed

Norm = Literal["batch", "group"]
Position = Literal["none", "frequency", "time", "both"]


class Encoder(nn.Module):
    """Spectrograms (B, F, S) to frame embeddings (B, S', D) and, pooled over time, clip embeddings (B, D).

    Attributes:
        embedding_dim: D.
        frame_stride: spectrogram frames to one embedding frame.
        context_frames: how many spectrogram frames before and after its own an embedding frame depends on; None where
            it may depend on all of them. Long clips are embedded in chunks that overlap by so much.
        embeds_windows: whether `frames` itself goes over long clips window by window, so that they need no chunks.
        frame_centre: the spectrogram frame, a fraction maybe, in the middle of the first embedding frame.
    """

    embedding_dim: int
    frame_stride: int
    context_frames: int | None = None
    embeds_windows: bool = False
    frame_centre: float = 0.0
    _keeps_activations = True

    def frames(self, mel_BFS: Tensor) -> Tensor:
        """Frame embeddings (B, S', D)."""
        raise NotImplementedError

    def pool(self, frames_BSD: Tensor) -> Tensor:
        """Clip embeddings (B, D): the mean over time."""
        return frames_BSD.mean(dim=1)

    def forward(self, mel_BFS: Tensor) -> Tensor:
        """Clip embeddings (B, D)."""
        return self.pool(self.frames(mel_BFS))

    def checkpoint_activations(self) -> None:
        """From now on training keeps what goes into each block, and makes the rest again for the gradient.

        Raises:
            ValueError: where there are no blocks to do that by.
        """
        raise ValueError(
            f"train.checkpoint_activations: {type(self).__name__} knows no blocks that could be made again. "
            "Set it to false, or give the class a method checkpoint_activations."
        )

    def _through(self, block: nn.Module, map_BCFS: Tensor) -> Tensor:
        """What the block makes of a feature map, with or without keeping what lies between."""
        keeps = self._keeps_activations or not torch.is_grad_enabled()
        made_BCFS: Tensor = block(map_BCFS) if keeps else recomputed(block)(map_BCFS)
        return made_BCFS


def norm_2d(norm: Norm, channels: int) -> nn.Module:
    """BatchNorm, or GroupNorm of up to eight groups, which does not depend on the batch."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max(g for g in range(1, 9) if channels % g == 0), channels)


def local(context_frames: int, position: Position, *norms: Norm) -> int | None:
    """`context_frames`, or None where position vectors in time or a norm over time make all frames matter."""
    return None if position in ("time", "both") or "group" in norms else context_frames


class AddPosition(nn.Module):
    """A learned vector for each frequency and each time added to the feature map.

    Lets a convolutional encoder see where a pattern is; with zero padding and pooling alone it sees little of it
    (arXiv 2101.12322). The time vectors are stretched to the length that comes.
    """

    def __init__(self, position: Position, channels: int, rows: int, frames: int) -> None:
        """Vectors for `rows` frequencies and `frames` times, starting small."""
        super().__init__()
        self.frequency = _vectors(channels, rows) if position in ("frequency", "both") else None
        self.time = _vectors(channels, frames) if position in ("time", "both") else None

    def forward(self, map_BCFS: Tensor) -> Tensor:
        """The feature map with the position vectors added."""
        if self.frequency is not None:
            map_BCFS = map_BCFS + self.frequency[None, :, :, None]
        if self.time is not None:
            time_1CS = F.interpolate(self.time[None], size=map_BCFS.shape[-1], mode="linear", align_corners=True)
            map_BCFS = map_BCFS + time_1CS[:, :, None, :]
        return map_BCFS


def _vectors(channels: int, places: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(channels, places))
