"""What happens to a run, as records of its events.jsonl, oldest first, over all its attempts.

Each record has `time` (seconds since the epoch), `kind`, and a `step`: how many steps the run had taken, as far as the
writer knew.

    started      workers, seconds (since the driver's start); the run starts or goes on at `step`
    checkpoint   url, seconds
    probe        score (the mean over the held-out tasks, as in metrics.jsonl), seconds
    fault        fault (a key of FAULTS), what (a sentence: who, where, why); maybe host, rank, pid
    recovery     fault (that it answers), what, lost_steps (taken before the fault and taken again), seconds (from the
                 fault to the first step after it), breakdown (name: seconds, in order, which sum up to it)
    resized      workers_before, workers, what
    warning      text
    ended        failure (None when it ended in good order)
    unlisted_rejects   by_reason

Other kinds may come; a reader shows what it does not know as it is, or passes it over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from scaleaudio.data import storage

EVENTS = "events.jsonl"

Event = dict[str, Any]
FaultName = Literal[
    "worker", "node", "preempted", "hung", "driver", "storage", "disk_full", "torn_checkpoint", "not_finite", "data"
]
FAULTS: Mapping[FaultName, str] = {
    "worker": "a worker's process died",
    "node": "a machine was lost",
    "preempted": "a machine is to be taken away, or the run was told to go",
    "hung": "a worker made no step for too long",
    "driver": "the driver was lost",
    "storage": "storage could not be reached",
    "disk_full": "no space was left",
    "torn_checkpoint": "a checkpoint was not whole",
    "not_finite": "a loss or gradient was not finite",
    "data": "too many clips could not be used",
}


def fault(name: FaultName, step: int, what: str, **more: Any) -> Event:
    """The record of a fault that begins now."""
    return {"time": time.time(), "kind": "fault", "fault": name, "step": step, "what": what, **more}


def recovery(
    name: FaultName, step: int, what: str, *, lost_steps: int, breakdown: Mapping[str, float], **more: Any
) -> Event:
    """The record of a run that goes on after a fault; `breakdown` says what took how many seconds."""
    parts = {part: round(seconds, 3) for part, seconds in breakdown.items()}
    about = {"fault": name, "step": step, "what": what, "lost_steps": lost_steps}
    seconds = round(sum(parts.values()), 3)
    return {"time": time.time(), "kind": "recovery", **about, "seconds": seconds, "breakdown": parts, **more}


def append_events(run_url: str, events: Iterable[Event]) -> None:
    """Adds records to a run's events while no worker writes them (an object store knows no appending)."""
    new = "".join(json.dumps({"time": time.time(), **event}) + "\n" for event in events)
    if new:
        url = storage.join(run_url, EVENTS)
        old = storage.read_bytes(url) if storage.exists(url) else b""
        whole = old[: old.rfind(b"\n") + 1]  # a crash may have cut the last line off
        storage.write_atomic(url, whole + new.encode())
