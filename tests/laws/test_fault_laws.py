"""Whatever fault strikes the shards or their index, the stream goes on, and differs only where it names a sample."""

from __future__ import annotations

import io
import shutil
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleaudio.data import patience
from scaleaudio.data.index import SAMPLE_SCHEMA, ShardIndex
from scaleaudio.data.parquet import write_table
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.types import Batch, Reject, World

RATE_HZ = 4000
COUNTS = (9, 1, 14, 6, 11)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draws, number = tmp_path_factory.mktemp("clean"), np.random.default_rng(0), 0
    for shard, num_samples in enumerate(COUNTS):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for _ in range(num_samples):
                file = io.BytesIO()
                soundfile.write(file, draws.uniform(-1, 1, draws.integers(200, 800)), RATE_HZ, format="WAV")
                tar.write({"__key__": f"k{number}", "wav": file.getvalue()})
                number += 1
    make_index(str(folder))
    return folder


def read(folder: Path, num_steps: int, world: World | None = None) -> list[Batch]:
    config = DataConfig(url=str(folder), global_batch=8, lanes=4, chunk_samples=5, window_samples=7, max_bad_fraction=1)
    index = ShardIndex.load(str(folder))
    stream = Stream(config, index, seed=3, sample_rate_hz=RATE_HZ, crop_frames=300, world=world)
    batches = list(islice(stream.batches(), num_steps))
    stream.close()
    return batches


# Whole shards go only where few clips are, so that a good clip is always found in place of a bad one.
small = st.sampled_from([1, 3])
dirt = st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=2000))
numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-10, 20_000)
row = st.tuples(st.integers(0, 20), st.sampled_from(["offset", "size", "frames"]), numbers)
faults = st.lists(
    st.one_of(
        st.tuples(st.just("gone"), small, st.none()),
        st.tuples(st.just("table gone"), small, st.none()),
        st.tuples(st.just("cut"), small, st.floats(0, 1)),
        st.tuples(st.just("dirt"), st.integers(0, 4), dirt),
        st.tuples(st.just("row"), st.integers(0, 4), row),
    ),
    max_size=4,
)


def strike(folder: Path, kind: str, shard: int, how: object) -> None:
    tar = folder / f"{shard}.tar"
    index = ShardIndex.load(str(folder))
    table = folder / index.row(shard).samples
    if kind == "gone":
        tar.unlink(missing_ok=True)
    elif kind == "table gone":
        table.unlink(missing_ok=True)
    elif kind == "row" and table.exists():
        row, column, value = how  # type: ignore[misc]
        rows = index.samples(shard).to_pylist()
        rows[row % len(rows)] |= {column: value}
        write_table(str(table), rows, SAMPLE_SCHEMA)
    elif kind == "cut" and tar.exists():
        tar.write_bytes(tar.read_bytes()[: int(how * tar.stat().st_size)])  # type: ignore[operator]
    elif kind == "dirt" and tar.exists():
        part, data = how  # type: ignore[misc]
        with tar.open("r+b") as file:
            file.seek(int(part * tar.stat().st_size))
            file.write(data)


@settings(deadline=None, max_examples=12)
@given(struck=faults, size=st.integers(1, 3))
def test_any_fault_changes_only_the_samples_that_it_names_and_alike_for_any_number_of_workers(
    clean: Path, struck: list[tuple[str, int, object]], size: int
) -> None:
    before = read(clean, 10)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.001)
        folder = Path(name) / "shards"
        shutil.copytree(clean, folder)
        for kind, shard, how in struck:
            strike(folder, kind, shard, how)
        after = read(folder, 10)
        ranks = [read(folder, 10, World(rank, size)) for rank in range(size)]
    struck_rows = {f"k{sum(COUNTS[:shard]) + how[0] % COUNTS[shard]}" for kind, shard, how in struck if kind == "row"}  # type: ignore[index]
    for old, new, *parts in zip(before, after, *ranks, strict=True):
        assert torch.cat([part.wave_BT for part in parts]).equal(new.wave_BT)
        assert tuple(key for part in parts for key in part.key_B) == new.key_B
        assert sorted(reject for part in parts for reject in as_tuples(part)) == sorted(as_tuples(new))
        named = {named_key(reject) for reject in new.rejects}
        for old_key, new_key, old_T, new_T in zip(old.key_B, new.key_B, old.wave_BT, new.wave_BT, strict=True):
            # A struck row's length may be another one that still fits: then only the place of its crop moves.
            same = old_key == new_key and (old_T.equal(new_T) or old_key in struck_rows)
            assert same or old_key in named
        assert len(named) == len(new.rejects)
        assert new.wave_BT.isfinite().all()


def named_key(reject: Reject) -> str:
    """The key of the sample that is named, also where the table that held it is gone."""
    first = sum(COUNTS[: int(reject.shard.removesuffix(".tar"))])
    return f"k{first + int(reject.key.removeprefix('row '))}" if reject.key.startswith("row ") else reject.key


def as_tuples(batch: Batch) -> list[tuple[str, str, str]]:
    return [(reject.shard, reject.key, reject.reason) for reject in batch.rejects]
