"""How much of a position an embedding shows: the similarity of a clip to its displaced self, against displacement.

An encoder that recognises patterns and pools them stays near 1 however far they move (with circular convolutions and
global pooling exactly 1: arXiv 2101.12322). Three levels say what a value means: 1 is the clip itself, the *positive*
level is what training pulls together, the *others* level is as unlike as another clip. The control displaces and moves
back: the similarity that this costs is owed to lost borders, not to position.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from scaleaudio.data import storage
from scaleaudio.data.decode import decode_crop
from scaleaudio.data.sources import list_audio
from scaleaudio.errors import DecodeError, InputError
from scaleaudio.evaluate.displacements import displaced, trials
from scaleaudio.evaluate.embeddings import device_of, rate_of
from scaleaudio.scores import Curve, Displaced, Sensitivity, Similarity, StageCurves
from scaleaudio.types import Batch, Draws, Reject, keyed_seed
from scaleaudio.views import Axis, ViewsConfig, make_views

CLIP_SECONDS = 0.95  # of models that do not say what they were trained on
_RESAMPLES = 1000
_BATCH = 64


@torch.inference_mode()
def measure_sensitivity(
    model: nn.Module,
    corpus: str,
    *,
    name: str,
    projector: nn.Module | None = None,
    num_clips: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> Sensitivity:
    """The curves of the model's embedding and, where it is given, of the projector above it.

    Args:
        model: in eval mode, with `sample_rate_hz`, `frontend` (waveforms to spectrograms) and `encoder` (spectrograms
            to (B, D)). Its `config`, where it has one, says the views and the length of a crop.
        corpus: a folder or list of audio; of more than `num_clips` files that many are drawn.
        name: the model's name in tables and pictures.
        projector: embeddings to projections, in eval mode.
        num_clips: how many clips.
        seed: of everything drawn; models with the same crop and spectrogram are shown the same.
        progress: show a bar.

    Raises:
        InputError: fewer than two clips in which anything happens.
        ValueError: a model that lacks one of these parts, or whose embeddings are not finite.
    """
    inside = _Inside(model, projector)
    wave_NT, rejects = _read(corpus, rate_of(model), inside.clip_seconds, num_clips, seed)
    mel_NFS = torch.cat([inside.frontend(part) for part in torch.split(wave_NT.to(inside.device), _BATCH)])
    lively_N = mel_NFS.var(dim=(1, 2)) > 1e-6
    mel_NFS = mel_NFS[lively_N]
    if len(mel_NFS) < 2:
        raise InputError(f"{corpus}: {len(mel_NFS)} clips in which anything happens; a curve needs at least two")
    lengths: dict[Axis, int] = {"frequency": mel_NFS.shape[1], "time": mel_NFS.shape[2]}
    return Sensitivity(
        model=name,
        corpus=corpus,
        num_clips=len(mel_NFS),
        num_still=int((~lively_N).sum()),
        rejects=rejects,
        seed=seed,
        clip_seconds=inside.clip_seconds,
        num_mels=lengths["frequency"],
        num_frames=lengths["time"],
        stride=inside.stride,
        stages=_stages(inside, mel_NFS, lengths, seed, progress),
        versions={package: version(package) for package in ("scaleaudio", "torch", "torchaudio", "numpy")},
    )


class _Inside:
    """A model opened between spectrogram and embedding; it need not have been made here."""

    def __init__(self, model: nn.Module, projector: nn.Module | None) -> None:
        for part in ("frontend", "encoder"):
            if not hasattr(model, part):
                raise ValueError(
                    f"{type(model).__name__}: its sensitivity cannot be measured without the attribute {part}. Wrap an "
                    "encoder of spectrograms as scaleaudio.evaluate.OnMels(encoder, embedding_dim=...)."
                )
        config = getattr(model, "config", None)
        self.frontend: Any = model.frontend
        self.device = device_of(model)
        self.views: ViewsConfig = getattr(config, "views", ViewsConfig())
        self.clip_seconds: float = getattr(config, "clip_seconds", CLIP_SECONDS)
        self.stride: int | None = getattr(model.encoder, "frame_stride", getattr(model, "frame_stride", None))
        self.centres_hz: tuple[float, ...] | None = getattr(model.frontend, "centres_hz", None)
        self._encoder: Any = model.encoder
        self._projector = projector

    def embed(self, mel_NFS: Tensor) -> dict[str, Tensor]:
        """Unit vectors (N, D) in double precision by stage."""
        by_stage: dict[str, list[Tensor]] = {}
        for part in torch.split(mel_NFS, _BATCH):
            z_BD = self._encoder(part)
            by_stage.setdefault("embedding", []).append(z_BD)
            if self._projector is not None:
                by_stage.setdefault("projector", []).append(self._projector(z_BD))
        unit = {stage: F.normalize(torch.cat(parts).double(), dim=-1) for stage, parts in by_stage.items()}
        for stage, z_ND in unit.items():
            if not torch.isfinite(z_ND).all():
                raise ValueError(f"the model's {stage} gives NaN or Inf; its sensitivity cannot be measured")
        return unit

    def amount(self, axis: Axis, strength: float, length: int) -> float | None:
        """A displacement in semitones or milliseconds."""
        if axis == "time":
            return 1000 * self.clip_seconds * strength * length / max(1, length - 1)
        if self.centres_hz is None or len(self.centres_hz) != length:
            return None
        bins = np.arange(length, dtype=float)
        lower = bins[bins <= length - 1 - strength * length]
        moved_hz = np.interp(lower + strength * length, bins, self.centres_hz)
        return float(np.median(12 * np.log2(moved_hz / np.interp(lower, bins, self.centres_hz))))


def _read(corpus: str, rate_hz: int, seconds: float, num_clips: int, seed: int) -> tuple[Tensor, tuple[Reject, ...]]:
    """A crop of each of up to `num_clips` usable files (N, T), and the files that are not usable."""
    files = list_audio(corpus, {}).files
    random = np.random.default_rng(keyed_seed(seed, "sensitivity"))
    waves, rejects = [], []
    for place in random.permutation(len(files)):
        try:
            data = storage.read_bytes(files[place].url)
            position = random.random()
            wave_T = decode_crop(data, sample_rate_hz=rate_hz, crop_frames=round(seconds * rate_hz), position=position)
            waves.append(torch.from_numpy(wave_T))
        except (DecodeError, OSError) as error:
            rejects.append(Reject(corpus, files[place].name, str(error)))
        if len(waves) == num_clips:
            break
    if not waves:
        named = f", such as {rejects[0].key} ({rejects[0].reason})" if rejects else ""
        raise InputError(f"{corpus}: no usable clip; {len(rejects)} files refused{named}")
    return torch.stack(waves), tuple(rejects)


def _stages(
    inside: _Inside, mel_NFS: Tensor, lengths: Mapping[Axis, int], seed: int, progress: bool
) -> tuple[StageCurves, ...]:
    own, mean = inside.embed(mel_NFS), _Bootstrap(len(mel_NFS), seed)
    to_do = list(trials(lengths, inside.stride))
    points: dict[tuple[str, Axis, str], list[Displaced]] = {}
    for trial in track(to_do, "displacing", disable=not progress, transient=True):
        moved = displaced(trial, mel_NFS, seed)
        there = inside.embed(moved.there_NFS)
        back = own if moved.loses_nothing else None if moved.back_NFS is None else inside.embed(moved.back_NFS)
        for stage, z_ND in own.items():
            point = Displaced(
                trial.places,
                moved.strength,
                inside.amount(trial.axis, moved.strength, lengths[trial.axis]),
                mean(_similarity(z_ND, there[stage])),
                None if back is None else mean(_similarity(z_ND, back[stage])),
            )
            points.setdefault((stage, trial.axis, trial.motion), []).append(point)
    positive = _positive(inside, mel_NFS, seed)
    return tuple(
        StageCurves(
            stage=stage,
            positive=mean(positive[stage]),
            others=mean(((z_ND @ z_ND.sum(dim=0)) - 1) / (len(z_ND) - 1)),
            curves=tuple(Curve(axis, motion, tuple(p)) for (of, axis, motion), p in points.items() if of == stage),
        )
        for stage, z_ND in own.items()
    )


def _positive(inside: _Inside, mel_NFS: Tensor, seed: int) -> dict[str, Tensor]:
    """Similarity (N,) of two views of each clip, by stage; mixup partners are any of the clips."""
    num = len(mel_NFS)
    batch = Batch(mel_NFS[:, 0], ("",) * num, torch.arange(num), step=0, global_batch=num, lane_batch=num)
    views = make_views(mel_NFS, inside.views, Draws(seed, batch, mel_NFS.device), lane_batch=num)
    anchor, positive = inside.embed(views.anchor_BFS), inside.embed(views.positive_BFS)
    return {stage: _similarity(anchor[stage], positive[stage]) for stage in anchor}


def _similarity(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    """Cosine similarity of unit vectors, by their distance: equal vectors give exactly 1."""
    return 1 - (one_ND - other_ND).square().sum(dim=-1) / 2


class _Bootstrap:
    """Means over clips, each with the 95 % interval over the same resamples of the clips."""

    def __init__(self, num_clips: int, seed: int) -> None:
        random = np.random.default_rng(keyed_seed(seed, "bootstrap"))
        self._share_RN = random.multinomial(num_clips, np.full(num_clips, 1 / num_clips), _RESAMPLES) / num_clips

    def __call__(self, value_N: Tensor) -> Similarity:
        values: npt.NDArray[np.float64] = value_N.cpu().numpy()
        low, high = np.percentile(self._share_RN @ values, (2.5, 97.5))
        return Similarity(float(values.mean()), float(low), float(high))
