"""The adversary's gallery: a clip, its positives, what the adversary chose, and what it can do at three strengths.

Each picture carries its similarity to the anchor under a given encoder: what the encoder does not tell apart stands
near 1, where the positive stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from scaleaudio.bundle import AudioEncoder
from scaleaudio.encoders import Encoder
from scaleaudio.errors import InputError
from scaleaudio.negatives import FieldNegatives, HardestOfK, NegativesSettings, ValueNegatives
from scaleaudio.negatives.displace import axis_of
from scaleaudio.negatives.strengths import AXES
from scaleaudio.task import TaskConfig
from scaleaudio.types import Batch, Draws
from scaleaudio.views import make_views


@dataclass(frozen=True)
class _Picture:
    title: str
    mel_FS: Tensor
    similarity: float


def draw_gallery(config: TaskConfig, model: AudioEncoder, batch: Batch, path: Path, *, clip: int = 0) -> None:
    """Writes a PNG: the clip, its two views and what the adversary chose above; a row a strength below.

    The adversary asks the encoder that is given, and sees its embedding; in training it sees the projection.

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
    if not isinstance(negatives, NegativesSettings) or not negatives.active:
        raise InputError("negatives.kind none, or both strengths 0: there is nothing to show; set a strength above 0")
    draws = Draws(config.seed, batch, torch.device("cpu"))
    with torch.no_grad():
        mel_BFS = model.frontend(batch.wave_BT)
        views = make_views(mel_BFS, config.views, draws, lane_batch=batch.lane_batch)
        scene = _Scene(config, model.encoder, views.anchor_BFS[clip : clip + 1], draws.of(torch.tensor([clip])))
        chosen = "chosen: {family}" if len(negatives.family_names) > 1 else "chosen"
        top = [scene.picture("clip", mel_BFS[clip]), scene.picture("anchor", scene.anchor_1FS[0])]
        top += [scene.picture("positive", views.positive_BFS[clip]), *scene.found(negatives, chosen)]
        rows = [
            [picture for title, variant in _variants(negatives, factor) for picture in scene.found(variant, title)]
            for factor in (0.5, 1.0, 2.0)
        ]
    _draw([top, *filter(None, rows)], path, batch.key_B[clip], config)


class _Scene:
    """One anchor before one encoder, and what adversaries make of it."""

    def __init__(self, config: TaskConfig, encoder: Encoder, anchor_1FS: Tensor, draws: Draws) -> None:
        self.anchor_1FS = anchor_1FS
        self._config = config
        self._encoder = encoder
        self._draws = draws
        self._anchor_1D = encoder(anchor_1FS)

    def picture(self, title: str, mel_FS: Tensor) -> _Picture:
        """A spectrogram with its similarity to the anchor."""
        z_1D = self._encoder(mel_FS[None])
        return _Picture(title, mel_FS, float(F.cosine_similarity(z_1D, self._anchor_1D)))

    def found(self, negatives: NegativesSettings, title: str) -> list[_Picture]:
        """What these negatives are; grey where the strength cannot be reached. `title` may name the {family}."""
        try:
            found = negatives.build(self._config.views).find(self.anchor_1FS, self._encoder, self._draws)
        except ValueError:
            family = negatives.family_names[0].replace("_", " ")
            return [
                _Picture(
                    f"{title.format(family=family)}\nnot reachable", torch.full_like(self.anchor_1FS[0], torch.nan), 0
                )
            ]
        families = [negatives.family_names[index].replace("_", " ") for index in found.family_N.tolist()]
        return [
            self.picture(title.format(family=family), mel_FS)
            for family, mel_FS in zip(families, found.mel_NFS, strict=True)
        ]


def _variants(negatives: NegativesSettings, factor: float) -> Iterator[tuple[str, NegativesSettings]]:
    """What these negatives can be at `factor` times their strength, each with a title."""
    if isinstance(negatives, ValueNegatives):
        epsilon = factor * negatives.epsilon
        yield f"values changed by {epsilon:.2f}", negatives.model_copy(update={"epsilon": epsilon})
    elif isinstance(negatives, FieldNegatives):
        both = {f"{axis}_strength": min(1.0, factor * negatives.strength(axis)) for axis in AXES}
        for title, num_steps in (("field as drawn", 0), (f"after {negatives.num_steps} ascents", negatives.num_steps)):
            strongest = max(both.values())
            yield f"{title} {strongest:.2f}", negatives.model_copy(update={**both, "num_steps": num_steps})
    elif isinstance(negatives, HardestOfK):
        alone = {"num_candidates": 1, "num_kept": 1}
        for family in negatives.active_families:
            strengths = {
                axis: min(1.0, factor * negatives.strength(axis)) if axis_of(family) in (axis, None) else 0.0
                for axis in AXES
            }
            keys = {f"{axis}_strength": strength for axis, strength in strengths.items()}
            variant = negatives.model_copy(update={"families": (family,), **alone, **keys})
            yield f"{{family}} {max(strengths.values()):.2f}", variant


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
