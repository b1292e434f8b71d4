"""WebDataset tars: written with the index rows that find each clip again, and verified.

A shard is a plain tar: `KEY.flac` and `KEY.json`, sample after sample; any WebDataset reader reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import IO, Any

import pyarrow as pa
from rich.progress import track

from scaleaudio.data import storage
from scaleaudio.data.convert import Member
from scaleaudio.data.decode import measure
from scaleaudio.data.index import INDEX_NAME, SAMPLE_SCHEMA, ShardIndex, span_fault
from scaleaudio.data.parquet import write_table
from scaleaudio.data.patience import Patience
from scaleaudio.data.tars import Hashed
from scaleaudio.errors import DecodeError, InputError

BLOCK_BYTES = 1 << 20
TAR_HEADER_BYTES = 512
_NUM_VERIFIED_AT_ONCE = 8


@dataclass(frozen=True)
class Damage:
    """A fault of one shard; `member` is "" when it is not that of one member."""

    shard: str
    member: str
    reason: str


class ShardWriter:
    """Writes samples into tars of bounded size below `out`, each with its sample table; a context manager.

    Names are `NAME-00.tar`, `NAME-01.tar` ... Each tar appears whole, after its table. `shards` holds the finished
    ones' rows for the index.
    """

    def __init__(self, out: str, name: str, *, shard_bytes: int, shard_samples: int) -> None:
        """Opens nothing yet: a writer that is given no sample leaves no shard."""
        self.shards: list[dict[str, Any]] = []
        self._out, self._name = out, name
        self._limits = (shard_bytes, shard_samples)
        self._samples: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._file: _Counted | None = None
        self._tar: Any = None

    def __enter__(self) -> ShardWriter:
        """This writer."""
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        """Finishes the last shard; after an exception the shard at hand is dropped."""
        if kind is None:
            self._finish()
            return
        if self._tar is not None and self._file is not None:
            self._file.is_dropped = True
            self._tar.close()
        self._stack.__exit__(kind, value, trace)

    def add(self, key: str, member: Member, label: dict[str, Any]) -> None:
        """Appends one sample, in a new shard when this one is full."""
        if self._tar is None:
            self._start()
        start = self._tar.tarstream.offset
        self._tar.write({"__key__": key, member.suffix: member.data})
        text = json.dumps(label, ensure_ascii=False, sort_keys=True, allow_nan=False)
        self._tar.write({"__key__": key, "json": text.encode()})
        self._samples.append(
            {
                "key": key,
                "member": f"{key}.{member.suffix}",
                "offset": start + TAR_HEADER_BYTES,
                "size": len(member.data),
                "frames": member.frames,
                "sample_rate_hz": member.sample_rate_hz,
                "label": text,
                "checksum": crc32_hex(member.data),
            }
        )
        if self._tar.tarstream.offset >= self._limits[0] or len(self._samples) >= self._limits[1]:
            self._finish()

    def _start(self) -> None:
        from webdataset.writer import TarWriter  # imports torch

        name = f"{self._name}-{len(self.shards):02d}.tar"
        self._file = _Counted(self._stack.enter_context(storage.open_atomic(storage.join(self._out, name))))
        self._tar = TarWriter(self._file, encoder=False, mtime=0)

    def _finish(self) -> None:
        if self._tar is None or self._file is None:
            return
        name = f"{self._name}-{len(self.shards):02d}"
        self._tar.close()
        write_table(storage.join(self._out, f"samples/{name}.parquet"), self._samples, SAMPLE_SCHEMA)
        self._stack.close()
        self.shards.append(shard_row(f"{name}.tar", self._samples, self._file.num_bytes, self._file.digest.hexdigest()))
        self._tar, self._file, self._samples = None, None, []


class _Counted:
    """A file being written whose length and sha256 are known at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.num_bytes, self.digest = file, 0, hashlib.sha256()
        self.is_dropped = False

    def write(self, data: bytes) -> int:
        if not self.is_dropped:
            self._file.write(data)
        self.digest.update(data)
        self.num_bytes += len(data)
        return len(data)


def shard_row(shard: str, samples: list[dict[str, Any]], num_bytes: int, checksum: str | None) -> dict[str, Any]:
    """The index row of a shard with these sample rows."""
    known = [row for row in samples if row["frames"] is not None]
    return {
        "shard": shard,
        "num_samples": len(samples),
        "num_bytes": num_bytes,
        "seconds": sum(row["frames"] / row["sample_rate_hz"] for row in known) if len(known) == len(samples) else None,
        "checksum": checksum,
        "samples": f"samples/{shard.removesuffix('.tar')}.parquet",
    }


