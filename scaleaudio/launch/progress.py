"""The progress line of a run: a live bar on a terminal, a line now and then elsewhere (a job's log)."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from scaleaudio.launch.monitor import Event

_LINE_EVERY_SECONDS = 20.0


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
    """Shows the events of a run."""

    def __init__(self, num_steps: int, console: Console | None = None) -> None:
        """A bar of `num_steps` steps."""
        self._console = console or Console()
        self._bar = _bar(self._console)
        self._task = self._bar.add_task("starting", total=num_steps)
        self._num_steps = num_steps
        self._last_line = 0.0

    def on_event(self, event: Event) -> None:
        """Shows one event (`launch.pretrain`)."""
        if event["kind"] == "metrics":
            self._show(event)
        elif event["kind"] == "started":
            came_from = f"goes on at step {event['step']}" if event["step"] else "starts"
            self._say(f"{event['workers']} worker(s) ready after {event['seconds']:.1f} s; the run {came_from}")
            self._bar.update(self._task, completed=event["step"])
        elif event["kind"] == "probe":
            self._say(f"step {event['step']}/{self._num_steps}  probe {event['score']:.3f}")
        elif event["kind"] == "warning":
            self._say(f"[bold yellow]warning:[/] {escape(event['text'])}")

    def _show(self, event: Event) -> None:
        negative = event.get("similarity/negative")
        text = (
            f"loss {event['loss']:.3f}  positive {event['similarity/positive']:.2f}"
            + (f"  negative {negative:.2f}" if negative is not None else "")
            + f"  others {event['similarity/others']:.2f}  rank {event['embedding/rank']:.0f}"
            f"  {event['clips_per_second']:.0f} clips/s"
        )
        self._bar.update(self._task, completed=event["step"], description=text)
        due = time.monotonic() - self._last_line > _LINE_EVERY_SECONDS or event["step"] == self._num_steps
        if not self._console.is_terminal and due:
            self._last_line = time.monotonic()
            self._say(f"step {event['step']}/{self._num_steps}  {text}")

    def _say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, soft_wrap=True)


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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console, disable=not console.is_terminal)
