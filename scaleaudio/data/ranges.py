"""Members of one tar by few ranged reads: neighbours together, and no read so long that it weighs on memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from scaleaudio.data.patience import WrongShard
from scaleaudio.data.storage import can_stay_open, open_input, open_url

if TYPE_CHECKING:
    from scaleaudio.data.cache import Cache
    from scaleaudio.data.lru import LRU

# Bytes between two members (a .json, or the picture beside the sound in someone else's tar) that cost less to read
# than a further request does.
MAX_GAP_BYTES = 1 << 18
# A longer read would save no more time, and is held whole until its members are cut out of it.
MAX_RUN_BYTES = 1 << 23
# What a file of an object store that stays open takes in memory (measured: 1.35 kB).
OPEN_FILE_BYTES = 1400


class Member(NamedTuple):
    """One audio file in a shard, as the index describes it (None: it does not say).

    `fault` says why that cannot be true; `data` holds its bytes where they were read ahead.
    """

    shard: str
    url: str
    key: str
    offset: int
    size: int
    frames: int | None
    checksum: str | None
    shard_bytes: int
    fault: str | None = None
    data: bytes | None = None


def advise(members: list[Member]) -> None:
    """Has the kernel read `members` of one local file ahead, where it takes such advice."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        descriptor = os.open(open_url(members[0].url)[1], os.O_RDONLY)
    except OSError:
        return  # `load` will say why
    try:
        for run in _runs(members):
            os.posix_fadvise(descriptor, run[0].offset, _end(run) - run[0].offset, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def read_members(
    members: list[Member],
    *,
    within: list[Member] | None = None,
    cache: Cache | None = None,
    files: LRU[str, Any] | None = None,
) -> list[bytes]:
    """The bytes of `members` of one file, neighbours by a read in common, which `cache` keeps.

    Where more is read than is asked for, `within` holds `members` and their neighbours, in the same order. `files`
    keeps the file open, which spares the next call a request for its size.
    """
    wanted = {member.offset for member in members}
    runs = [run for run in _runs(within or members) if any(member.offset in wanted for member in run)]
    found: list[bytes] = []
    with ExitStack() as stack:
        file = None
        for run in runs:
            piece = cache.get(_piece_name(run)) if cache else None
            if piece is None:
                file = file or stack.enter_context(_opened(members, files))
                piece = _read_run(file, run)
                if cache:
                    cache.put(_piece_name(run), piece)
            starts = [(member.offset - run[0].offset, member.size) for member in run if member.offset in wanted]
            # Copies: a view would hold the whole read until its last sample is used.
            found += [piece[start : start + size] for start, size in starts]
    return found


@contextmanager
def _opened(members: list[Member], files: LRU[str, Any] | None) -> Iterator[Any]:
    """The file of `members`; with checksums, which tell whether it is still the same, it stays open in `files`."""
    url = members[0].url
    if files is None or not can_stay_open(url) or any(member.checksum is None for member in members):
        with open_input(url) as file:
            _check_size(members, file.size())
            yield file
        return
    file = files.get(url)
    if file is None:
        file = open_input(url)
        files.put(url, file, OPEN_FILE_BYTES)
    try:
        yield file
    except BaseException:
        files.drop(url)  # the next try asks for its size again
        raise


def _read_run(file: Any, run: list[Member]) -> bytes:
    start, size = run[0].offset, _end(run) - run[0].offset
    # Asked before, since a read that the file cannot fill takes the memory for it all the same.
    data = bytes(file.read_at(size, start)) if start + size <= file.size() else b""
    if len(data) != size:
        raise WrongShard(f"the shard ends before byte {start + size}: it is shorter than its index says")
    return data


def _piece_name(run: list[Member]) -> str:
    """What a cache calls the bytes of `run`: another name where the index says that they are others."""
    first, checksums = run[0], [member.checksum for member in run]
    return f"{first.url} {first.shard_bytes} {first.offset} {_end(run)} {checksums}"


def _check_size(members: list[Member], num_bytes: int) -> None:
    """Refuses another file than the one indexed, where no checksum will tell."""
    indexed = members[0].shard_bytes
    if num_bytes != indexed and any(member.checksum is None for member in members):
        raise WrongShard(f"the shard has another size than when it was indexed: {num_bytes} bytes, and {indexed} then")


def _runs(members: list[Member]) -> Iterator[list[Member]]:
    """`members` cut wherever too many bytes lie between two of them, or would be read together."""
    start = 0
    for at in range(1, len(members)):
        near = 0 <= members[at].offset - _end(members[at - 1 : at]) <= MAX_GAP_BYTES
        if not near or _end(members[start : at + 1]) - members[start].offset > MAX_RUN_BYTES:
            yield members[start:at]
            start = at
    yield members[start:]


def _end(members: list[Member]) -> int:
    return members[-1].offset + members[-1].size
