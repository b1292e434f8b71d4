"""The index beside the shards: which samples are where, so that one ranged read fetches one clip.

Two levels of Parquet, since 10^9 sample rows do not fit one table: `index.parquet` has a row a shard, and names for
each a sample table with a row a sample in tar order. A reader loads the first, and of the second only what it reads.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scaleaudio.data import storage
from scaleaudio.data.names import check_names, check_unique
from scaleaudio.data.packed import BLOCK_ROWS, pack, unpack
from scaleaudio.data.parquet import as_input_errors, check_complete, read_table, unreadable
from scaleaudio.data.patience import Patience
from scaleaudio.errors import InputError

Result = TypeVar("Result")

# At the start somebody is waiting; later a run of days can wait for its index.
FIRST_STALL_SECONDS, FIRST_DEADLINE_SECONDS = 15.0, 30.0
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


class ShardRow(NamedTuple):
    """The name of a shard, that of its sample table, and its size."""

    shard: str
    samples: str
    num_bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """The shards of one folder, and where their sample tables are: what a reader needs, in some bytes a shard.

    Attributes:
        url: the folder that holds the index.
        ends: for each shard the number of samples up to its end.
        blocks: the rest of what a reader needs (ShardRow), compressed: the names of a million shards are 60 MB.
        starts: the first row of each block.
    """

    url: str
    ends: NDArray[np.int64]
    blocks: tuple[bytes, ...]
    starts: tuple[int, ...]

    @classmethod
    def load(cls, url: str) -> Self:
        """The index of the folder `url` (or the index.parquet at `url` itself).

        Raises:
            InputError: when there is none, the server cannot be reached or refuses, it cannot be read as one, or it
                names a shard twice or with a credential.
        """
        folder = url.removesuffix(INDEX_NAME).rstrip("/") if url.endswith("/" + INDEX_NAME) else url
        _check_reached(folder)
        return _patiently(folder, lambda: cls._load(folder))

    @classmethod
    def _load(cls, folder: str) -> Self:
        table_url = storage.join(folder, INDEX_NAME)
        counts, blocks, starts, hashes = [np.zeros(0, np.int64)], [], [0], []
        with _from_malloc():
            for batch in _batches(folder, ["num_samples", *ShardRow._fields]):
                check_complete(table_url, batch, batch.schema.names)
                hashes.append(check_names(table_url, starts[-1], batch))
                counts.append(_counts(batch))
                blocks.append(_packed(batch))
                starts.append(starts[-1] + len(batch))
            check_unique(table_url, hashes, (name for block in blocks for name in unpack(block)["shard"].to_pylist()))
        ends = np.concatenate(counts)
        if len(ends) and not (ends.min() > 0 and ends.max() <= MAX_SAMPLES // len(ends)):
            raise InputError(f"{table_url}: num_samples from {ends.min()} to {ends.max()} cannot be. Index anew")
        return cls(folder, np.cumsum(ends, out=ends), tuple(blocks), tuple(starts))

    @cached_property
    def shards(self) -> pa.Table:
        """The whole table, a row a shard."""
        return pa.Table.from_batches(_batches(self.url, SHARD_SCHEMA.names), SHARD_SCHEMA)

    @property
    def num_samples_per_shard(self) -> NDArray[np.int64]:
        """How many samples each shard has."""
        return np.diff(self.ends, prepend=0)

    @property
    def num_samples(self) -> int:
        """How many samples all shards have together."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def seconds(self) -> float:
        """How much audio all shards hold; 0 where the index was made from headers only."""
        return float(sum(second or 0.0 for batch in _batches(self.url, ["seconds"]) for second in batch[0].to_pylist()))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the shards' names, counts and checksums: equal when the data are.

        Raises:
            InputError: when the index changed since it was loaded.
        """
        return _patiently(self.url, self._fingerprint)

    def _fingerprint(self) -> str:
        digest, counts, blocks = hashlib.sha256(), [np.zeros(0, np.int64)], []
        with _from_malloc():
            for batch in _batches(self.url, ["shard", "num_samples", "num_bytes", "checksum", "samples"]):
                for row in zip(*(column.to_pylist() for column in batch.columns[:4]), strict=True):
                    digest.update(repr(row).encode())
                counts.append(_counts(batch))
                blocks.append(_packed(batch))
        if tuple(blocks) != self.blocks or not np.array_equal(np.cumsum(np.concatenate(counts)), self.ends):
            raise InputError(f"{self.url}: {INDEX_NAME} was replaced while it was in use. Start again")
        return digest.hexdigest()

    @cached_property
    def version(self) -> str | None:
        """Tells this index from those made here before and after it; None where storage tells no times."""
        url = storage.join(self.url, INDEX_NAME)
        (entry,) = _patiently(self.url, lambda: storage.stat([url]))
        if entry is None or not entry.mtime_ns:
            return None
        digest = hashlib.sha256(self.ends.tobytes())
        for block in self.blocks:
            digest.update(block)
        return f"{digest.hexdigest()} {entry.mtime_ns}"

    def row(self, shard: int) -> ShardRow:
        """What is known of a shard when it is read."""
        block = bisect_right(self.starts, shard) - 1
        return ShardRow(**self._block(block)[shard - self.starts[block]].as_py())

    def only(self, shard: int) -> Self:
        """The index of that shard alone: small enough to be sent along with a task."""
        row = pa.Table.from_pylist([self.row(shard)._asdict()])
        return type(self)(self.url, np.asarray([self._num_samples(shard)]), (pack(row),), (0, 1))

    def _num_samples(self, shard: int) -> int:
        return int(self.ends[shard] - (self.ends[shard - 1] if shard else 0))

    def shard_url(self, shard: int) -> str:
        """Where the tar of row `shard` is."""
        name = self.row(shard).shard
        return name if "://" in name or name.startswith("/") else storage.join(self.url, name)

    def samples(self, shard: int) -> pa.Table:
        """The sample table of row `shard`: a row a sample, in tar order.

        Raises:
            InputError: when it is missing, has another number of rows than the index says, or a row twice.
        """
        url = storage.join(self.url, self.row(shard).samples)
        table = read_table(
            url, SAMPLE_SCHEMA, missing=lambda: f"{url}: this sample table, named by {INDEX_NAME}, is missing"
        )
        expected = self._num_samples(shard)
        if len(table) != expected:
            raise InputError(f"{url}: {INDEX_NAME} says {expected} samples, the table has {len(table)}. Index anew")
        check_complete(url, table, ("key", "member", "offset", "size"))
        if len(set(table["offset"].to_pylist())) != len(table):
            raise InputError(
                f"{url}: two rows have the same offset: a clip would be read twice, and another never. Index anew"
            )
        return table

    @cached_property
    def _block(self) -> Callable[[int], Any]:
        """Unpacks a block; the last few are kept."""
        return lru_cache(maxsize=64)(lambda block: unpack(self.blocks[block]).to_struct_array())


def _check_reached(folder: str) -> None:
    """Refuses a server that does not answer soon, as it will not where the address or the credentials are wrong."""
    url = storage.join(folder, INDEX_NAME)
    if storage.is_local(folder):
        return
    try:
        Patience(FIRST_STALL_SECONDS, FIRST_DEADLINE_SECONDS).read(lambda: storage.open_input(url).close(), remote=True)
    except FileNotFoundError:
        return  # whoever reads it knows what to advise
    except (OSError, InputError, pa.ArrowException) as error:
        if isinstance(error, InputError) and not isinstance(error.__cause__, OSError):
            raise
        raise InputError(unreadable(url, error)) from error


def _patiently(folder: str, action: Callable[[], Result]) -> Result:
    # The index of a million shards is tens of megabytes, and there is no run without it.
    return Patience(stall_seconds=120, deadline_seconds=600).read(action, remote=not storage.is_local(folder))


@contextmanager
def _from_malloc() -> Iterator[None]:
    """Arrow allocates from malloc meanwhile: what its default pool keeps for later is more than what stays in use."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _counts(batch: pa.RecordBatch) -> NDArray[np.int64]:
    return np.array(np.from_dlpack(batch["num_samples"]))  # Arrow's own to_numpy imports pandas: 40 MB


