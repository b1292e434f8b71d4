"""What workers tell the driver while a run goes on, and the driver's wish that it stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
RESIZE = "resize"
GO_ON = (RESIZE, "preempted", "not_finite")  # the reasons to stop after which the run goes on with other workers


@dataclass
class Attempt:
    """What is known of the workers that run now.

    Attributes:
        roster: by rank, who and where each worker is: host, pid, node.
        step: steps taken, by the last sign of life.
        seen_at: when that came, in seconds since the epoch.
        hung: what workers said of themselves before they ended for want of progress.
    """

    roster: dict[int, dict[str, Any]] = field(default_factory=dict)
    step: int = 0
    seen_at: float = field(default_factory=time.time)
    hung: list[dict[str, Any]] = field(default_factory=list)


class Monitor:
    """A mailbox, run as a Ray actor: rank 0 posts events, the driver collects them."""

    def __init__(self) -> None:
        """Empty."""
        self._events: list[Event] = []
        self._stop: str | None = None
        self._failure: str | None = None
        self._attempt = Attempt()

    def post(self, event: Event) -> None:
        """Adds an event."""
        self._events.append(event)
        self._failure = self._failure or event.get("failure")

    def collect(self) -> list[Event]:
        """Takes all events out."""
        events, self._events = self._events, []
        return events

    def failure(self) -> str | None:
        """Why the run cannot succeed, however often it is tried; None while it may."""
        return self._failure

    def request_stop(self, reason: str) -> None:
        """Asks the run to write a checkpoint and end; the first reason counts, but any goes before a resize."""
        if self._stop in (None, RESIZE):
            self._stop = reason

    def stop_requested(self) -> str | None:
        """Why somebody asked, None where nobody did."""
        return self._stop

    def begin(self, step: int) -> None:
        """Other workers go on, those before them being gone; `step` is where the run stands."""
        self._stop = None if self._stop == RESIZE else self._stop
        self._attempt = Attempt(step=step)

    def enter(self, rank: int, who: dict[str, Any]) -> None:
        """A worker is there."""
        self._attempt.roster[rank] = who
        self._attempt.seen_at = time.time()

    def beat(self, step: int) -> None:
        """The run lives and has taken `step` steps."""
        self._attempt.step, self._attempt.seen_at = step, time.time()

    def hang(self, report: dict[str, Any]) -> None:
        """A worker says why it ends itself."""
        self._attempt.hung.append(report)

    def attempt(self) -> Attempt:
        """What is known of the workers that run now."""
        return self._attempt
