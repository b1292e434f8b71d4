"""One checkpoint format for every world: any engine, ZeRO stage and number of workers reads what any other wrote.

    RUN/checkpoints/step-00001000/part-00000-of-00002.safetensors   tensors, spread over the ranks that have some
                                  meta.json                         step, config, order fingerprint, part checksums

`meta.json` is written last and makes the checkpoint exist; without it, or with a part that differs from its checksum,
the checkpoint counts as torn and the one before it is taken. Storage that does not answer tears nothing: it is asked
again for a while, and then the whole reading fails.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from scaleaudio import __version__
from scaleaudio.collectives import Shared, gather_to_rank_0, on_rank, portable
from scaleaudio.data import storage
from scaleaudio.data.patience import Patience, may_pass
from scaleaudio.errors import DamageWarning, InputError
from scaleaudio.train import Engine
from scaleaudio.types import World

Result = TypeVar("Result")

FORMAT_VERSION = 1
_ALONE = World()
_STEP = re.compile(r"step-(\d{8,})(?:\?.*)?$")  # a query may end the URL of an object store
_META = re.compile(r"/meta\.json(?=\?|$)")
_FILE = re.compile(r"/[^/?]*(?=\?|$)")  # the last name of a path

PATIENCE_SECONDS = 120.0
TORN = (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError)


@dataclass(frozen=True)
class Part:
    """One safetensors file of a checkpoint."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    Attributes:
        step: steps taken; the next one has this number.
        config: the resolved config of the run.
        fingerprint: what the order of the stream depends on.
        score: the held-out probe's score, where the run has one.
    """

    step: int
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    parts: tuple[Part, ...] = ()
    score: float | None = None
    format_version: int = FORMAT_VERSION
    scaleaudio_version: str = field(default=__version__)


class TornError(OSError):
    """A part that is not the one that meta.json tells of."""


class _Fault(NamedTuple):
    """Why a part could not be read, and where."""

    number: int
    error: Exception
    host: str


class OneSidedError(OSError):
    """A part that one machine cannot read and another can, which says nothing of the checkpoint."""


def save(run_url: str, engine: Engine, meta: Meta, patience_seconds: float = PATIENCE_SECONDS) -> str:
    """Writes a checkpoint after `meta.step` steps and gives its URL. A collective: every rank calls it.

    What fails is tried again for `patience_seconds`, with pauses that grow.

    Raises:
        OSError: on every rank, when any rank could not write its part; there is then no checkpoint of this step, and
            those before it are as they were.
    """
    world, patience = engine.world, Patience(deadline_seconds=patience_seconds)
    url = storage.join(run_url, "checkpoints", f"step-{meta.step:08d}")
    part, failure = _save_share(url, engine, patience)
    written = gather_to_rank_0((part, failure), world)

    def commit() -> str | None:
        if failures := [failed for _, failed in written if failed]:
            return failures[0]
        whole = asdict(meta) | {"parts": [asdict(part) for part, _ in written if part]}
        return _attempt(storage.join(url, "meta.json"), json.dumps(whole, indent=1).encode(), patience)

    if failure := on_rank(commit, world):
        if world.rank == 0:
            with suppress(OSError):  # what was begun takes space that may be wanting
                storage.delete_tree(url)
        raise OSError(f"{url}: checkpoint not written: {failure}")
    return url


def _save_share(url: str, engine: Engine, patience: Patience) -> tuple[Part | None, str | None]:
    """Writes this rank's tensors; gives the part that holds them, where it has any, and why it failed, where it did."""
    world = engine.world
    own: dict[str, Tensor] = {}
    held = [0] * world.size  # bytes: whoever has the least takes the next, so that all have to read about as much
    for name, tensor in engine.tensors():
        rank = held.index(min(held))
        held[rank] += tensor.nbytes
        if rank == world.rank:
            own[name] = tensor.to("cpu").contiguous()
    if not own:
        return None, None
    data = safetensors.torch.save(own)
    part = Part(f"part-{world.rank:05d}-of-{world.size:05d}.safetensors", len(data), hashlib.sha256(data).hexdigest())
    return part, _attempt(storage.join(url, part.name), data, patience)


