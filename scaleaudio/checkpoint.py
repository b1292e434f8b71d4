"""One checkpoint format for every world: any engine, ZeRO stage and number of workers reads what any other wrote.

    RUN/checkpoints/step-00001000/part-00000-of-00002.safetensors   tensors, spread over the ranks
                                  meta.json                         step, config, order fingerprint, part checksums

`meta.json` is written last and makes the checkpoint exist; without it, or with a part that differs from its checksum,
the checkpoint counts as torn and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch.distributed as dist
from torch import Tensor

from scaleaudio import __version__
from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.train import Engine
from scaleaudio.types import World

FORMAT_VERSION = 1
_STEP = re.compile(r"step-(\d{8,})(?:\?.*)?$")  # a query may end the URL of an object store
_META = re.compile(r"/meta\.json(?=\?|$)")

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


def save(run_url: str, engine: Engine, meta: Meta) -> str:
    """Writes a checkpoint after `meta.step` steps and gives its URL. A collective: every rank calls it.

    Raises:
        OSError: on every rank, when any rank could not write its part; there is then no checkpoint of this step.
    """
    world = engine.world
    url = storage.join(run_url, "checkpoints", f"step-{meta.step:08d}")
    own = {n: t.to("cpu").contiguous() for i, (n, t) in enumerate(engine.tensors()) if i % world.size == world.rank}
    data = safetensors.torch.save(own)
    part = Part(f"part-{world.rank:05d}-of-{world.size:05d}.safetensors", len(data), hashlib.sha256(data).hexdigest())
    failure = _attempt(storage.join(url, part.name), data)
    outcomes = _gather((part, failure), world)
    failures = [failed for _, failed in outcomes if failed]
    if failures:
        raise OSError(f"{url}: checkpoint not written: {failures[0]}")
    if world.rank == 0:
        whole = asdict(meta) | {"parts": [asdict(part) for part, _ in outcomes]}
        failure = _attempt(storage.join(url, "meta.json"), json.dumps(whole, indent=1).encode())
    committed = _gather(failure if world.rank == 0 else None, world)
    if committed[0]:
        raise OSError(f"{url}: checkpoint not written: {committed[0]}")
    return url


def _attempt(url: str, data: bytes) -> str | None:
    try:
        storage.write_atomic(url, data)
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
    folder = storage.join(run_url, "checkpoints")
    urls = [_META.sub("", url) for url in storage.list_files(folder, suffix="/meta.json")]
    return sorted((url for url in urls if _STEP.search(url)), key=step_of)


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
    read = json.loads(storage.read_bytes(storage.join(url, "meta.json")))
    if read["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{url}: format_version {read['format_version']}, this scaleaudio reads up to {FORMAT_VERSION}. Upgrade it."
        )
    return Meta(**read | {"parts": tuple(Part(**part) for part in read["parts"])})


def read_tensors(url: str, meta: Meta) -> Mapping[str, Tensor]:
    """All tensors of the checkpoint, checked against their checksums.

    Raises:
        OSError: when a part is missing or differs.
    """
    tensors: dict[str, Tensor] = {}
    for part in meta.parts:
        data = storage.read_bytes(storage.join(url, part.name))
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise OSError(
                f"{storage.join(url, part.name)}: its sha256 is not meta.json's ({len(data)} of {part.num_bytes} bytes)"
            )
        tensors |= safetensors.torch.load(data)
    return tensors


def newest_meta(run_url: str) -> Meta | None:
    """What the newest checkpoint with a readable meta.json says of itself; None where there is none."""
    for url in reversed(list_checkpoints(run_url)):
        try:
            return read_meta(url)
        except TORN:
            continue
    return None


def newest(run_url: str) -> tuple[Meta, Mapping[str, Tensor], list[str]] | None:
    """The newest whole checkpoint with its tensors, and a line for each torn one passed over; None where none is.

    Raises:
        InputError: when there are checkpoints and all are torn.
    """
    torn: list[str] = []
    for url in reversed(list_checkpoints(run_url)):
        try:
            meta = read_meta(url)
            return meta, read_tensors(url, meta), torn
        except TORN as error:
            torn.append(f"{url}: torn checkpoint passed over ({type(error).__name__}: {error})")
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
                data = storage.read_bytes(storage.join(url, part.name))
                if hashlib.sha256(data).hexdigest() == part.sha256:
                    storage.write_atomic(storage.join(place, part.name), data)
        except TORN:  # or pruned a moment ago, since its run goes on
            continue
        storage.write_atomic(storage.join(place, "meta.json"), json.dumps(asdict(meta), indent=1).encode())
        return meta.step
    raise InputError(f"{from_run_url}: no checkpoint is whole, so there is nothing to go on from")


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
