"""The parts of a table: whatever their folder holds, the table has every row once or is not made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaleaudio.data.fetch import CHANGED, UNREADABLE
from scaleaudio.data.index import ShardIndex
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.evaluate.corpus import PROCESS_DIED
from scaleaudio.launch import parts


def rows(start: int, stop: int, *, bad: int | None = None, why: str = "odd") -> pa.Table:
    """Rows of a shard whose embedding is their number; `bad` has none, and why."""
    numbers = np.arange(start, stop)
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(numbers.astype(np.float32)), 1, mask=pa.array(numbers == bad)
    )
    text = pa.array([str(number) for number in numbers])
    reason = pa.array([why if number == bad else None for number in numbers], pa.string())
    return pa.table([text, text, text, embedding, reason], names=["key", "shard", "label", "embedding", "reason"])


def test_a_unit_that_was_halved_and_came_through_later_is_counted_once(tmp_path: Path, shards: Path) -> None:
    out, index = str(tmp_path / "z.parquet"), ShardIndex.load(str(shards))
    sizes = index.num_samples_per_shard.tolist()
    plan = parts.begin(out, {"unit_samples": 100, "embedding_dim": 1})
    folder = parts.folder_of(out, plan)
    for shard, size in enumerate(sizes):
        parts.write(folder, shard, 0, rows(0, 2))
        assert (shard, 0) not in parts.begun(folder, 100, sizes).finished
        with pytest.raises(RunFailed, match="parts of"):
            parts.merge(out, plan, index)
        parts.write(folder, shard, 2, rows(2, size))
        parts.write(folder, shard, 0, rows(0, size, bad=1))
    begun = parts.begun(folder, 100, sizes)
    assert begun == ({(shard, 0): 1 for shard in range(len(sizes))}, {})
    about = parts.merge(out, plan, index)
    assert (about["num_samples"], about["num_rejects"]) == (sum(sizes) - len(sizes), len(sizes))
    expected = [float(number) for size in sizes for number in range(size) if number != 1]
    assert [row["embedding"][0] for row in pq.read_table(out).to_pylist()] == expected
    assert pq.read_table(parts.rejects_url(out)).to_pylist() == [{"shard": "1", "key": "1", "reason": "odd"}] * len(
        sizes
    )
    assert parts.claim(out, plan) == about


STORAGE_FAULTS = [f"{UNREADABLE}: no answer in 20 s", f"{CHANGED}: the shard changed", PROCESS_DIED]


@pytest.mark.parametrize("why", STORAGE_FAULTS)
def test_only_units_that_storage_or_a_dead_process_cost_a_clip_are_made_again(tmp_path: Path, why: str) -> None:
    out = str(tmp_path / "z.parquet")
    plan = parts.begin(out, {"unit_samples": 4, "model": "a"})
    folder = parts.folder_of(out, plan)
    parts.write(folder, 0, 0, rows(0, 4))
    parts.write(folder, 0, 4, rows(4, 8, bad=5))
    again = parts.write(folder, 0, 8, rows(8, 12, bad=9, why=why))
    half = parts.write(folder, 0, 12, rows(12, 13))
    assert parts.begin(out, {"unit_samples": 9, "model": "a"}) == plan
    begun = parts.begun(folder, 4, [15])
    assert begun == ({(0, 0): 0, (0, 1): 1}, {(0, 2): [again], (0, 3): [half]})


def test_what_is_made_again_takes_the_place_of_what_was_there_once_it_is_there(tmp_path: Path, shards: Path) -> None:
    """Halves in place of a whole unit with a clip that storage lost, and a unit that is lost in the same way again."""
    out, index = str(tmp_path / "z.parquet"), ShardIndex.load(str(shards))
    sizes = index.num_samples_per_shard.tolist()
    plan = parts.begin(out, {"unit_samples": 100, "embedding_dim": 1})
    folder = parts.folder_of(out, plan)
    for shard, size in enumerate(sizes):
        parts.write(folder, shard, 0, rows(0, size, bad=1, why=UNREADABLE))
    leftover = parts.begun(folder, 100, sizes).leftover
    assert parts.merge(out, plan, index)["num_rejects"] == len(sizes)  # nothing has gone yet
    for shard, size in enumerate(sizes):
        if shard == 0:
            part = parts.write(folder, 0, 0, rows(0, size, bad=1, why=UNREADABLE))
            parts.replace(folder, leftover[0, 0], part)
            continue
        for start, stop in ((0, 3), (3, size)):
            part = parts.write(folder, shard, start, rows(start, stop))
            parts.replace(folder, leftover[shard, 0], part)
    assert parts.merge(out, plan, index)["num_rejects"] == 1
    assert parts.begun(folder, 100, sizes).finished == {(shard, 0): 0 for shard in range(1, len(sizes))}


def test_jobs_with_other_models_never_mix_their_rows_though_both_began_at_once(tmp_path: Path, shards: Path) -> None:
    out, index = str(tmp_path / "z.parquet"), ShardIndex.load(str(shards))
    one, other = ({"unit_samples": 100, "embedding_dim": 1, "model": model} for model in "ab")
    assert parts.claim(out, one) is None and parts.claim(out, other) is None
    assert parts.begin(out, one) == one and parts.begin(out, other) == other
    for shard, size in enumerate(index.num_samples_per_shard.tolist()):
        parts.write(parts.folder_of(out, one), shard, 0, rows(0, size))
    with pytest.raises(RunFailed, match="parts of"):
        parts.merge(out, other, index)
    with pytest.raises(InputError, match="another model"):
        parts.claim(out, other)
    assert parts.merge(out, one, index)["num_samples"] == index.num_samples
