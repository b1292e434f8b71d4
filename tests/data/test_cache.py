"""A cache that many processes share, that keeps within its bound, and that no kill corrupts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaleaudio.data import cache as cache_module
from scaleaudio.data.cache import Cache


def content(number: int, size: int = 1000) -> bytes:
    return random.Random(number).randbytes(size)


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


def test_what_was_put_comes_back_under_its_name_and_no_other(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 10**6)
    cache.put("a", b"")
    cache.put("b", content(1))
    assert cache.get("a") == b"" and cache.get("b") == content(1)
    assert cache.get("c") is None
    assert Cache(str(tmp_path), 10**6).get("b") == content(1)


def test_a_piece_under_the_wrong_name_is_not_believed(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 10**6)
    cache.put("a", content(0))
    cache.put("b", content(1))
    first, second = tmp_path.glob("??/*")
    first.write_bytes(second.read_bytes())
    assert (cache.get("a"), cache.get("b")) in [(None, content(1)), (content(0), None)]


def test_the_least_recently_used_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 20_000)
    for number in range(15):
        cache.put(f"{number}", content(number))
        path = max(tmp_path.glob("??/*"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(path, (number + 1000, number + 1000))
    assert cache.get("3") == content(3)  # used again: as young as can be
    for number in range(15, 30):
        cache.put(f"{number}", content(number))
        assert kept_bytes(tmp_path) <= 20_000
    assert cache.get("3") == content(3) and cache.get("29") == content(29)
    assert cache.get("0") is None and cache.get("1") is None


def test_a_piece_too_large_for_the_cache_empties_it_not(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 20_000)
    cache.put("small", content(1))
    cache.put("large", content(2, 19_000))
    assert cache.get("small") == content(1) and cache.get("large") is None


@pytest.mark.parametrize("count", [b"", b"nonsense", b"\xff" * 9, b"-9999999", b"0", b"99999999999"])
def test_a_damaged_count_is_counted_anew(tmp_path: Path, count: bytes) -> None:
    cache = Cache(str(tmp_path), 20_000)
    for number in range(50):
        cache.put(f"{number}", content(number))
        if number == 25:
            (tmp_path / "bytes").write_bytes(count)
    # A count that is too low lets in more than the bound until the next eviction, and no more than as much again.
    assert kept_bytes(tmp_path) <= (40_000 if count == b"0" else 20_000)


def test_what_a_killed_worker_was_writing_is_taken_away_in_time(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 20_000)
    cache.put("a", content(1))
    (piece,) = tmp_path.glob("??/*")
    old, young = (piece.with_name(f"{name}.piece.1234.tmp") for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(bytes(100))
    long_ago = time.time() - 2 * cache_module.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    for number in range(30):
        cache.put(f"{number}", content(number))
    assert not old.exists()


def test_a_disk_that_cannot_be_written_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 20_000)
    (tmp_path / "cache" / "bytes").unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("now a file")
    cache.put("a", content(1))
    assert cache.get("a") is None


HAMMER = """
import random, sys
from scaleaudio.data.cache import Cache

cache, draws = Cache(sys.argv[1], 200_000), random.Random(int(sys.argv[2]))
while True:
    number = draws.randrange(60)
    data = cache.get(str(number))
    expected = random.Random(number).randbytes(9000)
    if data is None:
        cache.put(str(number), expected)
    elif data != expected:
        print("wrong bytes", flush=True)
        sys.exit(1)
"""


def test_workers_that_share_a_cache_and_are_killed_leave_no_wrong_byte_and_no_lock(tmp_path: Path) -> None:
    draws = random.Random(0)

    def start(seed: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HAMMER, str(tmp_path), str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    workers = [start(seed) for seed in range(3)]
    try:
        deadline = time.monotonic() + 60
        while kept_bytes(tmp_path) < 150_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        for seed in range(3, 6):
            time.sleep(draws.uniform(0.1, 0.4))
            workers[seed % 3].send_signal(signal.SIGKILL)
            assert kept_bytes(tmp_path) <= 200_000 + 3 * 9004  # what three were writing
            workers.append(start(seed))
        time.sleep(0.5)
    finally:
        for worker in workers:
            worker.kill()
            assert worker.communicate()[0] == b""
    cache = Cache(str(tmp_path), 200_000)
    found = [cache.get(str(number)) for number in range(60)]
    assert all(data in (None, random.Random(number).randbytes(9000)) for number, data in enumerate(found))
    assert sum(data is not None for data in found) > 10
    assert kept_bytes(tmp_path) <= 200_000 + 6 * 9004


def test_what_is_small_outlasts_what_is_large_as_many_times_longer(tmp_path: Path) -> None:
    """A sample table saves a request as a chunk does, and takes a hundredth of its room."""
    cache = Cache(str(tmp_path), 20_000)
    known: set[Path] = set()
    ages = {"old table": 90_000, "table": 30_000, "chunk": 3000, "chunk 2": 3000, "chunk 3": 3000}
    for name, age in ages.items():
        size = 96 if "table" in name else 1796
        cache.put(name, content(1, size))
        (path,) = {*tmp_path.glob("??/*")} - known
        os.utime(path, (time.time() - age,) * 2)
        known.add(path)
    for number in range(9):
        cache.put(f"{number}", content(number, 1796))
    assert [name for name in ages if cache.get(name)] == ["table"]
