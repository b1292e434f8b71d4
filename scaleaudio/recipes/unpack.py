"""Archives onto the local disk: no member leaves the folder or becomes a link, and no header is believed.

Each file appears whole or not at all, and one that is there with its full size is passed over: so what was interrupted
goes on.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from scaleaudio.data import storage
from scaleaudio.data.tars import DamagedTar, entries, printable
from scaleaudio.errors import InputError

# Audio shrinks a few times at most; silence by more, and a bomb by a thousand.
MOST_EXPANSION = 100
_SPARE_BYTES = 1 << 30
_COPY_BYTES = 1 << 20
_KEPT_BYTES = 1 << 16
_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_DAMAGE = (DamagedTar, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError)


class Unpacked(NamedTuple):
    """How many files are there now, and the members that were refused, with the reason."""

    files: int
    refused: list[tuple[str, str]]


class _Member(NamedTuple):
    name: str
    size: int
    fault: str | None
    open: Callable[[], Any]  # a context manager with read(size)


def unpack(archive: Path, folder: Path, advance: Callable[[int], None] = lambda num_bytes: None) -> Unpacked:
    """Every regular member of a tar (.gz, .bz2, .xz) or zip below `folder`.

    Args:
        archive: one file.
        folder: made where it is not there; members keep their paths below it.
        advance: told how many bytes of the archive were read since the last call.

    Raises:
        InputError: not an archive, cut off or damaged, one part of several, or a bomb.
        OSError: `folder` cannot be written.
    """
    done = Unpacked(0, [])
    most_bytes = MOST_EXPANSION * archive.stat().st_size + _SPARE_BYTES
    real_root, checked = os.path.realpath(folder), set[Path]()
    num_files = 0
    try:
        with archive.open("rb") as raw:
            read = 0
            for member in _members(archive, raw):
                fault = member.fault or _bad_name(member.name)
                if fault is None:
                    target = folder / PurePosixPath(member.name)
                    fault = _bad_place(target, real_root, checked)
                if fault is not None:
                    done.refused.append((member.name, fault))
                    continue
                most_bytes -= member.size
                if most_bytes < 0:
                    raise InputError(f"{archive}: unpacks to over {MOST_EXPANSION} times its size: a bomb; refused")
                _write(member, target)
                num_files += 1
                advance(raw.tell() - read)
                read = raw.tell()
    except _DAMAGE as error:
        raise InputError(f"{archive}: {_what_to_do(archive, error)}") from error
    return Unpacked(num_files, done.refused)


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is a tar or zip."""
    return bool(re.search(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", path.name.lower()))


def _members(archive: Path, raw: IO[bytes]) -> Iterator[_Member]:
    start = raw.read(6)
    raw.seek(0)
    if start[:2] == b"PK":
        yield from _zip_members(raw)
        return
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    file = _Forward(opener(raw) if opener else raw)
    for entry in entries(file, sys.maxsize):
        if not entry.is_folder:
            yield _Member(entry.name, entry.size, entry.fault, partial(file.at, entry.offset))


def _zip_members(raw: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(raw) as opened:
        for info in opened.infolist():
            if info.is_dir():
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            fault = "not a regular file" if kind not in (0, stat.S_IFREG) else None
            fault = "encrypted" if info.flag_bits & 1 else fault
            yield _Member(printable(info.filename), info.file_size, fault, partial(opened.open, info))


def _bad_name(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name) or not path.parts:
        return "its name leads out of the folder"
    return "a name of over 255 bytes" if any(len(os.fsencode(part)) > 255 for part in path.parts) else None


def _bad_place(target: Path, real_root: str, checked: set[Path]) -> str | None:
    """Makes the folder above `target`, which no link may lead elsewhere."""
    if target.parent not in checked:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            return "a file is where its folder should be"
        real = os.path.realpath(target.parent)
        if real != real_root and not real.startswith(real_root + os.sep):
            return "a link leads out of the folder"
        checked.add(target.parent)
    return "a folder has its name" if target.is_dir() else None


def _write(member: _Member, target: Path) -> None:
    if target.is_file() and not target.is_symlink() and target.stat().st_size == member.size:
        return
    with member.open() as source, storage.open_atomic(str(target)) as file:
        left = member.size
        while left:
            block = source.read(min(left, _COPY_BYTES))
            if not block:
                raise EOFError(f"{member.name} is cut off")
            left -= file.write(block)


def _what_to_do(archive: Path, error: Exception) -> str:
    parts = sorted(path.name for path in archive.parent.glob(f"{archive.stem}.z[0-9][0-9]"))
    if parts:
        return (
            f"the last of {len(parts) + 1} parts. Join them: zip -s 0 {archive.name} --out joined.zip; give joined.zip"
        )
    if re.search(r"part\w\w$", archive.name):
        whole = re.sub(r"_?part\w\w$", "", archive.name)
        return f"one part of several. Join them: cat {whole}_part* > {whole}.zip"
    return f"cut off, damaged or no archive ({' '.join(str(error).split())[:200]}). Download it again"


class _Forward:
    """A stream that is read front to back; of what was read the last bytes are kept for small steps back."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = self._at = 0
        self._kept = b""

    def at(self, position: int) -> _Forward:
        self.seek(position)
        return self

    def seek(self, position: int) -> int:
        while self._end < position and self._fill(min(_COPY_BYTES, position - self._end)):
            pass
        if position < self._end - len(self._kept):
            raise DamagedTar(f"its headers lead back, to byte {position}")
        self._at = position
        return position

    def read(self, size: int) -> bytes:
        if self._at > self._end:
            return b""
        while self._end < self._at + size and self._fill(self._at + size - self._end):
            pass
        start = len(self._kept) - (self._end - self._at)
        data = self._kept[start : start + size]
        self._at += len(data)
        return data

    def _fill(self, size: int) -> bool:
        block = self._file.read(size)
        self._kept = self._kept[-_KEPT_BYTES:] + block
        self._end += len(block)
        return bool(block)

    def __enter__(self) -> _Forward:
        return self

    def __exit__(self, *_: object) -> None:
        """The stream stays open for the next member."""
