"""Encoders made elsewhere, as models that can be evaluated: anything that maps spectrograms to vectors.

model = OnMels(my_encoder, embedding_dim=512)      # my_encoder(mel_BFS) -> (B, 512)
model = timm_model("resnet18")                     # or "resnet18@weights.safetensors"
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaleaudio.errors import InputError
from scaleaudio.frontend import FrontendConfig
from scaleaudio.types import keyed_seed

# Mean and deviation of everyday audio's log-mel, roughly: an encoder of one's own was trained with its own.
EVERYDAY = FrontendConfig(mean=-7.0, std=4.0)


class OnMels(nn.Module):
    """A front-end, and an encoder that maps its normalised log-mel (B, F, S) to (B, D); in eval mode.

    Attributes:
        sample_rate_hz: the rate that waveforms must have.
        embedding_dim: D.
        frontend: waveforms to spectrograms.
        encoder: the encoder.
        frame_stride: places of the spectrogram to one of the encoder's last map, where that is known.
    """

    def __init__(
        self,
        encoder: nn.Module | Callable[[Tensor], Tensor],
        *,
        embedding_dim: int,
        frontend: FrontendConfig = EVERYDAY,
        frame_stride: int | None = None,
    ) -> None:
        """Puts the encoder, if it is a module, into eval mode."""
        super().__init__()
        self.sample_rate_hz = frontend.sample_rate_hz
        self.embedding_dim = embedding_dim
        self.frame_stride = frame_stride
        self.frontend = frontend.build()
        self.encoder = encoder
        self.eval()

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Embeddings (B, D) of waveforms in [-1, 1]."""
        z_BD: Tensor = self.encoder(self.frontend(wave_BT))
        return z_BD


class _Image(nn.Module):
    """A spectrogram as an image of one channel."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, mel_BFS: Tensor) -> Tensor:
        z_BD: Tensor = self.backbone(mel_BFS.unsqueeze(1))
        return z_BD


def timm_model(name: str, *, frontend: FrontendConfig = EVERYDAY, seed: int = 0) -> OnMels:
    """An image backbone of timm with one input channel, as a model on log-mels; nothing is downloaded.

    Args:
        name: a timm name; freshly drawn weights, or with "NAME@FILE" those of a local file.
        frontend: the front-end before it.
        seed: of the weights.

    Raises:
        InputError: timm is not installed or has no such model, or the file does not fit it.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm:{name}: timm is not installed: pip install 'scaleaudio[timm]'") from error
    name, _, weights = name.partition("@")
    options: dict[str, Any] = {"in_chans": 1, "num_classes": 0}
    if weights:
        if not Path(weights).is_file():
            raise InputError(f"timm:{name}@{weights}: no such file; give the weights as a local file")
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": weights}}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "timm"))
            try:  # transformers take one size alone, unless told otherwise
                backbone: Any = timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **options)
            except TypeError:
                backbone = timm.create_model(name, **options)
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 1, frontend.num_mels, 96))
    except Exception as error:  # timm raises RuntimeError, TypeError, AssertionError and those of torch
        raise InputError(f"timm:{name}: timm cannot make it ({' '.join(str(error).split())[:200]})") from error
    stride = backbone.feature_info[-1]["reduction"] if getattr(backbone, "feature_info", None) else None
    return OnMels(_Image(backbone), embedding_dim=backbone.num_features, frontend=frontend, frame_stride=stride)
