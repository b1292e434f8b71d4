"""Bytes of an audio file -> mono float32, only as much as is used.

libsndfile (soundfile) decodes; what it refuses goes to FFmpeg where torchcodec is installed. Headers are not believed:
libsndfile reads truncated WAV and Ogg without a word and takes an empty FLAC for 2e14 seconds, so nothing is allocated
by a header's count, and everything is read in blocks.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from scaleaudio.errors import DecodeError
from scaleaudio.types import LOUDEST

Wave = NDArray[np.float32]
Result = TypeVar("Result")
ShortClips = Literal["pad", "repeat"]

BLOCK_FRAMES = 65536
MAX_WHOLE_SECONDS = 3600.0
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 384_000
# The densest real coding: a constant FLAC frame holds 65,535 samples in some 14 bytes.
MAX_FRAMES_PER_BYTE = 8192
# libsndfile's log of a header whose audio is cut off, as "data : 277480 (should be 92441)"; a writer that streams
# leaves a size near 2^31 or 2^32 there, which promises nothing.
_PROMISE = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
OPEN_SIZE = 0x7FFFF000


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: frames are samples per channel; `format` is libsndfile's name, as "FLAC"."""

    sample_rate_hz: int
    channels: int
    frames: int
    format: str


@dataclass(frozen=True)
class Source:
    """An opened audio file: its header, and its frames as consecutive blocks of shape (frames, channels)."""

    info: AudioInfo
    blocks: Iterator[Wave]


class Unreadable(DecodeError):
    """The decoder refuses the bytes; another decoder may not."""


class _Bytes(io.BytesIO):
    """A BytesIO whose bad seeks fail quietly: libsndfile asks for negative positions in broken files."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _Onward(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read onward from where it is.

    After each read of a file that can seek, soundfile seeks to where it is already: for FLAC that decodes a frame
    again, a sixth of what a crop costs.
    """

    def seekable(self) -> bool:
        return False


def probe(data: bytes) -> AudioInfo:
    """The header of `data`, checked against the number of bytes; nothing is decoded.

    Raises:
        DecodeError: not audio, no frames, an impossible header, or truncated where the container shows it.
    """
    with _open(data) as file:
        return _checked_info(file, data)


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
        with _open(data) as file:
            total = _checked_info(file, data).frames if frames is None else frames
            part = math.ceil(crop_frames * file.samplerate / sample_rate_hz)
            start = int(position * max(total - part + 1, 1))
            wave, rate_hz = _read_at(file, start, min(part, total)), file.samplerate
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
        raise DecodeError(_truncated(total, frames, rate_hz))
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


def read_source(data: bytes, use: Callable[[Source], Result]) -> Result:
    """use(source) by libsndfile; should that refuse the bytes, use(source) anew by FFmpeg where it is installed.

    The blocks of a source are finite numbers and at least one frame in all.

    Raises:
        DecodeError: libsndfile's reason when no decoder reads the bytes; whatever `use` raises.
    """
    try:
        with _open(data) as file:
            return use(Source(_checked_info(file, data), _soundfile_blocks(file)))
    except Unreadable as refused:
        decoder = _ffmpeg(data)
        if decoder is None:
            raise
        try:
            return use(decoder)
        except Unreadable:
            raise refused from None


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


def _open(data: bytes) -> Any:
    if not data:
        raise DecodeError("empty file (0 bytes)")
    try:
        return _Onward(_Bytes(data))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise Unreadable(_reason(error)) from error


def _checked_info(file: Any, data: bytes) -> AudioInfo:
    info = AudioInfo(file.samplerate, file.channels, file.frames, file.format)
    if not MIN_RATE_HZ <= info.sample_rate_hz <= MAX_RATE_HZ:
        raise Unreadable(f"sample rate {info.sample_rate_hz} Hz is outside {MIN_RATE_HZ} to {MAX_RATE_HZ}")
    if info.frames <= 0:
        raise Unreadable("no audio: 0 frames")
    if info.frames > MAX_FRAMES_PER_BYTE * len(data):
        seconds = info.frames / info.sample_rate_hz
        raise Unreadable(f"the header claims {seconds:.3g} s of audio, in a file of {len(data)} bytes")
    _check_complete(file, info, data)
    return info


