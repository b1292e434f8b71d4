"""What became of a run so far, in words: its state, its figures, its attempts, faults and recoveries."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaleaudio.report.charts import short
from scaleaudio.report.events import FAULTS
from scaleaudio.report.history import History

_QUIET_SECONDS = 300.0
_RECENT = 50  # reported steps that present figures are over


@dataclass(frozen=True)
class State:
    """Where a run stands: `kind` is running, silent, recovering, finished, stopped, failed or empty."""

    kind: str
    text: str
    step: int
    steps: int | None


@dataclass(frozen=True)
class Happened:
    """One event in words; `parts` are the seconds of a recovery by name."""

    when: str
    step: int
    kind: str
    text: str
    parts: tuple[tuple[str, float], ...] = ()


def state_of(history: History) -> State:
    """Where the run stands, as far as its folder tells."""
    steps = _number(history.config, "schedule", "steps")
    step = max((_step(event) for event in history.events), default=0)
    if (loss := history.series.get("loss")) is not None and len(loss.step_N):
        step = max(step, int(loss.step_N[-1]) + 1)
    last = [e for e in history.events if e.get("kind") in ("started", "fault", "recovery", "ended")][-1:]
    if not last and not history.series:
        return State("empty", "nothing reported yet", step, steps)
    if last and last[0]["kind"] == "ended":
        if last[0].get("failure"):
            return State("failed", f"failed: {last[0]['failure']}", step, steps)
        done = steps is not None and step >= steps
        return (
            State("finished", "finished", step, steps)
            if done
            else State("stopped", "stopped in good order", step, steps)
        )
    silence = history.read_at - last_word(history)
    if last and last[0]["kind"] == "fault" and silence < _QUIET_SECONDS:
        return State("recovering", f"recovering: {last[0].get('what', last[0].get('fault'))}", step, steps)
    if silence > max(_QUIET_SECONDS, 20 * _between_words(history)):
        return State("silent", f"no word for {duration(silence)}", step, steps)
    return State("running", "running", step, steps)


def last_word(history: History) -> float:
    """When the run told something last; 0 where it never did."""
    times = [float(event["time"]) for event in history.events if _is_number(event.get("time"))]
    if (column := history.series.get("time")) is not None and len(column.value_N):
        times.append(float(np.nanmax(column.value_N)))
    return max(times, default=0.0)


def _between_words(history: History) -> float:
    column = history.series.get("time")
    return float(np.median(np.diff(column.value_N[-_RECENT:]))) if column and len(column.value_N) > 2 else 0.0


def figures(history: History, state: State) -> Iterator[tuple[str, str, str]]:
    """The run's figures, each with its name and a remark."""
    done = f"of {state.steps:,}" if state.steps else ""
    yield "step", f"{state.step:,}", done
    titles = {"loss": "loss", "probe/score": "probe", "probe/knn": "kNN probe", "embedding/rank": "effective rank"}
    for name, title in titles.items():
        if (value := _last(history, name)) is not None:
            yield title, short(value), f"best {short(_best(history, name))}" if name.startswith("probe/") else ""
    if (speed := _recent(history, "clips_per_second")) is not None:
        yield "clips/s", short(speed), "of late"
    wait, seconds = _recent(history, "data_wait_seconds"), _recent(history, "step_seconds")
    if wait is not None and seconds:
        yield "waiting for data", f"{100 * wait / seconds:.1f} %", f"of {short(seconds)} s a step"
    if spent := training_seconds(history.events, last_word(history)):
        yield "time", duration(spent), "in training"
    if state.kind in ("running", "recovering", "silent") and state.steps and seconds:
        yield "left", duration((state.steps - state.step) * seconds), "at the present pace"
    saved = [_step(event) for event in history.events if event.get("kind") == "checkpoint"]
    if saved:
        yield "checkpoint", f"{saved[-1]:,}", f"the newest of {len(saved):,}"
    faults = sum(event.get("kind") == "fault" for event in history.events)
    lost = sum(_number(event, "lost_steps") or 0 for event in history.events if event.get("kind") == "recovery")
    yield "faults", str(faults), f"{lost:,} steps taken again" if lost else ""
    if history.num_rejects:
        yield "replaced clips", f"{history.num_rejects:,}", "rejects.parquet says which and why"