def _attempt(url: str, data: bytes, patience: Patience) -> str | None:
    try:
        # As if remote even where it is a disk: one of a cluster's shared disks may be away for minutes too.
        patience.read(lambda: storage.write_atomic(url, data), remote=True, num_bytes=len(data))
    except OSError as error:
        return str(error)
    return None


def list_checkpoints(run_url: str) -> list[str]:
    """URLs of the committed checkpoints of a run, oldest first."""
    return [url for url, committed in _listed(run_url) if committed]


def _listed(run_url: str) -> list[tuple[str, bool]]:
    """The checkpoints of a run, oldest first, and whether each was committed."""
    folder = storage.join(run_url, "checkpoints")
    files = _patiently(folder, lambda: storage.list_files(folder))
    committed = {_FILE.sub("", url) for url in files if _META.search(url)}
    urls = {_FILE.sub("", url) for url in files}
    return [(url, url in committed) for url in sorted((url for url in urls if _STEP.search(url)), key=step_of)]


def step_of(url: str) -> int:
    """The step in a checkpoint's name."""
    found = _STEP.search(url)
    if found is None:
        raise InputError(f"{url}: expected a checkpoint folder such as checkpoints/step-00001000")
    return int(found.group(1))


def read_meta(url: str) -> Meta:
    """What the checkpoint says of itself.

    Raises:
        InputError: when it is of a newer format.
    """
    read = json.loads(_read(storage.join(url, "meta.json")))
    if read["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{url}: format_version {read['format_version']}, this scaleaudio reads up to {FORMAT_VERSION}. Upgrade it."
        )
    return Meta(**read | {"parts": tuple(Part(**part) for part in read["parts"])})


def read_tensors(
    url: str, meta: Meta, world: World = _ALONE, device: torch.device | None = None
) -> Mapping[str, Tensor]:
    """All tensors of the checkpoint, checked against their checksums. A collective.

    Each rank reads its share of the parts, and a lookup in what is given brings a tensor to `device` on all of them.

    Raises:
        OSError: on every rank, when a part is missing or differs, or storage does not answer.
    """
    own, fault = _read_share(url, meta, world)
    faults = gather_to_rank_0(fault, world)
    first = on_rank(lambda: min(filter(None, faults), key=lambda fault: fault.number, default=None), world)
    if first is not None:
        reader = first.number % world.size
        _raise(url, first.error, world, reader, first.host, lambda: _read_part(url, meta.parts[first.number]))
    return Shared(own, world, device)


def _read_share(url: str, meta: Meta, world: World) -> tuple[dict[str, Tensor], _Fault | None]:
    """The tensors of this rank's parts; and, where that failed, at which part and why."""
    own: dict[str, Tensor] = {}
    for number in range(world.rank, len(meta.parts), world.size):
        try:
            own |= safetensors.torch.load(_read_part(url, meta.parts[number]))
        except Exception as error:  # of whatever kind: the other ranks wait to hear of it
            return {}, _Fault(number, portable(error), socket.gethostname())
    return own, None


