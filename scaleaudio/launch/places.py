"""Room for workers, held by placement groups.

What a cluster's totals say is no room: other runs hold parts of it, it may lie in pieces too small for a worker, and a
machine that died a moment ago still counts. A placement group that is there has been granted by the machines
themselves, and one that waits is what an autoscaler goes by.

Ray grants a group of a thousand places in a second, and a thousand groups of one in ten or more. So all that machines
have are asked for as one group; a group for which there is no room is asked for again as its halves, and at last place
by place, which brings machines one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.util import placement_group, placement_group_table, remove_placement_group

from scaleaudio.launch.cluster import Machines
from scaleaudio.launch.monitor import RESIZE

# How long nothing new may have come: at the start of a run, and later, when those that live have freed what was held.
_GATHER_SECONDS, _REGATHER_SECONDS = 60.0, 10.0
_LOOK_SECONDS = 0.5
# Before a group is halved: twice what Ray takes for one of a thousand.
_HALVE_SECONDS, _HALVE_SECONDS_A_PLACE = 0.5, 0.002


@dataclass
class _Group:
    handle: Any
    count: int
    asked_at: float = field(default_factory=time.monotonic)

    def is_granted(self) -> bool:
        # Of this one alone: the whole table keeps each group that ever was.
        return bool(placement_group_table(self.handle).get("state") == "CREATED")

    def is_late(self) -> bool:
        limit = _HALVE_SECONDS + _HALVE_SECONDS_A_PLACE * self.count
        return self.count > 1 and time.monotonic() - self.asked_at > limit


class Places:
    """Places asked for, and how many of them there are."""

    def __init__(self, per_worker: dict[str, float]) -> None:
        """None yet; each is of the resources `per_worker`."""
        self._per_worker = per_worker
        self._groups: list[_Group] = []

    def ask(self, count: int) -> None:
        """From now on waits for `count` places: those that were not asked for yet, as one group."""
        missing = count - sum(group.count for group in self._groups)
        if missing > 0:
            self._groups.append(self._group(missing))

    def num_ready(self) -> int:
        """How many of them are granted at the moment; asks for halves of what was not granted in its time."""
        ready, groups = 0, list[_Group]()
        for group in self._groups:
            if group.is_granted():
                ready += group.count
            elif group.is_late():
                remove_placement_group(group.handle)
                groups += [self._group(group.count // 2), self._group(group.count - group.count // 2)]
                continue
            groups.append(group)
        self._groups = groups
        return ready

    def release(self) -> None:
        """Gives all back, and waits for none."""
        while self._groups:
            remove_placement_group(self._groups.pop().handle)

    def _group(self, count: int) -> _Group:
        return _Group(placement_group([dict(self._per_worker) for _ in range(count)]), count)


def await_places(
    per_worker: dict[str, float],
    fewest: int,
    most: int,
    *,
    ran_before: bool,
    wait_seconds: float,
    on_wait: Callable[[int], bool],
) -> int:
    """How many workers can start now: `most`, or what there is once no more comes, if not fewer than `fewest`.

    Args:
        per_worker: the resources of one.
        fewest: with how many it is worth to start.
        most: with how many at most.
        ran_before: whether this run had workers already: then nobody waits for more than the machines have that answer.
        wait_seconds: how long to wait for `fewest`, and for more that still come.
        on_wait: told how many there are while it waits; gives whether to wait on.

    Returns:
        0 where there were too few until the end, or `on_wait` wanted no more.
    """
    places, machines = Places(per_worker), Machines(per_worker)
    stall_seconds = _REGATHER_SECONDS if ran_before else _GATHER_SECONDS
    best, best_at = 0, time.monotonic()
    end = best_at + max(stall_seconds, wait_seconds)
    try:
        while True:
            capacity = machines.capacity()
            places.ask(min(most, capacity))
            if (
                not ran_before or capacity < fewest
            ):  # else Ray tries them on the machine that was lost, and the others wait
                places.ask(most)
            ready, now = places.num_ready(), time.monotonic()
            if ready > best:
                best, best_at = ready, now
            over = now >= end
            stalled = over or now - best_at >= stall_seconds
            if ready == most or (ready >= fewest and (stalled or (ran_before and ready >= capacity))):
                return ready
            if over or not on_wait(ready):
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