def training_seconds(events: Sequence[Mapping[str, Any]], until: float) -> float:
    """How long the attempts of a run took together; one that never ended ends with its last word."""
    total, began, last = 0.0, None, 0.0
    for event in events:
        if not _is_number(event.get("time")):
            continue
        if event.get("kind") == "started":
            total += last - began if began is not None else 0.0
            began = float(event["time"])
        last = float(event["time"])
        if event.get("kind") == "ended" and began is not None:
            total, began = total + last - began, None
    return total + (max(last, until) - began if began is not None else 0.0)


def happenings(events: Sequence[Mapping[str, Any]]) -> Iterator[Happened]:
    """The events in words, oldest first; checkpoints in a row are one."""
    saved: list[Mapping[str, Any]] = []
    for event in [*events, {}]:
        if event.get("kind") == "checkpoint":
            saved.append(event)
            continue
        if saved:
            yield _checkpoints(saved)
            saved = []
        if event:
            yield Happened(clock(event.get("time")), _step(event), str(event.get("kind")), words(event), _parts(event))


def _checkpoints(saved: Sequence[Mapping[str, Any]]) -> Happened:
    seconds = [float(event["seconds"]) for event in saved if _is_number(event.get("seconds"))]
    took = f", {short(float(np.median(seconds)))} s each" if len(seconds) > 1 else f" in {short(sum(seconds))} s"
    text = f"{len(saved)} checkpoints, the last at step {_step(saved[-1]):,}" if len(saved) > 1 else "checkpoint"
    return Happened(clock(saved[-1].get("time")), _step(saved[-1]), "checkpoint", text + (took if seconds else ""))


def words(event: Mapping[str, Any]) -> str:
    """What one event says."""
    kind, what = event.get("kind"), str(event.get("what") or "")
    if kind == "started":
        after = f" ready after {float(event['seconds']):.1f} s" if _is_number(event.get("seconds")) else ""
        begins = f"goes on at step {_step(event):,}" if _step(event) else "starts"
        return f"{event.get('workers', '?')} worker(s){after}; the run {begins}"
    if kind == "ended":
        why = f" ({event['reason']})" if event.get("reason") else ""
        return str(event["failure"]) if event.get("failure") else f"ended in good order{why}"
    if kind == "probe" and _is_number(event.get("score")):
        return f"step {_step(event):,}: held-out probe {float(event['score']):.3f}"
    if kind == "fault":
        known: Mapping[Any, str] = FAULTS
        name = known.get(event.get("fault"), str(event.get("fault")))
        return f"{name}: {what}" if what else name
    if kind == "recovery":
        took = f" after {duration(float(event['seconds']))}" if _is_number(event.get("seconds")) else ""
        lost = f"; {event['lost_steps']} steps taken again" if event.get("lost_steps") else ""
        return f"{what or 'goes on'}{took}{lost}"
    if kind == "warning":
        return str(event.get("text", ""))
    if what:
        return what
    return ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "kind", "step"))


def _parts(event: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    parts = event.get("breakdown")
    if not isinstance(parts, Mapping):
        return ()
    return tuple((str(name), float(value)) for name, value in parts.items() if _is_number(value))


def clock(seconds: Any) -> str:
    """A time as UTC to the second."""
    if not _is_number(seconds) or not 0 <= seconds < 1e11:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(float(seconds)))


def duration(seconds: float) -> str:
    """For example 3.2 s, 12 min, 5 h 20 min, 3 d 4 h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def _last(history: History, name: str) -> float | None:
    values = _finite(history, name)
    return float(values[-1]) if len(values) else None


def _best(history: History, name: str) -> float:
    return float(_finite(history, name).max())


def _recent(history: History, name: str) -> float | None:
    values = _finite(history, name)[-_RECENT:]
    return float(np.median(values)) if len(values) else None


def _finite(history: History, name: str) -> np.ndarray[Any, Any]:
    column = history.series.get(name)
    values = np.empty(0) if column is None else column.value_N
    found: np.ndarray[Any, Any] = values[np.isfinite(values)]
    return found


def _number(tree: Any, *keys: str) -> int | None:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if type(tree) is int else None


def _step(event: Mapping[str, Any]) -> int:
    return event["step"] if type(event.get("step")) is int else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