def _raise(url: str, error: Exception, world: World, reader: int, host: str, read: Callable[[], object]) -> NoReturn:
    """Raises the error of one rank on all, once a distant one has met it too: one alone tears no checkpoint."""
    witness = (reader + world.size // 2) % world.size
    if witness != reader and isinstance(error, TORN) and not _out_of_reach(url, error):
        on_rank(lambda: bool(read()), world, witness)  # only whether it can travels
        text = f"worker {reader} on {host} cannot read what worker {witness} can: {type(error).__name__}: {error}"
        raise OneSidedError(text)
    raise error


def _agreed_meta(url: str, world: World) -> Meta:
    """What the checkpoint says of itself, read by rank 0 for all."""
    try:
        return on_rank(partial(read_meta, url), world)
    except TORN as error:
        host = on_rank(socket.gethostname, world)
        _raise(url, error, world, 0, host, partial(read_meta, url))


def _read_part(url: str, part: Part) -> bytes:
    place = storage.join(url, part.name)
    data = _read(place, part.num_bytes)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise TornError(f"{place}: its sha256 is not meta.json's ({len(data)} of {part.num_bytes} bytes)")
    return data


def _read(url: str, num_bytes: int = 0) -> bytes:
    return _patiently(url, lambda: storage.read_bytes(url), num_bytes)


def _patiently(url: str, action: Callable[[], Result], num_bytes: int = 0) -> Result:
    patience = Patience(deadline_seconds=PATIENCE_SECONDS)
    return patience.read(action, remote=not storage.is_local(url), num_bytes=num_bytes)


def _out_of_reach(url: str, error: Exception) -> bool:
    """Whether storage did not answer, or not to all, which says nothing of the checkpoint."""
    unanswered = not storage.is_local(url) and not isinstance(error, TornError) and may_pass(error)
    return unanswered or isinstance(error, OneSidedError)


def newest_meta(run_url: str) -> Meta | None:
    """What the newest checkpoint with a readable meta.json says of itself; None where there is none."""
    for url in reversed(list_checkpoints(run_url)):
        try:
            return read_meta(url)
        except TORN as error:
            if _out_of_reach(url, error):
                raise
    return None


def newest(
    run_url: str, world: World = _ALONE, device: torch.device | None = None
) -> tuple[Meta, Mapping[str, Tensor], list[str]] | None:
    """The newest whole checkpoint with its tensors, and a line for each torn one passed over; None where none is.

    A newer one that was begun and never committed has its line too. A collective, and so is each lookup of a tensor,
    which comes to `device`: rank 0 lists them and reads what they say of themselves, each rank its share of the parts.

    Raises:
        InputError: on every rank, when there are checkpoints and all are torn.
        OSError: on every rank, when storage does not answer.
    """
    passed: list[str] = []
    torn: list[str] = []
    for url, committed in reversed(on_rank(lambda: _listed(run_url), world)):
        if not committed:
            passed.append(f"{url}: torn checkpoint passed over (no meta.json: it was begun and never committed)")
            continue
        try:
            meta = _agreed_meta(url, world)
            return meta, read_tensors(url, meta, world, device), passed
        except TORN as error:
            if _out_of_reach(url, error):
                raise
            torn.append(f"{url}: torn checkpoint passed over ({type(error).__name__}: {error})")
            passed.append(torn[-1])
    if torn:
        raise InputError(f"{run_url}: no checkpoint is whole ({torn[0]}). Start anew with --fresh.")
    return None


def copy_newest(from_run_url: str, run_url: str) -> int:
    """The newest whole checkpoint of one run as the first of another; gives its step.

    Raises:
        InputError: when there is none.
    """
    for url in reversed(list_checkpoints(from_run_url)):
        place = storage.join(run_url, "checkpoints", f"step-{step_of(url):08d}")
        try:
            meta = read_meta(url)
            for part in meta.parts:
                storage.write_atomic(storage.join(place, part.name), _read_part(url, part))
        except TORN:  # or pruned a moment ago, since its run goes on
            continue
        storage.write_atomic(storage.join(place, "meta.json"), json.dumps(asdict(meta), indent=1).encode())
        return meta.step
    raise InputError(f"{from_run_url}: no checkpoint is whole, so there is nothing to go on from")


def warn_passed_over(lines: Iterable[str], instead: str) -> None:
    """Warns of each checkpoint that `newest` passed over, and says what is used instead."""
    for line in lines:
        warnings.warn(f"{line}; {instead}", DamageWarning, stacklevel=3)


def prune(run_url: str, keep_last: int, keep_best: int) -> None:
    """Deletes all but the newest `keep_last` checkpoints and the `keep_best` with the highest score."""
    urls = list_checkpoints(run_url)
    scored = [(score, url) for url in urls if (score := _score(url)) is not None]
    best = {url for _, url in sorted(scored)[len(scored) - min(keep_best, len(scored)) :]}
    for url in urls[:-keep_last]:
        if url not in best:
            storage.delete_tree(url)


def _score(url: str) -> float | None:
    try:
        return read_meta(url).score
    except TORN:
        return None
