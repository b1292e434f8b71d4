"""The parts of a table that many processes write, and the table that they become.

A part is a Parquet file of consecutive rows of a shard, in a folder below OUT.parts beside the table OUT. Its name says
which rows, and how many have no embedding, and it appears whole: so the folder's listing is all the state there is. The
folder is named by the plan, so that the parts of two jobs with other models or shards never meet.
`merge` lays the parts end to end, in one process, and spools the table on the local disk where OUT is in an object
store: what one such disk and object hold bounds the table.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scaleaudio.data import storage
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.parquet import read_parquet
from scaleaudio.data.patience import Patience
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.evaluate.corpus import is_passing

GROUP_BYTES = 64 << 20
_ABOUT = b"scaleaudio"  # the key of what the finished table says about itself
_NAME = re.compile(r"/part-(\d+)-(\d+)-(\d+)-(\d+)-(\d+)\.parquet$")
_REJECT_SCHEMA = pa.schema([("shard", pa.string()), ("key", pa.string()), ("reason", pa.string())])


class Part(NamedTuple):
    """Rows `start` to `stop` - 1 of the shard in row `shard` of the index.

    `num_rejects` of them have no embedding; of these `num_passing` may have one when they are made again.
    """

    shard: int
    start: int
    stop: int
    num_rejects: int
    num_passing: int

    def url(self, folder: str) -> str:
        """Where it lies in the parts' folder."""
        name = f"part-{self.shard:08d}-{self.start:08d}-{self.stop:08d}-{self.num_rejects}-{self.num_passing}.parquet"
        return storage.join(folder, name)


class Begun(NamedTuple):
    """What an earlier run left, by the units' shard and number within the shard.

    Attributes:
        finished: of the units that are there for good, how many of their samples have no embedding.
        leftover: of the others, which are made again, the parts.
    """

    finished: dict[tuple[int, int], int]
    leftover: dict[tuple[int, int], list[Part]]


def folder_of(out: str, plan: dict[str, Any]) -> str:
    """Where the parts of `plan` lie; the size of its units does not matter."""
    identity = {key: value for key, value in plan.items() if key != "unit_samples"}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return storage.join(_folder(out), digest[:16])


def rejects_url(out: str) -> str:
    """The table beside `out` that names the clips without an embedding."""
    return out.removesuffix(".parquet") + ".rejects.parquet"


def claim(out: str, plan: dict[str, Any]) -> dict[str, Any] | None:
    """What the finished table at `out` says about itself; None where it is still to be made.

    Raises:
        InputError: `out` holds something else, or was made, or begun, by another plan.
    """
    if storage.is_folder(out):
        raise InputError(f'OUT "{out}": a folder; expected a path for a Parquet table')
    about = _about(out) if storage.exists(out) else None
    before = [about["plan"]] if about is not None else _plans(out)
    changed = [key for key in plan if key != "unit_samples" and any(other.get(key) != plan[key] for other in before)]
    if changed:
        raise InputError(
            f'OUT "{out}" holds embeddings of another {" and another ".join(changed)}. Give another file, or --fresh'
        )
    return about


