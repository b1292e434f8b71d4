"""What an object store is asked for: a shard's size once, a sample table once a machine, whatever comes in between."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from servers import Gate, gate_before, s3_server

from scaleaudio.data import fetch, storage
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.errors import DecodeError
from scaleaudio.types import Batch

RATE_HZ = 8000
NUM_SHARDS, NUM_PER_SHARD = 6, 16
URL = "s3://clips/in"


def write_shard(path: Path, seed: int, num_frames: int = 800) -> None:
    draws = np.random.default_rng(seed)
    with webdataset.TarWriter(str(path)) as tar:
        for number in range(NUM_PER_SHARD):
            file = io.BytesIO()
            soundfile.write(file, draws.uniform(-0.5, 0.5, num_frames), RATE_HZ, format="WAV")
            tar.write({"__key__": f"{path.stem}-{seed}-{number}", "wav": file.getvalue()})


def write_shards(folder: Path, seed: int = 0, *, headers_only: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for shard in range(NUM_SHARDS):
        write_shard(folder / f"{shard}.tar", seed)
    make_index(str(folder), headers_only=headers_only)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch, "clips") as address:
        yield address


@pytest.fixture
def gate(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    with gate_before(server, monkeypatch) as gate:
        yield gate


@pytest.fixture
def shards(tmp_path: Path, gate: Gate) -> Path:
    """Shards on the local disk, and the same at URL."""
    folder = write_shards(tmp_path / "shards")
    upload(folder)
    gate.asked.clear()
    return folder


def upload(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        storage.write_atomic(f"{URL}/{path.relative_to(folder)}", path.read_bytes())


def open_stream(url: str, **keys: Any) -> Stream:
    numbers = {"global_batch": 8, "lanes": 4, "chunk_samples": 4, "window_samples": 8, "max_bad_fraction": 1.0}
    config = DataConfig(url=url, **(numbers | keys))
    return Stream(config, ShardIndex.load(url), seed=5, sample_rate_hz=RATE_HZ, crop_frames=400)


def read(url: str, num_epochs: int = 1, **keys: Any) -> list[Batch]:
    stream = open_stream(url, **keys)
    batches = list(islice(stream.batches(), num_epochs * stream.steps_per_epoch))
    stream.close()
    return batches


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert [batch.key_B for batch in one] == [batch.key_B for batch in other]
    assert all(torch.equal(left.wave_BT, right.wave_BT) for left, right in zip(one, other, strict=True))
    assert not [reject for batch in one for reject in batch.rejects]


def num_tables_asked(gate: Gate, method: str) -> int:
    return sum(asked == method and "/samples/" in path for asked, path, _ in gate.asked)


def tables(folder: Path) -> list[Path]:
    """The cached sample tables: what is there besides chunks, which hold audio."""
    return [path for path in sorted(folder.glob("??/*.piece")) if b"RIFF" not in path.read_bytes()]


def test_a_shard_and_its_table_are_asked_for_their_size_once_however_often_they_are_read(
    shards: Path, gate: Gate
) -> None:
    batches = read(URL, 4, num_read_threads=1)
    assert gate.num_asked("HEAD", ".tar") == NUM_SHARDS
    assert num_tables_asked(gate, "GET") == num_tables_asked(gate, "HEAD") == NUM_SHARDS
    assert_same(batches, read(str(shards), 4))


def test_tables_that_find_no_room_in_memory_are_read_anew_and_no_batch_changes(
    shards: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_TABLE_BYTES", 1)
    monkeypatch.setattr(fetch, "MAX_OPEN_BYTES", 1)
    batches = read(URL, 2)
    assert gate.num_asked("HEAD", ".tar") > 2 * NUM_SHARDS < num_tables_asked(gate, "GET")
    assert_same(batches, read(str(shards), 2))


def test_the_tables_that_one_worker_read_no_other_of_the_machine_asks_for(
    shards: Path, gate: Gate, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    first = read(URL, cache_dir=cache)
    assert len(tables(tmp_path / "cache")) == NUM_SHARDS
    gate.asked.clear()
    again = read(URL, cache_dir=cache)
    assert all(path.endswith("/index.parquet") for _, path, _ in gate.asked)
    assert_same(first, read(str(shards)))
    assert_same(again, first)


def test_streams_that_fill_a_cache_at_once_read_what_the_shards_hold(shards: Path, gate: Gate, tmp_path: Path) -> None:
    found: dict[int, list[Batch]] = {}

    def work(worker: int) -> None:
        found[worker] = read(URL, cache_dir=str(tmp_path / "cache"))

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for worker in range(3):
        assert_same(found[worker], read(str(shards)))
    assert len(tables(tmp_path / "cache")) == NUM_SHARDS


def test_the_tables_of_an_index_that_was_made_anew_are_not_those_of_before(
    shards: Path, gate: Gate, tmp_path: Path
) -> None:
    """Shards as long as before, under the names of before, indexed in the same second."""
    cache = str(tmp_path / "cache")
    read(URL, cache_dir=cache)
    anew = write_shards(tmp_path / "anew", seed=1)
    assert [(anew / f"{n}.tar").stat().st_size for n in range(3)] == [
        (shards / f"{n}.tar").stat().st_size for n in range(3)
    ]
    upload(anew)
    assert_same(read(URL, cache_dir=cache), read(str(anew)))


@pytest.mark.parametrize("headers_only", [False, True])
def test_an_index_over_the_same_shards_has_a_version_of_its_own(shards: Path, gate: Gate, headers_only: bool) -> None:
    before = ShardIndex.load(URL)
    fingerprint = before.fingerprint
    assert before.version == ShardIndex.load(URL).version
    time.sleep(1.1)  # an object store tells times to the second
    make_index(str(shards), headers_only=headers_only, replace=True)
    upload(shards)
    assert ShardIndex.load(URL).version != before.version
    assert (ShardIndex.load(URL).fingerprint == fingerprint) != headers_only


def test_a_cached_table_that_is_torn_is_read_anew(shards: Path, gate: Gate, tmp_path: Path) -> None:
    expected = read(URL, cache_dir=str(tmp_path / "cache"))
    empty, short, flipped, *_ = tables(tmp_path / "cache")
    empty.write_bytes(b"")
    short.write_bytes(short.read_bytes()[:-9])
    wrong = bytearray(flipped.read_bytes())
    wrong[len(wrong) // 2] ^= 1
    flipped.write_bytes(bytes(wrong))
    gate.asked.clear()
    assert_same(read(URL, cache_dir=str(tmp_path / "cache"), num_read_threads=1), expected)
    assert 3 <= num_tables_asked(gate, "GET") < NUM_SHARDS
    assert len(tables(tmp_path / "cache")) == NUM_SHARDS


def test_a_cache_that_takes_nothing_costs_requests_and_nothing_else(shards: Path, gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for number in range(256):
        (tmp_path / "cache" / f"{number:02x}").write_bytes(b"")  # where folders would have to be made
    assert_same(read(URL, cache_dir=str(tmp_path / "cache")), read(str(shards)))


def test_a_clip_is_found_in_a_cached_table_while_storage_is_away(shards: Path, gate: Gate, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    read(URL, cache_dir=cache)
    index = ShardIndex.load(URL)
    fetcher = DataConfig(url=URL, cache_dir=cache, stall_seconds=0.2).build_fetcher(index)
    gate.close()
    local = DataConfig(url=str(shards)).build_fetcher(ShardIndex.load(str(shards)))
    for number in range(index.num_samples):
        assert fetcher.find(number)[2:7] == local.find(number)[2:7]


def shard_of(fetcher: fetch.Fetcher, shard: int) -> list[bytes]:
    numbers = range(shard * NUM_PER_SHARD, (shard + 1) * NUM_PER_SHARD)
    return [fetcher.load(fetcher.find(number)) for number in numbers]


def test_a_shard_that_is_replaced_while_it_is_kept_open_is_noticed_and_read_again_once_it_is_back(
    shards: Path, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = DataConfig(url=URL).build_fetcher(ShardIndex.load(URL))
    expected = [shard_of(fetcher, shard) for shard in (0, 1)]
    write_shard(tmp_path / "other.tar", 7, num_frames=600)
    for data in ((tmp_path / "other.tar").read_bytes(), b"short", b""):
        storage.write_atomic(f"{URL}/0.tar", data)
        with pytest.raises(DecodeError, match="shorter than its index says"):
            fetcher.load(fetcher.find(NUM_PER_SHARD - 1))
    storage.delete_tree(f"{URL}/0.tar")
    with pytest.raises(DecodeError, match="cannot be read"):
        fetcher.load(fetcher.find(1))
    assert shard_of(fetcher, 1) == expected[1]
    storage.write_atomic(f"{URL}/0.tar", (shards / "0.tar").read_bytes())
    assert shard_of(fetcher, 0) == expected[0]


def test_a_shard_without_checksums_is_asked_for_its_size_at_every_read(
    shards: Path, gate: Gate, tmp_path: Path
) -> None:
    upload(write_shards(tmp_path / "bare", headers_only=True))
    fetcher = DataConfig(url=URL).build_fetcher(ShardIndex.load(URL))
    shard_of(fetcher, 0)
    storage.write_atomic(f"{URL}/0.tar", (shards / "0.tar").read_bytes() + bytes(512))
    with pytest.raises(DecodeError, match="another size than when it was indexed"):
        shard_of(fetcher, 0)
