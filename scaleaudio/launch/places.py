"""Room for workers, held by placement groups of one worker each.

What a cluster's totals say is no room: other runs hold parts of it, it may lie in pieces too small for a worker, and a
machine that died a moment ago still counts. A placement group that is there has been granted by the machine itself, and
one that waits is what an autoscaler goes by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.util import placement_group, placement_group_table, remove_placement_group

from scaleaudio.launch.monitor import RESIZE

_LOOK_SECONDS = 0.5


class Places:
    """Places asked for, and how many of them there are."""

    def __init__(self, per_worker: dict[str, float]) -> None:
        """None yet; each is of the resources `per_worker`."""
        self._per_worker = per_worker
        self._groups: list[Any] = []

    def ask(self, count: int) -> None:
        """From now on waits for `count` places."""
        while len(self._groups) < count:
            self._groups.append(placement_group([dict(self._per_worker)]))

    def num_ready(self) -> int:
        """How many of them are granted at the moment."""
        table = placement_group_table()
        return sum(table.get(group.id.hex(), {}).get("state") == "CREATED" for group in self._groups)

    def release(self) -> None:
        """Gives all back, and waits for none."""
        while self._groups:
            remove_placement_group(self._groups.pop())


def await_places(
    per_worker: dict[str, float],
    fewest: int,
    most: int,
    *,
    gather_seconds: float,
    wait_seconds: float,
    on_wait: Callable[[int], bool],
) -> int:
    """How many workers can start now: `most`, or after `gather_seconds` what there is, if not fewer than `fewest`.

    Args:
        per_worker: the resources of one.
        fewest: with how many it is worth to start.
        most: with how many at most.
        gather_seconds: how long to wait for `most`.
        wait_seconds: how long to wait for `fewest`.
        on_wait: told how many there are while it waits; gives whether to wait on.

    Returns:
        0 where there were too few until the end, or `on_wait` wanted no more.
    """
    places, began = Places(per_worker), time.monotonic()
    places.ask(most)
    try:
        while True:
            ready, waited = places.num_ready(), time.monotonic() - began
            if ready == most or (ready >= fewest and waited >= gather_seconds):
                return ready
            if waited >= max(gather_seconds, wait_seconds) or not on_wait(ready):
                return 0
            time.sleep(_LOOK_SECONDS)
    finally:
        places.release()


class Grower:
    """Asks the attempt for a checkpoint and its end once there is room for more workers."""

    def __init__(self, monitor: Any, per_worker: dict[str, float], missing: int, after_seconds: float) -> None:
        """Looks for up to `missing` workers more, from `after_seconds` after the first look on."""
        self._monitor = monitor
        self._places = Places(per_worker)
        self._missing = missing
        self._after_seconds, self._first_look = after_seconds, 0.0  # each change of size costs a start
        self._asked = False

    def look(self) -> None:
        """Asks once there is room; to be called now and then, once the workers have theirs."""
        self._first_look = self._first_look or time.monotonic()
        if not self._missing or self._asked or time.monotonic() < self._first_look + self._after_seconds:
            return
        self._places.ask(self._missing)
        if self._places.num_ready() > 0:
            self._asked = True
            self._monitor.request_stop.remote(RESIZE)

    def close(self) -> None:
        """Gives the room back, so that the next attempt can have it."""
        self._places.release()
