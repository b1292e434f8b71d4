"""What a run leaves behind to be read: metrics.jsonl, events.jsonl, rejects.parquet and what its loggers write.

Files are written on this machine; where the run folder is in an object store they are copied there at each `flush`.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from scaleaudio.data import storage
from scaleaudio.data.parquet import read_table, write_table
from scaleaudio.data.patience import Patience
from scaleaudio.data.rejects import kind_of
from scaleaudio.errors import InputError
from scaleaudio.report import pieces
from scaleaudio.report.events import EVENTS
from scaleaudio.report.forward import Forwarder
from scaleaudio.report.loggers import LoggerConfig, RunFacts, State, TensorBoardLogger, check_installed
from scaleaudio.report.pieces import METRICS
from scaleaudio.types import Reject

REJECTS = "rejects.parquet"
RUN_ID = "run_id"  # by which loggers know a run that goes on
MAX_REJECT_ROWS = 100_000  # held in memory, and written anew at each checkpoint
_FLUSH_SECONDS, _CLOSE_SECONDS = 10.0, 20.0
_LEFT = "rejects-of-worker-"
_SCHEMA = pa.schema([("step", pa.int64()), ("shard", pa.string()), ("key", pa.string()), ("reason", pa.string())])


class RunLog:
    """The log of one run; a resumed run goes on where its checkpoint was and drops what came after it.

    `warnings` says what was found damaged, and where it was set aside.
    """

    def __init__(
        self,
        run_url: str,
        start_step: int,
        loggers: Sequence[LoggerConfig] = (TensorBoardLogger(),),
        config: Mapping[str, Any] | None = None,
        patience_seconds: float = 120.0,
    ) -> None:
        """Takes over what the run has logged of the steps before `start_step`.

        An object store that fails is tried again for `patience_seconds` at each flush.

        Raises:
            InputError: when a logger is not installed.
        """
        check_installed(loggers)
        self._url = run_url
        self._patience = Patience(deadline_seconds=patience_seconds)
        self._scratch = None if storage.is_local(run_url) else tempfile.TemporaryDirectory()
        self._folder = Path(storage.open_url(run_url)[1] if self._scratch is None else self._scratch.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._copied: dict[Path, tuple[int, int]] = {}
        self.warnings: list[str] = []
        self._left = _left_rejects(run_url)
        self._last_logged = start_step - 1
        closed = {url: pieces.last_step(url) for url in pieces.piece_urls(run_url)}
        taken_over = [url for url, last in closed.items() if last is None or last >= start_step]
        self._take_over(METRICS, taken_over, start_step, keep=lambda record: record.get("step", 0) < start_step)
        self._left += [url for url in taken_over if closed[url] is not None]
        events = storage.join(run_url, EVENTS)
        self._take_over(EVENTS, [events] if storage.exists(events) else [], start_step, keep=lambda record: True)
        self._rejects: list[dict[str, Any]] = []
        self._unlisted: Counter[str] = Counter()
        self._unlisted_to = 0
        self._keep([row for row in self._usable_rejects(start_step) if row["step"] < start_step])
        self._state: State = "stopped"
        self._last_step = (config or {}).get("schedule", {}).get("steps")
        facts = RunFacts(_run_id(run_url), run_url, self._folder, start_step, config or {})
        self._forwarders = [Forwarder(logger, facts) for logger in loggers]

    def _take_over(
        self, name: str, urls: Sequence[str], start_step: int, keep: Callable[[dict[str, Any]], bool]
    ) -> None:
        """Begins the file `name` with the lines of others, one at a time: weeks of them need not fit in memory."""
        num_bad = 0
        with storage.open_atomic(str(self._folder / name)) as file:
            for line in (line for url in urls for line in pieces.read_lines(url)):
                num_bad += line.record is None
                if line.record is not None and keep(line.record):
                    file.write(line.text.rstrip(b"\n") + b"\n")
            if num_bad:
                self._set_aside(name, start_step, f"{num_bad} of its lines are damaged, and left out")

    def _usable_rejects(self, start_step: int) -> list[dict[str, Any]]:
        try:
            return read_rejects(self._url)
        except InputError as error:
            self._set_aside(REJECTS, start_step, f"begun anew, since it cannot be read ({error})")
            return []

    def _set_aside(self, name: str, start_step: int, reason: str) -> None:
        """Keeps the damaged file as it is, under another name, and says so."""
        stem, _, suffix = name.partition(".")
        copy = f"{stem}.damaged-before-step-{start_step}.{suffix}"
        storage.write_atomic(storage.join(self._url, copy), storage.read_bytes(storage.join(self._url, name)))
        self.warnings.append(f"{storage.join(self._url, name)}: {reason}. As it was: {copy}")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the scalars of one step, with the time."""
        now, self._last_logged = time.time(), step
        with (self._folder / METRICS).open("a") as file:
            file.write(json.dumps({"step": step, "time": round(now, 3), **metrics}) + "\n")
        for forwarder in self._forwarders:
            forwarder.write(step, now, metrics)

    def event(self, event: dict[str, Any]) -> None:
        """Adds what happened (`report.events` says what there is), with the time; at once visible in the run folder."""
        if event["kind"] == "ended":
            done = event["step"] == self._last_step
            self._state = "failed" if event.get("failure") else "finished" if done else "stopped"
        with (self._folder / EVENTS).open("a") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")
        if self._scratch is not None:  # a killed worker flushes nothing more
            with suppress(OSError):  # the next flush does it
                self._copy(self._folder / EVENTS, briefly=True)

    def new_warnings(self) -> list[str]:
        """What the loggers have to say since the last call."""
        return [line for forwarder in self._forwarders for line in forwarder.warnings()]

    def add_rejects(self, rejects: list[tuple[int, Reject]]) -> None:
        """Adds clips that had to be replaced, with their steps; past MAX_REJECT_ROWS they are counted, by reason."""
        self._keep(_reject_rows(rejects))

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        room = MAX_REJECT_ROWS - len(self._rejects)
        self._rejects += rows[:room]
        self._unlisted.update(kind_of(Reject(row["shard"], row["key"], row["reason"])) for row in rows[room:])
        if rows[room:]:
            self._unlisted_to = rows[-1]["step"]

    def flush(self) -> None:
        """Makes everything so far visible in the run folder."""
        for forwarder in self._forwarders:
            if forwarder.local:
                forwarder.flush(_FLUSH_SECONDS)
        if self._unlisted:
            self.event({"kind": "unlisted_rejects", "step": self._unlisted_to, "by_reason": dict(self._unlisted)})
            self._unlisted.clear()
        write_table(str(self._folder / REJECTS), self._rejects, _SCHEMA)
        if self._scratch is not None:
            self._close_piece()
            for path in sorted(self._folder.rglob("*")):  # a closed piece before the newest
                if path.is_file():
                    with suppress(FileNotFoundError):  # loggers' own files come and go
                        self._copy(path)
        while self._left:  # what they held is in the files above now, or its steps are taken again
            storage.delete_tree(self._left.pop())

    def _close_piece(self) -> None:
        newest = self._folder / METRICS
        if newest.stat().st_size > pieces.PIECE_BYTES:
            newest.rename(self._folder / pieces.piece_name(self._last_logged))
            newest.touch()

    def _copy(self, path: Path, *, briefly: bool = False) -> None:
        """Copies a file to the run folder, unless it is as it was copied last."""
        now = (path.stat().st_mtime_ns, path.stat().st_size)
        if self._copied.get(path) != now:
            url, data = storage.join(self._url, path.relative_to(self._folder).as_posix()), path.read_bytes()
            write = partial(storage.write_atomic, url, data)
            self._patience.read(write, remote=True, num_bytes=len(data), briefly=briefly)
            self._copied[path] = now

    def close(self) -> None:
        """Flushes and lets go of the files; loggers may take a while to send what waits."""
        for forwarder in self._forwarders:
            forwarder.close(self._state, _CLOSE_SECONDS)
        self.flush()
        if self._scratch is not None:
            self._scratch.cleanup()


