"""One driver at a time in a run folder: a lease that also holds in object stores, and after a crash.

Object stores know no locks, and pyarrow no conditional writes. So each driver writes a claim of its own into RUN/lease/
and then lists that folder: of two that claim at once, each having written before it looks, at least the later one sees
the other (the listings of S3, Google's and Azure's stores show every object that was written before). Who sees
another's claim backs off, unless its own token is the smaller one and the other has not yet said that it holds: that
one waits for the other to back off. This is Lamport's bakery (doi 10.1145/361082.361093) with files.

A holder rewrites its claim every few seconds. Whether it lives is judged by whether the claim changes while one looks,
never by its time, since clocks of machines differ; a claim of this machine whose process is gone is dead at once. A
holder that finds its own claim taken away (it was frozen, or cut off, for longer than the lease) has lost the run and
says so; nothing but its own stop protects the folder then, so it looks before each checkpoint.

To look and to write are two requests, and a holder may be frozen between them: then it puts its claim back beside that
of who took the run over. So after each writing a holder looks for others that hold, and of two the earlier yields: each
take-over counts one turn on (a fencing number), and of the same turn the one with the greater token yields.

What remains is a window, no proof. Who was frozen for longer than the lease between a look at its claim and a write
still makes that one write, of a claim or of a checkpoint; and where storage shows late what was written (network file
systems may), both go on for so long. Checkpoints are whole or not there, and the newest counts.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from scaleaudio.data import storage
from scaleaudio.data.patience import Patience
from scaleaudio.errors import InputError

FOLDER = "lease"
BEAT_SECONDS = 5.0
# So many times no sign of life, and the holder counts as gone.
_MISSED = 12
_LOOK_SECONDS = 1.0
_READ_SECONDS = 30.0


@dataclass(frozen=True)
class Claim:
    """What a driver says of itself.

    Attributes:
        token: its claim's name.
        host: its machine.
        pid: its process there.
        process: what tells that process from a later one of the same number.
        holds: whether it has the run, or only asks for it.
        beat: how often it has given a sign of life.
        seen_at: when it last did, by its own clock, in seconds since the epoch.
        turn: how many holders it came after, each of which came after the one before.
    """

    token: str
    host: str
    pid: int
    process: str
    holds: bool
    beat: int
    seen_at: float
    turn: int = 0

    def goes_before(self, other: Claim) -> bool:
        """Of two that hold, whether this one goes on; both come to the same answer."""
        return (-self.turn, self.token) < (-other.turn, other.token)

    def __str__(self) -> str:
        """Who, where, and the last sign of life."""
        seen = datetime.fromtimestamp(self.seen_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"host {self.host}, pid {self.pid}, last sign of life {seen}"


class Lease:
    """The right to write into a run folder.

    Attributes:
        run_url: the run folder.
        after: the claim of a driver that was lost while it held the run, None where there was none.
    """

    def __init__(self, run_url: str, beat_seconds: float = BEAT_SECONDS) -> None:
        """Asks for nothing yet."""
        self.run_url = run_url
        self.after: Claim | None = None
        self._beat_seconds = beat_seconds
        process = _process(os.getpid())
        self._claim = Claim(secrets.token_hex(8), socket.gethostname(), os.getpid(), process, False, 0, time.time())
        self._over = threading.Event()
        self._beater: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where this driver's claim lies."""
        return claim_url(self.run_url, self._claim.token)

    def take(self, on_wait: Callable[[Claim], None] = lambda claim: None) -> None:
        """Holds the run, and goes on giving signs of life until `release`.

        Args:
            on_wait: told of another's claim of which it is not yet known whether its driver lives.

        Raises:
            InputError: when another driver holds it, saying which and where.
        """
        self._write()
        self.after = self._outlast_others(on_wait)
        self._claim = replace(self._claim, holds=True)
        self._write()
        if other := self._outranked():  # one that was frozen between its look and its word for it
            self._refuse(other)
        self._beater = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beater.start()

    def _outlast_others(self, on_wait: Callable[[Claim], None]) -> Claim | None:
        gone: Claim | None = None
        watched: dict[str, tuple[Claim, float]] = {}
        told: set[str] = set()
        while others := self._others():
            for other in others:
                first, since = watched.setdefault(other.token, (other, time.monotonic()))
                silent = time.monotonic() - since
                alive = other.beat != first.beat or _lives(other)
                if other.holds:
                    self._claim = replace(self._claim, turn=max(self._claim.turn, other.turn + 1))
                if alive and (other.holds or other.token < self._claim.token):
                    self._refuse(other)
                if _is_dead(other) or silent > _MISSED * self._beat_seconds:
                    gone = other if other.holds else gone
                    storage.delete_tree(claim_url(self.run_url, other.token))
                elif other.token not in told:
                    told.add(other.token)
                    on_wait(other)
            self._write()
            time.sleep(min(_LOOK_SECONDS, self._beat_seconds / 2))
        return gone

    def _refuse(self, other: Claim) -> NoReturn:
        self._withdraw()
        raise InputError(
            f"{self.run_url}: another driver trains this run ({other}). Stop it first, or give another --name or --out."
        )

    def release(self) -> None:
        """Gives the run back."""
        self._over.set()
        if self._beater is not None:
            self._beater.join()
        self._withdraw()

    def _others(self) -> list[Claim]:
        urls = storage.list_files(storage.join(self.run_url, FOLDER), ".json")
        claims = (_read(url) for url in urls if url != self.url)
        return [claim for claim in claims if claim is not None and claim.token != self._claim.token]

    def _outranked(self) -> Claim | None:
        """Another that holds too, and goes before this one."""
        return next((other for other in self._others() if other.holds and other.goes_before(self._claim)), None)

    def _write(self) -> None:
        self._claim = replace(self._claim, beat=self._claim.beat + 1, seen_at=time.time())
        storage.write_atomic(self.url, json.dumps(asdict(self._claim)).encode())

    def _withdraw(self) -> None:
        with suppress(OSError):
            storage.delete_tree(self.url)

    def _beat(self) -> None:
        while not self._over.wait(self._beat_seconds):
            with suppress(OSError, InputError):  # storage that is away takes the run from nobody
                if not storage.exists(self.url):  # taken over: the workers see it at their next checkpoint
                    return
                self._write()
                if self._outranked():  # frozen for long between the two lines above
                    self._withdraw()
                    return


