"""Waveform to normalised log-mel spectrogram, on the device.

The defaults are BYOL-A's front-end (arXiv 2103.06695, section IV-A): 16 kHz, a 64 ms window, a 10 ms hop and 64 mel
bins from 60 to 7800 Hz, as log power, normalised by the corpus' mean and standard deviation. The weights that BYOL-A's
authors published were trained, and are evaluated, on Slaney's mel bands of equal area: `mel_scale: slaney`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from scaleaudio.types import Settings

_EPS = torch.finfo(torch.float32).eps
_SLANEY = math.log(6.4) / 27  # above 1 kHz, where the scale turns from linear to logarithmic: 27 mels to 6.4 kHz


class FrontendConfig(Settings):
    """How a waveform becomes a spectrogram."""

    sample_rate_hz: Annotated[int, Field(ge=4000, le=192_000, description="the rate that waveforms are brought to")] = (
        16_000
    )
    n_fft: Annotated[int, Field(ge=32, description="samples of the Fourier transform")] = 1024
    win_samples: Annotated[int, Field(ge=16, description="samples of the window, at most n_fft")] = 1024
    hop_samples: Annotated[int, Field(ge=1, description="samples from one spectrogram frame to the next")] = 160
    num_mels: Annotated[int, Field(ge=8, le=512, description="mel bins (F)")] = 64
    min_hz: Annotated[float, Field(ge=0, description="where the lowest mel bin begins")] = 60.0
    max_hz: Annotated[
        float, Field(gt=0, description="where the highest mel bin ends, at most half of sample_rate_hz")
    ] = 7800.0
    mel_scale: Annotated[
        Literal["htk", "slaney"],
        Field(description="htk: bands of equal height, torchaudio's default; slaney: of equal area, librosa's"),
    ] = "htk"
    mean: Annotated[
        float | None, Field(description="of the log-mel; null: measured from the shards before training")
    ] = None
    std: Annotated[Annotated[float, Field(gt=0)] | None, Field(description="of the log-mel, likewise")] = None

    @model_validator(mode="after")
    def _fits_together(self) -> FrontendConfig:
        if self.max_hz > self.sample_rate_hz / 2 or self.min_hz >= self.max_hz:
            raise ValueError(
                f"min_hz {self.min_hz:g} and max_hz {self.max_hz:g}: expected 0 <= min_hz < max_hz <= "
                f"{self.sample_rate_hz / 2:g}, half of sample_rate_hz"
            )
        if self.win_samples > self.n_fft:
            raise ValueError(f"win_samples {self.win_samples}: expected at most n_fft ({self.n_fft})")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std: give both, or neither to have them measured from the shards")
        return self

    @property
    def hop_seconds(self) -> float:
        """Time from one spectrogram frame to the next."""
        return self.hop_samples / self.sample_rate_hz

    def num_frames(self, num_samples: int) -> int:
        """Spectrogram frames S of a waveform of T = `num_samples`, padded where it is shorter than half a window."""
        return 1 + max(num_samples, self.min_samples) // self.hop_samples

    @property
    def min_samples(self) -> int:
        """What the transform's reflection needs: shorter waveforms are padded to it."""
        return self.n_fft // 2 + 1

    @property
    def centres_hz(self) -> tuple[float, ...]:
        """The frequency in the middle of each mel bin, on the scale that the filter bank is laid out on."""
        to_mel, to_hz = _SCALES[self.mel_scale]
        low, high = to_mel(self.min_hz), to_mel(self.max_hz)
        step = (high - low) / (self.num_mels + 1)
        return tuple(to_hz(low + step * (bin + 1)) for bin in range(self.num_mels))

    def build(self) -> Frontend:
        """The front-end module; without measured constants it does not normalise."""
        return Frontend(self)


class Frontend(nn.Module):
    """Log-mel spectrogram, (x - mean) / std; holds no trained parameter."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: FrontendConfig) -> None:
        """Builds the filter bank of `config`."""
        super().__init__()
        self.mel = MelSpectrogram(
            sample_rate=config.sample_rate_hz,
            n_fft=config.n_fft,
            win_length=config.win_samples,
            hop_length=config.hop_samples,
            n_mels=config.num_mels,
            f_min=config.min_hz,
            f_max=config.max_hz,
            power=2.0,
            mel_scale=config.mel_scale,
            norm="slaney" if config.mel_scale == "slaney" else None,
        )
        for name, buffer in self.mel.named_buffers():  # follow from the config: not part of a checkpoint
            owner, _, leaf = name.rpartition(".")
            self.mel.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
        self.register_buffer("mean", torch.tensor(config.mean or 0.0))
        self.register_buffer("std", torch.tensor(config.std or 1.0))
        self.centres_hz = config.centres_hz
        self._min_samples = config.min_samples

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Normalised log-mel spectrogram (B, F, S) of waveforms in [-1, 1]; S = 1 + T // hop.

        Whole numbers of 16 bits are taken as parts of 32,768: they reach a GPU in half the time. A waveform shorter
        than half a window is padded with zeros to what the transform's reflection needs.
        """
        if wave_BT.dtype == torch.int16:
            wave_BT = wave_BT.float() / 32768
        missing = self._min_samples - wave_BT.shape[-1]
        if missing > 0:
            wave_BT = nn.functional.pad(wave_BT, (0, missing))
        log_mel_BFS = (self._mel(wave_BT) + _EPS).log()
        normalised_BFS: Tensor = (log_mel_BFS - self.mean) / self.std
        return normalised_BFS

    def _mel(self, wave_BT: Tensor) -> Tensor:
        """What `self.mel` gives, in less time: that one writes all complex numbers anew to turn them around."""
        shape = self.mel.spectrogram
        beside = shape.n_fft - shape.win_length
        window_T = nn.functional.pad(shape.window, (beside // 2, beside - beside // 2))
        padded_BT = nn.functional.pad(wave_BT, (shape.n_fft // 2, shape.n_fft // 2), mode="reflect")
        spectrum_BSQ = torch.fft.rfft(padded_BT.unfold(1, shape.n_fft, shape.hop_length) * window_T)
        power_BSQ = spectrum_BSQ.real.square().addcmul_(spectrum_BSQ.imag, spectrum_BSQ.imag)
        mel_BFS: Tensor = (power_BSQ @ self.mel.mel_scale.fb).mT
        return mel_BFS


def _slaney_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) / _SLANEY


def _slaney_hz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * _SLANEY)


_SCALES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "htk": (lambda hz: 2595 * math.log10(1 + hz / 700), lambda mel: 700 * (10 ** (mel / 2595) - 1)),
    "slaney": (_slaney_mel, _slaney_hz),
}
