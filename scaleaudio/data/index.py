"""The index beside the shards: which samples are where, so that one ranged read fetches one clip.

Two levels of Parquet, since 10^9 sample rows do not fit one table: `index.parquet` has a row a shard, and names for
each a sample table with a row a sample in tar order. A reader loads the first, and of the second only what it reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scaleaudio.data import storage
from scaleaudio.errors import InputError

INDEX_NAME = "index.parquet"
REJECTS_NAME = "rejects.parquet"
# A clip is held in memory whole; what is larger (hours of audio, or a member full of zeros) is not read.
MAX_CLIP_BYTES = 1 << 29
# Of all shards together: far beyond any corpus, and far below where 64 bits overflow.
MAX_SAMPLES = 1 << 48
SHARD_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # file name, relative to the index (or a whole url)
        ("num_samples", pa.int64()),
        ("num_bytes", pa.int64()),
        ("seconds", pa.float64()),
        ("checksum", pa.string()),  # sha256 of the tar, hex; null where the tar was not read whole
        ("samples", pa.string()),  # name of the sample table, relative to the index
    ]
)
SAMPLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("member", pa.string()),  # the audio member's name
        ("offset", pa.int64()),  # where its bytes start in the tar
        ("size", pa.int64()),
        ("frames", pa.int64()),  # null where the audio was not opened
        ("sample_rate_hz", pa.int32()),
        ("label", pa.string()),  # the .json member's text, or null
        ("checksum", pa.string()),  # crc32 of the audio member's bytes, 8 hex digits, or null
    ]
)


@dataclass(frozen=True)
class ShardIndex:
    """The shards of one folder: `url` is the folder that holds the index, `shards` its table."""

    url: str
    shards: pa.Table

    @classmethod
    def load(cls, url: str) -> ShardIndex:
        """The index of the folder `url` (or the index.parquet at `url` itself).

        Raises:
            InputError: when there is none, or it cannot be read as one.
        """
        folder = url.removesuffix(INDEX_NAME).rstrip("/") if url.endswith("/" + INDEX_NAME) else url
        table_url = storage.join(folder, INDEX_NAME)
        table = read_table(table_url, SHARD_SCHEMA, missing=lambda: _advice(folder))
        _check_complete(table_url, table, ("shard", "num_samples", "num_bytes", "samples"))
        counts = table["num_samples"].to_numpy()
        if len(counts) and not (counts.min() > 0 and counts.max() <= MAX_SAMPLES // len(counts)):
            raise InputError(f"{table_url}: num_samples from {counts.min()} to {counts.max()} cannot be. Index anew")
        return cls(folder, table)

    @cached_property
    def num_samples_per_shard(self) -> NDArray[np.int64]:
        """How many samples each shard has."""
        return np.asarray(self.shards["num_samples"].to_numpy(), dtype=np.int64)

    @property
    def num_samples(self) -> int:
        """How many samples all shards have together."""
        return int(self.num_samples_per_shard.sum())

    @cached_property
    def seconds(self) -> float:
        """How much audio all shards hold; 0 where the index was made from headers only."""
        return float(np.nansum(self.shards["seconds"].to_numpy()))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the shards' names, counts and checksums: equal when the data are."""
        digest = hashlib.sha256()
        for row in self.shards.select(["shard", "num_samples", "num_bytes", "checksum"]).to_pylist():
            digest.update(repr(tuple(row.values())).encode())
        return digest.hexdigest()

    def shard_url(self, shard: int) -> str:
        """Where the tar of row `shard` is."""
        name = self.shards["shard"][shard].as_py()
        return str(name) if "://" in name or name.startswith("/") else storage.join(self.url, name)

    def samples(self, shard: int) -> pa.Table:
        """The sample table of row `shard`: a row a sample, in tar order.

        Raises:
            InputError: when it is missing, or has another number of rows than the index says.
        """
        url = storage.join(self.url, self.shards["samples"][shard].as_py())
        table = read_table(
            url, SAMPLE_SCHEMA, missing=lambda: f"{url}: this sample table, named by {INDEX_NAME}, is missing"
        )
        expected = int(self.num_samples_per_shard[shard])
        if len(table) != expected:
            raise InputError(f"{url}: {INDEX_NAME} says {expected} samples, the table has {len(table)}. Index anew")
        _check_complete(url, table, ("key", "member", "offset", "size"))
        return table


def span_fault(offset: int, size: int, frames: int | None, num_bytes: int) -> str | None:
    """Why a row of a sample table cannot be that of a clip in a tar of `num_bytes`; None where it can."""
    if offset < 0 or not 0 <= size <= MAX_CLIP_BYTES or (frames is not None and frames < 1):
        return f"its index row cannot be: offset {offset}, size {size}, frames {frames}. Index the shard anew"
    if offset + size > num_bytes:
        return f"its index row lies outside the shard: offset {offset}, size {size}, in a shard of {num_bytes} bytes"
    return None


def _check_complete(url: str, table: pa.Table, columns: tuple[str, ...]) -> None:
    for name in columns:
        if table[name].null_count:
            raise InputError(f"{url}: {table[name].null_count} rows have no {name}. Make the index anew")


def read_table(url: str, schema: pa.Schema, *, missing: Callable[[], str]) -> pa.Table:
    """The Parquet table at `url`, cast to `schema`.

    Raises:
        InputError: `missing()` when there is no such file; else naming url and fault.
    """
    try:
        table = read_parquet(url)
        return table.select(schema.names).cast(schema)
    except FileNotFoundError:
        raise InputError(missing()) from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{url}: not a table of the expected form ({error}). Make the index anew") from error


def read_parquet(url: str) -> pa.Table:
    """The Parquet table at `url`, whatever its columns.

    Read into Arrow's own memory and by this thread: a thread of Arrow's that lets go of Python's memory while the
    interpreter shuts down ends the process with an abort.
    """
    with storage.open_input(url) as file:
        buffer = file.read_buffer()
    return pq.read_table(pa.BufferReader(buffer), use_threads=False, pre_buffer=False)


def write_table(url: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Writes `rows` as the Parquet table at `url`, atomically."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    storage.write_atomic(url, buffer.getvalue().to_pybytes())


def _advice(folder: str) -> str:
    if not storage.exists(folder):
        return f'data.url "{folder}": no such folder'
    start = f'data.url "{folder}": no {INDEX_NAME} here'
    if any(entry.url.endswith(".tar") for entry in storage.list_entries(folder)):
        return f"{start}, but tars. Index them: scaleaudio shards index {folder}"
    return f"{start}. Build shards from audio: scaleaudio shards build {folder} SHARDS, then use data.url SHARDS"
