"""The sample tables of an index, as a stream needs them: packed, at hand, fetched from afar once for a whole machine.

An epoch goes through all shards in chunks of few clips, so a worker comes back to a table only after many others. What
a chunk takes of one is some 26 bytes a clip, packed: so little that memory, or else the cache's disk, holds many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleaudio.data.lru import LRU
from scaleaudio.data.packed import pack
from scaleaudio.data.storage import is_local

if TYPE_CHECKING:
    from scaleaudio.data.cache import Cache
    from scaleaudio.data.index import ShardIndex

_COLUMNS = ["key", "offset", "size", "frames", "checksum"]


class SampleTables:
    """The tables of `index`, by shard: those used last in memory, and those from afar in `cache` too."""

    def __init__(self, index: ShardIndex, cache: Cache | None, max_bytes: int) -> None:
        """Holds tables of at most `max_bytes` together in memory.

        Raises:
            OSError: when there is a cache, and storage does not answer.
        """
        self._index = index
        self._version = None if cache is None or is_local(index.url) else index.version
        self._cache = cache if self._version else None
        self._kept = LRU[int, bytes](max_bytes)

    def at_hand(self, shard: int) -> bytes | None:
        """The packed table of a shard, where no storage needs to be asked for it."""
        packed = self._kept.get(shard)
        if packed is None and self._cache and (packed := self._cache.get(self._name(shard))) is not None:
            self._kept.put(shard, packed, len(packed))
        return packed

    def fetch(self, shard: int) -> bytes:
        """The packed table of a shard, read anew.

        Raises:
            InputError, OSError: as ShardIndex.samples.
        """
        packed = pack(self._index.samples(shard).select(_COLUMNS))
        self._kept.put(shard, packed, len(packed))
        if self._cache:
            self._cache.put(self._name(shard), packed)
        return packed

    def _name(self, shard: int) -> str:
        return f"sample table {shard} {_COLUMNS} of {self._index.url} {self._version}"
