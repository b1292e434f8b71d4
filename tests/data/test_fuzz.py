"""Any bytes at all: a tar is indexed or named, audio is decoded or refused with a reason; nothing else happens.

What such runs found is kept as ordinary tests in test_tars.py and test_decode.py. A longer run:
SCALEAUDIO_FUZZ_EXAMPLES=20000 SCALEAUDIO_FUZZ_KEEP=last.bin pytest -m slow tests/data/test_fuzz.py
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaleaudio.data.decode import decode, decode_crop, measure
from scaleaudio.data.decoders import MIN_RATE_HZ
from scaleaudio.data.index import REJECTS_NAME, ShardIndex
from scaleaudio.data.parquet import read_parquet
from scaleaudio.data.scan import index
from scaleaudio.errors import DecodeError, InputError

DIRTY = Path(os.environ.get("SCALEAUDIO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "dirty.tar"
NUM_EXAMPLES = int(os.environ.get("SCALEAUDIO_FUZZ_EXAMPLES", "300"))
MAX_SECONDS = 10
FORMATS = {
    "WAV": ("PCM_16", "PCM_U8", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "DOUBLE", "G721_32"),
    "FLAC": ("PCM_16", "PCM_24"),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
    "AIFF": ("PCM_16", "FLOAT"),
    "W64": ("PCM_16",),
    "RF64": ("PCM_16",),
    "CAF": ("PCM_16", "ALAC_16"),
    "AU": ("PCM_16",),
    "NIST": ("PCM_16",),
    "VOC": ("PCM_16",),
    "SVX": ("PCM_16",),
    "AVR": ("PCM_16",),
    "IRCAM": ("PCM_16",),
    "PVF": ("PCM_16",),
    "XI": ("DPCM_16",),
    "HTK": ("PCM_16",),
    "SDS": ("PCM_16",),
    "WVE": ("ALAW",),
    "MPC2K": ("PCM_16",),
    "MAT4": ("PCM_16",),
    "MAT5": ("PCM_16",),
    "PAF": ("PCM_16",),
}

fuzzed = settings(
    max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None
)
# (where, as a part of the file; what is done there; with which bytes)
edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True) | st.floats(0, 0.02),
        st.sampled_from(["overwrite", "insert", "delete", "cut", "repeat"]),
        st.binary(min_size=1, max_size=12)
        | st.sampled_from(
            [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00" * 8, b"\x80" + b"\xff" * 11, b"\xff" * 12, b"7" * 11]
        ),
    ),
    max_size=6,
)


def edited(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for part, kind, value in changes:
        at = int(part * len(data))
        if kind == "overwrite":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(value) :]
        elif kind == "cut":
            data = data[:at]
        else:
            data = data[:at] + data[at : at + 600] * 3 + data[at:]
    return data


@cache
def audio() -> list[bytes]:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3000, 1))
    found = []
    for form, subtypes in FORMATS.items():
        for subtype in subtypes:
            for channels in (1, 2):
                file = io.BytesIO()
                try:
                    soundfile.write(file, np.repeat(noise, channels, 1), 16_000, format=form, subtype=subtype)
                except (soundfile.SoundFileError, ValueError, TypeError):
                    continue  # not in this libsndfile, or not for stereo
                found.append(file.getvalue())
    assert len(found) > 30
    if DIRTY.exists():  # recordings whose licences keep them out of the repository
        with tarfile.open(DIRTY) as tar:
            small = [member for member in tar.getmembers() if member.isreg() and member.size < 100_000]
            found += [file.read() for member in small if (file := tar.extractfile(member))]
    return found


@pytest.mark.slow
@pytest.mark.timeout(0)
@fuzzed
@given(
    which=st.integers(0, 10**6),
    changes=edits,
    position=st.floats(0, 1, exclude_max=True),
    frames=st.none() | st.integers(1, 10**6),
)
def test_any_audio_is_decoded_to_finite_numbers_or_refused_with_a_reason(
    which: int, changes: list[tuple[float, str, bytes]], position: float, frames: int | None
) -> None:
    data = edited(audio()[which % len(audio())], changes)
    keep(data)
    began = time.monotonic()
    with suppress(DecodeError):
        assert measure(data).frames > 0
    with suppress(DecodeError):
        wave = decode_crop(data, sample_rate_hz=16_000, crop_frames=1000, position=position, frames=frames)
        assert wave.shape == (1000,) and np.isfinite(wave).all() and np.abs(wave).max() <= 1
    with suppress(DecodeError):
        assert np.isfinite(decode(data, max_seconds=60)[0]).all()
    assert time.monotonic() - began < MAX_SECONDS


def keep(data: bytes) -> None:
    """Leaves the bytes at hand on disk: a decoder that crashes takes the process with it."""
    if path := os.environ.get("SCALEAUDIO_FUZZ_KEEP"):
        Path(path).write_bytes(data)


@cache
def tars() -> list[bytes]:
    short = io.BytesIO()
    soundfile.write(short, np.random.default_rng(0).uniform(-0.5, 0.5, 200), MIN_RATE_HZ, format="WAV")
    found = []
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        headers = {"comment": "x" * 30} if dialect == tarfile.PAX_FORMAT else None
        with tarfile.open(fileobj=file, mode="w", format=dialect, pax_headers=headers) as tar:
            for number in range(3):
                folder = "long/" * 25 if dialect != tarfile.USTAR_FORMAT else "a/"
                for suffix, data in (("wav", short.getvalue()), ("json", b'{"n": 1}')):
                    info = tarfile.TarInfo(f"{folder}{number}.{suffix}")
                    info.size = len(data)
                    if dialect == tarfile.PAX_FORMAT:
                        info.pax_headers = {"GNU.sparse.size": "9"} if number == 1 else {"size": str(len(data))}
                    tar.addfile(info, io.BytesIO(data))
        found.append(file.getvalue())
    return found


def with_checksums(data: bytes) -> bytes:
    """`data` with every block that still looks like a header given the checksum that makes it one."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


