"""Bytes of an audio file -> blocks of frames, by libsndfile (soundfile) or, what that refuses, by FFmpeg (torchcodec).

Headers are not believed: libsndfile reads truncated WAV and Ogg without a word and takes an empty FLAC for 2e14
seconds, so nothing is allocated by a header's count, and everything is read in blocks.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from scaleaudio.errors import DecodeError
from scaleaudio.types import LOUDEST

Wave = NDArray[np.float32]
Result = TypeVar("Result")

BLOCK_FRAMES = 65536
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
    with open_audio(data) as file:
        return checked_info(file, data)


def read_source(data: bytes, use: Callable[[Source], Result]) -> Result:
    """use(source) by libsndfile; should that refuse the bytes, use(source) anew by FFmpeg where it is installed.

    The blocks of a source are finite numbers and at least one frame in all.

    Raises:
        DecodeError: libsndfile's reason when no decoder reads the bytes; whatever `use` raises.
    """
    try:
        with open_audio(data) as file:
            return use(Source(checked_info(file, data), _soundfile_blocks(file)))
    except Unreadable as refused:
        decoder = _ffmpeg(data)
        if decoder is None:
            raise
        try:
            return use(decoder)
        except Unreadable:
            raise refused from None


def open_audio(data: bytes) -> Any:
    """The file as libsndfile opens it.

    Raises:
        DecodeError: no bytes, or libsndfile refuses them.
    """
    if not data:
        raise DecodeError("empty file (0 bytes)")
    try:
        return _Onward(_Bytes(data))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise Unreadable(_reason(error)) from error


def checked_info(file: Any, data: bytes) -> AudioInfo:
    """What the header says, once it can be true of so many bytes.

    Raises:
        DecodeError: it cannot, or the audio is cut off.
    """
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
        raise DecodeError(truncated(info.frames, whole, info.sample_rate_hz))
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
        raise DecodeError(truncated(got, promised, file.samplerate))


def read_at(file: Any, start: int, count: int) -> Wave:
    """`count` frames from `start` on; what has fewer, or cannot be sought in, is Unreadable."""
    try:
        if start:
            file.seek(start)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise Unreadable(_reason(error)) from error
    wave = _read(file, count)
    if len(wave) < count:
        raise Unreadable(truncated(start + len(wave), file.frames, file.samplerate))
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
        raise DecodeError(truncated(got, promised, rate_hz))


def _promised_seconds(data: bytes) -> float:
    """What libsndfile's header says, 0 where it says nothing believable."""
    try:
        info = probe(data)
    except DecodeError:
        return 0.0
    return info.frames / info.sample_rate_hz


def truncated(got: int, promised: int, rate_hz: int) -> str:
    """The reason when a file of `promised` frames ends after `got`."""
    return f"truncated after {got / rate_hz:.2f} s of {promised / rate_hz:.2f} s"


def _reason(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "error_string", None) or error).split()).rstrip(".")[:200]
    # libsndfile says this for an MP3 that its decoder refuses.
    return "not readable as audio" if "not a regular file" in text else f"not readable as audio: {text}"
