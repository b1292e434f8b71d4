"""Units of a build, each built by one process that may die of its input without taking the build with it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleaudio.data import storage
from scaleaudio.data.convert import Converted, convert
from scaleaudio.data.shards import ShardWriter
from scaleaudio.data.sources import AudioFile
from scaleaudio.errors import DecodeError

if TYPE_CHECKING:
    from scaleaudio.data.build import BuildConfig


@dataclass(frozen=True)
class Unit:
    """Consecutive inputs, (key, file) each, that one process builds into shards of their own.

    `work` is where its done marker goes. `at` is a local file in which it notes the input at hand, and `fatal` names
    the inputs that ended a process before.
    """

    number: int
    out: str
    work: str
    files: tuple[tuple[str, AudioFile], ...]
    config: BuildConfig
    at: str = ""
    fatal: frozenset[str] = frozenset()

    @property
    def marker(self) -> str:
        """The url of the file that says that it is done, and how it went."""
        return storage.join(self.work, f"unit-{self.number:06d}.json")


# Builds units, each by `build_apart` on some machine, and calls back for each that is done.
Elsewhere = Callable[[list[Unit], Callable[[Unit], None]], None]


def run_units(
    units: list[Unit], num_workers: int | None, on_done: Callable[[Unit], None], elsewhere: Elsewhere | None = None
) -> list[dict[str, Any]]:
    """Builds those units that are not done, in processes here or `elsewhere`; the results of all, in order.

    Raises:
        OSError: what `out` answered when it could not be written.
    """
    there = set(storage.list_files(units[0].out)) if units else set()
    pending = {unit.number: unit for unit in units if not _is_done(unit, there)}
    for unit in units:
        if unit.number not in pending:
            on_done(unit)
    if elsewhere is not None:
        elsewhere(list(pending.values()), on_done)
    elif num_workers == 0:
        for unit in pending.values():
            build_unit(unit)
            on_done(unit)
    elif pending:
        with tempfile.TemporaryDirectory() as notes:
            pending = {n: replace(unit, at=f"{notes}/{n}") for n, unit in pending.items()}
            _in_processes(pending, min(num_workers or _num_cores(), len(pending)), on_done)
    return [json.loads(storage.read_bytes(unit.marker)) for unit in units]


def _is_done(unit: Unit, there: set[str]) -> bool:
    """Whether its marker says so, and the files of its shards are `there` too."""
    if unit.marker not in there:
        return False
    shards = json.loads(storage.read_bytes(unit.marker))["shards"]
    return all(storage.join(unit.out, row[kind]) in there for row in shards for kind in ("shard", "samples"))


def build_apart(unit: Unit) -> None:
    """Builds the unit in a process that may die of its input: then again without the file at fault."""
    with tempfile.TemporaryDirectory() as notes:
        _alone(replace(unit, at=f"{notes}/{unit.number}"))


def build_unit(unit: Unit) -> None:
    """Writes the unit's shards, then its done marker."""
    rejects: list[tuple[str, str]] = []
    parts: list[tuple[str, str, float]] = []
    limits = unit.config
    with ShardWriter(
        unit.out,
        f"shard-{unit.number:06d}",
        shard_bytes=limits.shard_bytes,
        shard_samples=limits.shard_samples,
    ) as writer:
        for key, file in unit.files:
            try:
                converted = _converted(unit, file)
            except DecodeError as error:
                rejects.append((file.name, str(error)))
                continue
            parts += [(file.name, reason, seconds) for reason, seconds in converted.refused]
            _add(writer, key, file, converted, unit.config)
    accepted = len(unit.files) - len(rejects)
    result = {"accepted": accepted, "rejects": rejects, "parts": parts, "shards": writer.shards}
    storage.write_atomic(unit.marker, json.dumps(result).encode())


def _add(writer: ShardWriter, key: str, file: AudioFile, converted: Converted, config: BuildConfig) -> None:
    labels = dict(file.labels)
    licence = labels.pop("licence", None) or labels.pop("license", None) or config.licence
    cut = len(converted.members) + len(converted.refused) > 1
    for number, member in enumerate(converted.members):
        label = {
            "source": file.name,
            "licence": licence,
            "start_seconds": member.start_seconds,
            "seconds": member.seconds,
            "gain": member.gain,
            "labels": labels,
        }
        writer.add(f"{key}@{number:04d}" if cut else key, member, label)


def _converted(unit: Unit, file: AudioFile) -> Converted:
    """Raises DecodeError with the reason when the file cannot be used."""
    if file.name in unit.fatal:
        limit = unit.config.file_timeout_seconds
        raise DecodeError(f"the decoder crashed on it, or took more than {limit} s, or ran out of memory")
    if file.size > unit.config.max_file_bytes:
        raise DecodeError(f"{file.size} bytes are more than max_file_bytes {unit.config.max_file_bytes}")
    with _watched(unit, file):
        try:
            return convert(storage.read_bytes(file.url), unit.config)
        except OSError as error:
            raise DecodeError(f"cannot be read: {error}") from error
        except MemoryError:
            raise DecodeError("needs more memory than there is") from None


@contextmanager
def _watched(unit: Unit, file: AudioFile) -> Iterator[None]:
    """Notes the file at hand, and ends the process when it takes too long."""
    if not unit.at:
        yield
        return
    Path(unit.at).write_text(file.name, encoding="utf-8", errors="surrogateescape")
    signal.alarm(unit.config.file_timeout_seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        Path(unit.at).unlink()


def _in_processes(pending: dict[int, Unit], num_workers: int, on_done: Callable[[Unit], None]) -> None:
    while pending:
        try:
            _all_at_once(pending, num_workers, on_done)
        except BrokenProcessPool:
            # Several were at work: those that left a note are built one at a time, so that the guilty file is known.
            for unit in [unit for unit in pending.values() if Path(unit.at).exists()]:
                _alone(unit)
                on_done(pending.pop(unit.number))


def _all_at_once(pending: dict[int, Unit], num_workers: int, on_done: Callable[[Unit], None]) -> None:
    with _pool(num_workers) as pool:
        futures = {pool.submit(build_unit, unit): unit for unit in pending.values()}
        try:
            for future in as_completed(futures):
                future.result()
                on_done(pending.pop(futures[future].number))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _alone(unit: Unit) -> None:
    while True:
        Path(unit.at).unlink(missing_ok=True)
        try:
            with _pool(1) as pool:
                pool.submit(build_unit, unit).result()
            return
        except BrokenProcessPool:
            if not Path(unit.at).exists():
                raise
            name = Path(unit.at).read_text(encoding="utf-8", errors="surrogateescape")
            unit = replace(unit, fatal=unit.fatal | {name})


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # Not fork: decoding in a forked process can deadlock. The server imports once what each process needs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scaleaudio.data.units", "webdataset.writer"])
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_process)


def _start_process() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word; its parent speaks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The C decoders' own warnings, one a broken MP3, would tear the progress bar; Python's errors still come through.
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
