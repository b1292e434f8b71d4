"""What is said when a run ends: how it went, what went wrong on the way, and which commands come next."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator

from scaleaudio.launch.monitor import Event
from scaleaudio.launch.progress import figures
from scaleaudio.report.timeline import duration


class Account:
    """Listens to the events of a run from this start of it on."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Nothing heard yet; `clock` gives the time of what it hears."""
        self._clock = clock
        self._began: float | None = None
        self._first: Event | None = None
        self._last: Event | None = None
        self._counts: Counter[str] = Counter()
        self._lost_steps = 0
        self._probes: list[tuple[int, float]] = []
        self._checkpoint: Event | None = None

    def on_event(self, event: Event) -> None:
        """Takes note of one event (`launch.pretrain`)."""
        kind = event["kind"]
        self._counts[kind] += 1
        if kind == "started" and self._began is None:
            self._began = self._clock()
        elif kind == "metrics":
            self._first, self._last = self._first or event, event
        elif kind == "recovery":
            self._lost_steps += event.get("lost_steps", 0)
        elif kind == "probe":
            self._probes.append((event["step"], event["score"]))
        elif kind == "checkpoint":
            self._checkpoint = event

    def went(self) -> Iterator[str]:
        """How the run went, a line a matter; nothing where it did not get to report."""
        if self._first is not None and self._last is not None and self._began is not None:
            steps = self._last["step"] - self._first["step"]
            pace = f" in {duration(self._clock() - self._began)}"
            before = f"loss {self._first['loss']:.3f} -> " if steps else "loss "
            yield before + figures(self._last).removeprefix("loss ") + (pace if steps else "")
        if self._probes:
            step, best = max(self._probes, key=lambda probe: probe[1])
            yield f"held-out probe {self._probes[-1][1]:.3f}, the best {best:.3f} at step {step}"
        if self._counts["fault"]:
            yield f"{self._counts['fault']} fault(s), {self._lost_steps} steps taken again"
        if self._checkpoint is not None:
            yield f"newest checkpoint: {self._checkpoint['url']}"


def next_commands(run_url: str, *, finished: bool) -> Iterator[str]:
    """What one would type after a run has ended."""
    run_url = shlex.quote(run_url)
    yield f"scaleaudio show run {run_url}"
    if finished:
        beside = "" if "://" in run_url else f" --out {run_url}/evaluation"  # where its page looks
        yield f"scaleaudio evaluate {run_url} LABELLED_FOLDER --baselines{beside}"
        yield f"scaleaudio export {run_url} encoder/"
