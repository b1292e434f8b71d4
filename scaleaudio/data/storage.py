"""Bytes at an address: the one place that knows local disks from object stores (pyarrow.fs).

A url is a local path, anything that `pyarrow.fs.FileSystem.from_uri` takes, or http(s):// for reading. Writes are
atomic: a reader sees the whole new file or what was there before. s3:// and http:// are tested against servers; gs://,
abfs:// and hdfs:// go the same way through pyarrow, and are unverified.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_CLIENT_ID,
~/.netrc, an instance's role): a url that holds one is refused, since urls are logged and saved with a run.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat as stats
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

import pyarrow as pa
from pyarrow import fs

from scaleaudio.errors import InputError

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "http", "https")
# Parts of the names of query keys whose values are no one else's business: access_key, X-Amz-Signature, sas_token;
# and whole names, which would be parts of harmless ones.
_SECRETS = ("key", "secret", "token", "password", "passwd", "pwd", "signature", "credential", "authorization", "jwt")
_SECRET_NAMES = ("sig", "auth", "oauth", "code")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_HOST = re.compile(r"^(\[[^\]]*\]|[^:]*)(:\d+)?$")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


class FileEntry(NamedTuple):
    """One file of a listing: its url, its size in bytes and when it last changed (nanoseconds, 0 where unknown)."""

    url: str
    size: int
    mtime_ns: int


def is_local(url: str) -> bool:
    """Whether `url` names a file on this machine."""
    match = _SCHEME.match(url)
    return match is None or match[1].lower() == "file"


def absolute(url: str) -> str:
    """`url` as it is understood from any working directory."""
    return url if _SCHEME.match(url) else str(Path(url).expanduser().absolute())


def open_url(url: str, *, reading: bool = False) -> tuple[Any, str]:
    """The (pyarrow FileSystem, path inside it) that `url` names; nothing is read yet.

    Reading gives up after a quarter of a minute, so that who reads decides about more; all else tries for minutes.

    `AWS_ENDPOINT_URL` in the environment names the server of `s3://` urls that give no `endpoint_override` themselves.

    Raises:
        InputError: for `pipe:` (it would run a shell), for an unknown scheme, for an address that cannot be parsed, and
            for one that holds credentials.
    """
    if not url:
        raise InputError("an empty path: expected a folder, file or URL. Is a variable of the command line unset?")
    if url.lower().startswith("pipe:"):
        raise InputError(f'"{url}": pipe: addresses run a shell and are refused. Give a path or one of {_schemes()}')
    match = _SCHEME.match(url)
    if match is None:
        return _local_filesystem(), str(Path(url).expanduser().absolute())
    if match[1].lower() not in SCHEMES:
        raise InputError(f'"{url}": unknown scheme {match[1]}://. Give a local path or one of {_schemes()}')
    check_no_credentials(url)
    if _is_http(url):
        return _http_filesystem(), url
    root, path = _split_root(_with_endpoint(url))
    if match[1].lower() == "file":
        return _local_filesystem(), path
    filesystem, prefix = _remote_filesystem(root, reading)
    return filesystem, prefix + path


def check_no_credentials(url: str) -> str:
    """`url`, once it holds no password, key or signature.

    Raises:
        InputError: naming what it holds, without its value.
    """
    match = _SCHEME.match(url)
    if match is None:
        return url
    address, *queries = re.split("[?#]", url[match.end() :])
    user, at, host = address.partition("/")[0].rpartition("@")
    held = "a password" if at and ":" in user else None
    if at and _is_http(url):  # elsewhere it may name a container: abfs://container@account
        held = held or "a name or token before the @"
    if not at and "@" in url and not _HOST.match(host):  # cut short by a / or ? in the password
        held, host = "a password", re.split("[/?#]", url.rpartition("@")[2])[0]
    for key, value in parse_qsl("&".join(queries).replace(";", "&"), keep_blank_values=True):
        plain = key.lower().replace("-", "").replace("_", "")
        if plain in _SECRET_NAMES or any(secret in plain for secret in _SECRETS):
            held = f"a credential ({key}=...)"
        elif key == "endpoint_override" and "@" in value:
            held = "a password (in endpoint_override)"
    if held:
        raise InputError(
            f'"{match[0]}{host}": this address holds {held}, which would be logged and saved with the run. '
            "Take it out; credentials come from the environment, such as AWS_ACCESS_KEY_ID or a profile"
        )
    return url


def check_writable(url: str) -> None:
    """Refuses an address that can only be read."""
    if _is_http(url):
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
    if _is_http(url) and not files:
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


def _schemes() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)


def _with_endpoint(url: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint or not url.lower().startswith("s3://") or "endpoint_override=" in url:
        return url
    server = urlsplit(endpoint)
    host = server.netloc.rpartition("@")[2]
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}scheme={server.scheme or 'https'}&endpoint_override={quote(host, safe='')}"


def _split_root(url: str) -> tuple[str, str]:
    """scheme://host?query, which makes the file system, and the path below it."""
    address, mark, query = url.partition("?")
    scheme, rest = address.split("://", 1)
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host}{mark}{query}", slash + path


@lru_cache(maxsize=16)
def _remote_filesystem(root: str, reading: bool) -> tuple[Any, str]:
    try:
        filesystem, prefix = (_s3_reader(root) if reading else None) or fs.FileSystem.from_uri(root)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise InputError(f'"{root}": {error}') from error
    return filesystem, prefix.rstrip("/")


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _s3_reader(root: str) -> tuple[Any, str] | None:
    """As from_uri makes it, but for retries: a process that ends has to wait for all that are under way.

    None where the address has options of which nothing is known here.
    """
    scheme, _, rest = root.partition("://")
    bucket, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if scheme != "s3" or not bucket or options.keys() - {"region", "scheme", "endpoint_override"}:
        return None
    if not options.keys() & {"region", "endpoint_override"}:
        options["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=4)), bucket


@lru_cache(maxsize=1)
def _http_filesystem() -> Any:
    from scaleaudio.data import http  # fsspec and aiohttp are an extra

    return http.filesystem()


@lru_cache(maxsize=1)
def _local_filesystem() -> Any:
    return fs.LocalFileSystem()
