"""What a machine reaches: the shards, and the folder that a run writes to; and by whose clock.

`scaleaudio doctor` asks before a run, and one worker of each machine at its start: a folder that only the driver has
would otherwise be missed hours later, at the first checkpoint.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from scaleaudio.data import decode, storage
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.patience import Patience, may_pass
from scaleaudio.errors import InputError
from scaleaudio.launch.apart import Asked, Finding, Status
from scaleaudio.launch.run_folder import CONFIG

_NUM_PROBED_SHARDS = 8
_SEEN_SECONDS = 30.0
_GIB = float(1 << 30)
_CLOCK_WARN_SECONDS, _CLOCK_FAIL_SECONDS = 2.0, 300.0  # object stores refuse what is signed a quarter of an hour off


@contextmanager
def from_this_node(run_url: str, patience: Patience, *, first: bool) -> Iterator[None]:
    """Whether a worker sees what the driver sees: the run folder, and what is opened while the block runs.

    Args:
        run_url: the run folder.
        patience: how long it is waited for where it fails.
        first: whether this is the first worker of its machine, which looks at the run folder for all of them. The
            others need not wait: none comes past the first collective without it, and its failure ends them all.

    Raises:
        InputError: naming this machine, and what it does not see or may not write.
        OSError: the same, where it may be gone after a while.
    """
    try:
        if first:
            if not _is_seen(storage.join(run_url, CONFIG), _SEEN_SECONDS, patience):
                raise InputError(f"the run folder {run_url}: what the driver wrote there is not to be seen")
            patience.read(lambda: written(run_url), remote=True)  # each try a file of its own
        yield
    except (InputError, OSError) as error:
        text = f"on node {socket.gethostname()}: {' '.join(str(error).split())}"
        if may_pass(error) and not isinstance(error, PermissionError):
            raise OSError(text) from error
        raise InputError(
            f"{text}. The driver's machine does better: give URLs or paths that every node reaches, and every node the "
            "right to them (scaleaudio doctor)"
        ) from error


def _is_seen(url: str, seconds: float, patience: Patience) -> bool:
    """Whether the driver's file is there in time: a network file system may show it late."""
    end = time.monotonic() + seconds
    while not patience.read(lambda: storage.exists(url), remote=True):
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


def written(folder: str) -> float:
    """Seconds by which the clock of who keeps `folder` is ahead, once a file there was written, read and deleted.

    Raises:
        InputError, OSError: when that failed.
    """
    url, wrote = storage.join(folder, f".probe-{secrets.token_hex(4)}"), secrets.token_bytes(1 << 12)
    storage.write_atomic(url, wrote)
    now = time.time()
    try:
        (entry,), read = storage.stat([url]), storage.read_bytes(url)
    finally:
        storage.delete_tree(url)
    if entry is None or read != wrote:
        raise OSError(f"{folder}: what was written is not what is read")
    return entry.mtime_ns / 1e9 - now


def data(asked: Asked) -> Iterator[Finding]:
    """Each index, the sizes of some of its shards, and one clip of it, read and opened."""
    for url in asked.data:
        try:
            yield from _shards(ShardIndex.load(url), url)
        except (OSError, ValueError) as error:
            yield Finding(
                "data",
                "fail",
                " ".join(str(error).split()),
                "Address, network, mount, right to read?" if isinstance(error, OSError) else "",
            )


def _shards(index: ShardIndex, url: str) -> Iterator[Finding]:
    num = len(index.ends)
    facts = {"shards": num, "clips": index.num_samples, "seconds": index.seconds}
    text = f"{url}: {num} shards, {index.num_samples} clips, {index.seconds / 3600:.1f} h"
    probed = (
        sorted({round(step * (num - 1) / (_NUM_PROBED_SHARDS - 1)) for step in range(_NUM_PROBED_SHARDS)})
        if num
        else []
    )
    found = storage.stat([index.shard_url(shard) for shard in probed])
    for shard, entry in zip(probed, found, strict=True):
        row = index.row(shard)
        if entry is None or entry.size != row.num_bytes:
            what = "is not there" if entry is None else f"has {entry.size} bytes, {row.num_bytes} were indexed"
            yield Finding("data", "fail", f"{url}: {row.shard} {what}", f"scaleaudio shards verify {url}", facts)
            return
    if not num:
        yield Finding("data", "fail", f"{url}: the index names no shard", f"scaleaudio shards index {url}", facts)
        return
    began = time.perf_counter()
    clip = index.samples(0).slice(0, 1).to_pylist()[0]
    with storage.open_input(index.shard_url(0)) as file:
        file.seek(clip["offset"])
        decode.measure(bytes(file.read(clip["size"])))
    took = time.perf_counter() - began
    yield Finding("data", "ok", f"{text}; a clip of the first in {took:.2f} s", facts=facts | {"clip_seconds": took})


@contextmanager
def witnessed(asked: Asked) -> Iterator[Asked]:
    """The same with a witness while the block runs; without, where none can be written, of which `out` tells."""
    if asked.out is None:
        yield asked
        return
    try:
        url = storage.join(_nearest(asked.out), f".probe-{secrets.token_hex(4)}")
        storage.write_atomic(url, b"")
    except (OSError, ValueError):
        yield asked
        return
    try:
        yield replace(asked, witness=url)
    finally:
        with suppress(OSError):
            storage.delete_tree(url)


def out(asked: Asked) -> Iterator[Finding]:
    """Whether the folder of runs is the driver's, can be written, read and cleared; and the clock of who keeps it."""
    if asked.out is None:
        return
    limit = min(_SEEN_SECONDS, asked.seconds / 2)
    if asked.witness is not None and not _is_seen(asked.witness, limit, Patience(limit, limit)):
        text = f"{asked.out}: another folder than the driver's: what that machine wrote there is not to be seen"
        yield Finding("out", "fail", text, "Give --out a URL (s3://...), or a path that all machines share.")
        return
    try:
        place = _nearest(asked.out)
        skew = written(place)
    except (OSError, ValueError) as error:
        text = f"{asked.out}: cannot be written: {' '.join(str(error).split())}"
        yield Finding("out", "fail", text, "Give --out a place that every worker may write, and the right to it.")
        return
    text, low = f"{asked.out}: written, read and deleted", False
    if storage.is_local(place):
        free = shutil.disk_usage(storage.open_url(place)[1]).free
        text, low = f"{text}; {free / _GIB:.0f} GiB free", free < 5 * _GIB
    fix = (
        "A checkpoint takes 12 bytes a parameter and more: keep fewer (checkpoint.keep_last) or free some."
        if low
        else ""
    )
    yield Finding("out", "warn" if low else "ok", text, fix)
    yield clock_finding(skew, f"the storage of {asked.out}", certain_to=1.0)


def _nearest(folder: str) -> str:
    """The folder, or that above it which is there: nothing is to be left behind, no folder either."""
    while storage.is_local(folder) and not storage.exists(folder):
        folder = str(Path(storage.open_url(folder)[1]).parent)
    return folder


def clock_finding(skew: float, other: str, certain_to: float) -> Finding:
    """How far another clock is from this machine's, known to so many seconds."""
    beyond = max(0.0, abs(skew) - certain_to)
    status: Status = "fail" if beyond > _CLOCK_FAIL_SECONDS else "warn" if beyond > _CLOCK_WARN_SECONDS else "ok"
    text = (
        f"{other} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine" if beyond else f"as {other}"
    )
    fix = "" if status == "ok" else "Set the clocks by NTP (chrony): object stores refuse signatures of another time."
    return Finding("clock", status, text, fix, {"skew_seconds": skew})
