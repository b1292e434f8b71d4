"""Which encoders there are: the shipped ones by `kind`, and anyone's own by "package:Class"."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from scaleaudio.encoders.audio_ntt import AudioNTTConfig
from scaleaudio.encoders.base import Encoder
from scaleaudio.encoders.cnn import CNNConfig
from scaleaudio.encoders.resnet import ResNetConfig
from scaleaudio.encoders.timm_backbone import TimmConfig
from scaleaudio.encoders.transformer import TransformerConfig
from scaleaudio.own import OwnKind, find_own, tag_of
from scaleaudio.types import Settings


class OwnEncoderConfig(Settings):
    """A user's encoder: the class that `kind` names, called with num_mels, num_frames and `options`.

    It subclasses `scaleaudio.encoders.Encoder`.
    """

    kind: OwnKind
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the class")

    def build(self, num_mels: int, num_frames: int) -> Encoder:
        """The encoder.

        Raises:
            ValueError: when the class cannot be imported or is no Encoder.
        """
        own = find_own("encoder", self.kind)
        if not (isinstance(own, type) and issubclass(own, Encoder)):  # before it is called: it may be anything
            raise ValueError(f"encoder.kind {self.kind!r}: expected a subclass of scaleaudio.encoders.Encoder")
        return own(num_mels=num_mels, num_frames=num_frames, **self.options)


EncoderConfig = Annotated[
    Annotated[AudioNTTConfig, Tag("audio_ntt")]
    | Annotated[AudioNTTConfig, Tag("audio_ntt_v2")]
    | Annotated[CNNConfig, Tag("cnn")]
    | Annotated[ResNetConfig, Tag("resnet")]
    | Annotated[TimmConfig, Tag("timm")]
    | Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[OwnEncoderConfig, Tag("own")],
    Discriminator(tag_of),
]
