"""A transformer over patches of the spectrogram, with a place in frequency and a place in time.

Patches and blocks as in arXiv 2010.11929 and, for spectrograms, arXiv 2104.01778: pre-norm, GELU, one linear map from
patch to token. Without position vectors it is a bag of patches, blind to every rearrangement of them. A clip longer
than the training crop is embedded window by window: positions are never stretched, and cost grows with length alone.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from scaleaudio.encoders.base import AddPosition, Encoder, Position
from scaleaudio.types import Settings


class TransformerConfig(Settings):
    """Patches of `patch_mels` bins x `patch_frames` frames; `patch_frames` is also the stride in time."""

    kind: Literal["transformer"] = "transformer"
    patch_mels: Annotated[int, Field(ge=1, description="mel bins of a patch; divides frontend.num_mels")] = 16
    patch_frames: Annotated[int, Field(ge=1, description="spectrogram frames of a patch, and the stride in time")] = 4
    width: Annotated[int, Field(ge=1, description="of a token, and of the embedding (D)")] = 192
    depth: Annotated[int, Field(ge=1, description="blocks")] = 6
    heads: Annotated[int, Field(ge=1, description="of the attention; divides width")] = 3
    dropout: Annotated[float, Field(ge=0, lt=1, description="in attention and linear layers")] = 0.0
    position: Annotated[Position, Field(description="learned vectors that tell a patch its place along an axis")] = (
        "both"
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width}: expected a multiple of heads ({self.heads})")
        return self

    def build(self, num_mels: int, num_frames: int) -> Transformer:
        """The encoder for spectrograms of `num_mels` bins; `num_frames` is the length it trains on."""
        return Transformer(self, num_mels, num_frames)


class Transformer(Encoder):
    """Patches, positions, blocks, norm; a frame is the mean over frequency, a clip the mean over time."""

    def __init__(self, config: TransformerConfig, num_mels: int, num_frames: int) -> None:
        """Raises ValueError where the patches do not divide `num_mels`."""
        super().__init__()
        if num_mels % config.patch_mels:
            raise ValueError(f"frontend.num_mels {num_mels}: encoder.patch_mels {config.patch_mels} does not divide it")
        self.embedding_dim = config.width
        self.frame_stride = config.patch_frames
        self.frame_centre = (self.frame_stride - 1) / 2
        self.embeds_windows = True
        columns = -(-num_frames // config.patch_frames)
        self._window = columns * config.patch_frames
        patch = (config.patch_mels, config.patch_frames)
        self.patches = nn.Conv2d(1, config.width, patch, stride=patch)
        self.position = _Places(config.position, config.width, num_mels // config.patch_mels, columns)
        self.blocks = nn.Sequential(*(_Block(config.width, config.heads, config.dropout) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)

    def frames(self, mel_BFS: Tensor) -> Tensor:
        """Frame embeddings (B, ceil(S / stride), D); in the last of them the last spectrogram frame goes on."""
        return torch.cat([self._embed(part_BFS) for part_BFS in torch.split(mel_BFS, self._window, dim=2)], dim=1)

    def _embed(self, mel_BFS: Tensor) -> Tensor:
        if missing := -mel_BFS.shape[2] % self.frame_stride:
            mel_BFS = F.pad(mel_BFS, (0, missing), mode="replicate")
        map_BCFS = self.position(self.patches(mel_BFS.unsqueeze(1)))
        token_BND = map_BCFS.flatten(2).mT
        for block in self.blocks:
            token_BND = self._through(block, token_BND)
        grid = (len(mel_BFS), *map_BCFS.shape[2:], self.embedding_dim)
        frames_BSD: Tensor = self.norm(token_BND).reshape(grid).mean(dim=1)
        return frames_BSD

    def checkpoint_activations(self) -> None:
        """By transformer blocks."""
        self._keeps_activations = False


class _Places(AddPosition):
    """Position vectors whose time is the place in the window: a shorter part has the first of them."""

    def forward(self, map_BCFS: Tensor) -> Tensor:
        if self.frequency is not None:
            map_BCFS = map_BCFS + self.frequency[None, :, :, None]
        if self.time is not None:
            map_BCFS = map_BCFS + self.time[None, :, None, : map_BCFS.shape[3]]
        return map_BCFS


class _Block(nn.Module):
    """Attention between all tokens, then two linear layers on each."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    # Not nn.TransformerEncoderLayer: in eval mode it reads its layers' weights past their forward, where ZeRO stage 3
    # has not gathered them, and it rounds differently with and without gradient.
    def forward(self, token_BND: Tensor) -> Tensor:
        query, key, value = (
            part.reshape(*part.shape[:2], self._heads, -1).transpose(1, 2)
            for part in self.query_key_value(self.norm(token_BND)).chunk(3, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        token_BND = token_BND + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        result_BND: Tensor = token_BND + self.mlp(token_BND)
        return result_BND
