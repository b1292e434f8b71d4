"""Embeddings of whole clips: never padded to each other, so an embedding does not depend on the clips beside it.

Clips are read a stretch at a time by a few threads; within a stretch clips of equal length share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor, nn

from scaleaudio.data.decode import decode, resample, to_mono
from scaleaudio.errors import DecodeError
from scaleaudio.types import Reject

LONGEST_SECONDS = 600.0
STRETCH_SECONDS = 900.0
BATCH_SECONDS = 60.0
NUM_THREADS = 4
SLICE_CLIPS = 64

Source = Callable[[], bytes]


@dataclass(frozen=True)
class Embedded:
    """What the encoders made of a list of files.

    Attributes:
        by_model: for each model the embeddings, (files, D) float32; rows of unusable files are NaN.
        rejects: the unusable files by their position in the list, with the reason.
    """

    by_model: dict[str, npt.NDArray[np.float32]]
    rejects: dict[int, Reject]


@dataclass(frozen=True)
class _Read:
    """One clip as the encoders want it: a mono waveform for each rate, or the reason why there is none."""

    place: int
    seconds: float
    wave_by_rate: dict[int, npt.NDArray[np.float32]]
    reason: str = ""


def embed_files(
    models: Mapping[str, nn.Module], files: Sequence[Path], *, min_seconds: float = 0.0, progress: bool = False
) -> Embedded:
    """Each file's embedding by each model; a file is decoded once, whatever the number of models.

    Args:
        models: modules in eval mode with `sample_rate_hz` and `embedding_dim` that map wave_BT to (B, D).
        files: audio of any format, rate and channel count, up to 10 minutes each.
        min_seconds: shorter clips get silence at their end up to this length.
        progress: show a bar.

    Raises:
        ValueError: a model gives another shape than (B, embedding_dim), or something that is not finite.
    """
    sources = (partial(_file_bytes, file) for file in files)
    shown = track(sources, "embedding", total=len(files), disable=not progress, transient=True)
    made, reasons = embed_clips(models, shown, len(files), min_seconds=min_seconds)
    rejects = {place: Reject(str(files[place].parent), files[place].name, reason) for place, reason in reasons.items()}
    usable = [place for place in range(len(files)) if place not in rejects]
    for name, embedding_ND in made.items():
        if not np.isfinite(embedding_ND[usable]).all():
            raise ValueError(f"model {name}: embeddings with NaN or Inf; it cannot be evaluated")
    return Embedded(made, rejects)


def embed_clips(
    models: Mapping[str, nn.Module], sources: Iterable[Source], num_clips: int, *, min_seconds: float = 0.0
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[int, str]]:
    """Each clip's embedding by each model, (num_clips, D), and the reasons of the unusable ones by their place.

    Args:
        models: as for `embed_files`.
        sources: give a clip's bytes, or raise DecodeError or OSError; taken and called a few clips ahead, in threads.
        num_clips: how many sources there are.
        min_seconds: as for `embed_files`.

    Raises:
        ValueError: a model gives another shape than (B, embedding_dim).
    """
    made = {name: np.full((num_clips, dim_of(model)), np.nan, np.float32) for name, model in models.items()}
    reasons: dict[int, str] = {}
    rates = sorted({rate_of(model) for model in models.values()})
    for stretch in _stretches(sources, rates, min_seconds):
        reasons |= {clip.place: clip.reason for clip in stretch if clip.reason}
        usable = [clip for clip in stretch if not clip.reason]
        for name, model in models.items():
            for places, wave_BT in _batches(usable, rate_of(model)):
                made[name][places] = _embed(name, model, wave_BT)
    return made, reasons


def rate_of(model: nn.Module) -> int:
    """The rate of the waveforms that a model takes, in Hz."""
    return int(_attribute(model, "sample_rate_hz"))


def dim_of(model: nn.Module) -> int:
    """The width of a model's embeddings."""
    return int(_attribute(model, "embedding_dim"))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights lie; the CPU for one without any."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _attribute(model: nn.Module, name: str) -> Any:
    if not hasattr(model, name):
        raise ValueError(f"{type(model).__name__} cannot be evaluated: it needs the attribute {name}")
    return getattr(model, name)


def _stretches(sources: Iterable[Source], rates: Sequence[int], min_seconds: float) -> Iterator[list[_Read]]:
    """The clips in order, in lists of about STRETCH_SECONDS of audio, which bounds the memory."""
    stretch: list[_Read] = []
    seconds = 0.0
    numbered = enumerate(sources)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        slices = iter(lambda: list(islice(numbered, SLICE_CLIPS)), [])
        read = partial(_read, rates=rates, min_seconds=min_seconds)
        for clip in chain.from_iterable(pool.map(read, part) for part in slices):
            stretch.append(clip)
            seconds += clip.seconds
            if seconds > STRETCH_SECONDS:
                yield stretch
                stretch, seconds = [], 0.0
    yield stretch


def _file_bytes(file: Path) -> bytes:
    if file.exists() and not file.is_file():
        raise DecodeError("not a file")  # reading a pipe would wait for ever
    return file.read_bytes()


def _read(numbered: tuple[int, Source], rates: Sequence[int], min_seconds: float) -> _Read:
    place, source = numbered
    try:
        wave, stored_hz = decode(source(), max_seconds=LONGEST_SECONDS)
        mono_T = to_mono(wave)
        missing = max(0, round(min_seconds * stored_hz) - len(mono_T))
        padded_T = np.pad(mono_T, (0, missing))
        wave_by_rate = {rate: resample(padded_T, stored_hz, rate) for rate in rates}
    except DecodeError as error:
        return _Read(place, 0.0, {}, str(error))
    except OSError as error:
        return _Read(place, 0.0, {}, error.strerror or type(error).__name__)
    return _Read(place, len(padded_T) / stored_hz, wave_by_rate)


def _batches(clips: Sequence[_Read], rate: int) -> Iterator[tuple[list[int], Tensor]]:
    def frames(clip: _Read) -> int:
        return len(clip.wave_by_rate[rate])

    for num_frames, same_length in groupby(sorted(clips, key=frames), key=frames):
        together = list(same_length)
        size = max(1, int(BATCH_SECONDS * rate) // num_frames)
        for start in range(0, len(together), size):
            part = together[start : start + size]
            wave_BT = torch.from_numpy(np.stack([clip.wave_by_rate[rate] for clip in part]))
            yield [clip.place for clip in part], wave_BT


@torch.inference_mode()
def _embed(name: str, model: nn.Module, wave_BT: Tensor) -> npt.NDArray[np.float32]:
    z_BD = model(wave_BT.to(device_of(model)))
    if z_BD.shape != (len(wave_BT), dim_of(model)):
        raise ValueError(
            f"model {name}: expected embeddings of shape ({len(wave_BT)}, {dim_of(model)}), came {tuple(z_BD.shape)}"
        )
    made: npt.NDArray[np.float32] = z_BD.float().cpu().numpy()
    return made
