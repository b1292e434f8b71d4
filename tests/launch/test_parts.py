"""The parts of a table: whatever their folder holds, the table has every row once or is not made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaleaudio.data.index import ShardIndex
from scaleaudio.errors import RunFailed
from scaleaudio.launch import parts


def rows(start: int, stop: int, *, bad: int | None = None) -> pa.Table:
    """Rows of a shard whose embedding is their number; `bad` has none."""
    numbers = np.arange(start, stop)
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(numbers.astype(np.float32)), 1, mask=pa.array(numbers == bad)
    )
    text = pa.array([str(number) for number in numbers])
    reason = pa.array(["odd" if number == bad else None for number in numbers], pa.string())
    return pa.table([text, text, text, embedding, reason], names=["key", "shard", "label", "embedding", "reason"])


def test_a_unit_that_was_halved_and_came_through_later_is_counted_once(tmp_path: Path, shards: Path) -> None:
    out, index = str(tmp_path / "z.parquet"), ShardIndex.load(str(shards))
    sizes = index.num_samples_per_shard.tolist()
    plan = parts.begin(out, {"unit_samples": 100, "embedding_dim": 1})
    for shard, size in enumerate(sizes):
        parts.write(out, shard, 0, rows(0, 2))
        assert parts.finished_units(out, 100)[shard, 0] == 2
        with pytest.raises(RunFailed, match="parts of"):
            parts.merge(out, plan, index)
        parts.write(out, shard, 2, rows(2, size))
        parts.write(out, shard, 0, rows(0, size, bad=1))
    about = parts.merge(out, plan, index)
    assert (about["num_samples"], about["num_rejects"]) == (sum(sizes) - len(sizes), len(sizes))
    expected = [float(number) for size in sizes for number in range(size) if number != 1]
    assert [row["embedding"][0] for row in pq.read_table(out).to_pylist()] == expected
    assert pq.read_table(parts.rejects_url(out)).to_pylist() == [{"shard": "1", "key": "1", "reason": "odd"}] * len(
        sizes
    )
    assert parts.claim(out, plan) == about


def test_parts_with_rejects_are_made_again_and_the_first_plan_stays(tmp_path: Path) -> None:
    out = str(tmp_path / "z.parquet")
    plan = parts.begin(out, {"unit_samples": 4, "model": "a"})
    parts.write(out, 0, 0, rows(0, 4))
    parts.write(out, 0, 4, rows(4, 8, bad=5))
    assert parts.begin(out, {"unit_samples": 9, "model": "a"}) == plan
    assert parts.finished_units(out, 4) == {(0, 0): 4}