def claim_url(run_url: str, token: str) -> str:
    """Where a driver's claim lies."""
    return storage.join(run_url, FOLDER, f"{token}.json")


def check_held(url: str) -> None:
    """Raises InputError where the claim at `url` was taken away."""
    if not storage.exists(url):
        raise InputError(f"{url}: this claim is gone: another driver took the run over, and this one stops")


def _read(url: str) -> Claim | None:
    """A claim; None for one that is gone again, or no claim. What fails for a moment is read again."""

    def action() -> bytes | None:
        try:
            return storage.read_bytes(url)
        except FileNotFoundError:
            return None

    data = Patience(deadline_seconds=_READ_SECONDS).read(action, remote=not storage.is_local(url))
    try:
        known: dict[str, Any] = json.loads(data or b"null")
        return Claim(**known)
    except (ValueError, TypeError):
        return None


def _space() -> str:
    """What numbers of processes mean something in: this boot, and in containers the namespace. Empty if not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + "/" + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process(pid: int) -> str:
    """What tells a process from a later one with its number: when it started. Empty when it is gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else f"{_space()}/{fields[18]}"


def _lives(claim: Claim) -> bool:
    """Whether the claim's process is known to be there: one of this machine."""
    return bool(claim.process) and _process(claim.pid) == claim.process


def _is_dead(claim: Claim) -> bool:
    """Whether the claim's process is known to be gone: one of this machine."""
    here = _space()
    return bool(here) and claim.process.startswith(f"{here}/") and not _lives(claim)
