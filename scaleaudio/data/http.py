"""http:// and https:// for reading, by fsspec: ranged requests, no writing; folders where the server lists them.

What a server needs: it must answer HEAD with the length and GET with the range that was asked for. Proxies and a
password in ~/.netrc are taken from the environment.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import fs

from scaleaudio.errors import InputError


class NoRanges(OSError):
    """A server that gives files only whole: asking again will not help."""


def filesystem() -> Any:
    """A pyarrow FileSystem whose paths are whole urls.

    Raises:
        InputError: fsspec or aiohttp is not installed.
    """
    try:
        from fsspec.implementations.http import HTTPFileSystem
    except ImportError as error:
        raise InputError(f"http:// and https:// need {error.name}: pip install 'scaleaudio[http]'") from error
    return fs.PyFileSystem(_Handler(HTTPFileSystem(client_kwargs={"trust_env": True})))


class _Handler(fs.FSSpecHandler):  # type: ignore[misc]
    """fsspec's files, opened by one HEAD, each read one ranged GET."""

    def open_input_file(self, path: str) -> Any:
        with _as_os_errors(path):
            # Not cached in blocks of 5 MiB, as by default: what is read here is read once.
            file = self.fs.open(path, "rb", cache_type="none")
        if not file.seekable() or file.size is None:
            raise NoRanges(f"{path}: the server does not say how long the file is, or gives no ranges of it")
        return pa.PythonFile(_Ranged(file, path), mode="r")

    def get_file_info(self, paths: list[str]) -> Any:
        with _as_os_errors(", ".join(paths[:3])):
            return super().get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        from aiohttp import ClientResponseError

        try:
            with _as_os_errors(selector.base_dir):
                return super().get_file_info_selector(selector)
        except OSError as error:
            if isinstance(error, NotADirectoryError) or isinstance(error.__cause__, ClientResponseError):
                return []  # it has no page that lists this folder, or shows it to nobody
            raise


class _Ranged(io.RawIOBase):
    """A file whose errors are OSErrors, whatever the client calls them."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with _as_os_errors(self._url):
            return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


@contextmanager
def _as_os_errors(url: str) -> Iterator[None]:
    from aiohttp import ClientError

    try:
        yield
    except OSError:
        raise
    except (ClientError, ValueError) as error:
        if "range requests" in str(error):
            raise NoRanges(f"{url}: the server gives no ranges of its files; use one that answers Range") from error
        raise OSError(f"{url}: {error or type(error).__name__}") from error
