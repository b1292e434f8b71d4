"""What workers tell the driver while a run goes on, and the driver's wish that it stop."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]


class Monitor:
    """A mailbox, run as a Ray actor: rank 0 posts events, the driver collects them."""

    def __init__(self) -> None:
        """Empty."""
        self._events: list[Event] = []
        self._stop = False
        self._failure: str | None = None

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

    def request_stop(self) -> None:
        """Asks the run to write a checkpoint and end."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether somebody asked."""
        return self._stop