def _run_id(run_url: str) -> str:
    """The id of the run in this folder, made where it has none."""
    url = storage.join(run_url, RUN_ID)
    if not storage.exists(url):
        storage.write_atomic(url, f"{secrets.token_hex(8)}\n".encode())
    return storage.read_bytes(url).decode().strip()


def leave_rejects(run_url: str, rank: int, rejects: list[tuple[int, Reject]]) -> None:
    """Writes down what a worker has not handed to the log when it stops because of it; `read_rejects` finds it."""
    write_table(storage.join(run_url, f"{_LEFT}{rank}.parquet"), _reject_rows(rejects), _SCHEMA)


def _reject_rows(rejects: list[tuple[int, Reject]]) -> list[dict[str, Any]]:
    return [{"step": step, "shard": r.shard, "key": r.key, "reason": r.reason} for step, r in rejects]


def _left_rejects(run_url: str) -> list[str]:
    return [url for url in storage.list_files(run_url, ".parquet") if url.rpartition("/")[2].startswith(_LEFT)]


def read_metrics(run_url: str) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, oldest first; damaged lines are left out."""
    return [
        line.record for url in pieces.piece_urls(run_url) for line in pieces.read_lines(url) if line.record is not None
    ]


def newest_step(run_url: str) -> int:
    """The greatest step that the ends of a run's logs tell of: what weeks have written is not read. 0 without any."""
    logs, events = pieces.piece_urls(run_url), storage.join(run_url, EVENTS)
    closed = [last for url in logs if (last := pieces.last_step(url)) is not None]
    ends = [*logs[-1:], *([events] if storage.exists(events) else [])]
    return max([*closed, *(record.get("step", 0) for url in ends for record in pieces.tail(url))], default=0)


def read_events(run_url: str) -> list[dict[str, Any]]:
    """The records of a run's events.jsonl, oldest first, over all its attempts; damaged lines are left out."""
    url = storage.join(run_url, EVENTS)
    lines = pieces.read_lines(url) if storage.exists(url) else ()
    return [line.record for line in lines if line.record is not None]


def read_rejects(run_url: str) -> list[dict[str, Any]]:
    """The rows of a run's rejects.parquet, and of what workers left beside it when they stopped.

    Raises:
        InputError: when it is damaged.
    """
    url = storage.join(run_url, REJECTS)
    rows = _reject_table(url) if storage.exists(url) else []
    left = [row for other in _left_rejects(run_url) for row in _reject_table(other)]
    return rows + sorted(left, key=lambda row: int(row["step"]))


def _reject_table(url: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(url, _SCHEMA, missing=lambda: f"{url}: gone").to_pylist()
    return rows
