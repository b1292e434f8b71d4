"""One checkpoint format for every world: any engine, ZeRO stage and number of workers reads what any other wrote.

    RUN/checkpoints/step-00001000/part-00000-of-00002.safetensors   tensors, spread over the ranks
                                  meta.json                         step, config, order fingerprint, part checksums

`meta.json` is written last and makes the checkpoint exist; without it, or with a part that differs from its checksum,
the checkpoint counts as torn and the one before it is taken. Storage that does not answer tears nothing: it is asked
again for a while, and then the whole reading fails.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import safetensors.torch
import torch.distributed as dist
from torch import Tensor

from scaleaudio import __version__
from scaleaudio.data import storage
from scaleaudio.data.patience import Patience, may_pass
from scaleaudio.errors import DamageWarning, InputError
from scaleaudio.train import Engine
from scaleaudio.types import World

Result = TypeVar("Result")

FORMAT_VERSION = 1
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


def save(run_url: str, engine: Engine, meta: Meta, patience_seconds: float = PATIENCE_SECONDS) -> str:
    """Writes a checkpoint after `meta.step` steps and gives its URL. A collective: every rank calls it.

    What fails is tried again for `patience_seconds`, with pauses that grow.

    Raises:
        OSError: on every rank, when any rank could not write its part; there is then no checkpoint of this step, and
            those before it are as they were.
    """
    world, patience = engine.world, Patience(deadline_seconds=patience_seconds)
    url = storage.join(run_url, "checkpoints", f"step-{meta.step:08d}")
    own = {n: t.to("cpu").contiguous() for i, (n, t) in enumerate(engine.tensors()) if i % world.size == world.rank}
    data = safetensors.torch.save(own)
    part = Part(f"part-{world.rank:05d}-of-{world.size:05d}.safetensors", len(data), hashlib.sha256(data).hexdigest())
    failure = _attempt(storage.join(url, part.name), data, patience)
    outcomes = _gather((part, failure), world)
    failures = [failed for _, failed in outcomes if failed]
    if not failures:
        if world.rank == 0:
            whole = asdict(meta) | {"parts": [asdict(part) for part, _ in outcomes]}
            failure = _attempt(storage.join(url, "meta.json"), json.dumps(whole, indent=1).encode(), patience)
        failures = list(filter(None, _gather(failure if world.rank == 0 else None, world)))
    if failures:
        if world.rank == 0:
            with suppress(OSError):  # what was begun takes space that may be wanting
                storage.delete_tree(url)
        raise OSError(f"{url}: checkpoint not written: {failures[0]}")
    return url


def _attempt(url: str, data: bytes, patience: Patience) -> str | None:
    try:
        # As if remote even where it is a disk: one of a cluster's shared disks may be away for minutes too.
        patience.read(lambda: storage.write_atomic(url, data), remote=True, num_bytes=len(data))
    except OSError as error:
        return str(error)
    return None


def _gather(value: Any, world: World) -> list[Any]:
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


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


def read_tensors(url: str, meta: Meta) -> Mapping[str, Tensor]:
    """All tensors of the checkpoint, checked against their checksums.

    Raises:
        OSError: when a part is missing or differs, or storage does not answer.
    """
    tensors: dict[str, Tensor] = {}
    for part in meta.parts:
        tensors |= safetensors.torch.load(_read_part(url, part))
    return tensors


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
    """Whether storage did not answer, which says nothing of the checkpoint."""
    return not storage.is_local(url) and not isinstance(error, TornError) and may_pass(error)


def newest_meta(run_url: str) -> Meta | None:
    """What the newest checkpoint with a readable meta.json says of itself; None where there is none."""
    for url in reversed(list_checkpoints(run_url)):
        try:
            return read_meta(url)
        except TORN as error:
            if _out_of_reach(url, error):
                raise
    return None


def newest(run_url: str) -> tuple[Meta, Mapping[str, Tensor], list[str]] | None:
    """The newest whole checkpoint with its tensors, and a line for each torn one passed over; None where none is.

    A newer one that was begun and never committed has its line too.

    Raises:
        InputError: when there are checkpoints and all are torn.
        OSError: when storage does not answer.
    """
    passed: list[str] = []
    torn: list[str] = []
    for url, committed in reversed(_listed(run_url)):
        if not committed:
            passed.append(f"{url}: torn checkpoint passed over (no meta.json: it was begun and never committed)")
            continue
        try:
            meta = read_meta(url)
            return meta, read_tensors(url, meta), passed
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
