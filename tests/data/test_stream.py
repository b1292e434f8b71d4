"""The stream on real tars: the right crops, bad clips replaced and named, threads that end."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from itertools import count, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
import webdataset
from pyarrow import fs
from servers import s3_server

from scaleaudio.data import normalise, patience, storage
from scaleaudio.data.ahead import Feed, Lane, Source, crop_positions, threads
from scaleaudio.data.fetch import Fetcher
from scaleaudio.data.fingerprint import check_fingerprint
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.order import Order
from scaleaudio.data.rejects import BadDataError
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.errors import InputError
from scaleaudio.frontend import FrontendConfig
from scaleaudio.types import Batch, World

RATE_HZ = 8000
NUM_SHARDS, NUM_PER_SHARD = 4, 15
NUM_SAMPLES = NUM_SHARDS * NUM_PER_SHARD


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four tars of FLAC ramps: sample n of clip k is (k * 500 + n) / 2**15, so that a crop says where it is from."""
    for shard in range(NUM_SHARDS):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for number in range(shard * NUM_PER_SHARD, (shard + 1) * NUM_PER_SHARD):
                tar.write({"__key__": f"k{number}", "flac": flac(number), "json": {"number": number}})
    make_index(str(tmp_path))
    return tmp_path


def flac(number: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, ramp(number), RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def ramp(number: int) -> np.ndarray:
    return ((number * 500 + np.arange(1000 + 37 * number)) / 2**15).astype(np.float32)


def open_stream(folder: Path | str, world: World | None = None, **keys: int | float) -> Stream:
    numbers = {"global_batch": 12, "lanes": 4, "chunk_samples": 4, "window_samples": 10}
    config = DataConfig(url=str(folder), **({"max_bad_fraction": 1.0} | numbers | keys))
    return Stream(config, ShardIndex.load(str(folder)), seed=5, sample_rate_hz=RATE_HZ, crop_frames=400, world=world)


def read(stream: Stream, num_steps: int, start_step: int = 0) -> list[Batch]:
    batches = list(islice(stream.batches(start_step), num_steps))
    stream.close()
    return batches


def rows(batches: list[Batch]) -> dict[tuple[int, int], tuple[str, torch.Tensor]]:
    """(step, slot) -> (key, waveform)."""
    return {
        (batch.step, int(slot)): (key, wave_T)
        for batch in batches
        for slot, key, wave_T in zip(batch.slot_B, batch.key_B, batch.wave_BT, strict=True)
    }


def rejects(batches: list[Batch]) -> list[tuple[int, str, str, str]]:
    return [(b.step, reject.shard, reject.key, reject.reason) for b in batches for reject in b.rejects]


def member_span(folder: Path, shard: int, row: int) -> tuple[int, int]:
    table = ShardIndex.load(str(folder)).samples(shard)
    return table["offset"][row].as_py(), table["size"][row].as_py()


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("global_batch", [12, 52])  # 52 clips are more than one task
def test_each_row_is_the_crop_of_its_clip_at_the_drawn_position(shards: Path, global_batch: int) -> None:
    stream = open_stream(shards, global_batch=global_batch)
    assert stream.crop_frames == 400
    for batch in read(stream, 5):
        assert batch.wave_BT.shape == (global_batch, 400) and batch.wave_BT.dtype == torch.float32
        assert batch.key_B == tuple(f"k{number}" for number in stream.mixture.orders[0].samples(batch.step, range(4)))
        positions = crop_positions(5, batch.step, 0, global_batch)
        for slot, key, wave_T in zip(batch.slot_B, batch.key_B, batch.wave_BT, strict=True):
            wave = ramp(int(key[1:]))
            start = int(positions[slot] * (len(wave) - 400 + 1))
            assert np.array_equal(wave_T.numpy(), wave[start : start + 400])


def test_a_batch_says_what_it_is(shards: Path) -> None:
    batch = read(open_stream(shards, World(1, 2)), 1, start_step=7)[0]
    assert (batch.step, batch.global_batch, batch.lane_batch) == (7, 12, 3)
    assert batch.slot_B.tolist() == [6, 7, 8, 9, 10, 11] and batch.slot_B.dtype == torch.int64
    assert len(batch.key_B) == len(batch.wave_BT) == 6
    assert batch.rejects == ()


def test_a_batch_is_not_written_to_once_it_is_given_out(shards: Path) -> None:
    batches = open_stream(shards).batches(0)
    first = next(batches)
    copy_BT = first.wave_BT.clone()
    list(islice(batches, 10))
    assert torch.equal(first.wave_BT, copy_BT)


def test_a_corrupt_clip_is_replaced_named_and_changes_nothing_else(shards: Path) -> None:
    before = rows(read(open_stream(shards), 5))
    offset, size = member_span(shards, 1, 3)
    overwrite(shards / "1.tar", offset + size // 2, b"\0\1\2\3")
    batches = read(open_stream(shards), 5)
    [(step, shard, key, reason)] = rejects(batches)
    assert (shard, key) == ("1.tar", "k18")
    assert "the shard changed since it was indexed" in reason
    after = rows(batches)
    [changed] = [at for at in before if not torch.equal(before[at][1], after[at][1])]
    assert (changed[0], before[changed][0]) == (step, "k18")
    assert after[changed][0] == "k19"  # the next one of its chunk


@pytest.mark.parametrize("size", [2, 3, 4])
def test_replacements_and_rejects_are_the_same_for_any_number_of_workers(shards: Path, size: int) -> None:
    (shards / "2.tar").unlink()
    offset, _ = member_span(shards, 0, 7)
    overwrite(shards / "0.tar", offset, b"\0" * 40)
    alone = read(open_stream(shards), 6)
    parts = [read(open_stream(shards, World(rank, size)), 6) for rank in range(size)]
    together = {at: row for part in parts for at, row in rows(part).items()}
    expected = rows(alone)
    assert together.keys() == expected.keys() and len(expected) == 6 * 12
    assert all(together[at][0] == key and torch.equal(together[at][1], wave) for at, (key, wave) in expected.items())
    assert sorted(row for part in parts for row in rejects(part)) == sorted(rejects(alone))


def test_a_missing_shard_costs_its_samples_and_no_others(shards: Path) -> None:
    (shards / "3.tar").unlink()
    stream = open_stream(shards)
    batches = read(stream, stream.steps_per_epoch)
    found = rejects(batches)
    assert {key for _, _, key, _ in found} == {f"k{number}" for number in range(45, 60)}
    assert all(shard == "3.tar" and "3.tar" in reason for _, shard, _, reason in found)
    assert all(int(key[1:]) < 45 for batch in batches for key in batch.key_B)


def test_a_truncated_shard_costs_only_what_lies_behind_the_cut(shards: Path) -> None:
    offset, size = member_span(shards, 3, 10)
    with (shards / "3.tar").open("r+b") as file:
        file.truncate(offset + size - 1)
    stream = open_stream(shards)
    found = rejects(read(stream, stream.steps_per_epoch))
    assert {key for _, _, key, _ in found} == {f"k{number}" for number in range(55, 60)}
    assert all("shorter than its index" in reason for _, _, _, reason in found)


def test_a_missing_sample_table_costs_its_shard_and_names_the_rows(shards: Path) -> None:
    table = ShardIndex.load(str(shards)).shards["samples"][2].as_py()
    (shards / table).unlink()
    stream = open_stream(shards)
    found = rejects(read(stream, stream.steps_per_epoch))
    assert {(shard, key) for _, shard, key, _ in found} == {("2.tar", f"row {row}") for row in range(15)}


def test_too_many_bad_clips_stop_the_run_with_the_reasons(shards: Path) -> None:
    (shards / "3.tar").unlink()
    with pytest.raises(BadDataError, match=r"data\.max_bad_fraction 0\.1 allows: \d+ x cannot be read.*3\.tar"):
        read(open_stream(shards, max_bad_fraction=0.1), 5)
    assert no_threads()


def test_where_nothing_can_be_read_the_first_batch_says_so(shards: Path) -> None:
    for shard in shards.glob("*.tar"):
        shard.unlink()
    with pytest.raises(BadDataError, match="none of 16 other clips could be used"):
        read(open_stream(shards), 1)


def test_what_goes_wrong_in_a_thread_reaches_the_one_who_reads(shards: Path) -> None:
    class Broken(ShardIndex):
        def samples(self, shard: int) -> pa.Table:
            raise ZeroDivisionError("a bug")

    good = open_stream(shards)
    stream = Stream(
        good.config,
        Broken.load(str(shards)),
        seed=5,
        sample_rate_hz=RATE_HZ,
        crop_frames=400,
    )
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(stream.batches(0))
    assert no_threads()


def test_no_thread_is_left_after_a_break_or_a_close(shards: Path) -> None:
    stream = open_stream(shards)
    for batch in stream.batches(0):
        if batch.step == 3:
            break
    assert no_threads()  # the loop held the only reference
    stream.batches(0)  # never begun
    begun = stream.batches(9)
    next(begun)
    assert not no_threads()
    stream.close()
    assert no_threads()
    assert next(begun, None) is None
    assert next(stream.batches(2)).step == 2  # a closed stream can be read anew
    stream.close()
    assert no_threads()


def test_no_thread_is_left_where_a_stop_fails(shards: Path) -> None:
    class Broken(Fetcher):
        def stop(self) -> None:
            raise RuntimeError("a bug")

    pools = threads(1, 1, Broken(ShardIndex.load(str(shards)), 4))
    for pool in pools.__enter__():
        pool.submit(int).result()
    with pytest.raises(RuntimeError, match="a bug"):
        pools.__exit__(None, None, None)
    assert no_threads()


def no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("scaleaudio")]


def test_a_lane_asks_for_its_windows_only_a_little_ahead(shards: Path) -> None:
    asked = count()
    windows = (np.arange(next(asked) * 10, 60)[:10] for _ in range(6))
    fetcher = Fetcher(ShardIndex.load(str(shards)), chunk_samples=4)
    with threads(1, 1, fetcher) as (readers, _):
        lane = Lane(repeat(0), [Feed(Source("", Order(60, 4, 2), fetcher), windows, readers)])
        assert [clip.number for clip in lane.take(3, steps_ahead=2)] == [0, 1, 2]
        assert next(asked) == 1  # nine clips are in the first window


def test_crop_positions_are_uniform_and_new_at_every_step() -> None:
    positions = np.stack([crop_positions(3, step, 0, 64) for step in range(500)])
    assert positions.min() >= 0 and positions.max() < 1
    counts = np.histogram(positions, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 1600).max() < 5 * np.sqrt(1600)
    assert len(np.unique(positions)) == positions.size
    assert not np.array_equal(crop_positions(3, 0, 0, 64), crop_positions(4, 0, 0, 64))


@pytest.mark.parametrize("first", range(9))
def test_a_workers_crop_positions_are_its_part_of_the_whole_batch(first: int) -> None:
    whole = crop_positions(5, 3, 0, 24)
    assert np.array_equal(crop_positions(5, 3, first, 7), whole[first : first + 7])
    assert len(crop_positions(5, 3, 10**12 + first, 7)) == 7  # so none of the others is drawn


def test_normalisation_looks_at_some_lanes_of_a_large_batch_and_at_all_of_a_small_one(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream(shards, global_batch=24, lanes=12)
    few = stream.narrowed(3)
    assert len(few.lanes) == 2 and len(stream.lanes) == 12
    (part,), (whole,) = read(few, 1), read(stream, 1)
    assert part.key_B == whole.key_B[:4] and torch.equal(part.wave_BT, whole.wave_BT[:4])
    assert len(stream.narrowed(2048).lanes) == 12
    monkeypatch.setattr(normalise, "_NUM_CLIPS", 3)
    wanted = FrontendConfig(sample_rate_hz=RATE_HZ, max_hz=4000, num_mels=8, hop_samples=100)
    mel_BFS = wanted.build()(part.wave_BT)
    found = normalise.with_constants(wanted, stream)
    assert found.mean == pytest.approx(float(mel_BFS.mean()), rel=1e-5)
    assert found.std == pytest.approx(float(mel_BFS.std(correction=0)), rel=1e-5)


def test_crop_positions_are_those_that_saved_checkpoints_count_on() -> None:
    assert crop_positions(7, 130, 0, 4).tolist() == [
        0.8848087797454323,
        0.4569170288921658,
        0.2392427995839589,
        0.4327191033503175,
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("global_batch", 24), ("lanes", 2), ("chunk_samples", 5), ("window_samples", 11)],
)
def test_going_on_in_another_stream_is_refused_by_key_and_both_values(shards: Path, key: str, value: float) -> None:
    saved, current = open_stream(shards).fingerprint(), open_stream(shards, **{key: value}).fingerprint()
    with pytest.raises(InputError, match=f"{key} was {saved[key]} and is now {value}. Set"):
        check_fingerprint(saved, current, 5)


def test_the_fingerprint_leaves_out_what_does_not_change_the_order(shards: Path) -> None:
    saved = open_stream(shards).fingerprint()
    check_fingerprint(
        saved, open_stream(shards, World(1, 3), num_threads=7, read_ahead=1, fetch_ahead=0).fingerprint(), 5
    )


def test_the_fingerprint_changes_with_the_shards(shards: Path) -> None:
    saved = open_stream(shards).fingerprint()
    (shards / "0.tar").unlink()
    make_index(str(shards), replace=True)
    with pytest.raises(InputError, match="index was "):
        check_fingerprint(saved, open_stream(shards).fingerprint(), 5)


def test_a_key_that_an_older_checkpoint_lacks_is_named() -> None:
    with pytest.raises(InputError, match="lanes was None and is now 8"):
        check_fingerprint({"seed": 1}, {"seed": 1, "lanes": 8}, 5)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another source of 20 clips."""
    folder = tmp_path / "second"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "0.tar")) as tar:
        for number in range(20):
            tar.write({"__key__": f"s{number}", "flac": flac(number)})
    make_index(str(folder))
    return folder


def mixed(folders: dict[str, Path], *phases: dict[str, object], **keys: int | float) -> Stream:
    sources = {name: str(folder) for name, folder in folders.items()}
    numbers = {"global_batch": 12, "lanes": 4, "chunk_samples": 4, "window_samples": 10, "max_bad_fraction": 1.0}
    config = DataConfig(sources=sources, mixture=phases, **(numbers | keys))
    indexes = [ShardIndex.load(url) for url in sources.values()]
    return Stream(config, indexes, seed=5, sample_rate_hz=RATE_HZ, crop_frames=400)


def test_a_source_added_later_leaves_what_was_read_and_goes_on_from_the_same_step(shards: Path, second: Path) -> None:
    alone = open_stream(shards)
    phases = [{"weights": {"a": 1}}, {"from_step": 6, "weights": {"a": 2, "b": 1}}]
    both = mixed({"a": shards, "b": second}, *phases)
    check_fingerprint(alone.fingerprint(), both.fingerprint(), 6)
    before, after = read(alone, 6), read(both, 12)
    assert [batch.key_B for batch in after[:6]] == [batch.key_B for batch in before]
    for batch in after[6:]:
        assert 2 <= sum(key.startswith("s") for key in batch.key_B) <= 6
    assert [batch.key_B for batch in read(both, 3, start_step=9)] == [batch.key_B for batch in after[9:]]


def test_a_mixture_that_changes_before_the_checkpoint_is_refused_naming_the_phase(shards: Path, second: Path) -> None:
    folders = {"a": shards, "b": second}
    saved = mixed(folders, {"weights": {"a": 2, "b": 1}}, {"from_step": 9, "weights": {"a": 1}}).fingerprint()
    check_fingerprint(saved, mixed(folders, {"weights": {"a": 4, "b": 2}}).fingerprint(), 9)
    later = mixed(folders, {"weights": {"a": 2, "b": 1}}, {"from_step": 7, "weights": {"b": 1}}).fingerprint()
    with pytest.raises(InputError, match=r"mixture from step 9 was a 100.0% and is now not there"):
        check_fingerprint(saved, later, 10)
    with pytest.raises(InputError, match=r"mixture from step 7 was not there and is now b 100.0%"):
        check_fingerprint(saved, later, 8)
    with pytest.raises(InputError, match=r"mixture from step 0 was a 66.7%, b 33.3% and is now a 50.0%, b 50.0%"):
        check_fingerprint(saved, mixed(folders, {"weights": {"a": 1, "b": 1}}).fingerprint(), 1)
    swapped = {"b": second, "a": shards}  # new sources go to the end: the place decides a source's order
    with pytest.raises(InputError, match=r"mixture from step 0 was a 66.7%, b 33.3% and is now b 33.3%, a 66.7%"):
        check_fingerprint(saved, mixed(swapped, {"weights": {"a": 2, "b": 1}}).fingerprint(), 1)


def test_naming_the_same_single_source_again_in_a_later_phase_is_the_same_stream(shards: Path) -> None:
    once, again = mixed({"a": shards}, {}), mixed({"b": shards}, {}, {"from_step": 3, "weights": {"b": 2}})
    check_fingerprint(once.fingerprint(), again.fingerprint(), 7)
    check_fingerprint(again.fingerprint(), once.fingerprint(), 7)
    assert [batch.key_B for batch in read(once, 7)] == [batch.key_B for batch in read(again, 7)]


def test_a_source_that_would_change_the_steps_before_it_is_named_with_the_old_weights_to_write_out(
    shards: Path, second: Path
) -> None:
    folders = {"a": shards, "b": second}
    for alone in (open_stream(shards), mixed({"a": shards}, {})):
        with pytest.raises(InputError) as refused:
            check_fingerprint(alone.fingerprint(), mixed(folders, {}).fingerprint(), 5)
        assert "mixture from step 0 was a 100.0% and is now a 75.0%, b 25.0%. Set them back: " in str(refused.value)
        assert "write out the old weights in data.mixture (from_step 0, weights {a: 1})" in str(refused.value)
        assert "and weigh b from step 5 on; or start anew" in str(refused.value)
    saved = mixed(folders, {"weights": {"a": 3.003, "b": 1}}).fingerprint()
    with pytest.raises(InputError, match=r"weights \{a: 3003, b: 1000\}\) and weigh anew"):
        check_fingerprint(saved, mixed(folders, {}).fingerprint(), 5)
    written_out = mixed(folders, {"weights": {"a": 3003, "b": 1000}}, {"from_step": 5}).fingerprint()
    check_fingerprint(saved, written_out, 5)


def test_a_reject_of_a_mixture_names_its_source(shards: Path, second: Path) -> None:
    (second / "0.tar").unlink()
    stream = mixed({"a": shards, "b": second}, {"weights": {"a": 11, "b": 1}}, global_batch=24)
    with pytest.raises(BadDataError, match=r"b/0\.tar, clip s\d+: cannot be read"):
        read(stream, 2)


def test_several_crops_of_a_clip_are_neighbours_in_one_batch_and_lie_at_places_of_their_own(shards: Path) -> None:
    stream = open_stream(shards, global_batch=24, crops_per_clip=3)
    assert stream.steps_per_epoch == NUM_SAMPLES // 8
    batches = read(stream, stream.steps_per_epoch)
    for batch in batches:
        assert (batch.global_batch, batch.lane_batch, len(batch.key_B)) == (24, 6, 24)
        positions = crop_positions(5, batch.step, 0, 24)
        for key, wave_T, position in zip(batch.key_B, batch.wave_BT, positions, strict=True):
            wave = ramp(int(key[1:]))
            start = int(position * (len(wave) - 400 + 1))
            assert np.array_equal(wave_T.numpy(), wave[start : start + 400])
        assert batch.key_B[::3] == batch.key_B[1::3] == batch.key_B[2::3]
    keys = [key for batch in batches for key in batch.key_B[::3]]
    assert len(set(keys)) == len(keys) == NUM_SAMPLES - stream.remainder
    assert torch.cat(
        [b.wave_BT for b in read(open_stream(shards, World(1, 2), global_batch=24, crops_per_clip=3), 2)]
    ).equal(torch.cat([batch.wave_BT[12:] for batch in batches[:2]]))


def test_clips_shorter_than_the_crop_are_repeated_where_the_config_says_so(shards: Path) -> None:
    config = open_stream(shards).config.model_copy(update={"short_clips": "repeat"})
    stream = Stream(config, ShardIndex.load(str(shards)), seed=5, sample_rate_hz=RATE_HZ, crop_frames=5000)
    batch = read(stream, 1)[0]
    for key, wave_T, position in zip(batch.key_B, batch.wave_BT.numpy(), crop_positions(5, 0, 0, 12), strict=True):
        wave = ramp(int(key[1:]))
        start = int(position * len(wave))
        assert np.array_equal(wave_T, np.tile(wave, 7)[start : start + 5000])
    padded = Stream(
        open_stream(shards).config, ShardIndex.load(str(shards)), seed=5, sample_rate_hz=RATE_HZ, crop_frames=5000
    )
    with pytest.raises(InputError, match="short_clips was pad and is now repeat"):
        check_fingerprint(padded.fingerprint(), stream.fingerprint(), 1)


def test_a_checkpoint_from_before_mixtures_goes_on(shards: Path) -> None:
    current = open_stream(shards).fingerprint()
    [[_, [[_, index, _]]]] = current["mixture"]
    old = {key: value for key, value in current.items() if key not in ("mixture", "crops_per_clip", "short_clips")}
    check_fingerprint(old | {"index": index}, current, 5)
    with pytest.raises(InputError, match=f"index was 00 and is now {index}"):
        check_fingerprint(old | {"index": "00"}, current, 5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "expected url .* or sources"),
        ({"url": "x", "sources": {"a": "y"}}, "and not both"),
        ({"sources": {"a": "y"}, "mixture": [{"weights": {"b": 1}}]}, r"weighs \['b'\], which sources does not name"),
        ({"url": "x", "mixture": [{"from_step": 2}]}, r"expected from_step 0 first, then rising; got \[2\]"),
        ({"url": "x", "crops_per_clip": 3}, "crops_per_clip 3 does not divide the 16 crops"),
        ({"sources": {"a": "s3://key:secret@host/b"}}, "password"),
    ],
)
def test_sources_and_crops_that_do_not_fit_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, InputError), match=message):
        DataConfig(**keys)


def test_lanes_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="lanes 5 does not divide global_batch 12"):
        DataConfig(url="x", global_batch=12, lanes=5)


def test_too_few_clips_for_one_batch_are_refused(shards: Path) -> None:
    with pytest.raises(InputError, match=r"the index holds 60, data.global_batch is 64"):
        open_stream(shards, global_batch=64)


def test_more_workers_than_lanes_are_refused(shards: Path) -> None:
    with pytest.raises(InputError, match=r"data.lanes 4: 5 workers need at least 5 lanes"):
        open_stream(shards, World(0, 5))


def test_a_negative_start_is_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match="start_step: expected 0 or more, got -1"):
        open_stream(shards).batches(-1)


@pytest.fixture
def bucket(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shards once more, on an S3 server."""
    with s3_server(monkeypatch, "clips") as (host, port):
        remote = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1")
        fs.copy_files(str(shards), "clips/in", destination_filesystem=remote)
        yield "s3://clips/in"


def test_an_object_store_gives_the_batches_of_the_local_disk_and_a_damage_there_is_named(
    shards: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, got = rows(read(open_stream(shards), 5)), rows(read(open_stream(bucket), 5))
    assert all(got[at][0] == key and torch.equal(got[at][1], wave_T) for at, (key, wave_T) in expected.items())
    cut, _ = member_span(shards, 3, 10)
    storage.write_atomic(f"{bucket}/3.tar", (shards / "3.tar").read_bytes()[: cut + 5])
    storage.delete_tree(f"{bucket}/1.tar")
    found = rejects(read(open_stream(bucket), 5))
    assert {key for _, _, key, _ in found} == {f"k{number}" for number in [*range(15, 30), *range(55, 60)]}
