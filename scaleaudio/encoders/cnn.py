"""A plain globally pooled CNN: blocks of one convolution, a norm, ReLU and 2 x 2 max pooling.

The smallest encoder that shows what arXiv 2303.08561 is about: it recognises patterns, and its pooling forgets where
they were. For experiments with many seeds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from scaleaudio.encoders.base import AddPosition, Encoder, Norm, Position, local, norm_2d
from scaleaudio.types import Settings


class CNNConfig(Settings):
    """One block for each width; each block halves frequency and time."""

    kind: Literal["cnn"] = "cnn"
    widths: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1, max_length=6, description="channels of each block; the last is the embedding's width (D)"),
    ] = (16, 48, 96, 192)
    norm: Annotated[Norm, Field(description="batch, or group, which does not look at the other clips")] = "batch"
    position: Annotated[
        Position, Field(description="learned vectors that tell the feature map its place along an axis")
    ] = "none"

    def build(self, num_mels: int, num_frames: int) -> CNN:
        """The encoder for spectrograms of `num_mels` bins; `num_frames` is the length it trains on."""
        return CNN(self, num_mels, num_frames)


class CNN(Encoder):
    """Position, blocks, mean over frequency and time."""

    def __init__(self, config: CNNConfig, num_mels: int, num_frames: int) -> None:
        """Raises ValueError where the blocks would halve `num_mels` or `num_frames` to nothing."""
        super().__init__()
        self.frame_stride = 2 ** len(config.widths)
        if min(num_mels, num_frames) < self.frame_stride:
            raise ValueError(
                f"encoder.widths: {len(config.widths)} blocks halve {num_mels} mels x {num_frames} frames to nothing; "
                "choose fewer widths, more mels or longer clips"
            )
        self.embedding_dim = config.widths[-1]
        self.frame_centre = (self.frame_stride - 1) / 2
        self.context_frames = local(self.frame_stride - 1, config.position, config.norm)
        self.position = AddPosition(config.position, 1, num_mels, num_frames)
        pairs = zip((1, *config.widths), config.widths, strict=False)
        self.blocks = nn.ModuleList(_block(config.norm, *pair) for pair in pairs)

    def frames(self, mel_BFS: Tensor) -> Tensor:
        """Frame embeddings (B, S // stride, D), each the mean over frequency."""
        map_BCFS: Tensor = self.position(mel_BFS.unsqueeze(1))
        for index, block in enumerate(self.blocks):
            map_BCFS = self._through(block, map_BCFS)
            if index == 0:  # channels last from the first map with channels: the default layout takes longer
                map_BCFS = map_BCFS.contiguous(memory_format=torch.channels_last)
        return map_BCFS.mean(dim=2).transpose(1, 2)

    def checkpoint_activations(self) -> None:
        """By blocks."""
        self._keeps_activations = False


def _block(norm: Norm, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm_2d(norm, outputs), nn.ReLU(), nn.MaxPool2d(2)
    )
