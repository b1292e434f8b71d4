"""`shards build`: a folder or list of audio -> tars, index and rejects; parallel, atomic, resumable.

The sorted list of inputs is cut into units, each built by one process into shards of its own: so the shards do not
depend on the number of processes, and a build that was stopped goes on with the units that have no done marker. A unit
whose process dies (a decoder can crash on a hostile file, or hang) is built again without the file at fault.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pydantic import Field
from rich.progress import Progress

from scaleaudio.data import storage
from scaleaudio.data.convert import ConvertConfig
from scaleaudio.data.index import INDEX_NAME, REJECTS_NAME, SHARD_SCHEMA
from scaleaudio.data.parquet import write_table
from scaleaudio.data.sources import AudioFile, Listing, list_audio
from scaleaudio.data.tars import printable
from scaleaudio.data.units import Elsewhere, Unit, run_units
from scaleaudio.errors import InputError

BUILD_NAME = "build.json"
# Enough to tell apart nearly all files that are equally long.
_FIRST_BYTES = 1 << 16
PARTS_NAME = "rejected_parts.parquet"
WORK = ".build"
REJECT_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string())])
PART_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string()), ("seconds", pa.float64())])


class BuildConfig(ConvertConfig):
    """What goes into the shards, how large they are, and how many processes build them."""

    shard_bytes: int = Field(default=1 << 28, ge=10_240, description="a shard is closed once it is larger")
    shard_samples: int = Field(default=2048, ge=1, description="a shard is closed once it has as many samples")
    min_shards: int = Field(
        default=8, ge=1, description="a small corpus is spread over this many shards, where it has the files"
    )
    drop_duplicates: bool = Field(default=True, description="of files with the same bytes keep the first by name")
    where: dict[str, str] = Field(default_factory=dict, description="keep rows whose label columns have these values")
    licence: str | None = Field(default=None, description="licence of the audio, where no column `licence` says it")
    max_file_bytes: int = Field(default=1 << 30, ge=1, description="larger files are refused: a file is held in memory")
    file_timeout_seconds: int = Field(default=600, ge=1, le=10**6, description="a file that takes longer is refused")
    num_workers: int | None = Field(
        default=None,
        ge=0,
        description="processes; none given is one a core; 0 builds in this one, where a decoder's crash ends it",
    )


@dataclass(frozen=True)
class BuildSummary:
    """What a build did: files accepted and rejected, those that `where` left out; samples, shards, seconds of audio."""

    accepted: int
    rejected: int
    left_out: int
    samples: int
    shards: int
    seconds: float


def build(
    src: str,
    out: str,
    config: BuildConfig | None = None,
    *,
    progress: bool = False,
    fresh: bool = False,
    elsewhere: Elsewhere | None = None,
) -> BuildSummary:
    """Builds shards of `src` in the folder `out`; finishes what an interrupted build of the same began.

    A finished build of the same files under the same config is left as it is. Besides the tars, `out` then holds
    index.parquet, samples/, rejects.parquet (path, reason), rejected_parts.parquet (pieces refused of files that were
    accepted), and build.json (config and summary).

    Args:
        src: a folder of audio (with labels.csv where there are labels), or a CSV or Parquet list.
        out: a folder or url that is empty, or holds a build of the same.
        config: the defaults where None.
        progress: whether a progress bar is shown.
        fresh: removes a build of other files or settings from `out` first.
        elsewhere: builds the units on other machines (`launch.shards`); they have to reach `src` and `out`.

    Raises:
        InputError: nothing to read at `src`; `out` holds something else, or lost tars; no file could be accepted.
        OSError: `out` cannot be written.
    """
    config = config or BuildConfig()
    listing = list_audio(src, config.where, outside=out)
    plan = {"config": _settings(config), "files": _digest(listing)}
    done = _claim(out, plan, fresh)
    if done is not None:
        return done
    duplicates = _duplicates(listing.files) if config.drop_duplicates else {}
    units = _units(out, [file for file in listing.files if file.name not in duplicates], config)
    with Progress(disable=not progress) as bar:
        task = bar.add_task("build", total=sum(len(unit.files) for unit in units))
        results = run_units(units, config.num_workers, lambda unit: bar.advance(task, len(unit.files)), elsewhere)
    listing.rejects += [(name, f"duplicate of {first}") for name, first in duplicates.items()]
    summary = _finish(out, listing, results)
    if not summary.accepted:
        raise InputError(f'"{src}": none of {summary.rejected} files could be used. The reasons: {out}/{REJECTS_NAME}')
    storage.write_atomic(storage.join(out, BUILD_NAME), _json(plan | {"summary": asdict(summary)}))
    for url in [storage.join(out, WORK), *_half_written(out)]:
        storage.delete_tree(url)
    return summary


def _claim(out: str, plan: dict[str, Any], fresh: bool) -> BuildSummary | None:
    """Makes `out` this plan's; the summary where it is finished already."""
    if fresh:
        _remove(out)
    for name in (BUILD_NAME, f"{WORK}/plan.json"):
        url = storage.join(out, name)
        if not storage.exists(url):
            continue
        before = json.loads(storage.read_bytes(url))
        if (changes := _changes(before, plan)) is not None:
            raise InputError(
                f'"{out}" holds a build of other {changes}. Give another folder, or build anew with --fresh'
            )
        return _still_there(out, BuildSummary(**before["summary"])) if name == BUILD_NAME else None
    if any(entry.url.endswith((".tar", ".parquet")) for entry in storage.list_entries(out)):
        raise InputError(f'"{out}" holds tars or tables that no build made. Give an empty folder')
    storage.write_atomic(storage.join(out, f"{WORK}/plan.json"), _json(plan))
    return None


