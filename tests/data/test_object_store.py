"""Shards read from afar, from real servers: stalls, failures, the web, and a cache."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import webdataset
from pyarrow import fs
from servers import Gate, RangeHandler, gate_before, s3_server, web_server

from scaleaudio.data import fetch, patience, ranges, storage
from scaleaudio.data import index as index_module
from scaleaudio.data import shards as shards_module
from scaleaudio.data.cache import Cache
from scaleaudio.data.fetch import Fetcher
from scaleaudio.data.index import SHARD_SCHEMA, ShardIndex
from scaleaudio.data.parquet import write_table
from scaleaudio.data.patience import Patience, WrongShard
from scaleaudio.data.scan import index as make_index
from scaleaudio.data.shards import _verify_all, verify
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.errors import DecodeError, InputError
from scaleaudio.types import Batch

RATE_HZ = 8000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(0)
    for shard in range(3):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for number in range(shard * 16, shard * 16 + 16):
                file = io.BytesIO()
                soundfile.write(file, random.uniform(-0.5, 0.5, 1000), RATE_HZ, format="WAV")
                tar.write({"__key__": f"k{number}", "wav": file.getvalue()})
    make_index(str(folder))
    return folder


@pytest.fixture(scope="module")
def server(shards: Path) -> Iterator[tuple[str, int]]:
    """An S3 server with the shards at s3://clips/in."""
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch, "clips") as (host, port):
        remote = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1")
        fs.copy_files(str(shards), "clips/in", destination_filesystem=remote)
        yield host, port


@pytest.fixture
def gate(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    with gate_before(server, monkeypatch) as gate:
        yield gate


def read(url: str, num_steps: int = 5, **keys: Any) -> list[Batch]:
    numbers = {"global_batch": 8, "lanes": 4, "chunk_samples": 4, "window_samples": 8, "max_bad_fraction": 1.0}
    config = DataConfig(url=url, **(numbers | keys))
    stream = Stream(config, ShardIndex.load(url), seed=5, sample_rate_hz=RATE_HZ, crop_frames=400)
    batches = list(islice(stream.batches(), num_steps))
    stream.close()
    return batches


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert [batch.key_B for batch in one] == [batch.key_B for batch in other]
    assert all(torch.equal(left.wave_BT, right.wave_BT) for left, right in zip(one, other, strict=True))


def test_a_read_that_stalls_is_given_up_and_tried_again_and_no_batch_changes(shards: Path, gate: Gate) -> None:
    gate.stall(3)
    batches = read("s3://clips/in", stall_seconds=0.5)
    assert gate.num_stalled == 3
    assert not [reject for batch in batches for reject in batch.rejects]
    assert_same(batches, read(str(shards)))


def test_a_server_that_stalls_for_good_costs_the_deadline_once_and_is_named(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ShardIndex.load("s3://clips/in")
    fetcher = DataConfig(url="s3://clips/in", stall_seconds=0.3, read_deadline_seconds=1).build_fetcher(index)
    gate.stall(1000)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"cannot be read: no answer in 0\.3"):
        fetcher.load(fetcher.find(0))
    assert time.monotonic() - began < 4
    num_stalled = gate.num_stalled
    for number in range(16):  # the shard's other clips
        with pytest.raises(DecodeError, match=r"no answer in 0\.3"):
            fetcher.load(fetcher.find(number))
    assert gate.num_stalled == num_stalled
    gate.stall(0)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + fetch.COOL_DOWN_SECONDS + 1)
    assert fetcher.load(fetcher.find(0))  # and it is tried again after a while
    monkeypatch.undo()


def test_a_stalled_shard_costs_few_reads_and_no_other_clip(shards: Path, gate: Gate) -> None:
    config = DataConfig(url="s3://clips/in", stall_seconds=0.2, read_deadline_seconds=0.5)
    fetcher = config.build_fetcher(ShardIndex.load("s3://clips/in"))
    gate.stall_name = b"/1.tar"
    gate.stall(1000)
    groups = fetcher.groups(np.arange(48))
    members = {number: member for group in groups for number, member in fetcher.read_ahead(group).items()}
    good = []
    for number in range(48):
        with suppress(DecodeError):
            fetcher.load(members.pop(number, None) or fetcher.find(number))
            good.append(number)
    assert good == [*range(16), *range(32, 48)]
    assert 0 < gate.num_stalled < 5


