"""Sample numbers -> the bytes of their audio members, by few ranged reads.

In an object store, neighbours in a tar come in one request and are held, within a budget, until they are used. On a
local disk the kernel's page cache holds them: it is told ahead, and each member is read when its turn comes. Either way
whether a sample is usable depends on that sample alone, not on what it was read with.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from scaleaudio.data.index import ShardIndex, span_fault
from scaleaudio.data.lru import LRU
from scaleaudio.data.order import Integers
from scaleaudio.data.packed import unpack_rows
from scaleaudio.data.patience import Patience, may_pass
from scaleaudio.data.ranges import Member, advise, read_members
from scaleaudio.data.storage import is_local
from scaleaudio.data.tables import SampleTables
from scaleaudio.errors import DecodeError, InputError

if TYPE_CHECKING:
    from scaleaudio.data.cache import Cache

Result = TypeVar("Result")

# Of members read ahead from afar and not used yet; beyond that they are read alone, each when its turn comes.
MAX_HELD_BYTES = 1 << 29
# Packed sample tables (some 26 bytes a clip), and shards that stay open.
MAX_TABLE_BYTES, MAX_OPEN_BYTES = 1 << 25, 1 << 27
# A shard that could not be reached until the deadline fails at once for so long; then one clip tries again.
COOL_DOWN_SECONDS = 60.0
# How the reasons begin that lie with storage, not with the clip.
UNREADABLE = "cannot be read"
CHANGED = "its bytes are not those of the index"


class Fetcher:
    """Finds and reads samples by number, patiently; meant to be called from several threads at once."""

    def __init__(
        self,
        index: ShardIndex,
        chunk_samples: int,
        *,
        patience: Patience | None = None,
        cache: Cache | None = None,
        max_held_bytes: int | None = None,
        num_sources: int = 1,
    ) -> None:
        """Reads from `index`.

        Args:
            index: of the shards.
            chunk_samples: neighbouring samples that are read together.
            patience: with storage.
            cache: keeps what came from an object store; then whole chunks are read, since the rest is needed too.
            max_held_bytes: read ahead from an object store and not used yet, at most; by default MAX_HELD_BYTES.
            num_sources: that share what may be held.
        """
        self._index = index
        self._chunk_samples = chunk_samples
        self._tables = SampleTables(index, cache, MAX_TABLE_BYTES // num_sources)
        self._files = LRU[str, Any](MAX_OPEN_BYTES // num_sources)
        self._failed: set[str] = set()
        self._unreachable: dict[str, tuple[float, str]] = {}  # shard -> not tried before then, and why
        self._patience = patience or Patience()
        self._cache = cache
        self._lock = threading.Lock()
        self._room = (max_held_bytes or MAX_HELD_BYTES) // num_sources

    def stop(self) -> None:
        """Ends all waiting for storage."""
        self._patience.stop()

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
        """The members of one of `groups`, by number, with their bytes at hand or on their way while there is room.

        Those that have their bytes are to be given to `load`, which makes the room free. None where any of them cannot
        be found or read; `find` and `load` then say which, and why.
        """
        try:
            usable = self._usable(group)
            if not usable:
                return {}
            if is_local(next(iter(usable.values())).url):
                advise(list(usable.values()))
                return usable
            held = {number: member for number, member in usable.items() if self._hold(member.size)}
            if held:
                within = usable if self._cache is None else self._usable(self._whole_chunk(group))
                usable |= self._filled(held, within)
            return usable
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
        if member.data is not None:
            self._hold(-member.size)
            if _is_whole(member, member.data):
                return member.data
        # Alone, and anew where it was read ahead: it may have broken on its way, or in a cache.
        data = self._patiently(
            member.shard, member.url, lambda: read_members([member], files=self._files), member.size
        )[0]
        if not _is_whole(member, data):
            raise DecodeError(f"{CHANGED}: the shard changed since it was indexed, or broke")
        return data

    def name(self, number: int) -> tuple[str, str]:
        """The shard and the key of a sample; where its table cannot be read, its row stands for the key."""
        try:
            member = self.find(number)
            return member.shard, member.key
        except DecodeError:
            shard, row = self.place(number)
            return self._index.row(shard).shard, f"row {row}"

    def _hold(self, num_bytes: int) -> bool:
        """Takes that much of what may be held, where there is as much left; a negative number gives it back."""
        with self._lock:
            if num_bytes > self._room:
                return False
            self._room -= num_bytes
            return True

    def _usable(self, group: Integers) -> dict[int, Member]:
        """Those whose index rows make sense."""
        found = zip(group.tolist(), self._members(group), strict=True)
        return {number: member for number, member in found if not member.fault}

    def _whole_chunk(self, group: Integers) -> Integers:
        """All samples of the chunk and shard of `group`."""
        number = int(group[0])
        shard, row = self.place(number)
        first = number // self._chunk_samples * self._chunk_samples
        return np.arange(max(first, number - row), min(first + self._chunk_samples, int(self._index.ends[shard])))

    def _filled(self, usable: dict[int, Member], within: dict[int, Member]) -> dict[int, Member]:
        """`usable` with their bytes, read together with their neighbours in `within`."""
        members, neighbours = list(usable.values()), list(within.values())
        num_bytes = sum(member.size for member in neighbours)
        first = members[0]

        def read() -> list[bytes]:
            return read_members(members, within=neighbours, cache=self._cache, files=self._files)

        try:
            data = self._patiently(first.shard, first.url, read, num_bytes)
        except BaseException:
            self._hold(-sum(member.size for member in members))
            raise
        filled = (member._replace(data=part) for member, part in zip(members, data, strict=True))
        return dict(zip(usable, filled, strict=True))

    def _members(self, group: Integers) -> list[Member]:
        shard, first = self.place(int(group[0]))
        (name, _, num_bytes), url = self._index.row(shard), self._index.shard_url(shard)
        table = self._tables.at_hand(shard) or self._patiently(name, url, lambda: self._tables.fetch(shard))
        found = unpack_rows(table, first, first + int(group[-1] - group[0]) + 1)
        chosen = [found[number - group[0]] for number in group]
        faults = [span_fault(row["offset"], row["size"], row["frames"], num_bytes) for row in chosen]
        return [
            Member(name, url, **row, shard_bytes=num_bytes, fault=fault)
            for row, fault in zip(chosen, faults, strict=True)
        ]

    def _patiently(self, name: str, url: str, action: Callable[[], Result], num_bytes: int = 0) -> Result:
        """action(), tried again after a while; a shard that failed for good is not waited for again."""
        remote, briefly = not is_local(url), name in self._failed
        if unreachable := self._unreachable.get(name):
            again, reason = unreachable
            if time.monotonic() < again:
                raise DecodeError(reason)
            self._unreachable[name] = time.monotonic() + COOL_DOWN_SECONDS, reason  # one tries, the others need not
        try:
            result = self._patience.read(action, remote=remote, num_bytes=num_bytes, briefly=briefly)
        except (OSError, InputError, pa.ArrowException) as error:
            reason = f"{UNREADABLE}: {' '.join(str(error).split())}"
            self._failed.add(name)
            if remote and may_pass(error):
                self._unreachable[name] = time.monotonic() + COOL_DOWN_SECONDS, reason
            raise DecodeError(reason) from error
        self._failed.discard(name)
        self._unreachable.pop(name, None)
        return result

    def _shard(self, numbers: Integers) -> Integers:
        return np.searchsorted(self._index.ends, numbers, side="right")


def _is_whole(member: Member, data: bytes) -> bool:
    return member.checksum is None or f"{zlib.crc32(data):08x}" == member.checksum
