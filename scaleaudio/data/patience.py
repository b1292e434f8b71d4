"""Patience with storage: what fails is tried again after a pause, what stalls is given up and tried again.

A thread that waits inside a read cannot be stopped. So a read from an object store runs in a thread of its own, which
is left to itself once it has taken too long; what it may still bring is thrown away. Local files are read by the
caller: there the kernel decides how long a read takes.
"""

from __future__ import annotations

import atexit
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import count
from typing import TypeVar
from weakref import WeakSet

import pyarrow as pa

from scaleaudio.data import storage
from scaleaudio.data.http import NoRanges
from scaleaudio.errors import InputError

Result = TypeVar("Result")

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 30.0
# Of what is no matter of time, such as a missing file; and of a local disk.
NUM_TRIES_IN_VAIN, NUM_LOCAL_TRIES = 2, 3
# Reads that were given up, and whose threads have not ended: with so many of them none more is begun.
MAX_GIVEN_UP = 64
# A read that brings less a second than this, beyond the seconds that any may take, counts as stalled.
SLOWEST_BYTES_PER_SECOND = 1 << 18
# What Amazon's client and the web's say of an answer that waiting will not change.
_REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID"
    r"|Bucket '.*' not found|\b40[134], message=|HTTP status 40[134]"
)


# A thread that comes back from a read while the interpreter is being taken down aborts it: so long a program that ends
# waits for those under way.
END_SECONDS = 2.0
_lock, _threads = threading.Lock(), WeakSet[threading.Thread]()


class WrongShard(OSError):
    """A shard that is not the one that was indexed: reading it again will not help."""


_LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, WrongShard, NoRanges)


class Patience:
    """How long storage is waited for; one object may serve many threads."""

    def __init__(
        self,
        stall_seconds: float = 20.0,
        deadline_seconds: float = 120.0,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """A try without an answer after `stall_seconds` is given up; no try begins after `deadline_seconds`.

        `on_failure` is told of each failure after which another try is made.
        """
        self._stall_seconds = stall_seconds
        self._deadline_seconds = deadline_seconds
        self._on_failure = on_failure
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._waiting: WeakSet[Future[object]] = WeakSet()
        self._given_up: list[threading.Thread] = []

    def stop(self) -> None:
        """Ends all waiting, now and from now on."""
        self._stopped.set()
        with self._lock:
            waiting = list(self._waiting)
        for future in waiting:
            _settle(future, OSError("no longer wanted"))

    def read(self, action: Callable[[], Result], *, remote: bool, num_bytes: int = 0, briefly: bool = False) -> Result:
        """action(), tried until it succeeds or hope is lost.

        Args:
            action: reads, and has no other effect: it may run more than once, and at the same time.
            remote: whether it reads from other than a local disk; then it may stall.
            num_bytes: how many it reads; large reads may take longer.
            briefly: only one try.

        Raises:
            OSError, InputError, pa.ArrowException: what the last try raised.
        """
        end = time.monotonic() + self._deadline_seconds
        limit = self._stall_seconds + num_bytes / SLOWEST_BYTES_PER_SECOND
        for attempt in count(1):
            try:
                return self._within(action, limit) if remote else action()
            except (OSError, InputError, pa.ArrowException) as error:
                # With jitter: a thousand workers that failed together must not come back together.
                pause = min(FIRST_WAIT_SECONDS * 4 ** (attempt - 1), LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.5)
                if briefly or attempt >= _num_tries(error, remote) or time.monotonic() + pause >= end:
                    raise
                self._on_failure(error)
                if self._stopped.wait(pause):
                    raise
        raise AssertionError("count does not end")

    def _within(self, action: Callable[[], Result], seconds: float) -> Result:
        future: Future[Result] = Future()
        # A daemon: a read that never ends must not keep the program from ending.
        thread = threading.Thread(target=_run, args=(action, future), name="storage-read", daemon=True)
        with self._lock:
            self._given_up = [other for other in self._given_up if other.is_alive()]
            if len(self._given_up) >= MAX_GIVEN_UP:
                raise OSError(f"{len(self._given_up)} reads before it are still without an answer")
            self._waiting.add(future)  # type: ignore[arg-type]
        thread.start()
        with _lock:
            _threads.add(thread)
        if self._stopped.is_set():
            raise OSError("no longer wanted")
        try:
            return future.result(timeout=seconds)
        except TimeoutError:
            if future.done():
                raise  # the action's own
            with self._lock:
                self._given_up.append(thread)
            raise OSError(f"no answer in {seconds:.3g} s") from None


def _run(action: Callable[[], Result], future: Future[Result]) -> None:
    try:
        result = action()
    except BaseException as error:
        _settle(future, error)
        return
    with suppress(InvalidStateError):  # given up meanwhile
        future.set_result(result)


def _settle(future: Future[Result], error: BaseException) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)


@atexit.register
def _let_end() -> None:
    end = time.monotonic() + END_SECONDS
    with _lock:
        threads = list(_threads)
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def may_pass(error: Exception) -> bool:
    """Whether what `read` raised may be gone after a while: no missing file, refusal, or full disk."""
    cause = error.__cause__ if isinstance(error, InputError) else error
    if not isinstance(cause, OSError) or isinstance(cause, _LASTING) or storage.is_full(cause):
        return False
    return not _REFUSED.search(str(cause))


def _num_tries(error: Exception, remote: bool) -> float:
    if not may_pass(error):
        return NUM_TRIES_IN_VAIN
    return float("inf") if remote else NUM_LOCAL_TRIES
