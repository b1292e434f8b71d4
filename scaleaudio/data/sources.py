"""What is to become shards: the audio files of a folder or of a CSV or Parquet list, with their labels."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from scaleaudio.data import storage
from scaleaudio.data.parquet import read_parquet
from scaleaudio.errors import InputError

NAME_COLUMNS = ("path", "filename")
# Everything else in a folder is tried, whatever its suffix: what is not audio then stands in the rejects with a reason.
COMPANIONS = (".csv", ".tsv", ".json", ".jsonl", ".md", ".txt", ".parquet", ".yaml", ".yml", ".html", ".pdf", ".py")


@dataclass(frozen=True)
class AudioFile:
    """One input: `name` is its path as the source gives it, relative to the folder or the list."""

    name: str
    url: str
    size: int
    mtime_ns: int
    labels: dict[str, Any]


@dataclass
class Listing:
    """The inputs sorted by name; what could not be one (path, reason); how many the filter `where` left out."""

    files: list[AudioFile] = field(default_factory=list)
    rejects: list[tuple[str, str]] = field(default_factory=list)
    left_out: int = 0


def list_audio(src: str, where: Mapping[str, str], *, outside: str | None = None) -> Listing:
    """The audio files of `src`: a folder (recursively; with labels from its labels.csv), or a CSV or Parquet list.

    Args:
        src: the folder, or a list with a column `path` or `filename` relative to the list's folder.
        where: keeps only the rows whose label columns have these values.
        outside: a folder below `src` that is not looked into.

    Raises:
        InputError: `src` is missing, empty, not such a list, or `where` names an unknown column or value.
    """
    if storage.is_folder(src):
        listing = _folder(src, where, outside)
    elif not storage.exists(src):
        raise InputError(f'"{src}": no such file or folder. Give a folder of audio, or a CSV or Parquet list')
    elif src.endswith((".csv", ".parquet")):
        listing = _list(src, where)
    else:
        raise InputError(f'"{src}": expected a folder, a .csv or a .parquet list. (Tars: scaleaudio shards index)')
    if not listing.files and not listing.rejects:
        raise InputError(f'"{src}": no audio files here. Give a folder of audio, or a CSV or Parquet list')
    listing.files.sort(key=lambda file: file.name)
    return listing


def _folder(src: str, where: Mapping[str, str], outside: str | None) -> Listing:
    table = storage.join(src, "labels.csv")
    rows = _by_name(table) if storage.exists(table) else {}
    if where:
        _check_where(where, rows.values(), table)
    listing, seen = Listing(), set()
    prefix = storage.join(src, "x").partition("?")[0][:-1]
    for entry in storage.list_entries(src, outside=outside):
        name = entry.url.partition("?")[0].removeprefix(prefix) if "://" in src else entry.url.removeprefix(prefix)
        key = name if name in rows else name.removeprefix("audio/")
        if not _may_be_audio(name) and key not in rows:
            continue
        seen.add(key)
        labels = rows.get(key, {})
        if _matches(labels, where):
            listing.files.append(AudioFile(name, entry.url, entry.size, entry.mtime_ns, labels))
        else:
            listing.left_out += 1
    listing.rejects = [
        (name, "listed in labels.csv, but there is no such file")
        for name, labels in rows.items()
        if name not in seen and _matches(labels, where)
    ]
    return listing


def _list(src: str, where: Mapping[str, str]) -> Listing:
    rows = read_rows(src)
    _check_where(where, (row for _, row in rows), src)
    chosen = [(name, labels) for name, labels in rows if _matches(labels, where)]
    listing = Listing(left_out=len(rows) - len(chosen))
    folder = src.rpartition("/")[0] or "."
    entries = storage.stat([_below(folder, name) for name, _ in chosen])
    missing = [at for at, entry in enumerate(entries) if entry is None]
    for at, entry in zip(
        missing, storage.stat([_below(f"{folder}/audio", chosen[at][0]) for at in missing]), strict=True
    ):
        entries[at] = entry
    seen = set()
    for (name, labels), entry in zip(chosen, entries, strict=True):
        if entry is None:
            listing.rejects.append((name, "no such file"))
        elif entry.url in seen:
            listing.rejects.append((name, "listed more than once: only its first row was used"))
        else:
            seen.add(entry.url)
            listing.files.append(AudioFile(name, entry.url, entry.size, entry.mtime_ns, labels))
    return listing


def read_rows(url: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, labels) of every row of a CSV or Parquet list; empty labels and NaN are left out.

    Raises:
        InputError: not readable as such a list, or without a column `path` or `filename`.
    """
    try:
        if url.endswith(".parquet"):
            rows = read_parquet(url).to_pylist()
        else:
            rows = list(
                csv.DictReader(io.StringIO(storage.read_bytes(url).decode("utf-8-sig"), newline=""), strict=True)
            )
    except (csv.Error, UnicodeDecodeError, pa.ArrowException, OSError) as error:
        raise InputError(f"{url}: cannot be read as a list of audio files: {error}") from error
    column = next((name for name in NAME_COLUMNS if rows and name in rows[0]), None)
    if column is None:
        found = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise InputError(f"{url}: expected a column `path` or `filename`, found {found}")
    for number, row in enumerate(rows, start=2):
        if not row[column] or None in row:
            raise InputError(f"{url}: row {number} has no {column}, or more fields than the header")
    return [
        (str(row.pop(column)), {k: _plain(v) for k, v in row.items() if v not in (None, "") and v == v}) for row in rows
    ]


def _by_name(url: str) -> dict[str, dict[str, Any]]:
    return dict(read_rows(url))


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: Infinity, a date or a list as text."""
    is_plain = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else str(value)


def _below(folder: str, name: str) -> str:
    return name if "://" in name or name.startswith("/") else storage.join(folder, name)


def _may_be_audio(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() not in COMPANIONS


def _matches(labels: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    return all(str(labels.get(column, "")) == value for column, value in where.items())


def _check_where(where: Mapping[str, str], rows: Iterable[Mapping[str, Any]], url: str) -> None:
    rows = list(rows)
    for column, value in where.items():
        found = sorted({str(row[column]) for row in rows if column in row})
        if value not in found:
            known = ", ".join(found[:10]) or "no such column, or no labels.csv"
            raise InputError(f'where {column}={value}: {url} has no such row. Values of "{column}": {known}')