def test_reads_that_were_given_up_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(patience, "LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(patience, "MAX_GIVEN_UP", 3)
    begun, answer = [], threading.Event()

    def stall() -> None:
        begun.append(1)
        answer.wait()

    waiting = Patience(0.02, 0.5)
    for _ in range(2):
        with pytest.raises(OSError, match="3 reads before it are still without an answer"):
            waiting.read(stall, remote=True)
    assert len(begun) == 3
    answer.set()
    waiting.read(stall, remote=True)


def test_a_patience_that_is_stopped_while_threads_come_and_go_stops() -> None:
    waiting, failed = Patience(5, 5), []

    def reads() -> None:
        try:
            for _ in range(300):
                waiting.read(lambda: None, remote=True, briefly=True)
        except OSError:
            pass
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=reads) for _ in range(8)]
    for thread in threads:
        thread.start()
    waiting.stop()
    for thread in threads:
        thread.join(10)
    assert not failed and not any(thread.is_alive() for thread in threads)


def test_who_stops_the_stream_does_not_wait_for_a_stalled_read(gate: Gate) -> None:
    fetcher = DataConfig(url="s3://clips/in", stall_seconds=60).build_fetcher(ShardIndex.load("s3://clips/in"))
    member = fetcher.find(0)
    gate.stall(1000)

    def load() -> None:
        with suppress(DecodeError):
            fetcher.load(member)

    waiting = threading.Thread(target=load, daemon=True)
    waiting.start()
    while not gate.num_stalled:
        time.sleep(0.01)
    began = time.monotonic()
    fetcher.stop()
    waiting.join(5)
    assert not waiting.is_alive() and time.monotonic() - began < 2


ENDS = """
import sys
from scaleaudio.data import storage
from scaleaudio.data.patience import Patience

try:
    Patience(1, 2).read(lambda: storage.read_bytes(sys.argv[1]), remote=True)
except OSError as error:
    print("gave up:", error)
"""


@pytest.mark.slow
def test_a_program_ends_although_storage_never_answered(gate: Gate) -> None:
    gate.stall(1000)
    command = [sys.executable, "-c", ENDS, "s3://clips/in/0.tar"]
    done = subprocess.run(command, timeout=60, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.startswith("gave up: no answer in 1 s")


LATE = """
import time
from scaleaudio.data.patience import Patience

def late():
    time.sleep(0.5)
    print("ended")

try:
    Patience(0.1, 0.1).read(late, remote=True)
except OSError as error:
    print("gave up:", error)
"""


def test_a_program_that_ends_lets_reads_under_way_end_first() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], timeout=60, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "gave up: no answer in 0.1 s\nended\n"


def test_what_time_will_not_mend_is_tried_only_twice_and_the_rest_until_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(patience, "LONGEST_WAIT_SECONDS", 0.01)

    def tries(error: Exception, *, remote: bool, **how: bool) -> int:
        done = []

        def fail() -> None:
            done.append(1)
            raise error

        with pytest.raises(type(error)):
            Patience(1.0, 0.3).read(fail, remote=remote, **how)
        return len(done)

    for error in (FileNotFoundError("gone"), WrongShard("shorter"), InputError("no table")):
        assert tries(error, remote=True) == tries(error, remote=False) == 2
    assert tries(OSError("reset"), remote=False) == 3
    assert tries(OSError("reset"), remote=True) > 10
    assert tries(OSError("reset"), remote=True, briefly=True) == 1


def test_what_is_no_matter_of_storage_is_not_tried_again() -> None:
    done = []

    def bug() -> None:
        done.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Patience().read(bug, remote=True)
    assert len(done) == 1


