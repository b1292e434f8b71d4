"""A globally pooled residual CNN: the case that arXiv 2303.08561 is about.

Convolutions recognise patterns anywhere and the pooling forgets where, so whatever this encoder knows about position
it has learned (from zero padding, strides, or the optional position vectors). Basic blocks of arXiv 1512.03385.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scaleaudio.encoders.base import AddPosition, Encoder, Norm, Position, local, norm_2d
from scaleaudio.types import Settings


class ResNetConfig(Settings):
    """One stage for each width; each stage halves frequency and time."""

    kind: Literal["resnet"] = "resnet"
    widths: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1, max_length=6, description="channels of each stage; the last is the embedding's width (D)"),
    ] = (32, 64, 128, 256)
    blocks_per_stage: Annotated[int, Field(ge=1, description="residual blocks of each stage")] = 1
    norm: Annotated[Norm, Field(description="batch, or group, which does not look at the other clips")] = "batch"
    position: Annotated[
        Position, Field(description="learned vectors that tell the feature map its place along an axis")
    ] = "none"

    def build(self, num_mels: int, num_frames: int) -> ResNet:
        """The encoder for spectrograms of `num_mels` bins; `num_frames` is the length it trains on."""
        return ResNet(self, num_mels, num_frames)


class ResNet(Encoder):
    """Stem, position, stages of residual blocks, mean over frequency and time."""

    def __init__(self, config: ResNetConfig, num_mels: int, num_frames: int) -> None:
        """Any number of mel bins will do."""
        super().__init__()
        self.embedding_dim = config.widths[-1]
        self.frame_stride = 2 ** len(config.widths)
        convolutions = 1 + 2 + 4 * (config.blocks_per_stage - 1)  # of a stage, in the frames that it gets
        self.context_frames = local(1 + convolutions * (self.frame_stride - 1), config.position, config.norm)
        first = config.widths[0]
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), norm_2d(config.norm, first), nn.ReLU())
        self.position = AddPosition(config.position, first, num_mels, num_frames)
        self.stages = nn.Sequential(
            *(
                _Block(config.norm, *channels, stride=2 if index == 0 else 1)
                for pair in zip((first, *config.widths), config.widths, strict=False)
                for index, channels in enumerate([pair] + [(pair[1], pair[1])] * (config.blocks_per_stage - 1))
            )
        )

    def frames(self, mel_BFS: Tensor) -> Tensor:
        """Frame embeddings (B, ceil(S / stride), D), each the mean over frequency."""
        map_BCFS: Tensor = self.position(self.stem(mel_BFS.unsqueeze(1)))
        # channels last: the default layout takes 1.5 times as long
        map_BCFS = map_BCFS.contiguous(memory_format=torch.channels_last)
        for block in self.stages:
            map_BCFS = self._through(block, map_BCFS)
        return map_BCFS.mean(dim=2).transpose(1, 2)

    def checkpoint_activations(self) -> None:
        """By residual blocks."""
        self._keeps_activations = False


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, norm: Norm, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            norm_2d(norm, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm_2d(norm, outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm_2d(norm, outputs))
        )
        self._stride = stride

    def forward(self, map_BCFS: Tensor) -> Tensor:
        # A strided 1x1 convolution does the same, but its gradient corrupts the heap on CPUs (torch 2.11, channels
        # last, fewer than 16 inputs).
        every_BCFS = map_BCFS[:, :, :: self._stride, :: self._stride]
        return F.relu(self.path(map_BCFS) + self.shortcut(every_BCFS))