def _packed(batch: pa.RecordBatch) -> bytes:
    return pack(pa.Table.from_batches([batch.select(ShardRow._fields)]))


def _batches(folder: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Those columns of the folder's index, some rows at a time, read by this thread (see `read_parquet`)."""
    url = storage.join(folder, INDEX_NAME)
    with as_input_errors(url, missing=lambda: _advice(folder)), storage.open_input(url) as file:
        table = pq.ParquetFile(file, pre_buffer=False)
        if lacking := [name for name in SHARD_SCHEMA.names if name not in table.schema_arrow.names]:
            raise ValueError(f"no column {', '.join(lacking)}")
        for batch in table.iter_batches(BLOCK_ROWS, columns=columns, use_threads=False):
            if len(batch):
                yield batch.select(columns).cast(_schema(columns))


def _schema(columns: list[str]) -> pa.Schema:
    return pa.schema([SHARD_SCHEMA.field(name) for name in columns])


def span_fault(offset: int, size: int, frames: int | None, num_bytes: int) -> str | None:
    """Why a row of a sample table cannot be that of a clip in a tar of `num_bytes`; None where it can."""
    if offset < 0 or not 0 <= size <= MAX_CLIP_BYTES or (frames is not None and frames < 1):
        return f"its index row cannot be: offset {offset}, size {size}, frames {frames}. Index the shard anew"
    if offset + size > num_bytes:
        return f"its index row lies outside the shard: offset {offset}, size {size}, in a shard of {num_bytes} bytes"
    return None


def _advice(folder: str) -> str:
    if not storage.exists(folder):
        return f'data.url "{folder}": no such folder'
    start = f'data.url "{folder}": no {INDEX_NAME} here'
    if any(entry.url.endswith(".tar") for entry in storage.list_entries(folder)):
        return f"{start}, but tars. Index them: scaleaudio shards index {folder}"
    return f"{start}. Build shards from audio: scaleaudio shards build {folder} SHARDS, then use data.url SHARDS"
