"""The loaders are measured over the same clips, and each does what its name says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from scaleaudio.bench.loader import CONTENDERS, LoaderScale, bench_loader, loader_table, measure, write_clips
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.shards import verify
from scaleaudio.errors import InputError

SMALL = LoaderScale(clips_per_shard=8, clip_seconds=2.0, seconds=0.2, repeats=1, workers=(1,))


def test_the_clips_made_for_it_are_shards_like_any(tmp_path: Path) -> None:
    write_clips(str(tmp_path), SMALL.model_copy(update={"shards": 12}))
    index = ShardIndex.load(str(tmp_path))
    assert index.num_samples == 96 and verify(str(tmp_path)) == []
    assert set(index.samples(11)["frames"].to_pylist()) == {32_000}


@pytest.mark.slow
def test_a_crop_costs_a_fraction_of_a_whole_clip_and_memory_does_not_grow_with_the_shards() -> None:
    """Measured: 5 times the usual recipe, 0.3 of bare bytes; a busy machine takes some of that."""
    scale = LoaderScale(seconds=3.0, repeats=3, workers=(1,))
    few, many = (
        json.loads(json.dumps(bench_loader(scale.model_copy(update={"shards": shards})))) for shards in (10, 1000)
    )
    cpu = {
        name: np.array([cost["clips_per_cpu_second"] for cost in few["costs"] if cost["contender"] == name])
        for name in CONTENDERS
    }
    ours, recipe, tar_bytes = (cpu[name] for name in CONTENDERS)
    assert np.median(ours / recipe) > 3 and np.median(ours / tar_bytes) > 0.15
    held = [
        min(cost["memory_mb"] for cost in run["costs"] if cost["contender"] == CONTENDERS[0]) for run in (few, many)
    ]
    assert held[1] < held[0] + 40
    Console(width=150).print(loader_table(few))


def test_a_measurement_counts_clips_and_their_bytes(tmp_path: Path) -> None:
    write_clips(str(tmp_path), SMALL)
    stream = measure(SMALL.model_copy(update={"url": str(tmp_path)}), CONTENDERS[0], 1)
    assert stream.clips_per_second > 0 and stream.memory_mb > 10
    assert stream.mb_per_second / stream.clips_per_second == pytest.approx(
        np.mean(ShardIndex.load(str(tmp_path)).samples(0)["size"].to_pylist()) / 1e6, rel=0.2
    )


@pytest.mark.parametrize(
    ("url", "message"), [("s3://bucket/shards", "expected a local folder"), ("none", "--url .*no such folder")]
)
def test_shards_that_not_all_loaders_can_read_are_refused(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench_loader(SMALL.model_copy(update={"url": url if "://" in url else f"{tmp_path}/{url}"}))
