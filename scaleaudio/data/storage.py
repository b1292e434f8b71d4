"""Bytes at an address: the one place that knows local disks from object stores (pyarrow.fs).

A url is a local path, anything that `pyarrow.fs.FileSystem.from_uri` takes, or http(s):// for reading. Writes are
atomic: a reader sees the whole new file or what was there before. s3:// and http:// are tested against servers; gs://,
abfs:// and hdfs:// go the same way through pyarrow, and are unverified.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat as stats
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from scaleaudio.data.addresses import SCHEME, is_http
from scaleaudio.data.addresses import open_url as open_url
from scaleaudio.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class FileEntry(NamedTuple):
    """One file of a listing: its url, its size in bytes and when it last changed (nanoseconds, 0 where unknown)."""

    url: str
    size: int
    mtime_ns: int


def is_local(url: str) -> bool:
    """Whether `url` names a file on this machine."""
    match = SCHEME.match(url)
    return match is None or match[1].lower() == "file"


def absolute(url: str) -> str:
    """`url` as it is understood from any working directory."""
    return url if SCHEME.match(url) else str(Path(url).expanduser().absolute())


def check_writable(url: str) -> None:
    """Refuses an address that can only be read."""
    if is_http(url):
        raise InputError(f'"{url}": http:// and https:// can only be read. Write to a path or an object store (--out)')


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it; a query (`?region=...`) stays at the end."""
    if not url:
        raise InputError("an empty path: expected a folder, file or URL. Is a variable of the command line unset?")
    address, mark, query = (url, "", "") if is_local(url) else url.partition("?")
    return "/".join([address.rstrip("/"), *(part.strip("/") for part in parts)]) + mark + query


def exists(url: str) -> bool:
    """Whether there is a file or a folder at `url`."""
    return bool(_type_of(url) != fs.FileType.NotFound)


def is_folder(url: str) -> bool:
    """Whether `url` is a folder (in an object store: whether any object lies below it)."""
    return bool(_type_of(url) == fs.FileType.Directory)


def list_entries(url: str, suffix: str = "", *, outside: str | None = None) -> list[FileEntry]:
    """Every file below the folder `url` whose path ends in `suffix`, sorted by url; empty where there is no folder.

    Links are followed, but no folder is listed twice: so links that lead in circles end. `outside` is a folder that is
    not looked into, however it is spelt.

    Raises:
        InputError: a web server that does not list its folders.
    """
    filesystem, path = open_url(url)
    if is_local(url):
        passed = os.path.realpath(open_url(outside)[1]) if outside is not None and is_local(outside) else None
        return sorted(_walk(url, os.path.realpath(path), suffix, passed))
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    root = path.rstrip("/") + "/"
    passed = join(outside, "x").partition("?")[0][:-1] if outside is not None else None
    files = [info for info in found if info.type == fs.FileType.File and info.path.endswith(suffix)]
    if is_http(url) and not files:
        raise InputError(
            f'"{url}": this server lists no files here. Name an index that lies there: data.url URL/index.parquet'
        )
    entries = [FileEntry(join(url, info.path.removeprefix(root)), info.size or 0, info.mtime_ns or 0) for info in files]
    return sorted(entry for entry in entries if passed is None or not entry.url.startswith(passed))


def _walk(url: str, path: str, suffix: str, outside: str | None) -> Iterator[FileEntry]:
    """`list_entries` of a local folder: links come last, so that a file goes by its own name where it has one.

    Names that are no UTF-8 hold surrogates, and `open_input` refuses them.
    """
    seen = {outside}
    folders, links = deque([("", path)]), deque[tuple[str, str]]()
    while folders or links:
        below, real = (folders or links).popleft()
        if real in seen:
            continue
        seen.add(real)
        for name, info, target in _children(real):
            if stats.S_ISDIR(info.st_mode):
                (folders if target is None else links).append((f"{below}{name}/", target or os.path.join(real, name)))
            elif stats.S_ISREG(info.st_mode) and f"/{below}{name}".endswith(suffix):
                yield FileEntry(join(url, below + name), info.st_size, info.st_mtime_ns)


