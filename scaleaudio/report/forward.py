"""Scalars on their way to a sink that may be slow, away for hours, or gone: the training never waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from typing import NamedTuple

from scaleaudio.report.loggers import LoggerConfig, Record, RunFacts, Sink, State

MAX_WAITING = 20_000  # records; the oldest give way, and metrics.jsonl has them all
_AT_ONCE = 200
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 5.0, 300.0
_SLOW_SECONDS = 60.0


class _Job(NamedTuple):
    records: list[Record]
    flushing: bool
    ending: State | None


class Forwarder:
    """Hands records to one logger from a thread of its own.

    What fails is tried again, at ever longer pauses, with the sink opened anew; `warnings()` tells of it once.
    """

    def __init__(self, logger: LoggerConfig, run: RunFacts) -> None:
        """Begins to open the sink."""
        self.local = logger.local
        self._logger = logger
        self._run = run
        self._changed = threading.Condition()
        self._waiting: deque[Record] = deque()
        self._num_lost = 0
        self._flushing = False
        self._ending: State | None = None
        self._over = False
        self._failing = False
        self._pause = _FIRST_PAUSE_SECONDS
        self._sink: Sink | None = None
        self._start_step = run.start_step
        self._warned = False
        self._warnings: list[str] = []
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._forward, daemon=True, name=f"logger-{logger.kind}")
        self._thread.start()

    def write(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Takes a record over; never waits."""
        with self._changed:
            if len(self._waiting) == MAX_WAITING:
                self._waiting.popleft()
                self._num_lost += 1
            self._waiting.append((step, seconds, dict(metrics)))
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> None:
        """Waits until the sink has shown what came so far, or the time is over."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._flushing or self._failing or self._over, timeout_seconds)

    def close(self, state: State, timeout_seconds: float) -> None:
        """Lets the sink end, unless that takes too long; what has not arrived is told by `warnings()`."""
        with self._changed:
            self._ending = state
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        with self._changed:
            lost = self._num_lost + len(self._waiting)
            if lost:
                self._warnings.append(
                    f"loggers: {lost} records have not arrived at {self._logger.kind}; metrics.jsonl has them all"
                )

    def warnings(self) -> list[str]:
        """What the user has not been told yet."""
        with self._changed:
            if self._busy_since is not None and time.monotonic() - self._busy_since > _SLOW_SECONDS:
                self._warn(f"no answer for {_SLOW_SECONDS:.0f} s")
            new, self._warnings = self._warnings, []
        return new

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._warnings.append(
                f"loggers: {self._logger.kind}: {reason}. The run goes on, metrics.jsonl has everything, and what "
                "waits is sent when it works again."
            )

    def _forward(self) -> None:
        while not self._over:
            job = self._next()
            try:
                self._do(job)
            except Exception as error:  # whatever it is, it is the logger's own trouble
                self._sink = None
                self._put_back(job, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            else:
                self._done(job)

    def _next(self) -> _Job:
        with self._changed:
            if not self._failing:  # and at once where it is the first
                self._changed.wait_for(lambda: self._sink is None or self._waiting or self._flushing or self._ending)
            records = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            self._busy_since = time.monotonic()
            return _Job(records, self._flushing, None if self._waiting else self._ending)

    def _do(self, job: _Job) -> None:
        self._sink = self._sink or self._logger.open(replace(self._run, start_step=self._start_step))
        self._sink.write(job.records)
        if job.flushing:
            self._sink.flush()
        if job.ending:
            self._sink.close(job.ending)

    def _done(self, job: _Job) -> None:
        with self._changed:
            self._failing, self._busy_since, self._pause = False, None, _FIRST_PAUSE_SECONDS
            self._start_step = job.records[-1][0] + 1 if job.records else self._start_step
            self._flushing = self._flushing and not job.flushing
            self._over = job.ending is not None
            self._changed.notify_all()

    def _put_back(self, job: _Job, reason: str) -> None:
        with self._changed:
            self._failing, self._busy_since = True, None
            self._waiting.extendleft(reversed(job.records))
            self._over = self._ending is not None
            self._warn(reason)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ending is not None, self._pause)
            self._pause = min(2 * self._pause, _LAST_PAUSE_SECONDS)
