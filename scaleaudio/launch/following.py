"""The driver's ears while workers run: their events, and the signals that ask it to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from scaleaudio.launch.monitor import Event

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ears:
    """What came from the workers, and whether the run was asked to stop.

    Attributes:
        stop_reason: by which signal, or "asked" by the caller; None while it was not.
    """

    def __init__(self, monitor: Any, on_event: Callable[[Event], None], stop_asked: Callable[[], bool]) -> None:
        """Hears nothing yet."""
        self._monitor, self._on_event, self._stop_asked = monitor, on_event, stop_asked
        self._lock = threading.Lock()
        self.stop_reason: str | None = None

    def drain(self) -> None:
        """Passes on all events so far; when it returns, all have been handled."""
        with self._lock:
            for event in ray.get(self._monitor.collect.remote()):
                self._on_event(event)

    def ask(self) -> None:
        """Passes on once that the caller wants the run to stop."""
        if self.stop_reason is None and self._stop_asked():
            self.stop_reason = "asked"
            self._monitor.request_stop.remote(self.stop_reason)

    def stop(self, signum: int, frame: Any) -> None:
        """Handles a signal; the next one is Python's own again."""
        self._on_event({"kind": "warning", "text": "stopping: a checkpoint is written first; again stops at once"})
        self.stop_reason = signal.Signals(signum).name
        self._monitor.request_stop.remote(self.stop_reason)
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


@contextmanager
def following(
    monitor: Any, on_event: Callable[[Event], None], stop_asked: Callable[[], bool] = lambda: False
) -> Iterator[Ears]:
    """Passes the workers' events on while the block runs; SIGINT and SIGTERM ask the run to stop in good order.

    `stop_asked` is looked at meanwhile, and asks for the same.
    """
    over, ears = threading.Event(), Ears(monitor, on_event, stop_asked)

    def follow() -> None:
        while not over.wait(0.3):
            ears.ask()
            ears.drain()

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
