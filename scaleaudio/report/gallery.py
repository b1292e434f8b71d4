"""The adversary's gallery: a clip, its positives, and every displacement at three strengths, as pictures.

Each picture carries its similarity to the anchor under a given encoder: what the encoder does not tell apart stands
near 1, where the positive stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from scaleaudio.bundle import AudioEncoder
from scaleaudio.errors import InputError
from scaleaudio.negatives import HardestOfK
from scaleaudio.negatives.displace import Family, axis_of
from scaleaudio.task import TaskConfig
from scaleaudio.types import Batch, Draws
from scaleaudio.views import make_views

_TITLES = {family: family.replace("_", " ") for family in get_args(Family)}


@dataclass(frozen=True)
class _Picture:
    title: str
    mel_FS: Tensor
    similarity: float


def draw_gallery(config: TaskConfig, model: AudioEncoder, batch: Batch, path: Path, *, clip: int = 0) -> None:
    """Writes a PNG: the clip and its two views above, a column a family and a row a strength below.

    Args:
        config: says the views, families and strengths; three strengths are half, once and twice the config's.
        model: whose similarity is written over each picture; the config's front-end is the model's.
        batch: clips to draw from; whole lanes.
        path: the picture.
        clip: which of them.

    Raises:
        InputError: when the config has no adversary.
    """
    negatives = config.negatives
    if not isinstance(negatives, HardestOfK) or not negatives.active:
        raise InputError("negatives.kind none, or both strengths 0: there is nothing to show; set a strength above 0")
    with torch.no_grad():
        mel_BFS = model.frontend(batch.wave_BT)
        views = make_views(
            mel_BFS, config.views, Draws(config.seed, batch, torch.device("cpu")), lane_batch=batch.lane_batch
        )
        anchor_1FS = views.anchor_BFS[clip : clip + 1]
        similarity = _Similarity(model, anchor_1FS)
        top = [similarity.picture("clip", mel_BFS[clip]), similarity.picture("anchor", anchor_1FS[0])]
        top.append(similarity.picture("positive", views.positive_BFS[clip]))
        rows = [_row(config, negatives, factor, anchor_1FS, batch, similarity) for factor in (0.5, 1.0, 2.0)]
    _draw([top, *rows], path, batch.key_B[clip], config)


class _Similarity:
    """Cosine similarity to one anchor under one model."""

    def __init__(self, model: AudioEncoder, anchor_1FS: Tensor) -> None:
        self._encoder = model.encoder
        self._anchor_1D = model.encoder(anchor_1FS)

    def picture(self, title: str, mel_FS: Tensor) -> _Picture:
        z_1D = self._encoder(mel_FS[None])
        return _Picture(title, mel_FS, float(F.cosine_similarity(z_1D, self._anchor_1D)))


def _row(
    config: TaskConfig,
    negatives: HardestOfK,
    factor: float,
    anchor_1FS: Tensor,
    batch: Batch,
    similarity: _Similarity,
) -> list[_Picture]:
    """Each active family displaced at `factor` times the config's strengths; grey where it cannot be reached."""
    pictures = []
    one = Batch(batch.wave_BT[:1], batch.key_B[:1], batch.slot_B[:1], batch.step, batch.global_batch, batch.lane_batch)
    for family in negatives.active_families:
        axis = axis_of(family)
        strengths = {
            "frequency_strength": min(1.0, factor * negatives.frequency_strength) if axis != "time" else 0.0,
            "time_strength": min(1.0, factor * negatives.time_strength) if axis != "frequency" else 0.0,
        }
        wanted = negatives.model_copy(update={"families": (family,), "num_candidates": 1, "num_kept": 1, **strengths})
        try:
            found = wanted.build(config.views).find(
                anchor_1FS, lambda mel: mel.flatten(1), Draws(config.seed, one, torch.device("cpu"))
            )
        except ValueError:
            pictures.append(_Picture(f"{_TITLES[family]}\nnot reachable", torch.full_like(anchor_1FS[0], torch.nan), 0))
            continue
        strength = max(strengths.values())
        pictures.append(similarity.picture(f"{_TITLES[family]} {strength:.2f}", found.mel_NFS[0]))
    return pictures


def _draw(rows: list[list[_Picture]], path: Path, key: str, config: TaskConfig) -> None:
    num_columns = max(len(row) for row in rows)
    figure, grid = plt.subplots(
        len(rows), num_columns, figsize=(1.9 * num_columns, 2.1 * len(rows)), squeeze=False, layout="constrained"
    )
    low, high = rows[0][0].mel_FS.min(), rows[0][0].mel_FS.max()
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, picture in zip(axes_row, [*row, *[None] * (num_columns - len(row))], strict=True):
            _show(axes, picture, float(low), float(high))
    hop_ms = 1000 * config.frontend.hop_seconds
    figure.suptitle(
        f"{key}: {config.frontend.num_mels} mel bins (up) x {config.num_frames} frames of {hop_ms:.0f} ms (right); "
        "s = similarity to the anchor",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _show(axes: Any, picture: _Picture | None, low: float, high: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if picture is None:
        axes.set_visible(False)
        return
    axes.imshow(picture.mel_FS.numpy(), origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma")
    reached = not bool(torch.isnan(picture.mel_FS).any())
    axes.set_title(picture.title + (f"\ns = {picture.similarity:.3f}" if reached else ""), fontsize=7)
