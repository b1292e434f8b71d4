"""The driver's ears while workers run: their events, and the signals that ask it to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from scaleaudio.launch.monitor import Event

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_SECONDS = 0.3


class Ears:
    """What came from the workers, and whether the run was asked to stop.

    Attributes:
        stop_reason: by which signal, or "asked" by the caller; None while it was not.
        error: the first that the caller's own functions raised, which asks for the same; or the mailbox, where it is
            gone. Nobody would see it in the thread that hears it, so `following` raises it at its end.
    """

    def __init__(self, monitor: Any, on_event: Callable[[Event], None], stop_asked: Callable[[], bool]) -> None:
        """Hears nothing yet."""
        self._monitor, self._on_event, self._stop_asked = monitor, on_event, stop_asked
        self._lock = threading.Lock()
        self.stop_reason: str | None = None
        self.error: Exception | None = None

    def drain(self) -> None:
        """Passes on all events so far; when it returns, all have been handled."""
        with self._lock:
            for event in ray.get(self._monitor.collect.remote()):
                self._tell(event)

    def look(self) -> None:
        """Passes on what there is to hear, and once that the caller wants the run to stop."""
        try:
            if self.stop_reason is None and self._stop_asked():
                self._request("asked")
            self.drain()
        except Exception as error:
            self._fail(error)

    def wait(self, seconds: float) -> None:
        """Returns after that time, or soon after the run was asked to stop."""
        end = time.monotonic() + seconds
        # No threading.Event: a handler that sets it in the thread that waits for it may wait for ever.
        while self.stop_reason is None and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)

    def stop(self, signum: int, frame: Any) -> None:
        """Handles a signal; the next one is Python's own again."""
        self._request(signal.Signals(signum).name)
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        self._tell({"kind": "warning", "text": "stopping: a checkpoint is written first; again stops at once"})

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception as error:  # the events after it are heard all the same
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = self.error or error
        if self.stop_reason is None:
            self._request("asked")

    def _request(self, reason: str) -> None:
        self.stop_reason = reason
        self._monitor.request_stop.remote(reason)


@contextmanager
def following(
    monitor: Any, on_event: Callable[[Event], None], stop_asked: Callable[[], bool] = lambda: False
) -> Iterator[Ears]:
    """Passes the workers' events on while the block runs; SIGINT and SIGTERM ask the run to stop in good order.

    `stop_asked` is looked at meanwhile, and asks for the same.

    Raises:
        Exception: what `on_event` or `stop_asked` raised, once the block has ended well.
    """
    over, ears = threading.Event(), Ears(monitor, on_event, stop_asked)

    def follow() -> None:
        while not over.wait(_LOOK_SECONDS):
            ears.look()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, ears.stop) for number in _SIGNALS} if main else {}
    try:
        yield ears
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        over.set()
        follower.join()
        ears.drain()
    if ears.error is not None:
        raise ears.error


def in_thread(function: Callable[[], Any], tick: Callable[[], None] = lambda: None) -> Any:
    """The function's result; run in a thread, so that signals reach us and not Ray's own handler, which aborts.

    `tick` is called about once a second meanwhile.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        for _ in range(5):
            thread.join(0.2)
            if not thread.is_alive():
                break
        else:
            tick()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
