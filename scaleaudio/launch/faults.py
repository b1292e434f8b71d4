"""What went wrong when the workers did not end by themselves: which fault it was, who was struck, when."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import ControllerError, PreemptionError, TrainingFailedError

from scaleaudio.data import storage
from scaleaudio.launch import cluster as clusters
from scaleaudio.launch.monitor import Attempt
from scaleaudio.report.events import Event, FaultName, fault

_IN_COLLECTIVE = re.compile(r"distributed")


@dataclass(frozen=True)
class Fault:
    """One fault of a run.

    Attributes:
        name: which kind.
        what: a sentence: who, where, why.
        step: steps taken when it came, by the last sign of life.
        at: when that sign came, in seconds since the epoch.
        noticed_at: when the driver knew.
    """

    name: FaultName
    what: str
    step: int
    at: float
    noticed_at: float

    def event(self) -> Event:
        """The record for the run folder, with the time of the last sign of life."""
        return fault(self.name, self.step, self.what) | {"time": self.at}

    def settings(self) -> dict[str, Any]:
        """As the next workers are told of it."""
        return asdict(self)


def diagnose(error: Exception, attempt: Attempt, step: int) -> Fault:
    """The fault behind what the trainer raised, as far as `attempt` and the cluster tell.

    `step` is how many had been taken by what the workers had told otherwise.
    """
    name, what = _named(error, attempt)
    return Fault(name, what, max(step, attempt.step), attempt.seen_at, time.time())


def _named(error: Exception, attempt: Attempt) -> tuple[FaultName, str]:
    if attempt.hung:
        return "hung", _culprit(attempt.hung)
    if isinstance(error, PreemptionError):
        return "preempted", "a machine was taken away before a checkpoint could be written"
    if isinstance(error, ControllerError):
        return "worker", f"the workers could not be started: {_last_line(error.controller_failure)}"
    if not isinstance(error, TrainingFailedError):
        return _storage_fault(error)
    causes = {rank: _cause(failure) for rank, failure in sorted(getattr(error, "worker_failures", {}).items())}
    dead = [rank for rank, cause in causes.items() if isinstance(cause, RayActorError)]
    for rank in dead:
        if not _node_answers(attempt.roster.get(rank, {}).get("node")):
            return "node", f"the machine of {_who(rank, attempt)} was lost"
    if dead:
        return "worker", f"{', '.join(_who(rank, attempt) for rank in dead)} died: {_why(causes[dead[0]])}"
    # What the others say is that a worker left their collective: a RuntimeError of torch.distributed.
    for rank, cause in sorted(causes.items(), key=lambda item: (isinstance(item[1], RuntimeError), item[0])):
        told = f"worker {rank}: {type(cause).__name__}: {_last_line(cause)}"
        return (_storage_fault(cause)[0] if isinstance(cause, OSError) else "worker"), told
    return "worker", _last_line(error)


def _cause(failure: Any) -> Any:
    """The worker's own error, without what Ray wraps around it."""
    for wrapped in ("_base_exc", "health_check_failure"):
        failure = getattr(failure, wrapped, failure)
    return failure


def _storage_fault(error: Exception) -> tuple[FaultName, str]:
    return ("disk_full" if storage.is_full(error) else "storage"), f"{type(error).__name__}: {_last_line(error)}"


def _who(rank: int, attempt: Attempt) -> str:
    who = attempt.roster.get(rank)
    return f"worker {rank}" + (f" (host {who['host']}, pid {who['pid']})" if who else "")


def _why(cause: Exception) -> str:
    """Ray's reason in one line, of the many that it gives."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"died|killed|exit|lost|unexpected|OOM", line)]
    told = (telling or lines or ["no reason given"])[-1]
    return re.sub(r" Some common causes.*|^.*Worker exit detail: ", "", told)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _culprit(hung: list[dict[str, Any]]) -> str:
    """Of the workers that made no progress, the one that did not merely wait for others."""
    first = min(hung, key=lambda told: (bool(_IN_COLLECTIVE.search(told["where"])), told["rank"]))
    others = f" ({len(hung)} workers made none)" if len(hung) > 1 else ""
    return (
        f"worker {first['rank']} (host {first['host']}, pid {first['pid']}) made no step for {first['seconds']:.0f} s"
        f"{others}; it was in {first['where']}"
    )


def _node_answers(node_id: str | None) -> bool:
    found = [node for node in ray.nodes() if node["NodeID"] == node_id]
    return all(node["Alive"] and clusters.answers(node) for node in found) if found else node_id is None
