"""Sample tables packed, and the values used last."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from servers import web_server

from scaleaudio.data.index import ShardIndex
from scaleaudio.data.lru import LRU
from scaleaudio.data.packed import BLOCK_ROWS, pack, unpack_rows
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.stream import DataConfig

TABLE = pa.table(
    {
        "key": [f"k{row}" for row in range(2 * BLOCK_ROWS + 7)],
        "frames": pa.array([row if row % 3 else None for row in range(2 * BLOCK_ROWS + 7)], pa.int64()),
    }
)
PACKED = pack(pa.concat_tables([TABLE.slice(0, 5), TABLE.slice(5)]))  # as Parquet's row groups may cut it


@given(st.integers(0, len(TABLE) - 1), st.integers(1, len(TABLE)))
def test_any_rows_of_a_packed_table_are_those_of_the_table(first: int, num: int) -> None:
    stop = min(first + num, len(TABLE))
    assert unpack_rows(PACKED, first, stop) == TABLE.slice(first, stop - first).to_pylist()


@pytest.mark.parametrize("row", [0, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS, len(TABLE) - 1])
def test_a_row_at_the_edge_of_a_block_is_found(row: int) -> None:
    assert unpack_rows(PACKED, row, row + 1) == TABLE.slice(row, 1).to_pylist()


def test_values_unused_for_longest_go_first_and_the_last_stays_however_large() -> None:
    kept = LRU[str, int](10)
    for number, key in enumerate("abc"):
        kept.put(key, number, 4)
    assert [kept.get(key) for key in "abc"] == [None, 1, 2]
    kept.get("b")
    kept.put("d", 3, 4)
    assert [kept.get(key) for key in "bcd"] == [1, None, 3]
    kept.put("b", 9, 1)  # in place of what was there
    kept.put("e", 4, 5)
    assert [kept.get(key) for key in "bde"] == [9, 3, 4]
    kept.put("large", 5, 99)
    assert [kept.get(key) for key in "bde"] == [None] * 3 and kept.get("large") == 5
    kept.drop("large")
    kept.drop("large")
    kept.put("f", 6, 10)
    assert kept.get("large") is None and kept.get("f") == 6


def write_shard(folder: Path, frames: list[int]) -> None:
    """One shard of noise, and its index without checksums."""
    with webdataset.TarWriter(str(folder / "0.tar")) as tar:
        for number, length in enumerate(frames):
            file = io.BytesIO()
            soundfile.write(file, np.random.default_rng(number).uniform(-1, 1, length), 8000, format="WAV")
            tar.write({"__key__": f"k{number}", "wav": file.getvalue()})
    make_index(str(folder), headers_only=True, replace=True)


def test_where_a_server_tells_no_times_no_table_outlives_its_index(tmp_path: Path) -> None:
    shards, cache = tmp_path / "shards", str(tmp_path / "cache")
    shards.mkdir()
    with web_server(shards) as url:
        for frames in ([800, 3000, 800, 3000], [3000, 800, 3000, 800]):  # names and sizes of both shards are the same
            write_shard(shards, frames)
            fetcher = DataConfig(url=url, cache_dir=cache).build_fetcher(ShardIndex.load(url))
            assert [len(fetcher.load(fetcher.find(row))) for row in range(4)] == [44 + 2 * num for num in frames]
