"""Sample tables packed, and the values used last."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleaudio.data.lru import LRU
from scaleaudio.data.packed import BLOCK_ROWS, pack, unpack_rows

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
