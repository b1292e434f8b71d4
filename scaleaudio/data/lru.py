"""The values that were used last, by key and up to a total size: what is at hand costs no request."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRU(Generic[Key, Value]):
    """Values of at most `max_size` together, or one that is larger; meant to be used from several threads at once."""

    def __init__(self, max_size: int) -> None:
        """Nothing yet."""
        self._max_size, self._size = max_size, 0
        self._values: dict[Key, tuple[Value, int]] = {}  # what was unused for longest comes first
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """What was put under `key`, where it is still here."""
        with self._lock:
            found = self._values.pop(key, None)
            if found is None:
                return None
            self._values[key] = found
            return found[0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keeps `value`, of that size, at the cost of those unused for longest."""
        with self._lock:
            self._remove(key)
            self._values[key] = value, size
            self._size += size
            while self._size > self._max_size and len(self._values) > 1:
                self._remove(next(iter(self._values)))

    def drop(self, key: Key) -> None:
        """Keeps nothing under `key`."""
        with self._lock:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        if key in self._values:
            self._size -= self._values.pop(key)[1]
