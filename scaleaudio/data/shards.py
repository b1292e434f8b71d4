"""WebDataset tars: written with the index rows that find each clip again, and verified.

A shard is a plain tar: `KEY.flac` and `KEY.json`, sample after sample; any WebDataset reader reads it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, Any

import pyarrow as pa
from rich.progress import track

from scaleaudio.data import storage
from scaleaudio.data.convert import Member
from scaleaudio.data.index import INDEX_NAME, SAMPLE_SCHEMA, ShardIndex, span_fault, write_table
from scaleaudio.data.patience import Patience
from scaleaudio.errors import InputError

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

    Each tar's size and sha256 are compared; where they differ, each member's checksum, so that the damaged ones have a
    name. Tars beside the index that it does not name are damages too. What an index from headers only lacks
    (checksums) cannot be checked: then only the sizes, and that each member lies inside its tar, are.

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
    damages: list[Damage] = []
    name = shards.row(shard).shard
    try:
        _compare(shards, shard, damages)
    except FileNotFoundError:
        damages.append(Damage(name, "", "missing"))
    except (InputError, OSError, pa.ArrowException) as error:
        damages.append(Damage(name, "", str(error)))
    return damages


def _compare(shards: ShardIndex, shard: int, damages: list[Damage]) -> None:
    """Adds the damages of a shard to `damages`, patient with storage; what cannot be read raises."""
    row, url = shards.shards.slice(shard, 1).to_pylist()[0], shards.shard_url(shard)
    name, patient = row["shard"], partial(Patience().read, remote=not storage.is_local(url))
    samples = patient(lambda: shards.samples(shard)).to_pylist()
    num_bytes, checksum = patient(
        lambda: _size_and_sha256(url, whole=row["checksum"] is not None), num_bytes=row["num_bytes"]
    )
    if num_bytes != row["num_bytes"]:
        damages.append(Damage(name, "", f"expected {row['num_bytes']} bytes, found {num_bytes}"))
    if checksum != row["checksum"] or damages:
        damages += patient(lambda: list(_damaged_members(name, url, samples, num_bytes)), num_bytes=num_bytes)
    if checksum != row["checksum"] and not damages:
        damages.append(Damage(name, "", "its sha256 differs, outside the audio members (headers or .json)"))
    if checksum == row["checksum"]:
        damages += [Damage(name, sample["member"], fault) for sample in samples if (fault := _fault(sample, num_bytes))]


def _fault(sample: dict[str, Any], num_bytes: int) -> str | None:
    return span_fault(sample["offset"], sample["size"], sample["frames"], num_bytes)


def _damaged_members(name: str, url: str, samples: list[dict[str, Any]], num_bytes: int) -> Iterator[Damage]:
    with storage.open_input(url) as file:
        for sample in samples:
            if fault := _fault(sample, num_bytes):
                yield Damage(name, sample["member"], f"cut off, or wrongly indexed: {fault}")
            elif sample["checksum"] not in (None, crc32_hex(file.read_at(sample["size"], sample["offset"]))):
                yield Damage(name, sample["member"], "its bytes differ from the indexed checksum")


def _size_and_sha256(url: str, *, whole: bool) -> tuple[int, str | None]:
    with storage.open_input(url) as file:
        if not whole:
            return int(file.size()), None
        digest, count = hashlib.sha256(), 0
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            count += len(block)
    return count, digest.hexdigest()
