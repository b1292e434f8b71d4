"""The laws of the stream, on real tars: exactly once, from any stop, and the same batch for any number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import assert_same, open_stream, read, read_all_workers, write_shards

from scaleaudio.data.index import ShardIndex
from scaleaudio.types import Batch


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("size", range(1, 9))
def test_an_epoch_reads_every_sample_once_up_to_a_remainder_for_any_number_of_workers(
    index: ShardIndex, size: int
) -> None:
    stream = open_stream(index)
    assert 0 < stream.remainder < stream.config.global_batch
    for epoch in (0, 1):
        batches = read_all_workers(index, size, stream.steps_per_epoch, epoch * stream.steps_per_epoch)
        keys = [key for batch in batches for key in batch.key_B]
        assert len(set(keys)) == len(keys) == index.num_samples - stream.remainder


@pytest.mark.parametrize("size", range(2, 9))
def test_the_global_batch_is_bit_equal_for_any_number_of_workers(index: ShardIndex, size: int) -> None:
    assert_same(read_all_workers(index, size, 8), read(open_stream(index), 8))


@settings(deadline=None, max_examples=15)
@given(
    num_threads=st.integers(1, 6),
    num_read_threads=st.integers(1, 6),
    read_ahead=st.integers(0, 9),
    fetch_ahead=st.integers(0, 9),
)
def test_threads_and_how_far_they_run_ahead_change_nothing(index: ShardIndex, **keys: int) -> None:
    assert_same(read(open_stream(index, **keys), 7), reference(index)[:7])


@settings(deadline=None, max_examples=25)
@given(stop=st.integers(0, 18), size=st.integers(1, 8))
def test_after_a_stop_at_any_step_another_number_of_workers_goes_on_with_the_same_batches(
    index: ShardIndex, stop: int, size: int
) -> None:
    assert_same(read_all_workers(index, size, 3, start_step=stop), reference(index)[stop : stop + 3])


@settings(deadline=None, max_examples=15)
@given(
    lane_batch=st.integers(1, 6), lanes=st.integers(1, 8), chunk=st.integers(1, 40), window=st.integers(1, 60),
    size=st.integers(1, 8),
)  # fmt: skip
def test_exactly_once_holds_for_any_batch_lanes_chunks_and_windows(
    index: ShardIndex, lane_batch: int, lanes: int, chunk: int, window: int, size: int
) -> None:
    shape = Shape(lane_batch * lanes, lanes, chunk, window)
    num_steps = index.num_samples // shape.global_batch
    batches = read_all_workers(index, min(size, lanes), num_steps, **vars(shape))
    keys = [key for batch in batches for key in batch.key_B]
    assert len(set(keys)) == len(keys) > index.num_samples - shape.global_batch


@dataclass
class Shape:
    global_batch: int
    lanes: int
    chunk_samples: int
    window_samples: int


def test_epochs_read_in_another_order_and_crop_elsewhere(index: ShardIndex) -> None:
    stream = open_stream(index)
    epochs = [read(stream, stream.steps_per_epoch, epoch * stream.steps_per_epoch) for epoch in (0, 1)]
    first, second = (waves(epoch) for epoch in epochs)
    assert [batch.key_B for batch in epochs[0]] != [batch.key_B for batch in epochs[1]]
    same = [torch.equal(first[key], second[key]) for key in first.keys() & second.keys()]
    assert len(same) > 50 and sum(same) < len(same) / 10


def waves(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {key: wave_T for batch in batches for key, wave_T in zip(batch.key_B, batch.wave_BT, strict=True)}


@cache
def reference_of(url: str) -> list[Batch]:
    return read(open_stream(ShardIndex.load(url)), 21)


def reference(index: ShardIndex) -> list[Batch]:
    return reference_of(index.url)
