"""Sample numbers -> the bytes of their audio members, by few ranged reads.

In an object store, neighbours in a tar come in one request and are held until they are used. On a local disk the
kernel's page cache holds them: it is told ahead, and each member is read when its turn comes. Either way whether a
sample is usable depends on that sample alone, not on what it was read with.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from scaleaudio.data.index import ShardIndex, span_fault
from scaleaudio.data.order import Integers
from scaleaudio.data.storage import is_local, open_input, open_url
from scaleaudio.errors import DecodeError, InputError

Result = TypeVar("Result")

# Bytes between two members (a .json, or the picture beside the sound in someone else's tar) that cost less to read
# than a further request does.
MAX_GAP_BYTES = 1 << 18
NUM_TRIES = 3
FIRST_WAIT_SECONDS = 0.2


class Member(NamedTuple):
    """One audio file in a shard, as the index describes it (None: it does not say).

    `fault` says why that cannot be true; `data` holds its bytes where they were read ahead.
    """

    shard: str
    url: str
    key: str
    offset: int
    size: int
    frames: int | None
    checksum: str | None
    shard_bytes: int
    fault: str | None = None
    data: bytes | None = None


class Fetcher:
    """Finds and reads samples by number, patiently; meant to be called from several threads at once."""

    def __init__(self, index: ShardIndex, chunk_samples: int, num_tables: int = 64) -> None:
        """Reads from `index`; `num_tables` sample tables (about 100 kB each) are kept at hand."""
        self._index = index
        self._chunk_samples = chunk_samples
        self._table = lru_cache(maxsize=num_tables)(self._load_table)
        self._failed: set[str] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends all waiting between tries."""
        self._stopped.set()

    def groups(self, numbers: Integers) -> list[Integers]:
        """`numbers` sorted and cut into what one call of `read_ahead` takes: one chunk of one shard each."""
        ordered = np.sort(numbers)
        chunk, shard = ordered // self._chunk_samples, self._shard(ordered)
        cuts = np.flatnonzero((np.diff(chunk) != 0) | (np.diff(shard) != 0)) + 1
        return np.split(ordered, cuts)

    def place(self, number: int) -> tuple[int, int]:
        """The shard of a sample, and its row in that shard's table."""
        shard = int(self._shard(np.asarray([number]))[0])
        return shard, number - (int(self._index.ends[shard - 1]) if shard else 0)

    def read_ahead(self, group: Integers) -> dict[int, Member]:
        """The members of one of `groups`, by number, with their bytes at hand or on their way.

        None where any of them cannot be found or read; `find` and `load` then say which, and why.
        """
        try:
            found = zip(group.tolist(), self._members(group), strict=True)
            usable = {number: member for number, member in found if not member.fault}
            return dict(zip(usable, self._filled(list(usable.values())), strict=True)) if usable else {}
        except DecodeError:
            return {}

    def find(self, number: int) -> Member:
        """Where a sample is.

        Raises:
            DecodeError: when its shard's sample table is not to be had after several tries.
        """
        return self._members(np.asarray([number]))[0]

    def load(self, member: Member) -> bytes:
        """The bytes of `member`, once they are those that were indexed.

        Raises:
            DecodeError: when its shard is missing, too short, changed, or not to be had after several tries.
        """
        if member.fault:
            raise DecodeError(member.fault)
        data = member.data
        if data is None:
            data = self._patiently(member.shard, lambda: _read([member]))[0]
        if member.checksum is not None and f"{zlib.crc32(data):08x}" != member.checksum:
            raise DecodeError("its bytes are not those of the index: the shard changed since it was indexed, or broke")
        return data

    def name(self, number: int) -> tuple[str, str]:
        """The shard and the key of a sample; where its table cannot be read, its row stands for the key."""
        try:
            member = self.find(number)
            return member.shard, member.key
        except DecodeError:
            shard, row = self.place(number)
            return self._index.row(shard).shard, f"row {row}"

    def _filled(self, members: list[Member]) -> list[Member]:
        if is_local(members[0].url):
            _advise(members)
            return members
        data = self._patiently(members[0].shard, lambda: _read(members))
        return [member._replace(data=part) for member, part in zip(members, data, strict=True)]

    def _members(self, group: Integers) -> list[Member]:
        shard, first = self.place(int(group[0]))
        rows = self._table(shard).slice(first, int(group[-1] - group[0]) + 1).to_pylist()
        (name, _, num_bytes), url = self._index.row(shard), self._index.shard_url(shard)
        chosen = [rows[number - group[0]] for number in group]
        faults = [span_fault(row["offset"], row["size"], row["frames"], num_bytes) for row in chosen]
        return [
            Member(name, url, **row, shard_bytes=num_bytes, fault=fault)
            for row, fault in zip(chosen, faults, strict=True)
        ]

    def _load_table(self, shard: int) -> pa.Table:
        columns = ["key", "offset", "size", "frames", "checksum"]
        return self._patiently(self._index.row(shard).shard, lambda: self._index.samples(shard).select(columns))

    def _patiently(self, shard: str, action: Callable[[], Result]) -> Result:
        """action(), tried again after a while; a shard that failed all tries is not waited for again."""
        num_tries = 1 if shard in self._failed else NUM_TRIES
        for attempt in range(num_tries):
            try:
                return action()
            except (OSError, InputError, pa.ArrowException) as error:
                reason = f"cannot be read: {' '.join(str(error).split())}"
            if attempt + 1 < num_tries and self._stopped.wait(FIRST_WAIT_SECONDS * 4**attempt):
                break
        self._failed.add(shard)
        raise DecodeError(reason)

    def _shard(self, numbers: Integers) -> Integers:
        return np.searchsorted(self._index.ends, numbers, side="right")


def _advise(members: list[Member]) -> None:
    """Has the kernel read `members` of one local file ahead, where it takes such advice."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        descriptor = os.open(open_url(members[0].url)[1], os.O_RDONLY)
    except OSError:
        return  # `load` will say why
    try:
        for run in _runs(members):
            os.posix_fadvise(descriptor, run[0].offset, _end(run) - run[0].offset, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def _read(members: list[Member]) -> list[bytes]:
    """The bytes of `members` of one file, neighbours by a read in common."""
    found = []
    with open_input(members[0].url) as file:
        _check_size(members, file.size())
        for run in _runs(members):
            start, size = run[0].offset, _end(run) - run[0].offset
            # Asked before, since a read that the file cannot fill takes the memory for it all the same.
            data = bytes(file.read_at(size, start)) if start + size <= file.size() else b""
            if len(data) != size:
                raise OSError(f"the shard ends before byte {start + size}: it is shorter than its index says")
            # Copies: a view would hold the whole read until its last sample is used.
            found += [data[member.offset - start : member.offset - start + member.size] for member in run]
    return found


def _check_size(members: list[Member], num_bytes: int) -> None:
    """Refuses another file than the one indexed, where no checksum will tell."""
    indexed = members[0].shard_bytes
    if num_bytes != indexed and any(member.checksum is None for member in members):
        raise OSError(f"the shard has another size than when it was indexed: {num_bytes} bytes, and {indexed} then")


def _runs(members: list[Member]) -> Iterator[list[Member]]:
    """`members` cut wherever too many bytes lie between two of them."""
    start = 0
    for at in range(1, len(members)):
        if not 0 <= members[at].offset - _end(members[at - 1 : at]) <= MAX_GAP_BYTES:
            yield members[start:at]
            start = at
    yield members[start:]


def _end(members: list[Member]) -> int:
    return members[-1].offset + members[-1].size
