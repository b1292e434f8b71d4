"""Bytes of an audio file -> mono float32 of one rate, only as much as is used."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from scaleaudio.data.decoders import (
    AudioInfo,
    Source,
    Unreadable,
    Wave,
    checked_info,
    open_audio,
    probe,
    read_at,
    read_source,
    truncated,
)
from scaleaudio.errors import DecodeError

ShortClips = Literal["pad", "repeat"]

MAX_WHOLE_SECONDS = 3600.0


def measure(data: bytes) -> AudioInfo:
    """The header of `data` with the true number of frames: an MP3 is decoded for it, since its own is an estimate.

    Raises:
        DecodeError: as `probe`, and where an MP3 cannot be decoded.
    """
    info = probe(data)
    return info if info.format != "MP3" else replace(info, frames=read_source(data, _count)[0])


def decode_crop(
    data: bytes,
    *,
    sample_rate_hz: int,
    crop_frames: int,
    position: float,
    frames: int | None = None,
    short_clips: ShortClips = "pad",
) -> Wave:
    """A mono crop of shape (crop_frames,) at `sample_rate_hz`, in [-1, 1]; only the crop is decoded.

    Args:
        data: a whole audio file.
        sample_rate_hz: rate of the crop; resampled when the file's differs.
        crop_frames: length of the crop at that rate.
        position: in [0, 1): where the crop starts among all its possible starts.
        frames: how many frames the file holds, at its own rate, where the index knows; else the header's count.
        short_clips: what becomes of a clip that is shorter than the crop. "pad": it lies in silence, where `position`
            says. "repeat": it is repeated end to end, and `position` says where in it the crop begins.

    Raises:
        DecodeError: unreadable, empty, truncated, or NaN or infinity inside the crop.
    """
    try:
        with open_audio(data) as file:
            total = checked_info(file, data).frames if frames is None else frames
            part = math.ceil(crop_frames * file.samplerate / sample_rate_hz)
            start = int(position * max(total - part + 1, 1))
            wave, rate_hz = read_at(file, start, min(part, total)), file.samplerate
    except Unreadable:  # or not to be sought in, as GSM and some MP3
        wave, rate_hz = _crop_in_passing(data, sample_rate_hz, crop_frames, position, frames)
    return _fit(within_range(resample(to_mono(wave), rate_hz, sample_rate_hz)), crop_frames, position, short_clips)


def _crop_in_passing(
    data: bytes, sample_rate_hz: int, crop_frames: int, position: float, frames: int | None
) -> tuple[Wave, int]:
    """The crop (before mixing and resampling) and its rate, where one has to read from the start to get there.

    Read once for the length and once for the crop, which takes no more memory than the crop does.
    """
    total, rate_hz = read_source(data, _count)
    if frames is not None and total < frames:
        raise DecodeError(truncated(total, frames, rate_hz))
    part = math.ceil(crop_frames * rate_hz / sample_rate_hz)
    start = int(position * max(total - part + 1, 1))

    def cut(source: Source) -> Wave:
        at, kept = 0, []
        for block in source.blocks:
            if at < start + part and at + len(block) > start:
                kept.append(block[max(start - at, 0) : start + part - at])
            at += len(block)
            if at >= start + part:
                break
        return np.concatenate(kept)

    return read_source(data, cut), rate_hz


def _count(source: Source) -> tuple[int, int]:
    """The true number of frames, and the rate."""
    total, rate_hz = 0, source.info.sample_rate_hz
    for block in source.blocks:
        total += len(block)
        if total > MAX_WHOLE_SECONDS * rate_hz:
            raise DecodeError(f"longer than {MAX_WHOLE_SECONDS:g} s, and not to be read from the middle")
    return total, rate_hz


def decode(data: bytes, *, max_seconds: float) -> tuple[Wave, int]:
    """The whole file as float32 of shape (frames, channels), and its rate in Hz.

    Raises:
        DecodeError: unreadable, empty, truncated, not finite, or longer than `max_seconds`.
    """

    def all_blocks(source: Source) -> tuple[Wave, int]:
        blocks, limit = [], max_seconds * source.info.sample_rate_hz
        count = 0
        for block in source.blocks:
            count += len(block)
            if count > limit:
                raise DecodeError(f"longer than {max_seconds:g} s")
            blocks.append(block)
        return np.concatenate(blocks), source.info.sample_rate_hz

    return read_source(data, all_blocks)


def to_mono(wave: Wave) -> Wave:
    """The mean over channels: (frames, channels) -> (frames,)."""
    return np.ascontiguousarray(wave.mean(axis=1, dtype=np.float32) if wave.shape[1] > 1 else wave[:, 0])


def resample(wave_T: Wave, from_hz: int, to_hz: int) -> Wave:
    """`wave_T` at another rate: ceil(T * to_hz / from_hz) samples; unchanged when the rates are equal.

    A polyphase filter (scipy), since its memory does not grow with the rates: 7999 Hz to 16 kHz would take torchaudio
    a kernel of 128 million taps.
    """
    if from_hz == to_hz or not len(wave_T):
        return wave_T
    from scipy.signal import resample_poly

    shared = math.gcd(from_hz, to_hz)
    return np.asarray(resample_poly(wave_T, to_hz // shared, from_hz // shared), dtype=np.float32)


def within_range(wave_T: Wave) -> Wave:
    """`wave_T` scaled down to a peak of 1 where it exceeds that, else as it is."""
    peak = float(np.abs(wave_T).max(initial=0.0))
    return wave_T if peak <= 1.0 else wave_T / np.float32(peak)


def _fit(wave_T: Wave, crop_frames: int, position: float, short_clips: ShortClips) -> Wave:
    if len(wave_T) >= crop_frames:
        return np.ascontiguousarray(wave_T[:crop_frames])
    if short_clips == "repeat":
        return np.resize(np.roll(wave_T, -int(position * len(wave_T))), crop_frames)
    crop = np.zeros(crop_frames, np.float32)
    start = int(position * (crop_frames - len(wave_T) + 1))
    crop[start : start + len(wave_T)] = wave_T
    return crop
