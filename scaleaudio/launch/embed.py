"""`embed`: the embeddings of a corpus, over Ray: no row lost or doubled, however often it is stopped.

The corpus is cut into units of consecutive samples of a shard. Each is one Ray task, which writes its rows as one part,
atomically, into a folder beside the result; the parts that are there are what is done. When all are, they are
streamed into the result in the order of the index, and the folder goes. So the driver holds no embedding but those of
the part at hand, and a stopped job goes on with the units that have no part, or one that storage or a dead process cost
rows.

A unit whose process dies (a decoder can crash on a hostile clip) is halved until the clip at fault is alone; that one
is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import ray
import torch
from torch import nn

from scaleaudio import bundle
from scaleaudio.config import LaunchConfig
from scaleaudio.data import storage
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.rejects import BadDataError, Tally
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.evaluate.corpus import PROCESS_DIED, CorpusUnit, embed_unit, model_digest, refused, units
from scaleaudio.evaluate.embeddings import dim_of
from scaleaudio.launch import cluster as clusters
from scaleaudio.launch import parts
from scaleaudio.launch.spread import DIED, spread
from scaleaudio.types import Reject


@dataclass(frozen=True)
class EmbedSummary:
    """What was written: rows at `url`, and named rejects at `rejects_url`."""

    url: str
    rejects_url: str
    embedding_dim: int
    num_samples: int
    num_rejects: int


def embed(
    model: str | nn.Module,
    shards: str,
    out: str,
    *,
    unit_samples: int = 512,
    max_bad_fraction: float = 0.01,
    fresh: bool = False,
    on_done: Callable[[int, int], None] = lambda done, total: None,
    debug: bool = False,
) -> EmbedSummary:
    """Embeds every clip of `shards` whole, into the Parquet table `out`; finishes what was begun.

    Columns: key, shard, label (JSON, null where the index has none) and embedding (a fixed-size list of float32).
    Beside it, the table with `rejects` before its suffix names each clip without an embedding: shard, key, reason.

    Args:
        model: exported folder, run folder or checkpoint, or an encoder as `scaleaudio.load` gives it.
        shards: folder or URL with an index; all nodes reach it, as they do `out`.
        out: path or URL that ends in .parquet.
        unit_samples: clips of one task; of a job that goes on, those that it began with.
        max_bad_fraction: the part of the clips that may be unusable.
        fresh: delete what is at `out` and begin anew.
        on_done: told how many clips of how many are done.
        debug: show Ray's and the workers' logs.

    Raises:
        InputError: no such model or index, or `out` holds something else.
        RunFailed: too many clips are unusable.
    """
    given = {"INPUT": shards, "OUT": out}
    if not out.endswith(".parquet"):
        raise InputError(f'OUT "{out}": expected a path or URL that ends in .parquet')
    encoder = bundle.load(model) if isinstance(model, str) else model
    index = _index(storage.absolute(shards))
    out = storage.absolute(out)
    plan = {"format_version": 1, "model": model_digest(encoder), "index": index.fingerprint}
    plan |= {"embedding_dim": dim_of(encoder), "unit_samples": unit_samples}
    if fresh:
        parts.remove(out)
    done = parts.claim(out, plan)
    if done is None:
        with clusters.cluster(LaunchConfig(), debug=debug):
            clusters.refuse_relative(given)
            plan = parts.begin(out, plan)
            try:
                folder = parts.folder_of(out, plan)
                _embed_missing(encoder, index, folder, plan, Tally(max_bad_fraction, index.num_samples), on_done)
            except BadDataError as error:
                raise RunFailed(str(error).replace("data.max_bad_fraction", "--max-bad-fraction")) from error
        done = parts.merge(out, plan, index)
    parts.tidy(out, plan)
    return EmbedSummary(out, parts.rejects_url(out), dim_of(encoder), done["num_samples"], done["num_rejects"])


def _index(url: str) -> ShardIndex:
    try:
        return ShardIndex.load(url)
    except InputError as error:
        raise InputError(str(error).replace("data.url", "INPUT", 1)) from error


def _embed_missing(
    encoder: nn.Module,
    index: ShardIndex,
    folder: str,
    plan: dict[str, Any],
    tally: Tally,
    on_done: Callable[[int, int], None],
) -> None:
    """Has each unit embedded of which rows are missing, a bounded number at a time."""
    size = plan["unit_samples"]
    sizes = index.num_samples_per_shard.tolist()
    begun, num_done = parts.begun(folder, size, sizes), 0
    missing = (unit for unit in units(index, size) if (unit.shard, unit.start // size) not in begun.finished)
    halves: deque[CorpusUnit] = deque()
    dim, resource = dim_of(encoder), "GPU" if ray.cluster_resources().get("GPU", 0) else "CPU"
    at_hand = ray.put(encoder)

    def submit(unit: CorpusUnit) -> Any:
        # What begins whole, and what would be refused, gets a second chance: a node may just have gone.
        max_retries = 0 if unit.is_half and len(unit) > 1 else 1
        options = {"num_cpus": 1, "num_gpus": int(resource == "GPU"), "max_retries": max_retries}
        return ray.remote(_embed).options(**options).remote(at_hand, folder, unit)

    earlier = Reject(folder, "of an earlier run", "named in the parts of an earlier run")
    for (shard, number), num_rejects in begun.finished.items():
        num_samples = parts.unit_size(number, size, sizes[shard])
        tally.add(num_samples, repeat(earlier, num_rejects))
        num_done += num_samples
    on_done(num_done, index.num_samples)
    for unit, done in spread(submit, lambda: halves.popleft() if halves else next(missing, None), resource=resource):
        if done is DIED and len(unit) > 1:
            halves.extend(_halves(unit))
            continue
        part, rejects = _put(folder, unit, refused(unit, dim, PROCESS_DIED)) if done is DIED else done
        parts.replace(folder, begun.leftover.get((unit.shard, unit.start // size), ()), part)
        tally.add(len(unit), rejects)
        num_done += len(unit)
        on_done(num_done, index.num_samples)


def _embed(encoder: nn.Module, folder: str, unit: CorpusUnit) -> tuple[parts.Part, list[Reject]]:
    """Runs in a Ray worker: writes the part of `unit`, and gives it and its rejects."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _put(folder, unit, embed_unit(encoder.to(device), unit))


def _put(folder: str, unit: CorpusUnit, table: Any) -> tuple[parts.Part, list[Reject]]:
    part = parts.write(folder, unit.shard, unit.start, table)
    rows = table.select(["shard", "key", "reason"]).to_pylist()
    return part, [Reject(**row) for row in rows if row["reason"] is not None]


def _halves(unit: CorpusUnit) -> Iterator[CorpusUnit]:
    middle = (unit.start + unit.stop) // 2
    yield replace(unit, stop=middle, is_half=True)
    yield replace(unit, start=middle, is_half=True)