PAX_KEYS = (
    "path", "size", "linkpath", "mtime", "uid", "hdrcharset", "comment", "GNU.sparse.major", "GNU.sparse.minor",
    "GNU.sparse.name", "GNU.sparse.realsize", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.numblocks",
    "GNU.sparse.offset", "GNU.sparse.numbytes", "SCHILY.xattr.user.x",
)  # fmt: skip
pax_records = st.lists(
    st.tuples(
        st.sampled_from(PAX_KEYS),
        st.sampled_from(["0", "1", "-1", "-512", "1024", "999999999999999", "0,512", "1,2,3", "BINARY", "x.wav"])
        | st.text(max_size=20),
    ),
    max_size=6,
)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            [b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"S", b"x", b"g", b"X", b"A", b"\xff"]
        ),
        st.integers(-(2**70), 2**70) | st.integers(-2000, 4000) | st.none(),
        pax_records | st.binary(max_size=1500),
    ),
    max_size=8,
)


def made_of(parts: list[tuple[bytes, int | None, list[tuple[str, str]] | bytes]]) -> bytes:
    """A tar of such headers, each with its right checksum: (kind, claimed size or the true one, content)."""
    data = b""
    for number, (kind, claimed, content) in enumerate(parts):
        if not isinstance(content, bytes):
            content = b"".join(pax_record(key, value) for key, value in content)
        block = bytearray(tarfile.TarInfo(f"{number}.wav").tobuf(tarfile.GNU_FORMAT))
        block[124:136] = (len(content) if claimed is None else claimed).to_bytes(12, "big", signed=True)
        block[124] |= 0x80
        block[156:157] = kind
        data += (
            with_checksums(bytes(block).replace(b"ustar  \0", b"ustar\x0000")) + content + bytes(-len(content) % 512)
        )
    return data + tars()[0]


def pax_record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode(errors="replace")
    length = len(body) + 1
    while len(str(length)) + len(body) > length:
        length += 1
    return str(length).encode() + body


@pytest.mark.slow
@pytest.mark.timeout(0)
@fuzzed
@given(which=st.integers(0, 2) | headers, changes=edits, headers_only=st.booleans(), mended=st.booleans())
def test_any_tar_is_indexed_or_named_with_a_reason(
    which: Any, changes: list[tuple[float, str, bytes]], headers_only: bool, mended: bool
) -> None:
    data = edited(tars()[which] if isinstance(which, int) else made_of(which), changes)
    data = with_checksums(data) if mended else data
    with tempfile.TemporaryDirectory() as folder:
        keep(data)
        (Path(folder) / "a.tar").write_bytes(data)
        began = time.monotonic()
        try:
            index(folder, headers_only=headers_only)
        except InputError:
            assert read_parquet(f"{folder}/{REJECTS_NAME}").num_rows or not any(data)
            return
        finally:
            assert time.monotonic() - began < MAX_SECONDS
        for row in ShardIndex.load(folder).samples(0).to_pylist():
            assert 0 <= row["offset"] <= row["offset"] + row["size"] <= len(data)
