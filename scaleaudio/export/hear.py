"""The module API of HEAR 2021 (https://hearbenchmark.com/hear-api.html), for any encoder that `scaleaudio.load` loads.

    hear-validator scaleaudio.export.hear --model encoder/
    python -m heareval.embeddings.runner scaleaudio.export.hear --model encoder/ --tasks-dir tasks

HEAR advises at most 50 ms from one timestamp to the next. An encoder with a longer hop is run several times over the
clip, each time a part of its hop later, and the frames are laid between each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scaleaudio.embedder import AudioEncoder
from scaleaudio.errors import InputError
from scaleaudio.export.which import asked_for

RATES_HZ = (16_000, 22_050, 32_000, 44_100, 48_000)
LONGEST_HOP_MS = 50.0


class HearModel(nn.Module):
    """An encoder with the attributes that HEAR asks for.

    Attributes:
        sample_rate: the rate that waveforms must have, in Hz.
        scene_embedding_size: D.
        timestamp_embedding_size: D.
        encoder: what embeds.
        passes: how often the encoder is run for timestamps.
    """

    def __init__(self, encoder: AudioEncoder) -> None:
        """Raises InputError for a rate that HEAR does not know."""
        super().__init__()
        if encoder.sample_rate_hz not in RATES_HZ:
            raise InputError(
                f"an encoder at {encoder.sample_rate_hz} Hz: HEAR knows {', '.join(map(str, RATES_HZ))}. Train one at "
                "such a frontend.sample_rate_hz."
            )
        self.encoder = encoder
        self.sample_rate = encoder.sample_rate_hz
        self.scene_embedding_size = self.timestamp_embedding_size = encoder.embedding_dim
        stride, spectrogram_ms = encoder.encoder.frame_stride, 1000 * encoder.config.frontend.hop_seconds
        parts = (part for part in range(1, stride + 1) if stride % part == 0)
        self.passes = next((n for n in parts if stride / n * spectrogram_ms <= LONGEST_HOP_MS), stride)
        self.eval()

    def forward(self, audio: Tensor) -> Tensor:
        """Scene embeddings (n, D) of (n, samples)."""
        made: Tensor = self.encoder(audio).float()
        return made


def load_model(model_file_path: str = "") -> HearModel:
    """The encoder of an exported folder, a run folder or a checkpoint, on the CPU.

    Without a path it is the one that the environment variable SCALEAUDIO_MODEL names.
    """
    return HearModel(asked_for(model_file_path))


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """One embedding a clip: (n, D) float32 of (n, samples) in [-1, 1]."""
    made: Tensor = model(audio)
    return made


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeddings at regular times: (n, T, D) float32, and the times (n, T) in milliseconds, within the audio.

    A time is the middle of what its embedding frame stands for.
    """
    encoder = model.encoder
    shift = encoder.encoder.frame_stride // model.passes * encoder.config.frontend.hop_samples
    starts = range(0, max(1, min(model.passes * shift, audio.shape[1])), shift)
    passes = [encoder.frames(audio[:, start:]).float() for start in starts]
    together_BSD = _interleaved(passes)
    hop_ms = 1000 * shift / model.sample_rate
    audio_ms = 1000 * audio.shape[1] / model.sample_rate
    centre_ms = 1000 * encoder.encoder.frame_centre * encoder.config.frontend.hop_seconds
    first_ms = min(centre_ms, hop_ms, audio_ms - (together_BSD.shape[1] - 1) * hop_ms)
    stamps_S = first_ms + hop_ms * torch.arange(together_BSD.shape[1], dtype=torch.float64)
    return together_BSD, stamps_S.to(audio.device).expand(len(audio), -1)


def _interleaved(passes: list[Tensor]) -> Tensor:
    """The passes' frames in the order of time, as far as none is missing in between."""
    made = torch.stack([frames_BSD[:, : passes[-1].shape[1]] for frames_BSD in passes], dim=2).flatten(1, 2)
    last = [frames_BSD[:, passes[-1].shape[1] :][:, :1] for frames_BSD in passes]
    return torch.cat([made, *last], dim=1)