def _check_complete(file: Any, info: AudioInfo, data: bytes) -> None:
    promise = _PROMISE.search(file.extra_info)
    if promise and int(promise[2]) < int(promise[1]) < OPEN_SIZE:
        whole = info.frames * int(promise[1]) // max(int(promise[2]), 1)
        raise DecodeError(_truncated(info.frames, whole, info.sample_rate_hz))
    if info.format == "OGG" and not _ogg_ends(data):
        raise DecodeError(f"truncated after {info.frames / info.sample_rate_hz:.2f} s: the Ogg stream has no last page")


def _ogg_ends(data: bytes) -> bool:
    """Whether the last page says that it ends its stream, and is whole."""
    at = data.rfind(b"OggS")
    if at < 0 or at + 27 > len(data) or not data[at + 5] & 4:
        return False
    num_segments = data[at + 26]
    body = at + 27 + num_segments
    return body + sum(data[at + 27 : body]) <= len(data)


def _soundfile_blocks(file: Any) -> Iterator[Wave]:
    promised, got = file.frames, 0
    while True:
        block = _read(file, BLOCK_FRAMES)
        if not len(block):
            break
        got += len(block)
        yield block
    if not got:
        raise Unreadable("no audio: 0 frames")
    # An MP3's length is only an estimate from its first frames.
    if got < promised and file.format != "MP3":
        raise DecodeError(_truncated(got, promised, file.samplerate))


def _read_at(file: Any, start: int, count: int) -> Wave:
    try:
        if start:
            file.seek(start)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise Unreadable(_reason(error)) from error
    wave = _read(file, count)
    if len(wave) < count:
        raise Unreadable(_truncated(start + len(wave), file.frames, file.samplerate))
    return wave


def _read(file: Any, count: int) -> Wave:
    try:
        block: Wave = file.read(count, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise Unreadable(_reason(error)) from error
    return _believable(block)


def _believable(block: Wave) -> Wave:
    peak = float(np.abs(block).max(initial=0.0))
    if not math.isfinite(peak):
        raise DecodeError("not finite: the audio holds NaN or infinity")
    if peak > LOUDEST:
        raise DecodeError(f"not audio: samples reach {peak:.3g}, where full scale is 1")
    return block


def _ffmpeg(data: bytes) -> Source | None:
    """The source as FFmpeg reads it; None without torchcodec, or when FFmpeg refuses it too."""
    try:
        from torchcodec.decoders import AudioDecoder

        decoder = AudioDecoder(data)
        rate_hz, channels = int(decoder.metadata.sample_rate), int(decoder.metadata.num_channels)
    except (ImportError, OSError, RuntimeError, ValueError, TypeError):
        return None
    promised = int(_promised_seconds(data) * rate_hz)
    return Source(AudioInfo(rate_hz, channels, promised, "FFMPEG"), _ffmpeg_blocks(decoder, rate_hz, promised))


def _ffmpeg_blocks(decoder: Any, rate_hz: int, promised: int, step_seconds: float = 10.0) -> Iterator[Wave]:
    got = 0
    while True:
        start = got / rate_hz
        try:
            samples = decoder.get_samples_played_in_range(start, start + step_seconds)
        except (RuntimeError, ValueError, IndexError) as error:
            if not got:
                raise Unreadable(_reason(error)) from error
            break  # a range that starts at the very end is refused
        block = np.ascontiguousarray(samples.data.numpy().T, dtype=np.float32)
        if not len(block):
            break
        got += len(block)
        yield _believable(block)
    if got < 0.99 * promised:
        raise DecodeError(_truncated(got, promised, rate_hz))


def _promised_seconds(data: bytes) -> float:
    """What libsndfile's header says, 0 where it says nothing believable."""
    try:
        info = probe(data)
    except DecodeError:
        return 0.0
    return info.frames / info.sample_rate_hz


def _fit(wave_T: Wave, crop_frames: int, position: float, short_clips: ShortClips) -> Wave:
    if len(wave_T) >= crop_frames:
        return np.ascontiguousarray(wave_T[:crop_frames])
    if short_clips == "repeat":
        return np.resize(np.roll(wave_T, -int(position * len(wave_T))), crop_frames)
    crop = np.zeros(crop_frames, np.float32)
    start = int(position * (crop_frames - len(wave_T) + 1))
    crop[start : start + len(wave_T)] = wave_T
    return crop


def _truncated(got: int, promised: int, rate_hz: int) -> str:
    return f"truncated after {got / rate_hz:.2f} s of {promised / rate_hz:.2f} s"


def _reason(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "error_string", None) or error).split()).rstrip(".")[:200]
    # libsndfile says this for an MP3 that its decoder refuses.
    return "not readable as audio" if "not a regular file" in text else f"not readable as audio: {text}"
