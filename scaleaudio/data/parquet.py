"""Parquet tables at an address: read whole, written in one go; what is wrong with one is an error that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scaleaudio.data import storage
from scaleaudio.errors import InputError


def read_table(url: str, schema: pa.Schema, *, missing: Callable[[], str]) -> pa.Table:
    """The Parquet table at `url`, cast to `schema`.

    Raises:
        InputError: `missing()` when there is no such file; else naming url and fault.
    """
    with as_input_errors(url, missing):
        return read_parquet(url).select(schema.names).cast(schema)


def read_parquet(url: str) -> pa.Table:
    """The Parquet table at `url`, whatever its columns.

    Read into Arrow's own memory and by this thread: a thread of Arrow's that lets go of Python's memory while the
    interpreter shuts down ends the process with an abort.
    """
    with storage.open_input(url) as file:
        buffer = file.read_buffer()
    return pq.read_table(pa.BufferReader(buffer), use_threads=False, pre_buffer=False)


def write_table(url: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Writes `rows` as the Parquet table at `url`, atomically."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    storage.write_atomic(url, buffer.getvalue().to_pybytes())


def check_complete(url: str, table: pa.Table | pa.RecordBatch, columns: Iterable[str]) -> None:
    """Refuses a table with a row that has nothing in one of `columns`.

    Raises:
        InputError: naming url and column.
    """
    for name in columns:
        if table[name].null_count:
            raise InputError(f"{url}: {table[name].null_count} rows have no {name}. Make the index anew")


@contextmanager
def as_input_errors(url: str, missing: Callable[[], str]) -> Iterator[None]:
    """Whatever fails while the table at `url` is read becomes an InputError; where there is none, with `missing()`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(missing()) from None
    except OSError as error:
        raise InputError(unreadable(url, error)) from error
    except (ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{url}: not a table of the expected form ({error}). Make the index anew") from error


def unreadable(url: str, error: Exception) -> str:
    """That `url` cannot be read and why, with what to check."""
    advice = ""
    if not storage.is_local(url):
        advice = ". Check the address and the credentials in the environment; for s3:// also AWS_ENDPOINT_URL, region"
    return f"{url}: cannot be read ({' '.join(str(error).removeprefix(f'{url}: ').split())}){advice}"
