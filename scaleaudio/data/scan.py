"""`shards index`: tars that others made, found sample by sample without unpacking anything.

A sample is, as in WebDataset, a run of members whose names agree up to the first dot of the last part: `a/b.flac` and
`a/b.meta.json` are sample `a/b`. Each tar is read once, front to back.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from rich.progress import track

from scaleaudio.data import storage
from scaleaudio.data.decode import probe
from scaleaudio.data.index import INDEX_NAME, REJECTS_NAME, SAMPLE_SCHEMA, SHARD_SCHEMA, write_table
from scaleaudio.data.shards import crc32_hex, shard_row
from scaleaudio.errors import DecodeError, InputError

# In order of preference, where a sample has audio in several formats.
AUDIO_SUFFIXES = ("flac", "wav", "ogg", "opus", "mp3", "m4a", "aac", "aiff", "aif", "caf", "w64", "au", "spx", "webm")
REJECT_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string())])
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class IndexSummary:
    """What was indexed, and what was not: (shard or shard/key, reason)."""

    shards: int
    samples: int
    rejects: tuple[tuple[str, str], ...]


@dataclass
class _Scan:
    """What one tar holds."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[tuple[str, str]] = field(default_factory=list)


def index(
    url: str, out: str | None = None, *, headers_only: bool = False, progress: bool = False, replace: bool = False
) -> IndexSummary:
    """Writes index.parquet, samples/ and rejects.parquet for the tars below `url`.

    Args:
        url: a folder of tars.
        out: where the index goes, for folders that cannot be written; None puts it beside the tars.
        headers_only: reads tar headers alone: quicker, but without frames, sample rates and checksums.
        progress: whether a progress bar is shown.
        replace: whether an index that is there already is replaced.

    Raises:
        InputError: no tars at `url`; an index is there already; nothing could be indexed.
    """
    entries = [entry for entry in storage.list_entries(url) if entry.url.endswith(".tar")]
    folder = url if out is None else out
    if not entries:
        raise InputError(f'"{url}": no .tar shards here (compressed tars cannot be read at an offset: unpack them)')
    if storage.exists(storage.join(folder, INDEX_NAME)) and not replace:
        raise InputError(
            f'"{folder}" has an {INDEX_NAME} already. Replace it with --replace, or write elsewhere with --out'
        )
    rows: list[dict[str, Any]] = []
    rejects: list[tuple[str, str]] = []
    for entry in track(entries, "index", disable=not progress):
        name = entry.url.removeprefix(storage.join(url, "x")[:-1]) if out is None else storage.absolute(entry.url)
        try:
            scan, checksum = _scan(entry.url, headers_only)
        except (tarfile.TarError, OSError, EOFError) as error:
            rejects.append((name, f"damaged tar: {error}"))
            continue
        rejects += [(f"{name}/{key}", reason) for key, reason in scan.rejects]
        if scan.samples:
            row = shard_row(name, scan.samples, entry.size, checksum) | {"samples": _table_name(name, len(rows))}
            write_table(storage.join(folder, row["samples"]), scan.samples, SAMPLE_SCHEMA)
            rows.append(row)
    table = [{"path": path, "reason": reason} for path, reason in rejects]
    write_table(storage.join(folder, REJECTS_NAME), table, REJECT_SCHEMA)
    if not rows:
        raise InputError(f'"{url}": no sample with audio in {len(entries)} tars. See {folder}/{REJECTS_NAME}')
    write_table(storage.join(folder, INDEX_NAME), rows, SHARD_SCHEMA)
    return IndexSummary(len(rows), sum(row["num_samples"] for row in rows), tuple(rejects))


def _table_name(shard: str, number: int) -> str:
    return f"samples/{number:06d}-{shard.rpartition('/')[2].removesuffix('.tar')}.parquet"


