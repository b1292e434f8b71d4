"""AudioNTT, the encoder of BYOL-A, in both versions and in the layout of the published state dicts.

v1: arXiv 2103.06695; v2: arXiv 2204.07402. Frames are flattened over frequency, so it sees frequency from the start; a
clip is the maximum plus the mean over time, so it is nearly blind to the order of events.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from scaleaudio.encoders.base import AddPosition, Encoder, Position, local
from scaleaudio.types import Settings

_CHANNELS = 64
_BLOCK_LAYERS = 4
_V2_HIDDEN = 2048


class AudioNTTConfig(Settings):
    """AudioNTT v1 (three blocks) or v2 (two blocks, and the features beside the embedding)."""

    kind: Literal["audio_ntt", "audio_ntt_v2"] = "audio_ntt"
    embedding_dim: Annotated[int, Field(ge=1, description="width of the embedding (D)")] = 512
    dropout: Annotated[float, Field(ge=0, lt=1, description="in the linear layers")] = 0.3
    position: Annotated[
        Position, Field(description="learned vectors that tell the feature map its place along an axis")
    ] = "none"

    def build(self, num_mels: int, num_frames: int) -> AudioNTT:
        """The encoder for spectrograms of `num_mels` bins; `num_frames` is the length it trains on."""
        return AudioNTT(self, num_mels, num_frames)


class AudioNTT(Encoder):
    """Convolution blocks over the spectrogram, then two linear layers on each frame."""

    def __init__(self, config: AudioNTTConfig, num_mels: int, num_frames: int) -> None:
        """Raises ValueError where the blocks' pooling does not divide `num_mels` or the features fill the embedding."""
        super().__init__()
        is_v2 = config.kind == "audio_ntt_v2"
        num_blocks = 2 if is_v2 else 3
        self.embedding_dim = config.embedding_dim
        self.frame_stride = 2**num_blocks
        self.frame_centre = (self.frame_stride - 1) / 2
        self.context_frames = local(2**num_blocks - 1, config.position)  # 1 + 2 + 4: each block's own neighbours
        if num_mels % self.frame_stride:
            raise ValueError(f"frontend.num_mels {num_mels}: {config.kind} needs a multiple of {self.frame_stride}")
        width = _CHANNELS * num_mels // self.frame_stride
        self._keeps_features = is_v2
        hidden, out = (_V2_HIDDEN, config.embedding_dim - width) if is_v2 else (config.embedding_dim,) * 2
        if out <= 0:
            raise ValueError(
                f"encoder.embedding_dim {config.embedding_dim}: audio_ntt_v2 on {num_mels} mels keeps {width} features "
                "in the embedding; choose more than that (3072 is the published size)"
            )
        self.position = AddPosition(config.position, 1, num_mels, num_frames)
        self.features = nn.Sequential(*(layer for index in range(num_blocks) for layer in _block(index)))
        self.fc = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(hidden, out), nn.ReLU()
        )

    def frames(self, mel_BFS: Tensor) -> Tensor:
        """Frame embeddings (B, S / stride, D)."""
        map_BCFS = self.position(mel_BFS.unsqueeze(1))
        for first in range(0, len(self.features), _BLOCK_LAYERS):
            if map_BCFS.is_cuda:  # what its bfloat16 convolutions want; on CPUs channels last takes longer here
                map_BCFS = map_BCFS.contiguous(memory_format=torch.channels_last)
            map_BCFS = self._through(self.features[first : first + _BLOCK_LAYERS], map_BCFS)
        features_BSD = map_BCFS.permute(0, 3, 2, 1).flatten(2)
        embedded_BSD: Tensor = self.fc(features_BSD)
        return torch.cat([features_BSD, embedded_BSD], dim=-1) if self._keeps_features else embedded_BSD

    def checkpoint_activations(self) -> None:
        """By convolution blocks; the linear layers keep theirs."""
        self._keeps_activations = False

    def pool(self, frames_BSD: Tensor) -> Tensor:
        """Clip embeddings (B, D): maximum plus mean over time."""
        return frames_BSD.amax(dim=1) + frames_BSD.mean(dim=1)


def _block(index: int) -> list[nn.Module]:
    channels = 1 if index == 0 else _CHANNELS
    return [
        nn.Conv2d(channels, _CHANNELS, 3, padding=1),
        nn.BatchNorm2d(_CHANNELS),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
