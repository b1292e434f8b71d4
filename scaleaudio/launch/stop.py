"""When workers end before the last step, all at the same one; and what they tell when they go on after a fault."""

from __future__ import annotations

import os
import time
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from scaleaudio.launch.monitor import GO_ON, RESIZE, Event
from scaleaudio.report.events import recovery
from scaleaudio.train import Engine

_ASK_SECONDS = 5.0


class Stop:
    """The workers' agreement to stop: asked for by signal, by the clock, by a machine's notice, or to make room.

    Attributes:
        reason: why, on rank 0 (elsewhere ""); None while nothing was agreed on.
        what: the same in words.
        skip_step: which step the next workers pass over, where that is why.
    """

    def __init__(self, monitor: Any, stop_at: float | None, engine: Engine, ask_every: int) -> None:
        """Asks every so many steps, until `pace` knows better."""
        self.reason: str | None = None
        self.what = ""
        self.skip_step: int | None = None
        self._monitor, self._stop_at = monitor, stop_at
        self._engine = engine
        self._most_steps = self._ask_every = ask_every
        self._notices = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"

    @property
    def goes_on(self) -> bool:
        """Whether the run goes on with other workers at once."""
        return self.reason in GO_ON

    def skip(self, step: int, what: str) -> None:
        """Stops, so that others pass over a step; the same on every rank."""
        self.reason, self.skip_step, self.what = "not_finite", step, what

    def pace(self, step_seconds: float) -> None:
        """Asks about every 5 seconds, so that a machine's notice is heard in time; the same number on every rank."""
        self._ask_every = max(1, min(self._most_steps, int(_ASK_SECONDS / max(step_seconds, 1e-9))))

    def wanted(self, step: int, *, always: bool) -> bool:
        """Whether to stop after `step` steps. A collective, at steps that all ranks agree on."""
        if not always and step % self._ask_every:
            return False
        notice = ray.train.get_preemption_info() if self._notices else None
        reason = self._reason(notice) if self._engine.world.rank == 0 else ""
        wanted = torch.tensor(float(bool(reason)), device=self._engine.device)
        if self._engine.world.size > 1:
            dist.broadcast(wanted, 0)
        if wanted:
            self.reason = reason
        return bool(wanted)

    def _reason(self, notice: Any) -> str | None:
        asked: str | None = ray.get(self._monitor.stop_requested.remote())
        if asked and asked != RESIZE:
            self.what = f"the run was told to stop ({asked})"
            return asked
        if notice is not None:
            left = "" if notice.deadline_ms is None else f" in {notice.deadline_ms / 1000 - time.time():.0f} s"
            ranks = ", ".join(str(rank) for rank in notice.preempted_ranks)
            self.what = f"the machine of worker(s) {ranks} will be taken away{left}; a checkpoint was written first"
            return "preempted"
        if self._stop_at is not None and time.time() > self._stop_at:
            self.what = "its hours are over"
            return "hours"
        return asked


class Back:
    """The way back from a fault, from its last sign of life to the first step after it."""

    def __init__(self, fault: dict[str, Any] | None, step: int, entered_at: float, resumed_at: float) -> None:
        """`fault` as `train_worker` got it; the run goes on at `step`."""
        self._fault, self._step = fault, step
        self._entered_at, self._resumed_at = entered_at, resumed_at

    def event(self, num_workers: int) -> Event | None:
        """The record of the recovery, once a step was taken; None where nothing had happened."""
        fault = self._fault
        if fault is None:
            return None
        marks = [fault["at"], fault["noticed_at"], fault["found_at"], self._entered_at, self._resumed_at, time.time()]
        names = ("noticed", "room found", "workers started", "checkpoint loaded", "first step")
        # Clocks of several machines differ a little.
        parts = {name: max(0.0, end - start) for name, start, end in zip(names, marks, marks[1:], strict=False)}
        lost = max(0, fault["step"] - self._step)
        what = f"goes on at step {self._step} with {num_workers} worker(s)"
        return recovery(fault["name"], self._step, what, lost_steps=lost, breakdown=parts, workers=num_workers)
