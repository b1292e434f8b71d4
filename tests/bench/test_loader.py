"""The loaders are measured over the same clips, and each does what its name says."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from scaleaudio.bench.contenders import LoaderScale, write_clips
from scaleaudio.bench.loader import CONTENDERS, bench_loader, loader_table, measure
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
def test_a_crop_costs_a_fraction_of_a_whole_clip() -> None:
    """Measured: 4.3 times the usual recipe, 0.33 of bare bytes; a busy machine takes some of that."""
    result = json.loads(json.dumps(bench_loader(LoaderScale(seconds=3.0, repeats=3, workers=(1,)))))
    cpu = {
        name: np.array([cost["clips_per_cpu_second"] for cost in result["costs"] if cost["contender"] == name])
        for name in CONTENDERS
    }
    ours, recipe, tar_bytes = (cpu[name] for name in CONTENDERS)
    assert np.median(ours / recipe) > 3 and np.median(ours / tar_bytes) > 0.15
    Console(width=150).print(loader_table(result))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_shards_beyond_those_whose_tables_are_kept(tmp_path: Path) -> None:
    """Measured: medians of 514 MB for 100 shards and 482 for 1,000; single ones differ by 100."""
    held: dict[int, list[float]] = {100: [], 1000: []}
    for shards in held:
        (tmp_path / str(shards)).mkdir()
        write_clips(f"{tmp_path}/{shards}", LoaderScale(shards=shards))
    for _, shards in product(range(3), held):
        scale = LoaderScale(url=f"{tmp_path}/{shards}", seconds=3.0, repeats=1, workers=(1,))
        costs = bench_loader(scale, contenders=CONTENDERS[:1])["costs"]
        held[shards].append(costs[0]["memory_mb"])
    assert np.median(held[1000]) < np.median(held[100]) + 100


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