def test_the_web_gives_the_batches_of_the_local_disk_listed_or_not(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server(shards) as url:
        assert_same(read(url), read(str(shards)))
        assert storage.list_files(url, ".tar") == [f"{url}/{shard}.tar" for shard in range(3)]
        assert verify(url) == []
        monkeypatch.setattr(RangeHandler, "listing", False)
        assert_same(read(f"{url}/index.parquet"), read(str(shards)))
        assert verify(url) == []
        with pytest.raises(InputError, match="this server lists no files here"):
            make_index(url, out="/nonexistent")
        with pytest.raises(InputError, match="can only be read"):
            make_index(url)


def test_tars_on_the_web_are_indexed_into_a_local_folder(shards: Path, tmp_path: Path) -> None:
    with web_server(shards) as url:
        make_index(url, out=str(tmp_path))
        there, here = ShardIndex.load(str(tmp_path)), ShardIndex.load(str(shards))
        assert there.shard_url(0) == f"{url}/0.tar"
        for column in ("num_samples", "num_bytes", "seconds", "checksum"):
            assert there.shards[column].equals(here.shards[column])
        assert_same(read(str(tmp_path)), read(str(shards)))


def read_some(url: str) -> None:
    with storage.open_input(url) as file:
        file.read_at(10, 1000)


def test_a_web_server_without_ranges_or_a_missing_page_is_a_named_error(shards: Path) -> None:
    class Plain(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with web_server(shards, Plain) as url:
        with pytest.raises(OSError, match=r"0\.tar.*range"):
            read_some(f"{url}/0.tar")
        start = time.monotonic()
        with pytest.raises(InputError, match=r"index\.parquet.*no ranges"):
            verify(url)
        assert time.monotonic() - start < 10  # not tried for minutes
        with pytest.raises(FileNotFoundError, match=r"none\.tar"):
            storage.read_bytes(f"{url}/none.tar")
        with pytest.raises(InputError, match=r"no index\.parquet here|lists no files"):
            ShardIndex.load(f"{url}/samples")
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        storage.read_bytes(f"{url}/0.tar")


class Ranges(RangeHandler):
    """Notes how many bytes of tars each request asks for."""

    sizes: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        if self.path.endswith(".tar"):
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            self.sizes.append(int(last) + 1 - int(first))
        super().do_GET()


def test_no_read_is_longer_than_a_run_may_be_unless_one_clip_is(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranges, "sizes", [])
    expected = read(str(shards))
    with web_server(shards, Ranges) as url:
        monkeypatch.setattr(ranges, "MAX_RUN_BYTES", 7000)  # two clips with their headers
        assert_same(read(url, chunk_samples=4), expected)
        assert 4000 < max(Ranges.sizes) <= 7000
        monkeypatch.setattr(ranges, "MAX_RUN_BYTES", 100)
        assert_same(read(url, chunk_samples=4), expected)


def test_what_is_read_ahead_stays_within_its_bytes_and_no_batch_changes(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server(shards) as url:
        fetcher = Fetcher(ShardIndex.load(url), chunk_samples=8, max_held_bytes=10_000)
        members = [*(fetcher.read_ahead(group) for group in fetcher.groups(np.arange(48)))]
        together = {number: member for found in members for number, member in found.items()}
        held = [member for member in together.values() if member.data is not None]
        assert len(together) == 48
        assert [len(member.data or b"") for member in held] == [2044] * 4  # clips of 2044 bytes: 10,000 hold four
        loaded = [fetcher.load(together[number]) for number in range(48)]
        assert loaded == [Fetcher(ShardIndex.load(str(shards)), 8).load(together[number]) for number in range(48)]
        again = fetcher.read_ahead(np.arange(8))  # there is room again
        assert sum(member.data is not None for member in again.values()) == 4
        for tight in (1, 5000):
            monkeypatch.setattr(fetch, "MAX_HELD_BYTES", tight)
            assert_same(read(url), read(str(shards)))


def test_a_read_that_fails_holds_nothing(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    with web_server(tmp_path / "shards") as url:
        fetcher = Fetcher(ShardIndex.load(url), chunk_samples=8, max_held_bytes=10_000)
        (tmp_path / "shards" / "0.tar").unlink()
        for _ in range(5):
            assert fetcher.read_ahead(np.arange(4)) == {}
        assert all(member.data for member in fetcher.read_ahead(np.arange(16, 20)).values())


def test_a_cached_epoch_needs_no_second_read_and_gives_the_same_batches(
    shards: Path, gate: Gate, tmp_path: Path
) -> None:
    expected = read(str(shards), 12)
    first = read("s3://clips/in", 12, cache_dir=str(tmp_path / "cache"))
    num_ranges = gate.num_ranges
    second = read("s3://clips/in", 12, cache_dir=str(tmp_path / "cache"))
    assert_same(first, expected)
    assert_same(second, expected)
    assert 0 < num_ranges == gate.num_ranges


def test_a_cached_piece_that_is_damaged_is_read_anew(shards: Path, gate: Gate, tmp_path: Path) -> None:
    expected = read(str(shards))
    read("s3://clips/in", cache_dir=str(tmp_path / "cache"))
    pieces = sorted((tmp_path / "cache").glob("??/*.piece"))
    pieces[0].write_bytes(b"")
    pieces[1].write_bytes(pieces[1].read_bytes()[:-9])
    wrong = bytearray(pieces[2].read_bytes())
    wrong[50] ^= 1
    pieces[2].write_bytes(bytes(wrong))
    batches = read("s3://clips/in", cache_dir=str(tmp_path / "cache"))
    assert_same(batches, expected)
    assert not [reject for batch in batches for reject in batch.rejects]


def test_a_relative_cache_is_the_same_folder_for_every_worker() -> None:
    located = DataConfig(url="here", cache_dir="cache").located(storage.absolute)
    assert located.cache_dir == str(Path("cache").absolute()) and located.url == str(Path("here").absolute())
    assert DataConfig(url="here").located(storage.absolute).cache_dir is None


def test_local_shards_are_not_cached(shards: Path, tmp_path: Path) -> None:
    read(str(shards), cache_dir=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").glob("??/*")) == []


def test_a_cache_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (f"{tmp_path}/file", "s3://clips/cache"):
        with pytest.raises(InputError, match=r"data\.cache_dir"):
            Cache(folder, 1000)


class Refusing(BaseHTTPRequestHandler):
    """An S3 server that knows nobody; counts what it is asked."""

    status = 403
    num_asked = 0

    def do_HEAD(self) -> None:
        type(self).num_asked += 1
        self.send_error(self.status)

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Refusing]]:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(Refusing, "num_asked", 0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Refusing
    finally:
        server.shutdown()
        server.server_close()


def test_wrong_credentials_are_one_clear_error_after_two_tries(refusing: type[Refusing]) -> None:
    with pytest.raises(
        InputError, match=r"s3://clips/in/index\.parquet: cannot be read \(.*ACCESS_DENIED.*credentials"
    ):
        ShardIndex.load("s3://clips/in")
    assert refusing.num_asked == patience.NUM_TRIES_IN_VAIN


def test_credentials_that_are_refused_later_cost_two_tries_and_no_wait(shards: Path, refusing: type[Refusing]) -> None:
    index = replace(ShardIndex.load(str(shards)), url="s3://clips/in")
    fetcher = DataConfig(url="s3://clips/in").build_fetcher(index)
    began = time.monotonic()
    with pytest.raises(DecodeError, match="ACCESS_DENIED"):
        fetcher.find(0)
    assert refusing.num_asked == patience.NUM_TRIES_IN_VAIN and time.monotonic() - began < 5


def test_a_server_that_is_not_there_is_one_clear_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "FIRST_DEADLINE_SECONDS", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"cannot be read .*127\.0\.0\.1:9.*Check the address.*AWS_ENDPOINT_URL"
    ) as caught:
        ShardIndex.load("s3://clips/in")
    assert time.monotonic() - began < 15 and "Make the index anew" not in str(caught.value)


def test_verify_is_patient_while_it_looks_for_the_damaged_members(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that gives a damaged tar's start, and fails once when it is asked for a later part of it."""
    monkeypatch.setattr(shards_module, "BLOCK_BYTES", 4096)
    failed: list[str] = []

    class Failing(RangeHandler):
        def do_GET(self) -> None:
            if "1.tar" in self.path and not self.headers["Range"].startswith("bytes=0-") and not failed:
                failed.append(self.path)
                self.send_error(503)
                return
            super().do_GET()

    shutil.copytree(shards, tmp_path / "in")
    for name in ("1.tar", "2.tar"):
        tar = tmp_path / "in" / name
        tar.write_bytes(tar.read_bytes().replace(b"RIFF", b"NOPE", 1))
    with web_server(tmp_path / "in", Failing) as url:
        found = [(damage.shard, damage.member) for damage in verify(f"{url}/index.parquet")]
    assert failed and found == [("1.tar", "k16.wav"), ("2.tar", "k32.wav")]


def test_verify_has_few_shards_under_way(shards: Path, tmp_path: Path) -> None:
    """Of sixty shards the last is deleted once the first is judged: it is missing, since no one has looked yet."""
    (table,) = pq.ParquetFile(shards / "index.parquet").iter_batches()
    shutil.copytree(shards, tmp_path / "in")
    rows = [row | {"shard": f"{number}.tar"} for number in range(60) for row in table.slice(0, 1).to_pylist()]
    for row in rows:
        shutil.copy(shards / "0.tar", tmp_path / "in" / row["shard"])
    write_table(str(tmp_path / "in" / "index.parquet"), rows, SHARD_SCHEMA)
    found = _verify_all(ShardIndex.load(str(tmp_path / "in")))
    first = next(found)
    time.sleep(0.5)
    (tmp_path / "in" / "59.tar").unlink()
    damages = [damage for some in (first, *found) for damage in some]
    assert [(damage.shard, damage.reason) for damage in damages] == [("59.tar", "missing")]


def test_a_folder_of_a_bucket_is_passed_over_with_or_without_a_slash_and_a_query(server: tuple[str, int]) -> None:
    for name in ("src/x", "src/out/y", "src/outer/z"):
        storage.write_atomic(f"s3://clips/{name}", b"x")
    for outside in ("s3://clips/src/out", "s3://clips/src/out/", "s3://clips/src/out?region=us-east-1"):
        left = storage.list_entries("s3://clips/src", outside=outside)
        assert [entry.url for entry in left] == ["s3://clips/src/outer/z", "s3://clips/src/x"], outside
