"""Embeddings on disk, so that no clip is embedded twice by the same model.

    FOLDER/MODEL/PART.safetensors    `checksum` (N, 32) and `embedding` (N, D)

MODEL is a digest of weights, config, the least length of a clip, and the versions of all that has a hand in it (torch,
timm, libsndfile, ...); a row belongs to the sha256 of a file's bytes, whatever the file is called. A part is written in
one go under the name of its own content and never changed, so any number of programs may share a folder, and one that
is killed leaves whole parts to go on from. A damaged part counts as none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from rich.progress import track
from torch import nn

from scaleaudio.embedder import AudioEncoder
from scaleaudio.evaluate.baseline import MelStatistics
from scaleaudio.evaluate.corpus import model_digest
from scaleaudio.evaluate.embeddings import NUM_THREADS, Embedded, device_of, dim_of, embed_files
from scaleaudio.evaluate.stages import Staged
from scaleaudio.task import TaskConfig
from scaleaudio.types import Reject

FORMAT = 1
PART_FILES = 2048
PACKAGES = ("scaleaudio", "torch", "torchaudio", "scipy", "soundfile", "torchcodec", "timm")


def embed_stored(
    models: Mapping[str, nn.Module],
    files: Sequence[Path],
    folder: Path | None,
    *,
    min_seconds: float = 0.0,
    progress: bool = False,
) -> Embedded:
    """As `embed_files`, but what `folder` holds is read from there, and what it lacks is added to it.

    A model whose code decides its embeddings besides its weights (a class of one's own) is embedded anew each time.
    """
    known = {name: identity(model, min_seconds) for name, model in models.items()} if folder is not None else {}
    stored = {name: folder / key for name, key in known.items() if folder is not None and key is not None}
    if not stored:
        return embed_files(models, files, min_seconds=min_seconds, progress=progress)
    checksums = _checksums(files, progress)
    made = {name: np.full((len(files), dim_of(model)), np.nan, np.float32) for name, model in models.items()}
    rejects: dict[int, Reject] = {}
    missing: dict[tuple[int, ...], list[str]] = {}
    for name, model in models.items():
        rows = _read(stored[name], dim_of(model)) if name in stored else {}
        for place, checksum in enumerate(checksums):
            if checksum in rows:
                made[name][place] = rows[checksum]
        lacks = tuple(place for place, checksum in enumerate(checksums) if checksum not in rows)
        missing.setdefault(lacks, []).append(name)
    for places, names in missing.items():  # models that lack the same files share their decoding
        some = {name: models[name] for name in names}
        for start in range(0, len(places), PART_FILES):
            part = places[start : start + PART_FILES]
            found = embed_files(some, [files[place] for place in part], min_seconds=min_seconds, progress=progress)
            rejects |= {part[row]: reject for row, reject in found.rejects.items()}
            usable = [row for row in range(len(part)) if row not in found.rejects]
            for name, z_ND in found.by_model.items():
                made[name][list(part)] = z_ND
                if name in stored and usable:
                    _write(stored[name], [checksums[part[row]] for row in usable], z_ND[usable])
    return Embedded(made, rejects)


def identity(model: nn.Module, min_seconds: float) -> str | None:
    """A digest that is equal when the embeddings are; None for a model that cannot be told by its weights alone."""
    inner = model.model if isinstance(model, Staged) else model
    config = getattr(inner, "config", None)
    own_code = isinstance(config, TaskConfig) and ":" in config.encoder.kind
    if own_code or type(inner) not in (AudioEncoder, MelStatistics):  # a subclass has code of its own as well
        return None
    stages = tuple(model.columns) if isinstance(model, Staged) else ()
    facts = (FORMAT, _versions(), device_of(inner).type, min_seconds, type(inner).__name__, stages)
    return hashlib.sha256(f"{facts!r} {model_digest(inner)}".encode()).hexdigest()[:32]


def _versions() -> dict[str, str]:
    """Of all that makes an embedding out of a file's bytes; libsndfile's is not that of soundfile, which calls it."""
    found = {"libsndfile": str(soundfile.__libsndfile_version__)}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _checksums(files: Sequence[Path], progress: bool) -> list[bytes | None]:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        shown = track(pool.map(_checksum, files), "reading", total=len(files), disable=not progress, transient=True)
        return list(shown)


def _checksum(file: Path) -> bytes | None:
    """None for a file that cannot be read; embedding it says why."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return None


def _read(folder: Path, embedding_dim: int) -> dict[bytes | None, npt.NDArray[np.float32]]:
    rows: dict[bytes | None, npt.NDArray[np.float32]] = {}
    for checksum_N, z_ND in _parts(folder):
        if z_ND.ndim == 2 and z_ND.shape[1] == embedding_dim and checksum_N.shape == (len(z_ND), 32):
            rows |= {checksum.tobytes(): row for checksum, row in zip(checksum_N, z_ND, strict=True)}
    return rows


def _parts(folder: Path) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for file in sorted(folder.glob("*.safetensors")):
        try:
            content = file.read_bytes()
            if file.stem != _name(content):  # torn or changed
                continue
            part: dict[str, Any] = load(content)
            yield part["checksum"], part["embedding"]
        except (OSError, SafetensorError, KeyError):
            continue


def _write(folder: Path, checksums: Sequence[bytes | None], z_ND: npt.NDArray[np.float32]) -> None:
    from safetensors.numpy import save

    checksum_N = np.frombuffer(b"".join(checksum for checksum in checksums if checksum), np.uint8).reshape(-1, 32)
    content = save({"checksum": checksum_N.copy(), "embedding": np.ascontiguousarray(z_ND)})
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.getpid()}-{_name(content)}.partial"
    partial.write_bytes(content)
    os.replace(partial, folder / f"{_name(content)}.safetensors")


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
