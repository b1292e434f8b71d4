"""Loader throughput, side by side in one run: this stream, the usual WebDataset recipe, and the tars' bare bytes.

Each measurement is a process of its own, so that its memory is its own, and the contenders take turns, so that what
else the machine does meanwhile meets them all. What counts is clips per second of CPU time (a core's worth, whatever
else runs) and clips per second of the clock.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from scaleaudio.errors import InputError
from scaleaudio.types import Settings

if TYPE_CHECKING:
    from rich.table import Table

BATCH = 64
STREAM, RECIPE, BYTES = "this stream", "usual recipe", "tar bytes"
CONTENDERS = (STREAM, RECIPE, BYTES)
_LOOK_EVERY_SECONDS = 0.25
_SUFFIXES = ("flac", "wav", "ogg", "opus", "mp3")


class LoaderScale(Settings):
    """What is read, and for how long.

    `url` is a folder of shards with their index; where it is None, shards of FLAC clips are written for the occasion.
    """

    url: str | None = None
    shards: int = 10
    clips_per_shard: int = 64
    clip_seconds: float = 10.0
    crop_seconds: float = 0.96
    sample_rate_hz: int = 16_000
    workers: tuple[int, ...] = (1, 2, 4)
    seconds: float = 4.0
    repeats: int = 3

    @property
    def crop_frames(self) -> int:
        """Samples of a crop."""
        return round(self.crop_seconds * self.sample_rate_hz)


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


def write_clips(folder: str, scale: LoaderScale) -> None:
    """Shards of FLAC clips with their index: ten different tars at most, the others are links to them."""
    from scaleaudio.data.convert import Member
    from scaleaudio.data.index import INDEX_NAME, SHARD_SCHEMA, write_table
    from scaleaudio.data.shards import ShardWriter

    rows = []
    clips = _clips(scale)
    for shard in range(min(scale.shards, 10)):
        with ShardWriter(folder, f"shard-{shard:06d}", shard_bytes=1 << 40, shard_samples=1 << 40) as writer:
            for number in range(scale.clips_per_shard):
                data = clips[(number + shard) % len(clips)]
                member = Member(
                    "flac", data, round(scale.clip_seconds * scale.sample_rate_hz), scale.sample_rate_hz, 0.0
                )
                writer.add(f"{shard:06d}_{number:06d}", member, {"labels": {}})
        rows += writer.shards
    for shard in range(len(rows), scale.shards):
        row = rows[shard % 10]
        names = {"shard": f"link-{shard:06d}.tar", "samples": f"samples/link-{shard:06d}.parquet"}
        for key, name in names.items():
            os.link(f"{folder}/{row[key]}", f"{folder}/{name}")
        rows.append(row | names)
    write_table(f"{folder}/{INDEX_NAME}", rows, SHARD_SCHEMA)


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
    batches = {STREAM: _stream, RECIPE: _recipe, BYTES: _tar_bytes}[contender](scale, workers)
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


def _stream(scale: LoaderScale, workers: int) -> Generator[tuple[int, int]]:
    from scaleaudio.data.index import ShardIndex
    from scaleaudio.data.stream import DataConfig, Stream

    assert scale.url is not None
    index = ShardIndex.load(scale.url)
    num_bytes = sum(index.samples(0)["size"].to_pylist()) / len(index.samples(0))
    settings = {"url": scale.url, "global_batch": BATCH, "lanes": 4, "num_threads": workers}
    config = DataConfig.model_validate(settings)
    rate_hz, frames = scale.sample_rate_hz, scale.crop_frames
    stream = Stream(config, index, seed=0, sample_rate_hz=rate_hz, crop_frames=frames)
    try:
        for batch in stream.batches():
            yield len(batch.key_B), round(len(batch.key_B) * num_bytes)
    finally:
        stream.close()


def _recipe(scale: LoaderScale, workers: int) -> Generator[tuple[int, int]]:
    """Decode each clip whole, then crop it, in the processes of a DataLoader."""
    frames = scale.crop_frames

    def crop(sample: dict[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
        import soundfile

        data = _audio(sample)
        wave_T = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].mean(axis=1)
        start = np.random.randint(max(len(wave_T) - frames, 0) + 1)
        part_T = wave_T[start : start + frames]
        return np.pad(part_T, (0, frames - len(part_T))), len(data)

    for wave_BT, size_B in _loaded(scale, workers, lambda tars: tars.shuffle(256).map(crop)):
        yield len(wave_BT), int(sum(size_B))


def _tar_bytes(scale: LoaderScale, workers: int) -> Generator[tuple[int, int]]:
    """Read the members and drop them: what WebDataset's reading of tars allows at most."""

    def size(sample: dict[str, Any]) -> tuple[int, int]:
        return 1, len(_audio(sample))

    for one_B, size_B in _loaded(scale, workers, lambda tars: tars.map(size)):
        yield len(one_B), int(sum(size_B))


def _loaded(scale: LoaderScale, workers: int, then: Callable[[Any], Any]) -> Iterator[Any]:
    import torch
    import webdataset

    from scaleaudio.data.index import ShardIndex

    assert scale.url is not None
    index = ShardIndex.load(scale.url)
    urls = [index.shard_url(shard) for shard in range(len(index.ends))]
    tars = webdataset.WebDataset(urls, resampled=True, shardshuffle=False)
    batches = then(tars).batched(BATCH)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, on purpose
    # Fork is what DataLoader does by itself on Linux; nothing in this process has decoded yet.
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, multiprocessing_context="fork")
    yield from loader


def _audio(sample: dict[str, Any]) -> bytes:
    data: bytes = next(sample[suffix] for suffix in _SUFFIXES if suffix in sample)
    return data


def _clips(scale: LoaderScale, num: int = 64) -> list[bytes]:
    """FLAC files with the sounds of the synthetic corpus, one after the other."""
    import soundfile

    from scaleaudio.data.synth import SAMPLE_RATE_HZ, make_clip

    clips, sounds = [], (make_clip(number, 0)[1] for number in range(1 << 30))
    for _ in range(num):
        wave_T = np.zeros(0)
        while len(wave_T) < scale.clip_seconds * SAMPLE_RATE_HZ:
            wave_T = np.concatenate([wave_T, next(sounds)])
        buffer = io.BytesIO()
        soundfile.write(buffer, wave_T[: round(scale.clip_seconds * SAMPLE_RATE_HZ)], SAMPLE_RATE_HZ, format="FLAC")
        clips.append(buffer.getvalue())
    return clips


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
