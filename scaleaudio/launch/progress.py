"""The progress line of a run: a live bar on a terminal, a line now and then elsewhere (a job's log)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from scaleaudio.launch.monitor import Event
from scaleaudio.report.timeline import duration, words

_LINE_EVERY_SECONDS, _LONGEST_PAUSE_SECONDS = 20.0, 300.0
_WORTH_TELLING = 0.02  # of the time spent waiting for data
_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("gone"),
    TimeElapsedColumn(),
)


class _Shown:
    """A bar that is there while the block runs."""

    _bar: Bar

    def __enter__(self) -> Self:
        """Starts the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the bar."""
        self._bar.stop()


class Progress(_Shown):
    """Shows the events of a run: a bar with the newest figures below it, and a line for whatever happens."""

    def __init__(self, num_steps: int, console: Console | None = None) -> None:
        """A bar of `num_steps` steps."""
        self._console = console or Console()
        self._bar = self._run_bar = _RunBar(self._console)
        self._task = self._bar.add_task("starting", total=num_steps)
        self._num_steps = num_steps
        self._began = self._last_line = time.monotonic()
        self._saved: int | None = None

    def on_event(self, event: Event) -> None:
        """Shows one event (`launch.pretrain`); a terminal that is gone, or a log on a full disk, ends no run."""
        with suppress(OSError):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "metrics":
            self._show(event)
        elif kind == "phase":
            self._bar.update(self._task, description=escape(event["text"]))
            if not self._console.is_terminal:
                self._say(escape(event["text"]))
        elif kind == "checkpoint":
            self._saved = event["step"]
        elif kind in _SAID:
            self._say(_SAID[kind] + escape(words(event)))
        if kind == "started":
            self._bar.update(self._task, completed=event["step"], description="training")
            self._last_line = 0.0  # the first figures are told at once

    def _show(self, event: Event) -> None:
        text = figures(event) + (f"  saved at {self._saved}" if self._saved else "")
        self._run_bar.below = text
        self._bar.update(self._task, completed=event["step"], description="training")
        now = time.monotonic()
        # Weeks of a job's log stay readable: a line in 20 s at first, then a line in 5 minutes.
        pause = min(max(_LINE_EVERY_SECONDS, (now - self._began) / 50), _LONGEST_PAUSE_SECONDS)
        if not self._console.is_terminal and (now - self._last_line > pause or event["step"] == self._num_steps):
            self._last_line = now
            left = (self._num_steps - event["step"]) * event["step_seconds"]
            self._say(f"step {event['step']}/{self._num_steps}  {text}" + (f"  {duration(left)} left" if left else ""))

    def _say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, soft_wrap=True)


_SAID = {
    "started": "",
    "probe": "",
    "warning": "[bold yellow]warning:[/] ",
    "fault": "[bold red]fault:[/] ",
    "recovery": "[bold green]recovered:[/] ",
    "resized": "[bold]resized:[/] ",
}


def figures(event: Event) -> str:
    """The newest figures of a run in a line."""
    shown = [f"loss {event['loss']:.3f}", f"positive {event['similarity/positive']:.2f}"]
    if "similarity/negative" in event:
        shown.append(f"negative {event['similarity/negative']:.2f}")
    shown += [f"others {event['similarity/others']:.2f}", f"rank {event['embedding/rank']:.0f}"]
    shown.append(f"{event['clips_per_second']:.0f} clips/s")
    waiting = event["data_wait_seconds"] / max(event["step_seconds"], 1e-9)
    if waiting > _WORTH_TELLING:
        shown.append(f"{100 * waiting:.0f} % waiting for data")
    return "  ".join(shown)


class _RunBar(Bar):
    """A bar, and a line below it that is cut where the terminal ends."""

    below = ""

    def __init__(self, console: Console) -> None:
        super().__init__(*_COLUMNS, console=console, disable=not console.is_terminal)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and the line."""
        yield self.make_tasks_table(self.tasks)
        if self.below:
            yield Text(self.below, style="dim", no_wrap=True, overflow="ellipsis")


class Counted(_Shown):
    """Shows how much of some work is done."""

    def __init__(self, what: str, console: Console | None = None) -> None:
        """A bar with the words `what` beside it."""
        self._console = console or Console(stderr=True)
        self._bar = _bar(self._console)
        self._what = what
        self._task = self._bar.add_task(what, total=None)
        self._last_line = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """Shows that `done` of `total` are done."""
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"{self._what}: {done}/{total}", highlight=False, soft_wrap=True)


def _bar(console: Console) -> Bar:
    return Bar(*_COLUMNS, console=console, disable=not console.is_terminal)
