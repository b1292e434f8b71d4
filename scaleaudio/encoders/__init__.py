"""Encoders: spectrograms to frame embeddings and one clip embedding. The union on `kind` is the registry."""

from scaleaudio.encoders.base import Encoder
from scaleaudio.encoders.registry import EncoderConfig

__all__ = ["Encoder", "EncoderConfig"]