def _scan(url: str, headers_only: bool) -> tuple[_Scan, str | None]:
    """The samples of one tar, and its sha256 (None from headers only).

    Raises:
        tarfile.TarError: when the tar is damaged or cut off.
    """
    scan, seen = _Scan(), set()
    with storage.open_input(url) as raw:
        file: Any = raw if headers_only else _Hashed(raw)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in _samples(tar):
                reason = f"key {key} occurs before: only its first sample is used" if key in seen else None
                seen.add(key)
                try:
                    if reason:
                        raise DecodeError(reason)
                    scan.samples.append(_sample_row(key, members, file, headers_only))
                except DecodeError as error:
                    scan.rejects.append((key, str(error)))
            end = tar.offset
        _check_end(file, end)
    return scan, None if headers_only else file.digest.hexdigest()


def _check_end(file: Any, end: int) -> None:
    """Refuses what tarfile takes a damaged header, or the lack of any, for the end without a word."""
    file.seek(end)
    block = file.read(BLOCK_BYTES)
    if not block:
        raise tarfile.ReadError(f"cut off after {end} bytes: the blocks that end a tar are missing")
    while block:
        if block.count(0) != len(block):
            raise tarfile.ReadError(f"a damaged header at byte {end}")
        block = file.read(BLOCK_BYTES)


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    members: list[tarfile.TarInfo] = []
    last = None
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
        if member.isdir():
            continue
        key = _key(member.name)
        if key != last and members:
            yield str(last), members
            members = []
        members, last = [*members, member], key
    if members:
        yield str(last), members


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _sample_row(key: str, members: list[tarfile.TarInfo], file: Any, headers_only: bool) -> dict[str, Any]:
    audio = _audio_member(members)
    label = next((member for member in members if member.name.lower().endswith(".json") and member.isreg()), None)
    row: dict[str, Any] = {"key": key, "member": audio.name, "offset": audio.offset_data, "size": audio.size}
    row |= {"frames": None, "sample_rate_hz": None, "label": None, "checksum": None}
    if headers_only:
        return row
    wanted = [audio, label] if label else [audio]
    contents = {}
    for member in sorted(wanted, key=lambda member: member.offset_data):
        file.seek(member.offset_data)
        contents[member.name] = file.read(member.size)
        if len(contents[member.name]) != member.size:
            raise tarfile.ReadError(f"cut off inside {member.name}")
    info = probe(contents[audio.name])
    row |= {"frames": info.frames, "sample_rate_hz": info.sample_rate_hz}
    return row | {
        "label": _json_text(contents[label.name]) if label else None,
        "checksum": crc32_hex(contents[audio.name]),
    }


def _audio_member(members: list[tarfile.TarInfo]) -> tarfile.TarInfo:
    def rank(member: tarfile.TarInfo) -> int:
        suffix = member.name.rpartition(".")[2].lower()
        return AUDIO_SUFFIXES.index(suffix) if suffix in AUDIO_SUFFIXES and member.isreg() else len(AUDIO_SUFFIXES)

    best = min(members, key=rank)
    if rank(best) == len(AUDIO_SUFFIXES):
        raise DecodeError(f"no audio member among {', '.join(member.name for member in members)}"[:300])
    if best.issparse():
        raise DecodeError(f"{best.name} is stored sparse: it has no bytes at one place")
    return best


def _json_text(data: bytes) -> str | None:
    try:
        return json.dumps(json.loads(data), ensure_ascii=False, sort_keys=True)
    except ValueError:
        return None


class _Hashed:
    """A file that is read front to back, small steps back allowed; its sha256 covers every byte once."""

    def __init__(self, file: Any) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self._at = self._hashed = 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int, whence: int = 0) -> int:
        while self._hashed < position and self._read(self._hashed, min(BLOCK_BYTES, position - self._hashed)):
            pass
        self._at = position
        return position

    def read(self, size: int) -> bytes:
        data = self._read(self._at, size)
        self._at += len(data)
        return data

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        data = bytes(self._file.read(size))
        fresh = start + len(data) - self._hashed
        if fresh > 0:
            self.digest.update(data[-fresh:])
            self._hashed += fresh
        return data
