"""One driver a run folder: two at once, a killed one, one of another machine, and one that comes back from the dead."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from servers import s3_server

from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.launch import run_folder
from scaleaudio.launch.lease import FOLDER, Lease, check_held

BEAT = 0.15
# Holds the lease of argv[1] until it is killed.
HOLDER = (
    "import sys, time; from scaleaudio.launch.lease import Lease; Lease(sys.argv[1], 0.05).take(); "
    "print('held', flush=True); time.sleep(600)"
)


@pytest.fixture(params=["disk", "s3"])
def run_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "run")
    else:
        with s3_server(monkeypatch, "bucket"):
            yield "s3://bucket/runs/mine"


def elsewhere(run_url: str, lease: Lease) -> None:
    """Makes the claim look as if another machine had written it."""
    about = json.loads(storage.read_bytes(lease.url))
    storage.write_atomic(lease.url, json.dumps(about | {"host": "node7", "pid": 12, "process": "boot/pid/1"}).encode())


def test_a_second_driver_is_refused_by_name_and_the_first_is_not_disturbed(run_url: str) -> None:
    first, second = Lease(run_url, BEAT), Lease(run_url, BEAT)
    first.take()
    with pytest.raises(
        InputError, match=r"another driver trains this run \(host .+, pid \d+, last sign of life 20.+UTC"
    ):
        second.take()
    check_held(first.url)
    assert len(storage.list_files(storage.join(run_url, FOLDER))) == 1
    first.release()
    second.take()
    assert second.after is None  # it left in good order
    second.release()
    assert storage.list_files(run_url) == []


def test_of_many_drivers_at_once_exactly_one_holds(run_url: str) -> None:
    leases = [Lease(run_url, BEAT) for _ in range(6)]
    refused: list[InputError] = []

    def take(lease: Lease) -> None:
        try:
            lease.take()
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holders = [lease for lease in leases if storage.exists(lease.url)]
    assert len(holders) == 1 and len(refused) == 5
    holders[0].release()


def test_a_killed_driver_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    """Even before anybody has waited for its remains (a zombie), and told who it was."""
    url = str(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"pid {holder.pid}"):
            Lease(url).take()
        holder.kill()
        time.sleep(0.2)
        lease, began = Lease(url), time.monotonic()
        lease.take()
        assert time.monotonic() - began < 5 and lease.after is not None and lease.after.pid == holder.pid
        lease.release()


def test_a_silent_driver_of_another_machine_is_waited_for_and_then_followed(run_url: str) -> None:
    lost = Lease(run_url, BEAT)
    lost._write()
    lost._claim = replace(lost._claim, holds=True)
    lost._write()
    elsewhere(run_url, lost)
    waited_for: list[str] = []
    lease, began = Lease(run_url, BEAT), time.monotonic()
    lease.take(lambda claim: waited_for.append(claim.host))
    assert waited_for == ["node7"] and time.monotonic() - began > 6 * BEAT
    assert lease.after is not None and lease.after.host == "node7"
    with pytest.raises(InputError, match="another driver took the run over"):
        check_held(lost.url)  # should it come back
    lease.release()


def test_a_living_driver_of_another_machine_is_known_by_its_beats_not_its_clock(run_url: str) -> None:
    holder = Lease(run_url, BEAT)
    holder._claim = replace(holder._claim, process="boot/pid/1", host="node7")
    holder.take()
    with pytest.raises(InputError, match="host node7"):
        Lease(run_url, BEAT).take()
    holder.release()


def test_a_lease_makes_no_run_of_a_folder_and_outlives_a_fresh_start(tmp_path: Path) -> None:
    lease = Lease(str(tmp_path), BEAT)
    lease.take()
    run_folder.refuse_foreign(str(tmp_path), "a run folder")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "old").write_text("")
    run_folder.clear(str(tmp_path))
    check_held(lease.url)
    assert not (tmp_path / "checkpoints").exists()
    lease.release()


class Frozen(Lease):
    """A driver of another machine that can be frozen before it writes its claim, having looked whether it is there."""

    def __init__(self, run_url: str) -> None:
        super().__init__(run_url, BEAT)
        self._claim = replace(self._claim, process="boot/pid/1", host="node7")
        self.runs, self.is_frozen = threading.Event(), threading.Event()
        self.runs.set()

    def _write(self) -> None:
        if not self.runs.is_set():
            self.is_frozen.set()
            self.runs.wait()
        super()._write()


def holding(*leases: Lease) -> list[bool]:
    """Which of them may write checkpoints, once each has had the time for a few beats."""
    time.sleep(5 * BEAT)
    return [storage.exists(lease.url) for lease in leases]


@pytest.mark.parametrize("token", ["0", "f" * 16])
def test_a_driver_frozen_between_its_look_and_its_write_yields_to_who_took_over(run_url: str, token: str) -> None:
    """Whichever of the two has the smaller token: who took over may have written checkpoints since."""
    old, new = Frozen(run_url), Lease(run_url, BEAT)
    old._claim = replace(old._claim, token=token)
    old.take()
    old.runs.clear()
    assert old.is_frozen.wait(60)
    new.take()
    assert holding(old, new) == [False, True]
    old.runs.set()
    end = time.monotonic() + 60
    while holding(old, new) != [False, True]:
        assert time.monotonic() < end
    with pytest.raises(InputError, match="another driver took the run over"):
        check_held(old.url)
    old.release()
    assert holding(new) == [True]
    new.release()


def test_of_two_that_hold_in_the_same_turn_exactly_one_goes_on(run_url: str) -> None:
    """As after a listing that showed neither the other."""
    leases = [Lease(run_url, BEAT), Lease(run_url, BEAT)]
    for lease in leases:
        lease._claim = replace(lease._claim, holds=True)
        lease._write()
        lease._beater = threading.Thread(target=lease._beat, daemon=True)
    for lease in leases:
        assert lease._beater is not None
        lease._beater.start()
    end = time.monotonic() + 60
    while sum(found := holding(*leases)) != 1:
        assert time.monotonic() < end
    smaller = min(lease._claim.token for lease in leases)
    assert found == [lease._claim.token == smaller for lease in leases] == holding(*leases)
    for lease in leases:
        lease.release()
