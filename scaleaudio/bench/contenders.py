"""Three ways to load the same shards: this stream, the usual WebDataset recipe, and the tars' bare bytes.

Each is a generator of (clips, bytes) for each batch. Where there are no shards, some are written.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from scaleaudio.types import Settings

BATCH = 64
STREAM, RECIPE, BYTES = "this stream", "usual recipe", "tar bytes"
_SUFFIXES = ("flac", "wav", "ogg", "opus", "mp3")


class LoaderScale(Settings):
    """What is read, and for how long.

    `url` is a folder of shards with their index; where it is None, shards of FLAC clips are written for the occasion.
    """

    url: str | None = None
    shards: int = 10
    clips_per_shard: int = 64
    clip_seconds: float = 10.0
    crop_seconds: float = 0.96
    sample_rate_hz: int = 16_000
    workers: tuple[int, ...] = (1, 2, 4)
    seconds: float = 4.0
    repeats: int = 3

    @property
    def crop_frames(self) -> int:
        """Samples of a crop."""
        return round(self.crop_seconds * self.sample_rate_hz)


def write_clips(folder: str, scale: LoaderScale) -> None:
    """Shards of FLAC clips with their index: ten different tars at most, the others are links to them."""
    from scaleaudio.data.convert import Member
    from scaleaudio.data.index import INDEX_NAME, SHARD_SCHEMA
    from scaleaudio.data.parquet import write_table
    from scaleaudio.data.shards import ShardWriter

    rows = []
    clips = _clips(scale)
    for shard in range(min(scale.shards, 10)):
        with ShardWriter(folder, f"shard-{shard:06d}", shard_bytes=1 << 40, shard_samples=1 << 40) as writer:
            for number in range(scale.clips_per_shard):
                data = clips[(number + shard) % len(clips)]
                member = Member(
                    "flac", data, round(scale.clip_seconds * scale.sample_rate_hz), scale.sample_rate_hz, 0.0
                )
                writer.add(f"{shard:06d}_{number:06d}", member, {"labels": {}})
        rows += writer.shards
    for shard in range(len(rows), scale.shards):
        row = rows[shard % 10]
        names = {"shard": f"link-{shard:06d}.tar", "samples": f"samples/link-{shard:06d}.parquet"}
        for key, name in names.items():
            os.link(f"{folder}/{row[key]}", f"{folder}/{name}")
        rows.append(row | names)
    write_table(f"{folder}/{INDEX_NAME}", rows, SHARD_SCHEMA)


def _stream(scale: LoaderScale, workers: int) -> Generator[tuple[int, int]]:
    from scaleaudio.data.index import ShardIndex
    from scaleaudio.data.stream import DataConfig, Stream

    assert scale.url is not None
    index = ShardIndex.load(scale.url)
    num_bytes = sum(index.samples(0)["size"].to_pylist()) / len(index.samples(0))
    settings = {"url": scale.url, "global_batch": BATCH, "lanes": 4, "num_threads": workers}
    config = DataConfig.model_validate(settings)
    rate_hz, frames = scale.sample_rate_hz, scale.crop_frames
    stream = Stream(config, index, seed=0, sample_rate_hz=rate_hz, crop_frames=frames)
    try:
        for batch in stream.batches():
            yield len(batch.key_B), round(len(batch.key_B) * num_bytes)
    finally:
        stream.close()


def _recipe(scale: LoaderScale, workers: int) -> Generator[tuple[int, int]]:
    """Decode each clip whole, then crop it, in the processes of a DataLoader."""
    frames = scale.crop_frames

    def crop(sample: dict[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
        import soundfile

        data = _audio(sample)
        wave_T = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].mean(axis=1)
        start = np.random.randint(max(len(wave_T) - frames, 0) + 1)
        part_T = wave_T[start : start + frames]
        return np.pad(part_T, (0, frames - len(part_T))), len(data)

    for wave_BT, size_B in _loaded(scale, workers, lambda tars: tars.shuffle(256).map(crop)):
        yield len(wave_BT), int(sum(size_B))


def _tar_bytes(scale: LoaderScale, workers: int) -> Generator[tuple[int, int]]:
    """Read the members and drop them: what WebDataset's reading of tars allows at most."""

    def size(sample: dict[str, Any]) -> tuple[int, int]:
        return 1, len(_audio(sample))

    for one_B, size_B in _loaded(scale, workers, lambda tars: tars.map(size)):
        yield len(one_B), int(sum(size_B))


def _loaded(scale: LoaderScale, workers: int, then: Callable[[Any], Any]) -> Iterator[Any]:
    import torch
    import webdataset

    from scaleaudio.data.index import ShardIndex

    assert scale.url is not None
    index = ShardIndex.load(scale.url)
    urls = [index.shard_url(shard) for shard in range(len(index.ends))]
    tars = webdataset.WebDataset(urls, resampled=True, shardshuffle=False)
    batches = then(tars).batched(BATCH)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, on purpose
    # Fork is what DataLoader does by itself on Linux; nothing in this process has decoded yet.
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, multiprocessing_context="fork")
    yield from loader


def _audio(sample: dict[str, Any]) -> bytes:
    data: bytes = next(sample[suffix] for suffix in _SUFFIXES if suffix in sample)
    return data


def _clips(scale: LoaderScale, num: int = 64) -> list[bytes]:
    """FLAC files with the sounds of the synthetic corpus, one after the other."""
    import soundfile

    from scaleaudio.data.synth import SAMPLE_RATE_HZ, make_clip

    clips, sounds = [], (make_clip(number, 0)[1] for number in range(1 << 30))
    for _ in range(num):
        wave_T = np.zeros(0)
        while len(wave_T) < scale.clip_seconds * SAMPLE_RATE_HZ:
            wave_T = np.concatenate([wave_T, next(sounds)])
        buffer = io.BytesIO()
        soundfile.write(buffer, wave_T[: round(scale.clip_seconds * SAMPLE_RATE_HZ)], SAMPLE_RATE_HZ, format="FLAC")
        clips.append(buffer.getvalue())
    return clips


LOADERS = {STREAM: _stream, RECIPE: _recipe, BYTES: _tar_bytes}
