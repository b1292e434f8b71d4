"""What was read from an object store, kept on the local disk for the workers of one machine to share.

A piece is a file of its own, named by what it holds, with a checksum at its end that is checked at each read. It is
written beside and renamed. So a worker that is killed costs a read, and never leaves a wrong byte. The pieces unused
for longest for their size go first; how much is kept is counted in a file that is locked while it is counted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from scaleaudio.data.storage import is_local
from scaleaudio.errors import InputError

SUFFIX = ".piece"
# After an eviction the cache is this full, so that not every piece that comes costs another.
FULL_AFTER_EVICTION = 0.9
# What a killed worker was writing is taken away once it is this old.
STALE_SECONDS = 3600.0
TOUCH_SECONDS = 60.0


class Cache:
    """Pieces of bytes by name in the folder `folder`, at most `max_bytes` of them, shared with other processes.

    A disk that fails or is full is no error: then less is kept, and more is read from afar.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        """Makes the folder.

        Raises:
            InputError: when it cannot be made or written.
        """
        if not is_local(folder):
            raise InputError(f'data.cache_dir "{folder}": expected a folder on a local disk. Give a path')
        self._folder, self._max_bytes = Path(folder).expanduser().absolute(), max_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._counted():
                pass
        except OSError as error:
            raise InputError(f'data.cache_dir "{folder}": cannot be written ({error}). Give another folder') from error

    def get(self, name: str) -> bytes | None:
        """The piece that was put under `name`, or None where it is not here, or is damaged."""
        path = self._path(name)
        try:
            content = path.read_bytes()
            if time.time() - path.stat().st_mtime > TOUCH_SECONDS:
                os.utime(path)
        except OSError:
            return None
        data, end = content[:-4], content[-4:]
        if end != _checksum(name, data):
            with suppress(OSError):
                path.unlink()
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keeps `data` under `name` where there is room for it, at the cost of those unused longest for their size."""
        path, size = self._path(name), len(data) + 4
        if size > self._max_bytes * (1 - FULL_AFTER_EVICTION) or path.exists():
            return
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with self._counted() as count:
                _write_count(count, self._room_for(size, _read_count(count)))
            path.parent.mkdir(exist_ok=True)
            with temporary.open("xb") as file:
                file.write(data)
                file.write(_checksum(name, data))
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        return self._folder / digest[:2] / f"{digest[2:34]}{SUFFIX}"

    def _room_for(self, size: int, total: int | None) -> int:
        """The bytes kept once `size` more are, after an eviction where that would be too much."""
        if total is not None and total + size <= self._max_bytes:
            return total + size
        now = time.time()
        # Each saves a request, so one of a hundredth of the size (a sample table) may be unused a hundred times longer.
        pieces = sorted(self._pieces(), key=lambda piece: (piece[0] - now) * piece[1])
        kept = sum(piece_size for _, piece_size, _ in pieces)
        for _, piece_size, path in pieces:
            if kept + size <= self._max_bytes * FULL_AFTER_EVICTION:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            kept -= piece_size
        return kept + size

    def _pieces(self) -> Iterator[tuple[float, int, str]]:
        """(last use, size, path) of all that is here, half-written pieces too unless they were left behind."""
        for folder in self._folder.glob("??/"):
            for entry in os.scandir(folder):  # of 100,000 pieces Path.glob would take three times as long
                with suppress(FileNotFoundError):
                    info = entry.stat()
                    if not entry.name.endswith(SUFFIX) and time.time() - info.st_mtime > STALE_SECONDS:
                        os.unlink(entry.path)
                    else:
                        yield info.st_mtime, info.st_size, entry.path

    @contextmanager
    def _counted(self) -> Iterator[IO[bytes]]:
        """The file that counts the bytes, for this process alone."""
        with open(os.open(self._folder / "bytes", os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, or the process dies
            yield file


def _checksum(name: str, data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(name.encode("utf-8", "surrogateescape"))).to_bytes(4, "little")


def _read_count(file: IO[bytes]) -> int | None:
    """None where it was never counted, or the count is damaged: then what is there is counted anew."""
    digits = file.read(20)
    return int(digits) if digits.isdigit() else None


def _write_count(file: IO[bytes], total: int) -> None:
    file.seek(0)
    file.truncate()
    file.write(b"%d" % total)