def crc32_hex(data: bytes) -> str:
    """The checksum of one member."""
    return f"{zlib.crc32(data):08x}"


def verify(url: str, *, progress: bool = False) -> list[Damage]:
    """The damages of the shards that the index at `url` names; empty when all are as they were indexed.

    Each tar's size and sha256 are compared, and whether its sample table is true: each member's checksum, number of
    frames and sample rate. Tars beside the index that it does not name are damages too. What an index from headers only
    lacks cannot be checked: then only the sizes, and that each member lies inside its tar, are.

    Raises:
        InputError: there is no index at `url`.
    """
    shards = ShardIndex.load(url)
    found = track(_verify_all(shards), "verify", len(shards.shards), disable=not progress)
    damages = [damage for some in found for damage in some]
    named = {shards.shard_url(shard) for shard in range(len(shards.shards))}
    try:
        strangers = [tar for tar in storage.list_files(shards.url, ".tar") if tar not in named]
    except InputError:
        strangers = []  # a web server that does not list what it has
    return damages + [Damage(tar.rpartition("/")[2], "", f"not in {INDEX_NAME}") for tar in strangers]


def num_unchecked(url: str) -> int:
    """How many shards the index at `url` has no checksum of, as it was made from headers only."""
    return int(ShardIndex.load(url).shards["checksum"].null_count)


def _verify_all(shards: ShardIndex) -> Iterator[list[Damage]]:
    """The damages of each shard in order; a few shards are read at a time, and no more are under way."""
    numbers = iter(range(len(shards.ends)))
    with ThreadPoolExecutor(_NUM_VERIFIED_AT_ONCE) as pool:
        ahead = deque(pool.submit(_verify_shard, shards, shard) for shard in islice(numbers, 2 * _NUM_VERIFIED_AT_ONCE))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(_verify_shard, shards, shard) for shard in islice(numbers, 1))


def _verify_shard(shards: ShardIndex, shard: int) -> list[Damage]:
    row, url = shards.shards.slice(shard, 1).to_pylist()[0], shards.shard_url(shard)
    name, patient = row["shard"], partial(Patience().read, remote=not storage.is_local(url))
    try:
        samples = patient(lambda: shards.samples(shard)).to_pylist()
        num_bytes, checksum, damages = patient(
            lambda: _examine(name, url, samples, whole=row["checksum"] is not None), num_bytes=row["num_bytes"]
        )
    except FileNotFoundError:
        return [Damage(name, "", "missing")]
    except (InputError, OSError, pa.ArrowException) as error:
        return [Damage(name, "", str(error))]
    if num_bytes != row["num_bytes"]:
        damages.insert(0, Damage(name, "", f"expected {row['num_bytes']} bytes, found {num_bytes}"))
    if checksum != row["checksum"] and not damages:
        damages.append(Damage(name, "", "its sha256 differs, outside the audio members (headers or .json)"))
    return damages


def _examine(
    name: str, url: str, samples: list[dict[str, Any]], *, whole: bool
) -> tuple[int, str | None, list[Damage]]:
    """A tar's size, its sha256 if it is read whole, and the damages of its members, all from one reading of it."""
    with storage.open_input(url) as file:
        num_bytes = int(file.size())
        # In large blocks: between two members there are a few hundred bytes.
        hashed = Hashed(io.BufferedReader(file, BLOCK_BYTES))
        faults = [
            (sample, _member_fault(hashed, sample, num_bytes)) for sample in sorted(samples, key=itemgetter("offset"))
        ]
        if whole:
            hashed.seek(num_bytes)
    damages = [Damage(name, sample["member"], fault) for sample, fault in faults if fault]
    return num_bytes, hashed.digest.hexdigest() if whole else None, damages


def _member_fault(file: Hashed, sample: dict[str, Any], num_bytes: int) -> str | None:
    """In what the member differs from its index row, as far as that says anything."""
    frames, rate_hz, checksum = sample["frames"], sample["sample_rate_hz"], sample["checksum"]
    if fault := span_fault(sample["offset"], sample["size"], frames, num_bytes):
        return f"cut off, or wrongly indexed: {fault}"
    if frames is None and checksum is None:
        return None
    file.seek(sample["offset"])
    data = file.read(sample["size"])
    if checksum not in (None, crc32_hex(data)):
        return "its bytes differ from the indexed checksum, or do not lie where the index says"
    try:
        info = measure(data) if frames is not None else None
    except DecodeError as error:
        return f"indexed with {frames} frames, but {error}"
    if info and (info.frames, info.sample_rate_hz) != (frames, rate_hz):
        return f"indexed with {frames} frames at {rate_hz} Hz, but it has {info.frames} at {info.sample_rate_hz} Hz"
    return None
