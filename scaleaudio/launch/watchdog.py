"""A worker that makes no progress for too long ends itself, so that the run goes on without waiting for it.

A collective whose partner is lost, a disk that does not answer, a deadlock: none of them raises. So a thread of each
worker watches the time since the last sign of progress, and past the deadline tells where the worker stands and ends
the process; the workers are then started again from the newest checkpoint. A process that is frozen as a whole is left
to its partners' watchdogs, and to Ray's own check of its workers, which has the same deadline.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

_LOOK_SECONDS = 1.0


class Watchdog:
    """Watches the thread that made it."""

    def __init__(
        self, deadline_seconds: float, on_hang: Callable[[dict[str, Any]], None], on_beat: Callable[[int], None]
    ) -> None:
        """Starts to watch.

        Args:
            deadline_seconds: how long there may be no progress.
            on_hang: gets what is known (step, seconds, where) just before the process ends.
            on_beat: gets the step at most once a second while there is progress.
        """
        self._deadline_seconds = deadline_seconds
        self._on_hang, self._on_beat = on_hang, on_beat
        self._thread_id = threading.get_ident()
        self._step, self._progress_at, self._told_at = 0, time.monotonic(), 0.0
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def progress(self, step: int | None = None) -> None:
        """There was some: a step, or a part of a long piece of work."""
        self._progress_at = time.monotonic()
        self._step = self._step if step is None else step

    def close(self) -> None:
        """Watches no more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(_LOOK_SECONDS, self._deadline_seconds / 4)):
            idle_seconds = time.monotonic() - self._progress_at
            if idle_seconds > self._deadline_seconds:
                try:  # the driver may be out of reach, which is what others hang for
                    where = _where(sys._current_frames().get(self._thread_id))
                    self._on_hang({"step": self._step, "seconds": idle_seconds, "where": where})
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)  # an exit would wait for the thread that hangs
            if self._progress_at > self._told_at:
                self._told_at = self._progress_at
                self._on_beat(self._step)


def _where(frame: FrameType | None) -> str:
    """The innermost places of a thread's stack, outermost first."""
    stack = traceback.extract_stack(frame)[-4:] if frame is not None else []
    return " > ".join(f"{'/'.join(part.filename.split('/')[-2:])}:{part.lineno} {part.name}" for part in stack)