def _still_there(out: str, done: BuildSummary) -> BuildSummary:
    found = len(storage.list_files(out, ".tar"))
    if found < done.shards:
        raise InputError(
            f'"{out}" holds a finished build, and {done.shards - found} of its {done.shards} tars are gone. Put them '
            "back, or build anew with --fresh"
        )
    return done


def _changes(before: dict[str, Any], plan: dict[str, Any]) -> str | None:
    old, new = before["config"], plan["config"]
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if keys:
        return f"settings ({', '.join(keys)})"
    return None if before["files"] == plan["files"] else "files (some were added, removed or changed since)"


def _remove(out: str) -> None:
    if not any(storage.exists(storage.join(out, name)) for name in (BUILD_NAME, WORK)):
        return
    written = re.compile(r"/(samples/)?shard-\d+-\d+\.(tar|parquet)$")
    for url in [
        *(url for url in storage.list_files(out) if written.search(url)),
        *(storage.join(out, n) for n in (INDEX_NAME, REJECTS_NAME, PARTS_NAME, BUILD_NAME, WORK)),
    ]:
        storage.delete_tree(url)


def _half_written(out: str) -> list[str]:
    """What processes that were killed left behind."""
    return [url for url in storage.list_files(out, ".tmp") if url.rpartition("/")[2].startswith(".shard-")]


def _settings(config: BuildConfig) -> dict[str, Any]:
    """The settings that the shards depend on."""
    return config.model_dump(mode="json", exclude={"num_workers", "file_timeout_seconds"})


def _digest(listing: Listing) -> str:
    digest = hashlib.sha256()
    for file in listing.files:
        digest.update(_json([file.name, file.size, file.mtime_ns, file.labels]))
    digest.update(_json([listing.rejects, listing.left_out]))
    return digest.hexdigest()


def _duplicates(files: list[AudioFile]) -> dict[str, str]:
    """For each file whose bytes an earlier one has: that one's name.

    Only files of equal size are opened, and only those that begin alike are read to their end.
    """
    sizes = Counter(file.size for file in files)
    candidates = [file for file in files if file.size and sizes[file.size] > 1]
    with ThreadPoolExecutor(8) as pool:
        begins = [
            (file.size, begin) for file, begin in zip(candidates, pool.map(_first_digest, candidates), strict=True)
        ]
        times = Counter(begins)
        candidates = [file for file, begin in zip(candidates, begins, strict=True) if times[begin] > 1]
        digests = list(pool.map(_file_digest, candidates))
    first: dict[str, str] = {}
    duplicates = {}
    for file, digest in zip(candidates, digests, strict=True):
        if digest and first.setdefault(digest, file.name) != file.name:
            duplicates[file.name] = first[digest]
    return duplicates


def _first_digest(file: AudioFile) -> str | None:
    return _file_digest(file, whole=False)


def _file_digest(file: AudioFile, *, whole: bool = True) -> str | None:
    digest = hashlib.blake2b()
    try:
        with storage.open_input(file.url) as stream:
            digest.update(stream.read(_FIRST_BYTES))
            while whole and (block := stream.read(1 << 20)):
                digest.update(block)
    except OSError:
        return None  # its unit will say so
    return digest.hexdigest()


def _units(out: str, files: list[AudioFile], config: BuildConfig) -> list[Unit]:
    """Consecutive files in groups small enough to spread, and large enough to fill shards.

    A unit may take more input bytes than a shard, since audio mostly shrinks on its way in: uncompressed and stereo.
    """
    most_files = min(config.shard_samples, max(math.ceil(len(files) / config.min_shards), 1))
    groups: list[list[AudioFile]] = []
    num_bytes = 0
    for file in files:
        if not groups or len(groups[-1]) >= most_files or num_bytes >= 4 * config.shard_bytes:
            groups.append([])
            num_bytes = 0
        groups[-1].append(file)
        num_bytes += file.size
    keys = iter(_keys([file.name for file in files]))
    return [
        Unit(number, out, storage.join(out, WORK), tuple((next(keys), file) for file in group), config)
        for number, group in enumerate(groups)
    ]


def _keys(names: list[str]) -> Iterable[str]:
    """A key for each name: its path without suffix, in characters that every reader takes; a hash where two agree."""
    slugs = [
        re.sub(r"[^A-Za-z0-9_-]+", "_", str(PurePosixPath(name).with_suffix(""))).strip("_")[-64:] for name in names
    ]
    times = Counter(slugs)
    for name, slug in zip(names, slugs, strict=True):
        unique = slug and times[slug] == 1
        yield slug if unique else f"{slug}@{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def _finish(out: str, listing: Listing, results: list[dict[str, Any]]) -> BuildSummary:
    """Writes the tables, the index last."""
    rejects = sorted([*listing.rejects, *(tuple(row) for result in results for row in result["rejects"])])
    parts = [row for result in results for row in result["parts"]]
    shards = [row for result in results for row in result["shards"]]
    names = [dict(zip(REJECT_SCHEMA.names, map(printable, row), strict=True)) for row in rejects]
    write_table(storage.join(out, REJECTS_NAME), names, REJECT_SCHEMA)
    write_table(
        storage.join(out, PARTS_NAME), [dict(zip(PART_SCHEMA.names, r, strict=True)) for r in parts], PART_SCHEMA
    )
    if shards:
        write_table(storage.join(out, INDEX_NAME), shards, SHARD_SCHEMA)
    return BuildSummary(
        accepted=sum(result["accepted"] for result in results),
        rejected=len(rejects),
        left_out=listing.left_out,
        samples=sum(row["num_samples"] for row in shards),
        shards=len(shards),
        seconds=sum(row["seconds"] for row in shards),
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode("utf-8", "surrogateescape")
