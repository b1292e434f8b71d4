"""Odd, broken and hostile audio through a build and through the stream: used, or named with a true reason."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from scaleaudio.data.build import BuildConfig, build
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.parquet import read_parquet
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.types import Batch

# Licences differ, so the recordings lie beside the checkout and not in it.
DIRTY = Path(os.environ.get("SCALEAUDIO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "dirty.tar"

UNREADABLE = {
    "aac.m4a": "not readable as audio",
    "aiff_invalid_rate.aiff": "not readable as audio",
    "flac_12bit.flac": "unimplemented format",
    "flac_bad_block_length.flac": "not readable as audio",
    "flac_channels_grow.flac": r"claims 2\.09e\+14 s of audio, in a file of 263297 bytes",
    "flac_missing_streaminfo.flac": "unimplemented format",
    "flac_raw_frames.flac": "not readable as audio",
    "flac_wrong_channels.flac": "flac channel changed mid stream",
    "float_nan_inf.wav": "not finite",
    "image_named.wav": "not readable as audio",
    "midi_named.ogg": "not readable as audio",
    "mp3_id3v22_image.mp3": "not readable as audio",
    "mp3_incomplete.mp3": "not readable as audio",
    "mp3_vbr_xing_short.mp3": "0 frames",
    "mp3_zero_bytes.mp3": "empty file",
    "ogg_multiplexed.spx": "not readable as audio",
    "ogg_truncated.ogg": "truncated after 2.03 s",
    "speex.spx": "not readable as audio",
    "text_named.flac": "not readable as audio",
    "wav_header_only.wav": "No 'data' chunk",
    "wav_truncated.wav": "truncated after 0.52 s of 1.57 s",
    "zero_bytes.wav": "empty file",
    "zero_samples.flac": r"claims 2\.09e\+14 s",
    "zero_samples.mp3": "not readable as audio",
    "zero_samples.ogg": "0 frames",
    "zero_samples.opus": "file is malformed",
    "zero_samples.wav": "0 frames",
}
# Which a decoder reads in part: the crop decides.
IN_PART = {"opus_libsndfile_fails.opus": "file is malformed"}
TOO_SHORT = ("one_sample.wav", "ten_ms.wav")
SILENT = (
    "core.caf", "digital_silence.wav", "float32.wav", "float64.wav", "mp3_id3v2_unicode.mp3", "opus_48k.opus",
    "pcm24.aiff", "pcm_s32.wav", "rf64.wav", "stereo_antiphase.wav", "surround_5_1.wav", "wav_extra_zero.wav",
    "wav_u8_id3_silence.wav", "wave64.w64",
)  # fmt: skip


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    if not DIRTY.exists():
        pytest.skip("dirty.tar is not here: recordings whose licences keep them out of the repository")
    with tarfile.open(DIRTY) as tar:
        members = [member for member in tar.getmembers() if member.isreg() and not member.name.endswith(".md")]
        found = {member.name.removeprefix("dirty/"): tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    assert len(found) == 63
    return found


def no_decoder_but_libsndfile() -> bool:
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return True
    return False


# With FFmpeg a few more are readable: the tables above are libsndfile's.
libsndfile_only = pytest.mark.skipif(not no_decoder_but_libsndfile(), reason="FFmpeg reads some of these too")


@libsndfile_only
def test_a_build_uses_or_names_every_dirty_file(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    summary = build(f"{tmp_path}/in", f"{tmp_path}/out", BuildConfig(num_workers=0, min_shards=1))
    rejected = {row["path"]: row["reason"] for row in read_parquet(f"{tmp_path}/out/rejects.parquet").to_pylist()}
    expected = UNREADABLE | IN_PART | {"wrong_extension.bogus": "not readable as audio"}
    expected |= dict.fromkeys(TOO_SHORT, "shorter than min_seconds") | dict.fromkeys(SILENT, "silent")
    assert rejected.keys() == expected.keys()
    assert [name for name, reason in rejected.items() if not re.search(expected[name], reason)] == []
    assert (summary.accepted, summary.rejected) == (63 - len(expected), len(expected)) == (18, 45)
    parts = read_parquet(f"{tmp_path}/out/rejected_parts.parquet").to_pylist()  # of the hour: the speech is kept
    assert {row["path"] for row in parts} == {"long_60min_silence_tail.ogg"}
    assert sum(row["seconds"] for row in parts) == pytest.approx(3600.4 - 29.8, abs=1)


def write_raw(folder: Path, files: dict[str, bytes]) -> None:
    """The files as they are, in seven tars, each name its key."""
    for shard in range(7):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for name in sorted(files)[shard::7]:
                info = tarfile.TarInfo(f"{name.replace('.', '_')}.{name.rpartition('.')[2]}")
                info.size = len(files[name])
                tar.addfile(info, io.BytesIO(files[name]))


def read_epochs(folder: Path, num_epochs: int) -> list[Batch]:
    config = DataConfig(
        url=str(folder), global_batch=6, lanes=2, chunk_samples=4, window_samples=16, max_bad_fraction=1
    )
    stream = Stream(config, ShardIndex.load(str(folder)), seed=0, sample_rate_hz=16_000, crop_frames=15_360)
    batches = list(islice(stream.batches(), num_epochs * stream.steps_per_epoch))
    stream.close()
    return batches


def key(name: str) -> str:
    return name.replace(".", "_")


@libsndfile_only
@pytest.mark.parametrize("headers_only", [False, True])
def test_the_stream_uses_or_names_every_dirty_file_and_no_batch_holds_a_bad_number(
    files: dict[str, bytes], tmp_path: Path, headers_only: bool
) -> None:
    write_raw(tmp_path, files)
    summary = make_index(str(tmp_path), headers_only=headers_only)
    batches = read_epochs(tmp_path, 8)
    assert all(batch.wave_BT.isfinite().all() and batch.wave_BT.abs().max() <= 1 for batch in batches)
    named = {name.rpartition("/")[2]: reason for name, reason in summary.rejects}
    named |= {reject.key: reject.reason for batch in batches for reject in batch.rejects}
    used = {used for batch in batches for used in batch.key_B}
    expected = {key(name): reason for name, reason in (UNREADABLE | IN_PART).items()}
    expected[key("wrong_extension.bogus")] = "no audio member among wrong_extension_bogus.bogus"
    assert named.keys() == expected.keys()
    assert [name for name, reason in named.items() if not re.search(expected[name], reason)] == []
    assert used | named.keys() == {key(name) for name in files}
    assert used & named.keys() <= {key(name) for name in IN_PART}


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak of memory is read from /proc")
@libsndfile_only
def test_no_dirty_file_takes_much_memory(files: dict[str, bytes], tmp_path: Path) -> None:
    write_raw(tmp_path, files)
    make_index(str(tmp_path), headers_only=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        assert 0 < alone.submit(memory_taken_kb, tmp_path).result() < 300_000


def memory_taken_kb(folder: Path) -> int:
    """What reading adds to this process at its peak; its peak before is not counted, unlike in `ru_maxrss`."""
    before = memory_kb("VmRSS")
    read_epochs(folder, 8)
    return memory_kb("VmHWM") - before


def memory_kb(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


@libsndfile_only
def test_dirty_files_are_replaced_alike_in_every_run(files: dict[str, bytes], tmp_path: Path) -> None:
    write_raw(tmp_path, files)
    make_index(str(tmp_path), headers_only=True)
    first, second = read_epochs(tmp_path, 2), read_epochs(tmp_path, 2)
    assert [(batch.key_B, batch.rejects) for batch in first] == [(batch.key_B, batch.rejects) for batch in second]
    assert all(one.wave_BT.equal(other.wave_BT) for one, other in zip(first, second, strict=True))
