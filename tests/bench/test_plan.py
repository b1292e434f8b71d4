"""Planning costs what it says, over the real index and order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from scaleaudio.bench.plan import PlanScale, bench_plan, check_epoch, measure, plan_table, write_index
from scaleaudio.data.index import ShardIndex

SMALL = PlanScale(shards=3000, samples_per_shard=7, ranks=16, loader_workers=2, clips_per_loader=4, window_samples=32)


def test_the_synthesised_index_is_one_that_the_stream_loads(tmp_path: Path) -> None:
    write_index(str(tmp_path), SMALL)
    index = ShardIndex.load(str(tmp_path))
    assert index.num_samples == 21_000 and index.shard_url(2999) == f"{tmp_path}/shard-00002999.tar"
    assert len(index.fingerprint) == 64


def test_an_epoch_over_all_ranks_plans_every_sample_once_up_to_the_remainder() -> None:
    check = check_epoch(SMALL)
    assert check.remainder == 21_000 % (16 * 2 * 4) > 0
    assert (check.once, check.twice) == (21_000 - check.remainder, 0)


def test_each_measurement_names_its_scale_and_is_a_time(tmp_path: Path) -> None:
    write_index(str(tmp_path), SMALL)
    for step in (0, 10**6):
        cost = measure(str(tmp_path), replace(SMALL, start_step=step), 20)
        assert cost.scale.start_step == step
        assert 0 < cost.index_seconds < cost.cold_seconds and 0 < cost.step_ms <= cost.slowest_ms


@pytest.mark.slow
def test_a_billion_samples_in_a_million_shards_are_planned_in_little_memory() -> None:
    result = json.loads(json.dumps(bench_plan(PlanScale(), num_steps=128, epoch_shards=1000)))
    _, start, later, tiny_chunks = result["costs"]
    assert all(cost["memory_mb"] < 100 for cost in (start, later, tiny_chunks))
    assert tiny_chunks["memory_mb"] < later["memory_mb"] + 10  # 32 times as many chunks
    epoch = result["epoch"]
    assert epoch["twice"] == 0 and epoch["once"] == epoch["samples"] - epoch["remainder"]
    Console(width=120).print(plan_table(result))
