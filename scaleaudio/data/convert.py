"""One audio file -> the members that go into a shard: mono, one rate, long files cut into pieces.

The file is read in blocks, and a piece is encoded as soon as it is whole, so that an hour costs no more memory than a
piece and its FLAC.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import soundfile
from pydantic import Field

from scaleaudio.data.decode import resample, to_mono, within_range
from scaleaudio.data.decoders import Source, Wave, read_source
from scaleaudio.errors import DecodeError
from scaleaudio.types import Settings

SUFFIXES = {"WAV": "wav", "WAVEX": "wav", "RF64": "wav", "OGG": "ogg", "MP3": "mp3", "FLAC": "flac", "AIFF": "aiff"}


class ConvertConfig(Settings):
    """What the audio in the shards is like, and which audio is refused."""

    sample_rate_hz: int = Field(default=16000, ge=1000, le=384_000, description="rate of the audio in the shards")
    keep_bytes: bool = Field(default=False, description="store each file's own bytes (not mixed, resampled or cut)")
    min_seconds: float = Field(default=0.1, gt=0, description="shorter files are refused")
    max_seconds: float = Field(default=86_400, gt=0, description="longer files are refused")
    piece_seconds: float = Field(
        default=30, gt=0, le=1e9, description="longer files are cut into equal pieces of at most this"
    )
    silence_peak: float = Field(
        default=1e-4, ge=0, lt=1, description="audio that swings less than this is refused; 0 keeps it"
    )


@dataclass(frozen=True)
class Member:
    """An encoded clip, and where in its file it comes from; `gain` is below 1 where it exceeded [-1, 1]."""

    suffix: str
    data: bytes
    frames: int
    sample_rate_hz: int
    start_seconds: float
    gain: float = 1.0

    @property
    def seconds(self) -> float:
        """How long the clip is."""
        return self.frames / self.sample_rate_hz


@dataclass
class Converted:
    """The members of one file, and the pieces that were refused: (reason, seconds)."""

    members: list[Member] = field(default_factory=list)
    refused: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class _Piece:
    """A stretch of mono audio, how many frames came before it, and the swing of its loudest channel before mixing."""

    wave: Wave
    start: int
    channel_swing: float


def convert(data: bytes, config: ConvertConfig) -> Converted:
    """The members that the audio file `data` becomes: at least one.

    Raises:
        DecodeError: nothing of it is usable; the message is the reason.
    """
    converted = read_source(data, lambda source: _convert(source, data, config))
    if not converted.members:
        reasons = sorted({reason for reason, _ in converted.refused})
        raise DecodeError("; ".join(reasons))
    return converted


def _convert(source: Source, data: bytes, config: ConvertConfig) -> Converted:
    rate_hz = source.info.sample_rate_hz
    if config.keep_bytes and source.info.format in SUFFIXES:
        return _keep(source, data, config)
    converted = Converted()
    for piece in _pieces(source, config):
        fault = _fault(len(piece.wave) / rate_hz, _swing(piece.wave), piece.channel_swing, config)
        if fault:
            converted.refused.append((fault, len(piece.wave) / rate_hz))
        else:
            converted.members.append(_encode(piece, rate_hz, config.sample_rate_hz))
    return converted


def _keep(source: Source, data: bytes, config: ConvertConfig) -> Converted:
    """The file as it is, once all of it has been decoded: its true length goes into the index."""
    frames, swing, channel_swing, rate_hz = 0, 0.0, 0.0, source.info.sample_rate_hz
    for piece in _pieces(source, config):
        frames += len(piece.wave)
        swing = max(swing, _swing(piece.wave))
        channel_swing = max(channel_swing, piece.channel_swing)
    fault = _fault(frames / rate_hz, swing, channel_swing, config)
    if fault:
        return Converted(refused=[(fault, frames / rate_hz)])
    return Converted(members=[Member(SUFFIXES[source.info.format], data, frames, rate_hz, 0.0)])


def _pieces(source: Source, config: ConvertConfig) -> Iterator[_Piece]:
    """Consecutive pieces of equal length as far as the header tells the truth, else of `piece_seconds` and a rest."""
    rate_hz = source.info.sample_rate_hz
    longest = max(int(config.piece_seconds * rate_hz), 1)
    _check_length(source.info.frames, rate_hz, config)
    promised = source.info.frames or longest
    length = math.ceil(promised / math.ceil(promised / longest))
    waves: list[Wave] = []
    held, start, swing = 0, 0, 0.0
    for block in source.blocks:
        waves.append(to_mono(block))
        held += len(block)
        swing = max(swing, max(_swing(channel) for channel in block.T))
        _check_length(start + held, rate_hz, config)
        while held >= length:
            whole = np.concatenate(waves)
            yield _Piece(whole[:length], start, swing)
            waves, held, start = [whole[length:]], held - length, start + length
            swing = max(_swing(channel) for channel in block.T) if held else 0.0
    if held:
        yield _Piece(np.concatenate(waves), start, swing)


def _check_length(frames: int, rate_hz: int, config: ConvertConfig) -> None:
    if frames > config.max_seconds * rate_hz:
        raise DecodeError(f"longer than max_seconds {config.max_seconds:g}: {frames / rate_hz:.1f} s or more")


def _fault(seconds: float, swing: float, channel_swing: float, config: ConvertConfig) -> str | None:
    if seconds < config.min_seconds:
        return f"shorter than min_seconds {config.min_seconds:g}: {seconds:.4f} s"
    if swing >= config.silence_peak:
        return None
    if channel_swing >= config.silence_peak:
        return "silent once mixed to mono: its channels cancel out (stereo in anti-phase)"
    return f"silent: swings less than silence_peak {config.silence_peak:g}"


def _swing(wave_T: Wave) -> float:
    """Half of peak to peak, so that a constant offset counts as silence."""
    return float(wave_T.max() - wave_T.min()) / 2 if len(wave_T) else 0.0


def _encode(piece: _Piece, from_hz: int, to_hz: int) -> Member:
    wave = resample(piece.wave, from_hz, to_hz)
    peak = float(np.abs(wave).max(initial=0.0))
    buffer = io.BytesIO()
    soundfile.write(buffer, within_range(wave), to_hz, format="FLAC", subtype="PCM_16")
    gain = 1.0 / peak if peak > 1.0 else 1.0
    return Member("flac", buffer.getvalue(), len(wave), to_hz, piece.start / from_hz, gain)
