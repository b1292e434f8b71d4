"""`shards index`: tars that others made, found sample by sample without unpacking anything.

A sample is, as in WebDataset, a run of members whose names agree up to the first dot of the last part: `a/b.flac` and
`a/b.meta.json` are sample `a/b`. Each tar is read once, front to back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any

import pyarrow as pa
from rich.progress import track

from scaleaudio.data import storage, tars
from scaleaudio.data.decode import measure
from scaleaudio.data.index import INDEX_NAME, MAX_CLIP_BYTES, REJECTS_NAME, SAMPLE_SCHEMA, SHARD_SCHEMA
from scaleaudio.data.parquet import write_table
from scaleaudio.data.patience import Patience
from scaleaudio.data.shards import crc32_hex, shard_row
from scaleaudio.data.tars import DamagedTar, Entry, Hashed, printable
from scaleaudio.errors import DecodeError, InputError

# In order of preference, where a sample has audio in several formats.
AUDIO_SUFFIXES = ("flac", "wav", "ogg", "opus", "mp3", "m4a", "aac", "aiff", "aif", "caf", "w64", "au", "spx", "webm")
REJECT_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string())])
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
COMPRESSED = "compressed: no byte can be read at an offset. Unpack (gunzip FILE.tar.gz), and index the .tar"
# Of one sample: a hostile tar may give a million members the same key.
MAX_MEMBERS = 1000
MAX_LABEL_BYTES = 1 << 20


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
    folder = url if out is None else out
    storage.check_writable(folder)
    listing = storage.list_entries(url)
    entries = [entry for entry in listing if entry.url.endswith(".tar")]
    compressed = [entry.url for entry in listing if entry.url.lower().endswith(COMPRESSED_SUFFIXES)]
    if not entries:
        raise InputError(f'"{url}": no .tar shards here{f", but {len(compressed)} {COMPRESSED}" if compressed else ""}')
    if storage.exists(storage.join(folder, INDEX_NAME)) and not replace:
        raise InputError(
            f'"{folder}" has an {INDEX_NAME} already. Replace it with --replace, or write elsewhere with --out'
        )
    patience = Patience()
    rows: list[dict[str, Any]] = []
    rejects = [(printable(_name(url, packed, out)), COMPRESSED) for packed in compressed]
    for entry in track(entries, "index", disable=not progress):
        name = _name(url, entry.url, out)
        try:
            scan, num_bytes, checksum = patience.read(
                partial(_scan, entry.url, headers_only), remote=not storage.is_local(entry.url), num_bytes=entry.size
            )
        except DamagedTar as error:
            rejects.append((printable(name), f"damaged tar: {error}"))
            continue
        except OSError as error:
            rejects.append((printable(name), f"cannot be read: {printable(str(error))}"))
            continue
        rejects += [(f"{printable(name)}/{key}", reason) for key, reason in scan.rejects]
        if scan.samples:
            row = shard_row(name, scan.samples, num_bytes, checksum) | {"samples": _table_name(name, len(rows))}
            write_table(storage.join(folder, row["samples"]), scan.samples, SAMPLE_SCHEMA)
            rows.append(row)
    table = [{"path": path, "reason": reason} for path, reason in rejects]
    write_table(storage.join(folder, REJECTS_NAME), table, REJECT_SCHEMA)
    if not rows:
        raise InputError(f'"{url}": no sample with audio in {len(entries)} tars. See {folder}/{REJECTS_NAME}')
    write_table(storage.join(folder, INDEX_NAME), rows, SHARD_SCHEMA)
    return IndexSummary(len(rows), sum(row["num_samples"] for row in rows), tuple(rejects))


def _name(url: str, tar: str, out: str | None) -> str:
    """What the index calls `tar`: relative where it lies beside the tars."""
    return tar.removeprefix(storage.join(url, "x")[:-1]) if out is None else storage.absolute(tar)


def _table_name(shard: str, number: int) -> str:
    return f"samples/{number:06d}-{shard.rpartition('/')[2].removesuffix('.tar')}.parquet"


def _scan(url: str, headers_only: bool) -> tuple[_Scan, int, str | None]:
    """The samples of one tar, its size in bytes, and its sha256 (None from headers only).

    Raises:
        DamagedTar: when the tar is damaged or cut off.
    """
    scan, seen = _Scan(), set()
    with storage.open_input(url) as raw:
        file: Any = raw if headers_only else Hashed(raw)
        num_bytes = int(raw.size())
        for key, members in _samples(tars.entries(file, num_bytes)):
            try:
                if key in seen:
                    raise DecodeError(f"key {key} occurs before: only its first sample is used")
                seen.add(key)
                scan.samples.append(_sample_row(key, members, file, headers_only))
            except DecodeError as error:
                scan.rejects.append((key, printable(str(error))))
    return scan, num_bytes, None if headers_only else file.digest.hexdigest()


def _samples(members: Iterator[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    for key, sample in groupby(
        (member for member in members if not member.is_folder), lambda member: _key(member.name)
    ):
        yield key, list(islice(sample, MAX_MEMBERS))


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _sample_row(key: str, members: list[Entry], file: Any, headers_only: bool) -> dict[str, Any]:
    audio = _audio_member(members)
    row: dict[str, Any] = {"key": key, "member": audio.name, "offset": audio.offset, "size": audio.size}
    row |= {"frames": None, "sample_rate_hz": None, "label": None, "checksum": None}
    if headers_only:
        return row
    wanted = [audio, *(member for member in members if _is_label(member))][:2]
    contents = {member: _content(file, member) for member in sorted(wanted, key=lambda member: member.offset)}
    info = measure(contents[audio])
    row |= {"frames": info.frames, "sample_rate_hz": info.sample_rate_hz, "checksum": crc32_hex(contents[audio])}
    return row | {"label": _json_text(contents[wanted[1]]) if len(wanted) > 1 else None}


def _is_label(member: Entry) -> bool:
    return member.name.lower().endswith(".json") and member.fault is None and member.size <= MAX_LABEL_BYTES


def _content(file: Any, member: Entry) -> bytes:
    file.seek(member.offset)
    content: bytes = file.read(member.size)
    if len(content) != member.size:
        raise DamagedTar(f"cut off inside {member.name}")
    return content


def _audio_member(members: list[Entry]) -> Entry:
    """The one in the format that is preferred, of those that can be had."""
    audio = [member for member in members if _suffix(member) in AUDIO_SUFFIXES]
    if not audio:
        raise DecodeError(f"no audio member among {', '.join(member.name for member in members)}"[:300])
    best = min(audio, key=lambda member: (member.fault is not None, AUDIO_SUFFIXES.index(_suffix(member))))
    if best.fault:
        raise DecodeError(f"{best.name} is {best.fault}")
    if best.size > MAX_CLIP_BYTES:
        raise DecodeError(f"{best.name} has {best.size} bytes, more than {MAX_CLIP_BYTES}: cut it (shards build)")
    return best


def _suffix(member: Entry) -> str:
    return member.name.rpartition(".")[2].lower()


def _json_text(data: bytes) -> str | None:
    """`data` as JSON of one form, NaN as null and Infinity as text; None where it is none."""
    try:
        label = json.loads(data, parse_constant={"NaN": None, "Infinity": "inf", "-Infinity": "-inf"}.get)
        text = json.dumps(label, ensure_ascii=False, sort_keys=True, allow_nan=False)
        text.encode()  # half a surrogate pair, which JSON may name, is no text
    except (ValueError, RecursionError):
        return None
    return text
