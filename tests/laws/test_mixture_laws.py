"""The laws once more for any shards: several sources, several crops of a clip, any fault in a shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import assert_same, open_stream, read, read_all_workers, write_shards

from scaleaudio.data import patience
from scaleaudio.data.index import ShardIndex
from scaleaudio.types import Batch

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=4)


@st.composite
def shapes(draw: st.DrawFn, at_most: int) -> dict[str, int]:
    """Numbers of a stream that needs no more than `at_most` clips for a step."""
    crops = draw(st.integers(1, 3))
    lanes = draw(st.integers(1, min(6, at_most)))
    lane_clips = draw(st.integers(1, max(min(3, at_most // lanes), 1)))
    return {
        "seed": draw(st.integers(0, 2**31)),
        "crops_per_clip": crops,
        "lanes": lanes,
        "global_batch": crops * lanes * lane_clips,
        "chunk_samples": draw(st.integers(1, 9)),
        "window_samples": draw(st.integers(1, 20)),
        "num_threads": draw(st.integers(1, 4)),
        "num_read_threads": draw(st.integers(1, 4)),
        "read_ahead": draw(st.integers(0, 5)),
        "fetch_ahead": draw(st.integers(0, 5)),
    }


@contextmanager
def shards(sizes: list[int], name: str = "k") -> Iterator[ShardIndex]:
    with TemporaryDirectory() as folder:
        yield write_shards(Path(folder), sizes, name)


def clips(batches: list[Batch], crops_per_clip: int) -> list[str]:
    """The key of each clip, once its crops are seen to stand together."""
    keys = []
    for batch in batches:
        for first in range(0, len(batch.key_B), crops_per_clip):
            assert len(set(batch.key_B[first : first + crops_per_clip])) == 1
            keys.append(batch.key_B[first])
    return keys


@settings(deadline=None, max_examples=12)
@given(sizes=SIZES, data=st.data())
def test_any_shards_are_read_once_alike_by_any_number_of_workers_and_after_a_stop_anywhere(
    sizes: list[int], data: st.DataObject
) -> None:
    shape = data.draw(shapes(sum(sizes)))
    size = data.draw(st.integers(1, shape["lanes"]))
    with shards(sizes) as index:
        stream = open_stream(index, **shape)
        whole = read(stream, stream.steps_per_epoch)
        read_once = clips(whole, shape["crops_per_clip"])
        assert len(set(read_once)) == len(read_once) == index.num_samples - stream.remainder
        stop = data.draw(st.integers(0, stream.steps_per_epoch - 1))
        rest = min(stream.steps_per_epoch - stop, 3)
        assert_same(read_all_workers(index, size, rest, start_step=stop, **shape), whole[stop : stop + rest])


@settings(deadline=None, max_examples=12)
@given(counts=st.lists(SIZES.filter(lambda sizes: sum(sizes) >= 12), min_size=2, max_size=3), data=st.data())
def test_a_mixture_is_the_same_for_any_number_of_workers_and_after_a_stop_at_any_step(
    counts: list[list[int]], data: st.DataObject
) -> None:
    shape = data.draw(shapes(12))
    weight = st.dictionaries(st.sampled_from("abc"[: len(counts)]), st.floats(0.1, 9), min_size=1)
    mixture = [{"from_step": step, "weights": data.draw(weight)} for step in (0, data.draw(st.integers(1, 8)))]
    size, stop = data.draw(st.integers(1, shape["lanes"])), data.draw(st.integers(0, 9))
    with TemporaryDirectory() as folder:
        indexes = [write_shards(Path(folder) / name, sizes, name) for name, sizes in zip("abc", counts, strict=False)]
        stream = open_stream(indexes, mixture=mixture, **shape)
        whole = read(stream, 12)
        counted = Counter(key[0] for key in clips(whole, shape["crops_per_clip"]))
        taken = [stream.mixture.taken(lane, 12) for lane in range(shape["lanes"])]
        assert [counted[name] for name in "abc"[: len(counts)]] == [sum(column) for column in zip(*taken, strict=True)]
        again = read_all_workers(indexes, size, 3, start_step=stop, mixture=mixture, **shape)
        assert_same(again, whole[stop : stop + 3])


@settings(deadline=None, max_examples=10)
@given(sizes=SIZES, data=st.data())
def test_any_fault_in_a_shard_changes_the_clips_that_are_named_and_no_others(
    sizes: list[int], data: st.DataObject
) -> None:
    shape = data.draw(shapes(20)) | {"max_bad_fraction": 1}
    size = data.draw(st.integers(1, shape["lanes"]))
    with shards([*sizes, 60]) as index, pytest.MonkeyPatch.context() as patch:  # 60 that take the place of others
        patch.setattr(patience, "FIRST_WAIT_SECONDS", 0.0001)
        steps = open_stream(index, **shape).steps_per_epoch
        before = read(open_stream(index, **shape), steps)
        hurt(Path(index.shard_url(data.draw(st.integers(0, len(sizes) - 1)))), data)
        after = read_all_workers(index, size, steps, **shape)
        named = 0
        for old, new in zip(before, after, strict=True):
            bad = {reject.key for reject in new.rejects}
            named += len(bad)
            for old_key, new_key, old_T, new_T in zip(old.key_B, new.key_B, old.wave_BT, new.wave_BT, strict=True):
                assert old_key in bad or (new_key == old_key and torch.equal(new_T, old_T))
                assert new_key != old_key or old_key not in bad
        assert named == len({reject.key for batch in after for reject in batch.rejects})  # each at its one turn


def hurt(tar: Path, data: st.DataObject) -> None:
    """Cuts a shard off, removes it, or overwrites some of its bytes."""
    content = bytearray(tar.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "gone", "flip"]))
    if kind == "gone":
        tar.unlink()
        return
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        del content[at:]
    else:
        end = min(at + data.draw(st.integers(1, 3000)), len(content))
        content[at:end] = bytes(byte ^ 0x5A for byte in content[at:end])
    tar.write_bytes(content)
