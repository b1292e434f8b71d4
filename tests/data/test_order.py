"""The order is a pure function: bijective, complete, independent of the workers, and needs no memory that grows."""

from __future__ import annotations

import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleaudio.data.order import Order, permute, unpermute
from scaleaudio.errors import InputError
from scaleaudio.types import World


@st.composite
def orders(draw: st.DrawFn) -> Order:
    lanes = draw(st.integers(1, 8))
    global_batch = lanes * draw(st.integers(1, 5))
    num_batches = draw(st.integers(1, 12))
    return Order(
        num_samples=global_batch * num_batches + draw(st.integers(0, global_batch - 1)),
        global_batch=global_batch,
        lanes=lanes,
        chunk_samples=draw(st.integers(1, 40)),
        window_samples=draw(st.integers(1, 60)),
        seed=draw(st.integers(0, 2**31)),
    )


def all_of_epoch(order: Order, epoch: int, world_size: int = 1) -> np.ndarray:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    lanes = [World(rank, world_size).share(order.lanes) for rank in range(world_size)]
    return np.concatenate([order.samples(step, share) for step in steps for share in lanes])


@settings(deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_the_keyed_permutation_is_a_bijection_with_the_right_inverse(size: int, key: int) -> None:
    keys = np.asarray([key], dtype=np.uint64)
    index = np.arange(size)
    moved = permute(index, size, keys)
    assert sorted(moved) == list(range(size))
    assert (unpermute(moved, size, keys) == index).all()


def test_each_element_may_have_a_size_and_a_key_of_its_own() -> None:
    sizes, keys = np.asarray([7, 300, 7]), np.asarray([1, 2, 3], dtype=np.uint64)
    together = permute(np.asarray([4, 250, 4]), sizes, keys)
    alone = [permute(np.asarray([4, 250, 4])[[i]], int(sizes[i]), keys[[i]])[0] for i in range(3)]
    assert list(together) == alone


def test_over_many_keys_every_position_is_reached_equally_often() -> None:
    size, num_keys = 50, 2000
    counts = np.zeros((size, size))
    for key in range(num_keys):
        counts[np.arange(size), permute(np.arange(size), size, np.asarray([key], dtype=np.uint64))] += 1
    expected = num_keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum() / (size - 1) ** 2
    assert 0.9 < chi_square < 1.1  # five standard deviations of a fair shuffle are 0.14


@settings(deadline=None)
@given(order=orders(), epoch=st.integers(0, 3))
def test_an_epoch_reads_each_sample_once_up_to_a_remainder_below_one_batch(order: Order, epoch: int) -> None:
    read = all_of_epoch(order, epoch)
    assert len(set(read)) == len(read) == order.num_samples - order.remainder
    assert order.remainder < order.global_batch
    assert read.min() >= 0 and read.max() < order.num_samples


@settings(deadline=None)
@given(order=orders(), world_size=st.integers(1, 8), step=st.integers(0, 500))
def test_the_global_batch_does_not_depend_on_the_number_of_workers(order: Order, world_size: int, step: int) -> None:
    shares = [
        World(rank, min(world_size, order.lanes)).share(order.lanes) for rank in range(min(world_size, order.lanes))
    ]
    together = np.concatenate([order.samples(step, share) for share in shares])
    assert np.array_equal(together, order.samples(step, range(order.lanes)))


@settings(deadline=None)
@given(order=orders(), start_step=st.integers(0, 200), data=st.data())
def test_the_windows_of_a_lane_are_its_steps_from_any_start(order: Order, start_step: int, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, order.lanes - 1))
    steps = range(start_step, start_step + 2 * order.steps_per_epoch + 1)
    wanted = np.concatenate([order.samples(step, range(lane, lane + 1)) for step in steps])
    taken = start_step * order.lane_batch
    assert [order.sample(lane, taken + ahead) for ahead in range(3)] == list(wanted[:3])
    pieces = list(islice(order.windows(lane, taken), len(wanted)))
    assert max(len(piece) for piece in pieces) <= order.window_samples
    assert np.array_equal(np.concatenate(pieces)[: len(wanted)], wanted)


