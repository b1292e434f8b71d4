"""Contenders that take turns, so that what else the machine does meanwhile meets them all.

Each round gives every contender one turn; what counts is the ratio of two contenders' times within a round, as its
median and quartiles over the rounds. Processor time is hardly changed by other programs; the clock is what one waits.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """What one turn took, in seconds: of the clock, of the processors (on a GPU the clock's), and waiting for data."""

    wall: float
    cpu: float
    wait: float = 0.0

    def over(self, num: int) -> Timing:
        """The same for one of `num` equal parts."""
        return Timing(*(seconds / num for seconds in self))


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """Median (low-high)."""
        return f"{self.median:{form}} ({self.low:{form}}-{self.high:{form}})"


Turn = Callable[[int], Timing]
WARM_UP = 1
MAX_SECONDS = 150.0


def take_turns(
    contenders: Mapping[str, Turn],
    rounds: int,
    *,
    warm_up: int = WARM_UP,
    max_seconds: float = MAX_SECONDS,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Timing]]:
    """The timings of up to `rounds` turns of each contender, after `warm_up` rounds that do not count.

    Args:
        contenders: by name; each is called with the number of the round.
        rounds: how many count.
        warm_up: how many come before.
        max_seconds: after so long no further round begins, once one has counted.
        on_done: told how many rounds of how many are over.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    names = list(contenders)
    began = time.perf_counter()
    for number in range(warm_up + rounds):
        first = number % len(names)  # nobody always follows the same one
        for name in names[first:] + names[:first]:
            timing = contenders[name](number)
            if number >= warm_up:
                timings[name].append(timing)
        on_done(number + 1, warm_up + rounds)
        if number >= warm_up and time.perf_counter() - began > max_seconds:
            break
    return timings


def clocked(work: Callable[[], object], device: torch.device | None = None) -> Timing:
    """What `work` takes; on a GPU until the device has done it."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
        taken = time.perf_counter() - wall
        return Timing(taken, taken)
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


class _Failed(NamedTuple):
    why: str


class Elsewhere:
    """A contender in a process of its own, whose threads and memory are then its own too."""

    def __init__(self, begin: Callable[..., Turn], *args: Any) -> None:
        """Starts the process, in which `begin(*args)` makes the turn; it is there when the first turn is."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, begin, args), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, number: int) -> None:
        """Begins a turn."""
        with suppress(OSError):  # the process is gone: `answer` says so
            self._pipe.send(number)

    def answer(self) -> Any:
        """What the turn gave that was asked for.

        Raises:
            RuntimeError: the process has failed.
        """
        try:
            found = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            found = _Failed(f"its process ended with {self._process.exitcode}")
        if isinstance(found, _Failed):
            raise RuntimeError(f"a contender of this benchmark failed: {found.why}")
        return found

    def __call__(self, number: int) -> Timing:
        """Takes a turn."""
        self.ask(number)
        timing: Timing = self.answer()
        return timing

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, begin: Callable[..., Turn], args: tuple[Any, ...]) -> None:
    try:
        turn = begin(*args)
        while True:
            pipe.send(turn(pipe.recv()))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send(_Failed(f"{type(error).__name__}: {error}"))


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of any number of values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return Spread(median, low, high)


def ratio(ones: Sequence[float], others: Sequence[float]) -> Spread:
    """How many times the other's time one takes, round by round."""
    return spread([one / other for one, other in zip(ones, others, strict=True)])


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What a figure has to be read with: when, on what, how busy that was, with which torch."""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device is not None and device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