def begin(out: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan that the parts of `out` follow: an earlier run's, where there was one, else `plan`."""
    url = storage.join(folder_of(out, plan), "plan.json")
    if storage.exists(url):
        before: dict[str, Any] = json.loads(storage.read_bytes(url))
        return before
    storage.write_atomic(url, json.dumps(plan).encode())
    return plan


def write(folder: str, shard: int, start: int, table: pa.Table) -> Part:
    """Puts the rows of a shard from `start` on there, as a part; patient with storage."""
    reasons = table["reason"].drop_null().to_pylist()
    part = Part(shard, start, start + len(table), len(reasons), sum(map(is_passing, reasons)))
    url = part.url(folder)
    _patiently(url, lambda: _write(url, table), num_bytes=table.nbytes)  # written twice, it is the same
    return part


def begun(folder: str, unit_samples: int, num_samples_per_shard: Sequence[int]) -> Begun:
    """What is there of the units of `unit_samples`.

    A unit goes on as it is with rejects that its audio or the model is at fault for. It is made again when a row is
    missing, or when storage or a dead process cost it one: what could not be read yesterday may be there today.
    """
    begun = Begun({}, {})
    for (shard, number), found in groupby(_parts(folder), lambda part: (part.shard, part.start // unit_samples)):
        parts = list(found)
        chosen = list(_without_overlap(parts))
        size = unit_size(number, unit_samples, num_samples_per_shard[shard])
        if sum(part.stop - part.start for part in chosen) == size and not any(part.num_passing for part in chosen):
            begun.finished[shard, number] = sum(part.num_rejects for part in chosen)
        else:
            begun.leftover[shard, number] = parts
    return begun


def unit_size(number: int, unit_samples: int, num_samples: int) -> int:
    """How many samples unit `number` of a shard of `num_samples` has."""
    return min(unit_samples, num_samples - number * unit_samples)


def replace(folder: str, leftover: Iterable[Part], part: Part) -> None:
    """Deletes those of `leftover` that hold rows of `part`, which is there in their place."""
    for old in leftover:
        if old != part and old.start < part.stop and part.start < old.stop:
            storage.delete_tree(old.url(folder))


def merge(out: str, plan: dict[str, Any], index: ShardIndex) -> dict[str, Any]:
    """Writes the table `out` and its rejects from the parts; gives what the table says about itself.

    Raises:
        RunFailed: when a row is missing.
    """
    folder = folder_of(out, plan)
    found = list(_without_overlap(_parts(folder)))
    rows: Counter[int] = Counter()
    for part in found:
        if part.start != rows[part.shard]:
            break
        rows[part.shard] = part.stop
    if missing := [n for n, size in enumerate(index.num_samples_per_shard.tolist()) if rows[n] != size]:
        shard = index.row(missing[0]).shard
        raise RunFailed(f"{folder}: parts of {len(missing)} shards are gone, as of {shard}. Run the command again")
    num_rejects = sum(part.num_rejects for part in found)
    about = {"plan": plan, "num_samples": sum(rows.values()) - num_rejects, "num_rejects": num_rejects}
    names = [part.url(folder) for part in found if part.num_rejects]
    tables = [_rejected(_read(url)) for url in names]
    _write(rejects_url(out), pa.concat_tables([_REJECT_SCHEMA.empty_table(), *tables]))
    schema = _row_schema(plan["embedding_dim"]).with_metadata({_ABOUT: json.dumps(about).encode()})
    with storage.open_atomic(out) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(_read(part.url(folder)) for part in found):
            writer.write_table(group.select(schema.names).cast(schema))
    return about


def tidy(out: str, plan: dict[str, Any]) -> None:
    """Deletes the parts of `plan`, once the table is there."""
    storage.delete_tree(folder_of(out, plan))
    if not storage.list_files(_folder(out)):
        storage.delete_tree(_folder(out))


def remove(out: str) -> None:
    """Deletes the table, its rejects and its parts.

    Raises:
        InputError: `out` is something else.
    """
    if storage.is_folder(out):
        raise InputError(f'OUT "{out}": a folder, which --fresh does not delete')
    if storage.exists(out):
        _about(out)
    for url in (out, rejects_url(out), _folder(out)):
        storage.delete_tree(url)


def _row_schema(embedding_dim: int) -> pa.Schema:
    embedding = pa.list_(pa.field("item", pa.float32()), embedding_dim)
    return pa.schema([*((name, pa.string()) for name in ("key", "shard", "label")), ("embedding", embedding)])


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows with an embedding, in tables of about GROUP_BYTES: a row group each."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table.filter(pc.is_null(table["reason"])))
        if sum(each.nbytes for each in held) >= GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _rejected(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_valid(table["reason"])).select(_REJECT_SCHEMA.names)


def _parts(folder: str) -> list[Part]:
    """What the folder holds, in the order of the rows; of parts that begin together the longest and best first."""
    names = (_NAME.search(url) for url in storage.list_files(folder, ".parquet"))
    found = [Part(*map(int, name.groups())) for name in names if name]
    return sorted(found, key=lambda part: (part.shard, part.start, -part.stop, part.num_passing, part.num_rejects))


def _without_overlap(ordered: list[Part]) -> Iterator[Part]:
    """One part for each row: a unit that was halved, and came through later, is there twice."""
    at = (-1, 0)
    for part in ordered:
        if (part.shard, part.start) >= at:
            at = (part.shard, part.stop)
            yield part


def _read(url: str) -> pa.Table:
    return _patiently(url, lambda: read_parquet(url))


def _patiently(url: str, action: Callable[[], Any], num_bytes: int = 0) -> Any:
    # An object store's client itself tries for a while.
    patience = Patience(stall_seconds=120, deadline_seconds=600)
    return patience.read(action, remote=not storage.is_local(url), num_bytes=num_bytes)


def _write(url: str, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_atomic(url, buffer.getvalue().to_pybytes())


def _about(out: str) -> dict[str, Any]:
    try:
        with storage.open_input(out) as file:
            about: dict[str, Any] = json.loads((pq.read_schema(file).metadata or {})[_ABOUT])
            return about
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise InputError(f'OUT "{out}": a file that `scaleaudio embed` did not write. Give another') from error


def _plans(out: str) -> list[dict[str, Any]]:
    """Of all jobs that were begun here, and not ended."""
    return [json.loads(storage.read_bytes(url)) for url in storage.list_files(_folder(out), "/plan.json")]


def _folder(out: str) -> str:
    return f"{out}.parts"
