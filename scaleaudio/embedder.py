"""Waveforms to embeddings: what training leaves behind, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scaleaudio.chunks import Chunking, in_chunks
from scaleaudio.encoders import Encoder
from scaleaudio.frontend import Frontend
from scaleaudio.task import TaskConfig
from scaleaudio.types import LOUDEST

MAX_SECONDS = 600
CHUNK_SECONDS = 30.0
AT_ONCE_SECONDS = 120.0


class AudioEncoder(nn.Module):
    """Waveforms to embeddings: the front-end and encoder of a run, in eval mode.

    Clips longer than CHUNK_SECONDS are embedded in chunks, at most AT_ONCE_SECONDS of audio at a time. The chunks
    overlap by what an embedding frame depends on, so the frames are those of the whole clip up to rounding. An encoder
    whose frames depend on the whole clip (group norm, position vectors in time, some backbones of timm) takes each
    chunk as a clip of its own; one that goes over a clip in windows does so over the whole clip.

    Attributes:
        config: the task's config, with the measured front-end constants.
        step: how many steps it was trained for; 0 is an untrained encoder.
        origin: the rest of the run's config: its name, data and optimizer; empty where it is not known.
    """

    def __init__(
        self,
        config: TaskConfig,
        frontend: Frontend,
        encoder: Encoder,
        step: int = 0,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Puts both modules into eval mode."""
        super().__init__()
        self.config = config
        self.step = step
        self.origin = dict(origin or {})
        self.frontend = frontend
        self.encoder = encoder
        self.eval()

    @property
    def sample_rate_hz(self) -> int:
        """The rate that waveforms must have."""
        return self.config.frontend.sample_rate_hz

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.encoder.embedding_dim

    @property
    def hop_seconds(self) -> float:
        """Time from one embedding frame to the next."""
        return self.config.frontend.hop_seconds * self.encoder.frame_stride

    def frames(self, wave_BT: Tensor, *, sample_rate_hz: int | None = None) -> Tensor:
        """Frame embeddings (B, S, D) of mono waveforms in [-1, 1] at `self.sample_rate_hz`.

        Args:
            wave_BT: any length from one sample to ten minutes.
            sample_rate_hz: the rate of the waveforms, to have it checked.

        Raises:
            ValueError: for another rate, shape or type, no samples, more than ten minutes, or what is not finite.
        """
        self._check(wave_BT, sample_rate_hz)
        return self._some_at_once(self._frames, wave_BT)

    def forward(self, wave_BT: Tensor, *, sample_rate_hz: int | None = None) -> Tensor:
        """Clip embeddings (B, D); arguments and errors as `frames`."""
        self._check(wave_BT, sample_rate_hz)
        return self._some_at_once(lambda some_BT: self.encoder.pool(self._frames(some_BT)), wave_BT)

    def _some_at_once(self, embed: Callable[[Tensor], Tensor], wave_BT: Tensor) -> Tensor:
        num = max(1, int(AT_ONCE_SECONDS * self.sample_rate_hz) // wave_BT.shape[1])
        made = [embed(some_BT) for some_BT in torch.split(wave_BT.float(), num)]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _frames(self, wave_BT: Tensor) -> Tensor:
        frontend, encoder = self.config.frontend, self.encoder
        spectrogram = Chunking(
            stride=frontend.hop_samples,
            frames=_num_in_chunk(frontend.hop_seconds),
            margin=-(-frontend.n_fft // (2 * frontend.hop_samples)),
        )
        embedding = Chunking(
            stride=encoder.frame_stride,
            frames=_num_in_chunk(self.hop_seconds),
            margin=-(-(encoder.context_frames or 0) // encoder.frame_stride),
        )
        mel_BFS = in_chunks(self.frontend, wave_BT, spectrogram, dim=2)
        missing = encoder.frame_stride - mel_BFS.shape[-1]
        if missing > 0:  # a clip shorter than one embedding frame: its last spectrogram frame goes on
            mel_BFS = nn.functional.pad(mel_BFS, (0, missing), mode="replicate")
        if encoder.embeds_windows:
            return encoder.frames(mel_BFS)
        return in_chunks(encoder.frames, mel_BFS, embedding, dim=1)

    def _check(self, wave_BT: Tensor, sample_rate_hz: int | None) -> None:
        if sample_rate_hz not in (None, self.sample_rate_hz):
            raise ValueError(
                f"waveforms at {sample_rate_hz} Hz: expected {self.sample_rate_hz} Hz. Resample them, for example with "
                "torchaudio.functional.resample."
            )
        if not isinstance(wave_BT, Tensor):
            raise ValueError(
                f"waveforms as {type(wave_BT).__name__}: expected a torch tensor; torch.as_tensor makes one"
            )
        if wave_BT.ndim != 2 or 0 in wave_BT.shape:
            raise ValueError(
                f"waveforms of shape {list(wave_BT.shape)}: expected (clips, samples), mono, at least one sample; "
                "give one clip as wave[None]"
            )
        if wave_BT.shape[1] > MAX_SECONDS * self.sample_rate_hz:
            raise ValueError(
                f"waveforms of {wave_BT.shape[1] / self.sample_rate_hz:.0f} s: expected at most {MAX_SECONDS} s. "
                "Cut them and average, or keep the pieces."
            )
        if not wave_BT.is_floating_point():
            raise ValueError(f"waveforms of {wave_BT.dtype}: expected floating point in [-1, 1]; divide by full scale")
        peak = float(wave_BT.abs().max())
        if not math.isfinite(peak):
            raise ValueError("waveforms with NaN or Inf: expected finite samples in [-1, 1]")
        if peak > LOUDEST:
            raise ValueError(f"waveforms that reach {peak:.3g}: expected samples in [-1, 1]; divide by full scale")


def _num_in_chunk(hop_seconds: float) -> int:
    return max(1, round(CHUNK_SECONDS / hop_seconds))


def untrained(config: TaskConfig) -> AudioEncoder:
    """The encoder of `config` with freshly drawn weights."""
    return AudioEncoder(config, config.frontend.build(), config.build_encoder())