@settings(deadline=None)
@given(order=orders())
def test_a_window_holds_few_pieces_of_consecutive_samples(order: Order) -> None:
    for window in islice(order.windows(0, 0), 5):
        num_pieces = 1 + int((np.diff(np.sort(window)) != 1).sum())
        assert num_pieces <= len(window) // order.chunk_samples + 3  # two cut chunks and the short one


def test_epochs_differ_and_so_do_seeds() -> None:
    order = Order(1000, 100, 4, seed=1)
    other_seed = Order(1000, 100, 4, seed=2)
    first = all_of_epoch(order, 0)
    assert (first == all_of_epoch(order, 1)).mean() < 0.02
    assert (first == all_of_epoch(other_seed, 0)).mean() < 0.02
    assert np.array_equal(first, all_of_epoch(Order(1000, 100, 4, seed=1), 0))


def test_the_remainder_is_another_in_each_epoch() -> None:
    order = Order(1000, 96, 4, chunk_samples=8, seed=1)
    left_out = [frozenset(range(1000)) - set(all_of_epoch(order, epoch)) for epoch in range(8)]
    assert {len(samples) for samples in left_out} == {order.remainder}
    assert len(set(left_out)) == 8


def test_a_batch_mixes_samples_from_all_over_the_data() -> None:
    order = Order(100_000, 128, 8)
    chunks = np.asarray([len(set(order.samples(step, range(8)) // order.chunk_samples)) for step in range(50)])
    assert chunks.mean() > 40


def test_lanes_change_windows_in_turn() -> None:
    order = Order(100_000, 64, 8, window_samples=256)
    firsts = [len(next(order.windows(lane, 0))) for lane in range(8)]
    assert firsts == [256, 224, 192, 160, 128, 96, 64, 32]


def test_a_billion_samples_in_a_million_shards_need_no_memory_of_their_number() -> None:
    order = Order(10**9, 4096, 256)
    order.samples(0, range(256))
    tracemalloc.start()
    for step in (1, order.steps_per_epoch - 1, order.steps_per_epoch * 7 + 12_345):
        assert order.samples(step, range(256)).shape == (4096,)
    assert next(order.windows(17, 100_000 * order.lane_batch)).max() < 10**9
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2_000_000


def test_the_order_is_the_one_that_saved_checkpoints_count_on() -> None:
    # Made by this module when ORDER_VERSION was 1; a change here breaks resuming and must raise that version.
    assert list(Order(1000, 8, 4, 16, 64, seed=7).samples(130, range(4))) == [91, 319, 869, 805, 923, 926, 541, 961]


def test_replacements_are_neighbours_first_then_draws_and_always_the_same() -> None:
    order = Order(10_000, 64, 4, chunk_samples=32, seed=3)
    tried = list(islice(order.replacements(step=5, number=63), 20))
    assert tried[:3] == [32, 33, 34]
    assert tried == list(islice(order.replacements(step=5, number=63), 20))
    assert tried[3:] != list(islice(order.replacements(step=6, number=63), 20))[3:]
    assert len({number // 32 for number in tried[3:]}) > 10


def test_a_sample_alone_in_its_chunk_is_replaced_by_draws() -> None:
    order = Order(33, 4, 2, chunk_samples=32)
    assert all(0 <= number < 33 for number in islice(order.replacements(0, 32), 10))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_samples": 5}, "the index holds 5, data.global_batch is 8"),
        ({"lanes": 3}, "data.lanes 3 does not divide data.global_batch 8"),
        ({"chunk_samples": 0}, "data.chunk_samples: expected 1 or more, got 0"),
        ({"window_samples": -1}, "data.window_samples: expected 1 or more, got -1"),
    ],
)
def test_numbers_that_make_no_order_are_refused_by_name(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Order(**({"num_samples": 100, "global_batch": 8, "lanes": 4} | numbers))