def _children(folder: str) -> Iterator[tuple[str, os.stat_result, str | None]]:
    """The name of each thing in `folder`, what it is, and where it leads when it is a link; none that leads nowhere."""
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except FileNotFoundError:
        return
    for child in children:
        try:
            yield child.name, child.stat(), os.path.realpath(child.path) if child.is_symlink() else None
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise


def list_files(url: str, suffix: str = "") -> list[str]:
    """The sorted urls of every file below the folder `url` whose name ends in `suffix`."""
    return [entry.url for entry in list_entries(url, suffix)]


def stat(urls: list[str]) -> list[FileEntry | None]:
    """For each url its entry, or None where there is no such file."""
    places = [open_url(url) for url in urls]
    known: dict[tuple[int, str], Any] = {}
    for filesystem in {id(place[0]): place[0] for place in places}.values():
        paths = [path for other, path in places if other is filesystem]
        known |= {
            (id(filesystem), path): info for path, info in zip(paths, filesystem.get_file_info(paths), strict=True)
        }
    infos = [known[id(filesystem), path] for filesystem, path in places]
    return [
        FileEntry(url, info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else None
        for url, info in zip(urls, infos, strict=True)
    ]


def open_input(url: str) -> Any:
    """A seekable binary file for reading (pyarrow.NativeFile); in an object store each read is a ranged request.

    Raises:
        OSError: naming the url, when it cannot be opened.
    """
    filesystem, path = open_url(url, reading=True)
    try:
        return filesystem.open_input_file(path)
    except UnicodeEncodeError:
        raise OSError(f"{os.fsencode(url)!r}: its name is not UTF-8. Rename it") from None
    except (OSError, pa.ArrowException) as error:
        raise type(error)(f"{url}: {error}") from error


def can_stay_open(url: str) -> bool:
    """Whether a file at `url` may stay open for long, and many threads read it: one in S3 is a name and a size.

    pyarrow asks for the size at each opening, and cannot be told it. Elsewhere an open file holds a connection, or a
    lock that a read which stalls would keep; or nobody has looked.
    """
    return url.lower().startswith("s3://")


def read_bytes(url: str) -> bytes:
    """All bytes of the file at `url`."""
    with open_input(url) as file:
        return bytes(file.read())


@contextmanager
def open_atomic(url: str) -> Iterator[IO[bytes]]:
    """A binary file for writing that appears at `url` only once it is complete; an exception leaves nothing behind."""
    check_writable(url)
    filesystem, path = open_url(url)
    if not is_local(url):
        with tempfile.TemporaryFile() as file:  # an object store's stream publishes even what is half written
            yield file
            file.seek(0)
            with filesystem.open_output_stream(path) as stream:
                shutil.copyfileobj(file, stream, length=1 << 20)
        return
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{Path(path).name}.{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, path) from error  # a write does not say where to
        raise


def write_atomic(url: str, data: bytes) -> None:
    """Puts `data` at `url` in one go, making the folders above it."""
    with open_atomic(url) as file:
        file.write(data)


def is_full(error: BaseException) -> bool:
    """Whether a write failed because there was no space, or no more was allowed; also where only the text is left."""
    return getattr(error, "errno", None) in _FULL or any(f"[Errno {number}]" in str(error) for number in _FULL)


def delete_tree(url: str) -> None:
    """Removes the file or the folder at `url` with all below it; no error where there is nothing."""
    check_writable(url)
    filesystem, path = open_url(url)
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.Directory:
        filesystem.delete_dir(path)
    elif kind == fs.FileType.File:
        filesystem.delete_file(path)


def _type_of(url: str) -> Any:
    filesystem, path = open_url(url)
    return filesystem.get_file_info(path).type
