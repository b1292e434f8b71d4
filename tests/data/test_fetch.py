"""Sample numbers to bytes: whatever the index or the shard says, a sample is read, or named with the reason."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset

from scaleaudio.data import patience
from scaleaudio.data.fetch import Fetcher
from scaleaudio.data.index import INDEX_NAME, SAMPLE_SCHEMA, SHARD_SCHEMA, ShardIndex
from scaleaudio.data.parquet import write_table
from scaleaudio.data.rejects import BadDataError
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.shards import verify
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.errors import DecodeError, InputError
from scaleaudio.types import Batch

RATE_HZ = 8000
NUM_SHARDS, NUM_PER_SHARD = 4, 10


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)


def write_tar(path: Path, first: int, seed: int = 0) -> None:
    with webdataset.TarWriter(str(path)) as tar:
        for number in range(first, first + NUM_PER_SHARD):
            file = io.BytesIO()
            noise = np.random.default_rng([seed, number]).uniform(-0.5, 0.5, 1000)
            soundfile.write(file, noise, RATE_HZ, format="WAV")
            tar.write({"__key__": f"k{number}", "wav": file.getvalue()})


def write_shards(folder: Path, *, headers_only: bool = False) -> ShardIndex:
    """Shard s holds the clips k(10 s) to k(10 s + 9)."""
    folder.mkdir(exist_ok=True)
    for shard in range(NUM_SHARDS):
        write_tar(folder / f"{shard}.tar", shard * NUM_PER_SHARD)
    make_index(str(folder), headers_only=headers_only)
    return ShardIndex.load(str(folder))


@pytest.fixture
def shards(tmp_path: Path) -> ShardIndex:
    return write_shards(tmp_path / "shards")


def change_row(index: ShardIndex, shard: int, row: int, **values: Any) -> ShardIndex:
    url = f"{index.url}/{index.shards['samples'][shard].as_py()}"
    rows = index.samples(shard).to_pylist()
    rows[row] |= values
    write_table(url, rows, SAMPLE_SCHEMA)
    return ShardIndex.load(index.url)


def epoch(index: ShardIndex, **keys: Any) -> list[Batch]:
    numbers = {"global_batch": 8, "lanes": 4, "chunk_samples": 4, "window_samples": 10, "max_bad_fraction": 1.0}
    config = DataConfig(url=index.url, **(numbers | keys))
    stream = Stream(config, index, seed=5, sample_rate_hz=RATE_HZ, crop_frames=400)
    batches = list(islice(stream.batches(), stream.steps_per_epoch))
    stream.close()
    return batches


def rejected(batches: list[Batch]) -> dict[str, str]:
    return {reject.key: reject.reason for batch in batches for reject in batch.rejects}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"offset": -512}, "its index row cannot be: offset -512"),
        ({"size": -1}, "its index row cannot be: offset .*, size -1"),
        ({"size": 10**15}, "its index row cannot be: .* size 1000000000000000"),
        ({"offset": 2**62}, "its index row lies outside the shard: offset 4611686018427387904"),
        ({"offset": 2**63 - 1, "size": 2**29}, "its index row lies outside the shard"),
        ({"frames": -5}, "its index row cannot be: .* frames -5"),
        ({"frames": 0}, "its index row cannot be: .* frames 0"),
        ({"frames": 2**62}, "truncated after 0.12 s of"),
        ({"size": 0, "checksum": None}, "empty file"),
    ],
)
def test_an_index_row_that_cannot_be_costs_its_sample_and_no_other(
    shards: ShardIndex, values: dict[str, Any], reason: str
) -> None:
    ((key, found),) = rejected(epoch(change_row(shards, 1, 3, **values))).items()
    assert key == "k13" and re.search(reason, found)


def test_verify_names_the_rows_that_cannot_be(shards: ShardIndex) -> None:
    index = change_row(change_row(shards, 1, 3, offset=-512), 2, 0, size=10**12)
    assert [(damage.shard, damage.member) for damage in verify(index.url)] == [
        ("1.tar", "k13.wav"),
        ("2.tar", "k20.wav"),
    ]
    with (Path(index.url) / "1.tar").open("ab") as file:
        file.write(bytes(512))
    assert [damage.member for damage in verify(index.url)] == ["", "k13.wav", "k20.wav"]


@pytest.mark.parametrize("column", ["key", "member", "offset", "size"])
def test_a_table_with_gaps_is_one_clear_reason(shards: ShardIndex, column: str) -> None:
    index = change_row(shards, 2, 4, **{column: None})
    found = rejected(epoch(index))
    assert found.keys() == {f"row {row}" for row in range(NUM_PER_SHARD)}
    assert all(f"1 rows have no {column}" in reason for reason in found.values())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"num_samples": 0}, "num_samples from 0 to 10 cannot be"),
        ({"num_samples": -10}, "num_samples from -10 to 10 cannot be"),
        ({"num_samples": 2**62}, "num_samples from 10 to 4611686018427387904 cannot be"),
        ({"num_samples": None}, "1 rows have no num_samples"),
        ({"shard": None}, "1 rows have no shard"),
        ({"num_bytes": None}, "1 rows have no num_bytes"),
        ({"samples": None}, "1 rows have no samples"),
    ],
)
def test_an_index_of_numbers_that_cannot_be_is_refused(shards: ShardIndex, values: dict[str, Any], reason: str) -> None:
    rows = shards.shards.to_pylist()
    rows[1] |= values
    write_table(f"{shards.url}/{INDEX_NAME}", rows, SHARD_SCHEMA)
    with pytest.raises(InputError, match=reason):
        ShardIndex.load(shards.url)


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    write_tar(path, first=10, seed=1)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [gone, emptied, replaced, zeroed, made_a_folder])
def test_a_shard_that_changed_since_it_was_indexed_costs_its_clips_named_and_replaced_alike_in_every_run(
    shards: ShardIndex, damage: Callable[[Path], None]
) -> None:
    clean = epoch(shards)
    damage(Path(shards.url) / "1.tar")
    first, second = epoch(shards), epoch(shards)
    assert rejected(first).keys() == {f"k{number}" for number in range(10, 20)}
    assert [batch.key_B for batch in first] == [batch.key_B for batch in second]
    for before, after in zip(clean, first, strict=True):
        bad = {reject.key for reject in after.rejects}
        for old, new in zip(before.key_B, after.key_B, strict=True):
            assert old == new or old in bad
    with pytest.raises(BadDataError, match=r"1\.tar"):
        epoch(shards, max_bad_fraction=0.1)


def test_without_checksums_a_shard_of_another_size_is_not_trusted(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", headers_only=True)
    with (tmp_path / "shards" / "1.tar").open("ab") as file:
        file.write(bytes(512))
    found = rejected(epoch(shards))
    assert found.keys() == {f"k{number}" for number in range(10, 20)}
    assert all("another size than when it was indexed" in reason for reason in found.values())


def test_a_shard_that_changes_while_it_is_read_is_noticed_at_the_next_clip(shards: ShardIndex) -> None:
    fetcher = Fetcher(shards, chunk_samples=4)
    group = fetcher.groups(np.arange(10, 14))[0]
    members = fetcher.read_ahead(group)
    fetcher.load(members[10])
    replaced(Path(shards.url) / "1.tar")
    with pytest.raises(DecodeError, match="the shard changed since it was indexed"):
        fetcher.load(members[11])
