"""Consecutive samples of one shard -> a table with a row each: its embedding, or the reason why there is none.

The work that `launch/embed.py` spreads over a cluster, without the cluster.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from scaleaudio.data import storage
from scaleaudio.data.fetch import CHANGED, UNREADABLE, Fetcher
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.patience import Patience
from scaleaudio.data.ranges import Member
from scaleaudio.errors import InputError
from scaleaudio.evaluate.embeddings import Source, dim_of, embed_clips

CHUNK_SAMPLES = 32
READS_AHEAD = 4
PROCESS_DIED = "the process that embeds it dies of it"


@dataclass(frozen=True)
class CorpusUnit:
    """Samples `start` to `stop` - 1 of the shard in row `shard` of an index; `index` is that of the shard alone.

    `is_half`: a part of a unit that was too much at once.
    """

    shard: int
    start: int
    stop: int
    index: ShardIndex
    is_half: bool = False

    def __len__(self) -> int:
        """How many samples it has."""
        return self.stop - self.start


def units(index: ShardIndex, unit_samples: int) -> Iterator[CorpusUnit]:
    """The samples of all shards in order, in units of `unit_samples`, and of fewer at a shard's end."""
    for shard, num_samples in enumerate(index.num_samples_per_shard.tolist()):
        for start in range(0, num_samples, unit_samples):
            yield CorpusUnit(shard, start, min(start + unit_samples, num_samples), index.only(shard))


def part_schema(embedding_dim: int) -> pa.Schema:
    """Of the table of a unit: `embedding` is null where `reason` is not."""
    embedding = pa.list_(pa.field("item", pa.float32()), embedding_dim)
    text = ("key", "shard", "label")
    return pa.schema([*((name, pa.string()) for name in text), ("embedding", embedding), ("reason", pa.string())])


def embed_unit(encoder: nn.Module, unit: CorpusUnit) -> pa.Table:
    """The table of a unit, in tar order (`part_schema`); all are refused where its sample table cannot be read.

    Args:
        encoder: in eval mode, as `scaleaudio.load` gives it.
        unit: what is embedded.
    """
    patience = Patience()
    names, fault = _names(unit, patience)
    if fault:
        return _refused(unit, names, dim_of(encoder), fault)
    fetcher = Fetcher(unit.index, CHUNK_SAMPLES, patience=patience)
    with ThreadPoolExecutor(READS_AHEAD, thread_name_prefix="scaleaudio-read") as readers:
        sources = _sources(fetcher, np.arange(unit.start, unit.stop), readers)
        made, reasons = embed_clips({"the encoder": encoder}, sources, len(unit))
    (embedding_ND,) = made.values()
    for place in np.flatnonzero(~np.isfinite(embedding_ND).all(axis=1)).tolist():
        reasons.setdefault(place, "its embedding holds NaN or infinity")
    return _table(unit, names, embedding_ND, reasons)


def refused(unit: CorpusUnit, embedding_dim: int, reason: str) -> pa.Table:
    """The table of a unit none of whose samples could be embedded, for one reason."""
    return _refused(unit, _names(unit, Patience())[0], embedding_dim, reason)


def is_passing(reason: str) -> bool:
    """Whether a clip refused for `reason` may be usable another time: neither its audio nor the model is at fault."""
    return reason.startswith((UNREADABLE, CHANGED, PROCESS_DIED))


def model_digest(encoder: nn.Module) -> str:
    """sha256 over the weights and the config of an encoder: equal when the embeddings are."""
    digest = hashlib.sha256()
    digest.update(f"{dim_of(encoder)} {getattr(encoder, 'config', type(encoder).__name__)!r}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().tobytes())
    return digest.hexdigest()


def _sources(fetcher: Fetcher, numbers: np.ndarray[Any, Any], readers: ThreadPoolExecutor) -> Iterator[Source]:
    """What gives each sample's bytes; a few reads are on their way before they are asked for."""
    groups = iter(fetcher.groups(numbers))
    ahead = deque((group, readers.submit(fetcher.read_ahead, group)) for group in islice(groups, READS_AHEAD))
    while ahead:
        group, read = ahead.popleft()
        yield from (partial(_bytes, fetcher, read, number) for number in group.tolist())
        ahead.extend((group, readers.submit(fetcher.read_ahead, group)) for group in islice(groups, 1))


def _bytes(fetcher: Fetcher, read: Future[dict[int, Member]], number: int) -> bytes:
    members = read.result()
    # Popped, so that its bytes are free once it is decoded.
    return fetcher.load(members.pop(number) if number in members else fetcher.find(number))


def _names(unit: CorpusUnit, patience: Patience) -> tuple[pa.Table, str]:
    """The keys and labels of a unit's samples, and ""; where they cannot be read, rows stand for keys, and why."""
    try:
        samples = patience.read(lambda: unit.index.samples(0), remote=not storage.is_local(unit.index.url))
    except (OSError, InputError, pa.ArrowException) as error:
        rows = pa.array([f"row {row}" for row in range(unit.start, unit.stop)])
        why = f"{UNREADABLE}: {' '.join(str(error).split())}"
        return pa.table({"key": rows, "label": pa.nulls(len(unit), pa.string())}), why
    return samples.select(["key", "label"]).slice(unit.start, len(unit)), ""


def _refused(unit: CorpusUnit, names: pa.Table, embedding_dim: int, reason: str) -> pa.Table:
    nothing_ND = np.full((len(unit), embedding_dim), np.nan, np.float32)
    return _table(unit, names, nothing_ND, dict.fromkeys(range(len(unit)), reason))


def _table(unit: CorpusUnit, names: pa.Table, embedding_ND: np.ndarray[Any, Any], reasons: dict[int, str]) -> pa.Table:
    is_refused = np.isin(np.arange(len(unit)), list(reasons))
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(np.where(is_refused[:, None], np.float32(0), embedding_ND).reshape(-1)),
        embedding_ND.shape[1],
        mask=pa.array(is_refused),
    )
    shards = pa.array([unit.index.row(0).shard] * len(unit), pa.string())
    why = pa.array([reasons.get(place) for place in range(len(unit))], pa.string())
    columns = [names["key"], shards, names["label"], embedding, why]
    return pa.table(columns, schema=part_schema(embedding_ND.shape[1]))
