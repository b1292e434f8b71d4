"""What a tar holds, and where: by its headers alone. Nothing is extracted, and no header is believed.

The standard library's tarfile knows every dialect (ustar, GNU and PAX long names), but it reads whatever length a
header claims, and on some hostile headers it goes back or round for ever. So it is given a file that hands out little
at a time, and each step has to lead forward.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK_BYTES = 1 << 20
# A path has 4,096 bytes at most; extended attributes may make a header a few times longer.
MAX_HEADER_BYTES = 1 << 16
MAX_HEADERS_BYTES = 1 << 20
# A file of 512 bytes whose header says gzip, bzip2, xz or zstd.
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MANY_DIGITS = re.compile(rb"\d{1000}")
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.DIRTYPE: "a folder",
}


class DamagedTar(ValueError):
    """A tar that cannot be read to its end; the message is the reason."""


class Entry(NamedTuple):
    """One member: its bytes are `size` bytes from `offset` on, unless `fault` says why they are not to be had."""

    name: str
    offset: int
    size: int
    fault: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is only the name of a folder."""
        return self.fault == _KINDS[tarfile.DIRTYPE]


def entries(file: Any, num_bytes: int) -> Iterator[Entry]:
    """Every member of the tar `file` of `num_bytes`, front to back; between two of them `file` may be read elsewhere.

    Raises:
        DamagedTar: cut off, a damaged header, compressed, or headers that make no sense.
    """
    headers, end = _Headers(file, num_bytes), 0
    try:
        with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members = []  # else it keeps all of them
                if member.size < 0 or tar.offset <= end:
                    raise DamagedTar(f"the header at byte {end} leads back, not on")
                end = tar.offset
                yield Entry(printable(member.name), member.offset_data, member.size, _fault(member))
                headers.begin_member()
            end = tar.offset
    except DamagedTar:
        raise
    except tarfile.TarError as error:
        raise DamagedTar(_packed(file) or printable(str(error))[:200]) from error
    except (EOFError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise DamagedTar(_packed(file) or f"a header that makes no sense: {printable(str(error))[:200]}") from error
    _check_end(file, end)


def printable(text: str) -> str:
    r"""`text` as it can be stored and shown: control characters, and bytes that are no UTF-8, as \x1b or \udce9."""
    return "".join(
        char if unicodedata.category(char) not in ("Cc", "Cs") else char.encode("unicode_escape").decode()
        for char in text
    )


def _fault(member: tarfile.TarInfo) -> str | None:
    if member.issparse():
        return "stored sparse: it has no bytes at one place"
    return None if member.isreg() else _KINDS.get(member.type, f"of the unknown kind {member.type!r}")


def _packed(file: Any) -> str | None:
    file.seek(0)
    start = file.read(6)
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            return f"compressed ({name}): no byte can be read at an offset. Unpack it, and index the .tar"
    return None if start else "an empty file (0 bytes)"


def _check_end(file: Any, end: int) -> None:
    """Refuses what tarfile takes a damaged header, or the lack of any, for the end without a word."""
    file.seek(end)
    block = file.read(BLOCK_BYTES)
    if not block:
        raise DamagedTar(f"cut off after {end} bytes: the blocks that end a tar are missing")
    while block:
        if block.count(0) != len(block):
            raise DamagedTar(f"a damaged header at byte {end}")
        block = file.read(BLOCK_BYTES)


class _Headers:
    """The file that tarfile sees: no more than a header's worth at a time, and no end that it could wait at."""

    def __init__(self, file: Any, num_bytes: int) -> None:
        self._file, self._num_bytes, self._at = file, num_bytes, 0
        self.begin_member()

    def begin_member(self) -> None:
        self._left, self._num_empty = MAX_HEADERS_BYTES, 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or not 0 <= position <= self._num_bytes:
            raise tarfile.ReadError(f"cut off, or a damaged header: it leads to byte {position} of {self._num_bytes}")
        self._at = position
        return position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= min(MAX_HEADER_BYTES, self._left):
            raise tarfile.ReadError(f"a header before byte {self._at} claims {size} bytes of header")
        self._file.seek(self._at)
        data = bytes(self._file.read(size))
        self._at += len(data)
        self._left -= len(data)
        self._num_empty += not data
        if self._num_empty > 2:
            raise tarfile.ReadError("cut off inside a header")
        if _MANY_DIGITS.search(data):  # tarfile's search for an encoding takes the square of their number
            raise tarfile.ReadError(f"a header before byte {self._at} holds a number of over 1000 digits")
        return data


class Hashed:
    """A file that is read front to back, small steps back allowed; its sha256 covers every byte once."""

    def __init__(self, file: Any) -> None:
        """Nothing read yet."""
        self._file, self.digest = file, hashlib.sha256()
        self._at = self._hashed = 0

    def seek(self, position: int) -> int:
        """Moves to `position`, by way of what lies before it; not beyond the end."""
        while self._hashed < position and self._read(self._hashed, min(BLOCK_BYTES, position - self._hashed)):
            pass
        self._at = position
        return position

    def read(self, size: int) -> bytes:
        """Up to `size` bytes from here on."""
        data = self._read(self._at, size)
        self._at += len(data)
        return data

    def _read(self, start: int, size: int) -> bytes:
        if start > self._hashed:
            return b""  # the file ended before
        self._file.seek(start)
        data = bytes(self._file.read(size))
        fresh = start + len(data) - self._hashed
        if fresh > 0:
            self.digest.update(data[-fresh:])
            self._hashed += fresh
        return data
