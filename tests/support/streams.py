"""Small shards of real audio, and global batches put together from those of all workers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import webdataset

from scaleaudio.data import storage
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.types import Batch, World

RATE_HZ = 4000
COUNTS = (13, 1, 29, 7, 16, 31)  # 97 samples: a prime, in shards that no chunk fits


def write_shards(folder: Path, counts: Sequence[int] = COUNTS, name: str = "k") -> ShardIndex:
    """Tars of WAV noise of 0.05 to 0.2 s, each key `name` and its sample's number, with their index."""
    draws, number = np.random.default_rng(len(name)), 0
    folder.mkdir(exist_ok=True)
    for shard, num_samples in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"shard-{shard:06d}.tar")) as tar:
            for _ in range(num_samples):
                file = io.BytesIO()
                soundfile.write(file, draws.uniform(-1, 1, draws.integers(200, 800)), RATE_HZ, format="WAV")
                note = "n" * int(draws.integers(900))
                tar.write({"__key__": f"{name}{number}", "wav": file.getvalue(), "json": {"note": note}})
                number += 1
    make_index(str(folder))
    return ShardIndex.load(str(folder))


def open_stream(
    index: ShardIndex | Sequence[ShardIndex], world: World | None = None, *, seed: int = 11, **keys: Any
) -> Stream:
    """A stream over one source, or over several whose names are a, b, c."""
    numbers = {"global_batch": 16, "lanes": 8, "chunk_samples": 5, "window_samples": 7}
    single = isinstance(index, ShardIndex)
    where = {"url": index.url} if single else {"sources": dict(zip("abc", (i.url for i in index), strict=False))}
    return Stream(
        DataConfig(**(where | numbers | keys)),
        index,
        seed=seed,
        sample_rate_hz=RATE_HZ,
        crop_frames=round(0.08 * RATE_HZ),
        world=world,
    )


def read(stream: Stream, num_steps: int, start_step: int = 0) -> list[Batch]:
    """So many batches of one worker."""
    batches = list(islice(stream.batches(start_step), num_steps))
    stream.close()
    return batches


def read_all_workers(
    index: ShardIndex | Sequence[ShardIndex], size: int, num_steps: int, start_step: int = 0, **keys: Any
) -> list[Batch]:
    """The global batches, put together from those of `size` workers."""
    per_rank = [read(open_stream(index, World(rank, size), **keys), num_steps, start_step) for rank in range(size)]
    return [together(parts) for parts in zip(*per_rank, strict=True)]


def together(parts: tuple[Batch, ...]) -> Batch:
    slots = torch.cat([part.slot_B for part in parts])
    assert torch.equal(slots, torch.arange(parts[0].global_batch)), "the ranks' slots do not make up the batch"
    return Batch(
        torch.cat([part.wave_BT for part in parts]),
        tuple(key for part in parts for key in part.key_B),
        slots,
        parts[0].step,
        parts[0].global_batch,
        parts[0].lane_batch,
        tuple(reject for part in parts for reject in part.rejects),
    )


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert [batch.step for batch in one] == [batch.step for batch in other]
    for left, right in zip(one, other, strict=True):
        assert left.key_B == right.key_B
        assert left.rejects == right.rejects
        assert torch.equal(left.slot_B, right.slot_B)
        assert torch.equal(left.wave_BT, right.wave_BT)


def bytes_of(url: str, row: dict[str, Any]) -> bytes:
    """The bytes of the tar at `url` that a row of its sample table names."""
    with storage.open_input(url) as file:
        data = bytes(file.read_at(row["size"], row["offset"]))
    assert len(data) == row["size"]
    return data
