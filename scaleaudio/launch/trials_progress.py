"""The progress of a sweep: on a terminal a bar for each trial that runs; a line for each that begins or ends."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from scaleaudio.launch.monitor import Event
from scaleaudio.report.trials import TrialRecord


class TrialsProgress:
    """Shows the events of a sweep."""

    def __init__(self, num_trials: int, num_steps: int, console: Console | None = None) -> None:
        """For `num_trials` trials of `num_steps` steps each, the baseline and repeats among them."""
        self._console = console or Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._all = self._bar.add_task("trials", total=num_trials)
        self._num_steps = num_steps
        self._tasks: dict[int, TaskID] = {}
        self._records: dict[int, TrialRecord] = {}

    def __enter__(self) -> Self:
        """Starts the bars."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the bars."""
        self._bar.stop()

    def on_event(self, event: Event) -> None:
        """Shows one event (`launch.sweep`); a terminal that is gone, or a log on a full disk, ends no sweep."""
        with suppress(OSError):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if event["kind"] == "trial":
            self._show(event["record"])
        elif event["kind"] == "warning":
            whose = f"trial {event['trial']}: " if "trial" in event else ""
            self._say(f"[bold yellow]warning:[/] {whose}{escape(event['text'])}")
        elif event.get("trial") in self._tasks and "step" in event:
            self._bar.update(self._tasks[event["trial"]], completed=event["step"])

    def _show(self, record: TrialRecord) -> None:
        before = self._records.get(record.number)
        self._records[record.number] = record
        if record.state == "running" and (before is None or before.state != "running"):
            self._tasks[record.number] = self._bar.add_task("", total=record.steps, completed=record.step)
            self._say(f"{_name(record)} begins: {_changes(record)}")
        if record.number in self._tasks:
            score = "" if record.score is None else f"  score {record.score:.3f}"
            self._bar.update(self._tasks[record.number], description=f"{_name(record)}{score}", completed=record.step)
        if record.ended:
            if record.number in self._tasks:
                self._bar.remove_task(self._tasks.pop(record.number))
            how = f"failed: {escape(record.failure or '')}" if record.state == "failed" else record.state
            score = "" if record.score is None else f", score {record.score:.3f} at step {record.step}/{record.steps}"
            self._say(f"{_name(record)} {how}{score}")
            ended = sum(record.ended for record in self._records.values())
            self._bar.update(self._all, completed=ended, description=self._best())

    def _best(self) -> str:
        scored = [r for r in self._records.values() if r.state == "finished" and r.kind == "search" and r.scores]
        if not scored:
            return "trials"
        best = max(scored, key=lambda record: record.score or 0.0)
        return f"trials, the best so far {best.score:.3f} ({best.number})"

    def _say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, soft_wrap=True)


def _name(record: TrialRecord) -> str:
    if record.kind == "repeat":
        of = "the baseline" if record.repeat_of == 0 else f"trial {record.repeat_of}"
        return f"{of}, seed {record.seed}"
    return "the baseline" if record.kind == "baseline" else f"trial {record.number}"


def _changes(record: TrialRecord) -> str:
    def text(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{key.rpartition('.')[2]} {text(value)}" for key, value in record.changes.items())
