"""What planning costs at scale: the real index, order and grouping over an index that is synthesised, without audio.

A plan says, for one worker and one step, which members of which shards are read. Each row is measured in a process of
its own, so that its memory is its own, and "cold" means from opening the index to the first step's plan.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from scaleaudio.data.order import Order
from scaleaudio.types import World

if TYPE_CHECKING:
    from rich.table import Table

    from scaleaudio.data.ahead import Wanted
    from scaleaudio.data.index import ShardIndex
    from scaleaudio.data.order import Integers
    from scaleaudio.data.ranges import Member

_CHECKSUM_BYTES = 32


@dataclass(frozen=True)
class PlanScale:
    """A stream of some size: one lane a loader worker."""

    shards: int = 1_000_000
    samples_per_shard: int = 1000
    ranks: int = 1024
    loader_workers: int = 8
    clips_per_loader: int = 8
    chunk_samples: int = 32
    window_samples: int = 256
    start_step: int = 0

    @property
    def lanes(self) -> int:
        """Lanes of the whole stream (L)."""
        return self.ranks * self.loader_workers

    def order(self, num_samples: int) -> Order:
        """The order in which `num_samples` are read at this scale."""
        return Order(
            num_samples, self.lanes * self.clips_per_loader, self.lanes, self.chunk_samples, self.window_samples
        )


@dataclass(frozen=True)
class PlanCost:
    """What one worker's plans cost at `scale`.

    Attributes:
        scale: of what.
        index_seconds: to load the index.
        cold_seconds: to load the index and plan the first step.
        step_ms: a step after the first, in the mean.
        slowest_ms: the slowest of those.
        name_ms: to look up a shard's name; the reading threads do that before each read.
        memory_mb: what all that added to the process at its peak.
    """

    scale: PlanScale
    index_seconds: float
    cold_seconds: float
    step_ms: float
    slowest_ms: float
    name_ms: float
    memory_mb: float


@dataclass(frozen=True)
class EpochCheck:
    """How often the samples of an epoch are planned over all workers: `twice` and `remainder` say what is not once."""

    shards: int
    samples: int
    once: int
    twice: int
    remainder: int
    seconds: float


def bench_plan(scale: PlanScale, *, num_steps: int = 512, epoch_shards: int = 10_000) -> dict[str, Any]:
    """Costs at `scale`, at a hundredth of it, later, and with chunks of one sample; an epoch's check; as plain data."""
    few = replace(scale, shards=max(scale.shards // 100, 1))
    rows = [few, scale, replace(scale, start_step=10**6), replace(scale, chunk_samples=1, start_step=10**6)]
    costs = []
    for row in rows:
        with tempfile.TemporaryDirectory() as folder:
            write_index(folder, row)
            costs.append(_in_new_process(folder, row, num_steps))
    check = check_epoch(replace(scale, shards=min(epoch_shards, scale.shards)))
    return {"costs": [asdict(cost) for cost in costs], "epoch": asdict(check)}


def plan_table(result: dict[str, Any]) -> Table:
    """The costs that `bench_plan` found, a row a scale."""
    from rich.table import Table

    epoch = result["epoch"]
    table = Table(
        title="plan of one worker",
        caption=f"an epoch of {epoch['samples']:,} samples in {epoch['shards']:,} shards: {epoch['once']:,} read once, "
        f"{epoch['twice']:,} more often, {epoch['remainder']:,} left for other epochs",
    )
    for name in (
        "shards",
        "chunks",
        "lanes",
        "from step",
        "index s",
        "cold s",
        "step ms",
        "slowest",
        "name",
        "MB",
    ):
        table.add_column(name, justify="right")
    for cost in result["costs"]:
        scale = cost["scale"]
        table.add_row(
            f"{scale['shards']:,}",
            f"{-(-scale['shards'] * scale['samples_per_shard'] // scale['chunk_samples']):,}",
            f"{scale['ranks'] * scale['loader_workers']:,}",
            f"{scale['start_step']:,}",
            f"{cost['index_seconds']:.2f}",
            f"{cost['cold_seconds']:.2f}",
            f"{cost['step_ms']:.2f}",
            f"{cost['slowest_ms']:.1f}",
            f"{cost['name_ms']:.2f}",
            f"{cost['memory_mb']:.0f}",
        )
    return table


def write_index(folder: str, scale: PlanScale) -> None:
    """An index of shards that do not exist, in the folder's index.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from scaleaudio.data.index import INDEX_NAME, SHARD_SCHEMA
    from scaleaudio.data.storage import join, open_atomic

    draws = np.random.default_rng(0)
    with open_atomic(join(folder, INDEX_NAME)) as file, pq.ParquetWriter(file, SHARD_SCHEMA, compression="zstd") as to:
        for start in range(0, scale.shards, 1 << 16):
            names = [f"shard-{shard:08d}" for shard in range(start, min(start + (1 << 16), scale.shards))]
            columns = {
                "shard": [f"{name}.tar" for name in names],
                "num_samples": np.full(len(names), scale.samples_per_shard),
                "num_bytes": np.full(len(names), scale.samples_per_shard * 100_000),
                "seconds": np.full(len(names), scale.samples_per_shard * 10.0),
                "checksum": [draws.bytes(_CHECKSUM_BYTES).hex() for _ in names],
                "samples": [f"samples/{name}.parquet" for name in names],
            }
            to.write_table(pa.table(columns, schema=SHARD_SCHEMA))


def measure(folder: str, scale: PlanScale, num_steps: int) -> PlanCost:
    """The plans of the middle rank over the index in `folder`, from scale.start_step on."""
    import scaleaudio.data.ahead  # noqa: F401 - torch comes with it, and is not what is measured
    from scaleaudio.data.index import ShardIndex

    lanes = World(scale.ranks // 2, scale.ranks).share(scale.lanes)
    before = _memory_kb("VmRSS")
    began = time.perf_counter()
    index = ShardIndex.load(folder)
    loaded = time.perf_counter()
    order = scale.order(index.num_samples)
    plans = _plans(index, order, lanes, scale.start_step)
    next(plans)
    planned = [time.perf_counter(), *(time.perf_counter() for _ in islice(plans, num_steps))]
    step_ms = 1000 * np.diff(planned)
    named = time.perf_counter()
    for shard in np.linspace(0, scale.shards - 1, 64).astype(int).tolist():
        index.shard_url(shard)
    return PlanCost(
        scale=scale,
        index_seconds=loaded - began,
        cold_seconds=planned[0] - began,
        step_ms=float(step_ms.mean()),
        slowest_ms=float(step_ms.max()),
        name_ms=1000 * (time.perf_counter() - named) / 64,
        memory_mb=max(_memory_kb("VmHWM") - before, 0) / 1024,
    )


def check_epoch(scale: PlanScale) -> EpochCheck:
    """Counts how often each sample of the first epoch is in the plans of all ranks."""
    order = scale.order(scale.shards * scale.samples_per_shard)
    began = time.perf_counter()
    counts = np.zeros(order.num_samples, np.uint8)
    for rank in range(scale.ranks):
        for lane in World(rank, scale.ranks).share(scale.lanes):
            left = order.lane_samples
            for window in order.windows(lane, 0):
                np.add.at(counts, window, 1)
                left -= len(window)
                if not left:
                    break
    return EpochCheck(
        shards=scale.shards,
        samples=order.num_samples,
        once=int((counts == 1).sum()),
        twice=int((counts > 1).sum()),
        remainder=order.remainder,
        seconds=time.perf_counter() - began,
    )


def _plans(index: ShardIndex, order: Order, lanes: range, start_step: int) -> Iterator[list[Wanted]]:
    """Each step's samples by the stream's own lanes, whose reads know shard and row, and then read nothing."""
    from scaleaudio.data.ahead import Feed, Lane, Source
    from scaleaudio.data.fetch import Fetcher

    class Planner(Fetcher):
        def read_ahead(self, group: Integers) -> dict[int, Member]:
            self.place(int(group[0]))
            return {}

    source = Source("", order, Planner(index, order.chunk_samples))
    with ThreadPoolExecutor(1) as readers:
        starts = start_step * order.lane_batch
        own = [Lane(repeat(0), [Feed(source, order.windows(lane, starts), readers)]) for lane in lanes]
        while True:
            clips = [clip for lane in own for clip in lane.take(order.lane_batch, 0)]
            for clip in clips:  # as a stream's decoders do: else unread requests pile up
                clip.read.result()
            yield clips


def _in_new_process(folder: str, scale: PlanScale, num_steps: int) -> PlanCost:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, folder, scale, num_steps).result()


def _memory_kb(name: str) -> int:
    """VmRSS (held now) or VmHWM (held at most) of this process; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))
