"""What a step sends is counted as it is sent, and the projection is its formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleaudio.bench import scaling
from scaleaudio.bench.cluster import Assumed, Traffic, projection
from scaleaudio.cli import bench
from scaleaudio.config import load


def test_one_gpu_sends_nothing_and_the_bytes_are_those_of_the_formula() -> None:
    traffic = Traffic(gradients=4_000_000, statistics=4000, key=512, chunk_keys=10**6)
    one, eight = projection(traffic, Assumed(gpus=(1, 8), clips_per_gpu=100))
    assert (one.gradient_mb, one.key_mb, one.efficiency) == (0, 0, 1)
    assert eight.gradient_mb == pytest.approx(2 * 7 / 8 * 4)
    assert eight.key_mb == pytest.approx((2 + 4) * 7 / 8 * 800 * 512 / 1e6)
    assert eight.serial_ms > eight.overlapped_ms > 50


def test_gathering_in_chunks_sends_the_keys_once_more_and_in_more_messages() -> None:
    whole, chunks = (
        projection(Traffic(4, 4, 512, num), Assumed(gpus=(8,), clips_per_gpu=100))[0] for num in (10**6, 80)
    )
    assert chunks.key_mb == pytest.approx(whole.key_mb * 8 / 6)
    assert chunks.serial_ms > whole.serial_ms


def test_a_batch_that_is_shared_by_more_gpus_never_gains_efficiency() -> None:
    found = projection(Traffic(4 * 10**8, 4000, 512, 16384))
    assert [row.gpus for row in found] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [row.efficiency for row in found] == sorted((row.efficiency for row in found), reverse=True)


def test_numbers_of_workers_that_are_none_are_refused(tiny_file: Path) -> None:
    with pytest.raises(ValueError, match="--workers 2,4: expected 1 and then other numbers"):
        bench.bench_scaling(tiny_file, None, workers="2,4")


def test_more_workers_than_lanes_are_refused_before_any_is_started(tiny_file: Path) -> None:
    config = load(tiny_file)
    with pytest.raises(ValueError, match="1000 workers need at least 1000 lanes"):
        scaling.measure(config, config.data, config.optimizer, workers=(1, 1000), rounds=1)


@pytest.mark.slow
def test_two_workers_send_what_the_formula_says(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.bench_scaling(
        tiny_file, None, workers="1,2", rounds=1, clips_per_gpu=512, step_ms=50.0, gigabytes_per_second=40.0,
        latency_us=15.0, as_json=True,
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    config = load(tiny_file)
    traffic = Traffic.of(config.build())
    one, two, apart = result["measured"]
    assert (apart["workers"], apart["apart"], apart["sent"]) == (2, True, {})
    assert one["sent"] == {} and one["times_one"] == [1, 1, 1]
    key_bytes = config.data.global_batch * traffic.key
    assert two["sent"]["allreduce"] == [2, traffic.gradients + 2 * key_bytes]  # group norm: no statistics
    assert two["sent"]["allgather"] == [1, key_bytes]  # half of the keys, both ways round at once
