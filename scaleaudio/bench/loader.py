"""Loader throughput, side by side in one run: this stream, the usual WebDataset recipe, and the tars' bare bytes.

Each measurement is a process of its own, so that its memory is its own, and the contenders take turns, so that what
else the machine does meanwhile meets them all. What counts is clips per second of CPU time (a core's worth, whatever
else runs) and clips per second of the clock.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from scaleaudio.bench.contenders import BYTES, LOADERS, RECIPE, LoaderScale, write_clips
from scaleaudio.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

CONTENDERS = tuple(LOADERS)
_LOOK_EVERY_SECONDS = 0.25


@dataclass(frozen=True)
class LoaderCost:
    """One measurement.

    Attributes:
        contender: one of CONTENDERS.
        workers: decoding threads of this stream; processes of the others' DataLoader.
        clips_per_second: of the clock.
        clips_per_cpu_second: of CPU time over all threads and processes.
        mb_per_second: of the clips' encoded bytes.
        memory_mb: held at most by all processes, shared pages counted once.
    """

    contender: str
    workers: int
    clips_per_second: float
    clips_per_cpu_second: float
    mb_per_second: float
    memory_mb: float


def bench_loader(
    scale: LoaderScale,
    on_done: Callable[[int, int], None] = lambda done, total: None,
    contenders: tuple[str, ...] = CONTENDERS,
) -> dict[str, Any]:
    """Every contender with every number of workers, `scale.repeats` times in turns; as plain data.

    Raises:
        InputError: `scale.url` is not a local folder of shards with their index.
    """
    if scale.url is not None:
        _check(scale.url)
    runs = list(product(range(scale.repeats), scale.workers, contenders))
    with tempfile.TemporaryDirectory() as folder:
        if scale.url is None:
            write_clips(folder, scale)
        given = scale if scale.url else scale.model_copy(update={"url": folder})
        costs = []
        for number, (_, workers, contender) in enumerate(runs):
            costs.append(_in_new_process(given, contender, workers))
            on_done(number + 1, len(runs))
    return {"scale": scale.model_dump(), "costs": [asdict(cost) for cost in costs]}


def loader_table(result: dict[str, Any]) -> Table:
    """The medians of what `bench_loader` found, with their range, and the ratios to recipe and bare bytes."""
    from rich.table import Table

    table = Table(
        title="loading", caption="median (lowest to highest); ratios are of clips per CPU second, turn by turn"
    )
    for name in ("", "workers", "clips/s", "clips/CPU s", "MB/s", "CPU ms/clip", "MB held", "x recipe", "x bytes"):
        table.add_column(name, justify="right" if name else "left")
    for workers, contender in product(result["scale"]["workers"], CONTENDERS):
        own = _series(result, contender, workers)
        cpu = own("clips_per_cpu_second")
        ratios = [
            [a / b for a, b in zip(cpu, _series(result, other, workers)("clips_per_cpu_second"), strict=True)]
            for other in (RECIPE, BYTES)
        ]
        table.add_row(
            contender,
            str(workers),
            _spread(own("clips_per_second"), ".0f"),
            _spread(cpu, ".0f"),
            f"{statistics.median(own('mb_per_second')):.0f}",
            f"{1000 / statistics.median(cpu):.2f}",
            f"{statistics.median(own('memory_mb')):.0f}",
            *(_spread(ratio, ".2f") for ratio in ratios),
        )
    return table


def _check(url: str) -> None:
    from scaleaudio.data.index import ShardIndex
    from scaleaudio.data.storage import is_local

    if not is_local(url):
        # WebDataset reads an object store by a command that it gives to a shell.
        raise InputError(f"--url {url}: expected a local folder, which all three loaders read alike")
    try:
        ShardIndex.load(url)
    except InputError as error:
        raise InputError(str(error).replace("data.url", "--url")) from error


def measure(scale: LoaderScale, contender: str, workers: int) -> LoaderCost:
    """One contender for `scale.seconds`, after a second's start, in this process and its children."""
    batches = LOADERS[contender](scale, workers)
    warm_at = time.perf_counter() + 1.0
    for _ in batches:
        if time.perf_counter() > warm_at:
            break
    began, cpu_before = time.perf_counter(), _cpu_seconds()
    num_clips = num_bytes = 0
    memory, looked_at = _memory_mb(), began
    for clips, size in batches:
        num_clips += clips
        num_bytes += size
        now = time.perf_counter()
        if now - looked_at > _LOOK_EVERY_SECONDS:
            memory, looked_at = max(memory, _memory_mb()), now
        if now - began > scale.seconds:
            break
    seconds, cpu_seconds = time.perf_counter() - began, _cpu_seconds() - cpu_before
    batches.close()
    return LoaderCost(
        contender=contender,
        workers=workers,
        clips_per_second=num_clips / seconds,
        clips_per_cpu_second=num_clips / cpu_seconds,
        mb_per_second=num_bytes / seconds / 1e6,
        memory_mb=memory,
    )


def _series(result: dict[str, Any], contender: str, workers: int) -> Callable[[str], list[float]]:
    own = [cost for cost in result["costs"] if (cost["contender"], cost["workers"]) == (contender, workers)]
    return lambda name: [cost[name] for cost in own]


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def _processes() -> list[int]:
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]


def _cpu_seconds() -> float:
    """CPU time of this process and its living children."""
    total = 0
    for pid in _processes():
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def _memory_mb() -> float:
    """What this process and its children hold now; pages that they share are counted once."""
    total = 0
    for pid in _processes():
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total / 1024


def _in_new_process(scale: LoaderScale, contender: str, workers: int) -> LoaderCost:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, scale, contender, workers).result()
