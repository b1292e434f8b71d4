"""The two views of a clip that must mean the same: BYOL-A v2's augmentations, batched on the device.

Log-mixup-exp, random resize crop and random linear fader (arXiv 2204.07402, section III-C). The resize crop moves
patterns, so it decides the dead zone: how far two positives of the same clip can lie apart. A negative has to be
displaced further than that, which is why the default crop is narrow (BYOL-A's is 0.6 to 1.5).
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from scaleaudio.types import Draws, Settings, Views

Axis = Literal["frequency", "time"]


class MixupConfig(Settings):
    """Log-mixup-exp: up to `ratio` of another clip of the same lane mixed in as background."""

    ratio: Annotated[float, Field(gt=0, lt=1, description="the largest share of the other clip")] = 0.2


class ResizeCropConfig(Settings):
    """A random box cut from the spectrogram, stretched back to full size.

    A box may be larger than the spectrogram along an axis, up to `canvas` times; what lies outside reads as the mean.
    """

    frequency_scale: Annotated[
        tuple[float, float], Field(description="smallest and largest box along frequency, in lengths of the axis")
    ] = (0.95, 1.0)
    time_scale: Annotated[tuple[float, float], Field(description="smallest and largest box along time")] = (0.95, 1.0)
    frequency_canvas: Annotated[
        float,
        Field(
            ge=1, description="how far boxes may reach beyond the spectrogram along frequency, in lengths of the axis"
        ),
    ] = 1.0
    time_canvas: Annotated[float, Field(ge=1, description="the same along time")] = 1.0

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> ResizeCropConfig:
        for name in ("frequency_scale", "time_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} [{low:g}, {high:g}]: expected 0 < low <= high")
        return self

    def sizes(self, axis: Axis) -> tuple[float, float, float]:
        """Smallest and largest box, and the canvas, along `axis`, in lengths of the spectrogram."""
        (low, high), canvas = (
            (self.frequency_scale, self.frequency_canvas)
            if axis == "frequency"
            else (self.time_scale, self.time_canvas)
        )
        return min(low, canvas), min(high, canvas), canvas


class FaderConfig(Settings):
    """A random linear change of level along time, up to `gain` at either end, in standard deviations of the mel."""

    gain: Annotated[
        float,
        Field(gt=0, description="the largest change of level at either end, in standard deviations of the log-mel"),
    ] = 1.0


class ViewsConfig(Settings):
    """Which augmentations make the views; null switches one off."""

    mixup: MixupConfig | None = MixupConfig()
    resize_crop: ResizeCropConfig | None = ResizeCropConfig()
    fader: FaderConfig | None = FaderConfig()


def make_views(mel_BFS: Tensor, config: ViewsConfig, draws: Draws, *, lane_batch: int) -> Views:
    """Two independently augmented views of each spectrogram.

    Args:
        mel_BFS: normalised log-mel of whole lanes, in order.
        config: which augmentations, and how strong.
        draws: the step's random numbers.
        lane_batch: clips a lane gives to one step; mixup partners come from the same lane.
    """
    return Views(*(_view(mel_BFS, config, draws, name, lane_batch) for name in ("anchor", "positive")))


def _view(mel_BFS: Tensor, config: ViewsConfig, draws: Draws, name: str, lane_batch: int) -> Tensor:
    if config.mixup is not None:
        mel_BFS = mixup(mel_BFS, draws.uniform(f"{name}/mixup", 2), config.mixup, lane_batch=lane_batch)
    if config.resize_crop is not None:
        mel_BFS = resize_crop(mel_BFS, draws.uniform(f"{name}/resize_crop", 4), config.resize_crop)
    if config.fader is not None:
        mel_BFS = fade(mel_BFS, draws.uniform(f"{name}/fader", 2), config.fader)
    return mel_BFS


def mixup(mel_BFS: Tensor, uniform_B2: Tensor, config: MixupConfig, *, lane_batch: int) -> Tensor:
    """log((1 - a) exp(x) + a exp(y)) with y another clip of the same lane and a uniform in [0, ratio)."""
    share_B11 = (config.ratio * uniform_B2[:, 0])[:, None, None]
    row_B = torch.arange(len(mel_BFS), device=mel_BFS.device)
    step_B = 1 + (uniform_B2[:, 1] * (lane_batch - 1)).long()
    partner_B = row_B - row_B % lane_batch + (row_B % lane_batch + step_B) % lane_batch
    return torch.logaddexp(mel_BFS + (1 - share_B11).log(), mel_BFS[partner_B] + share_B11.log())


def resize_crop(mel_BFS: Tensor, uniform_B4: Tensor, config: ResizeCropConfig) -> Tensor:
    """A random box of each spectrogram, bilinearly stretched to the full size."""
    height_B, top_B = _box(uniform_B4[:, 0], uniform_B4[:, 1], *config.sizes("frequency"))
    width_B, left_B = _box(uniform_B4[:, 2], uniform_B4[:, 3], *config.sizes("time"))
    zero_B = torch.zeros_like(height_B)
    rows_B23 = torch.stack(
        [
            torch.stack([width_B, zero_B, 2 * left_B + width_B - 1], dim=1),
            torch.stack([zero_B, height_B, 2 * top_B + height_B - 1], dim=1),
        ],
        dim=1,
    )
    mel_B1FS = mel_BFS.unsqueeze(1)
    grid = F.affine_grid(rows_B23, list(mel_B1FS.shape), align_corners=False)
    return F.grid_sample(mel_B1FS, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(1)


def _box(size_B: Tensor, place_B: Tensor, low: float, high: float, canvas: float) -> tuple[Tensor, Tensor]:
    """Extent and start of a box on an axis of length 1 that lies in the middle of the canvas."""
    extent_B = low + (high - low) * size_B
    return extent_B, place_B * (canvas - extent_B) - (canvas - 1) / 2


def fade(mel_BFS: Tensor, uniform_B2: Tensor, config: FaderConfig) -> Tensor:
    """Each spectrogram with a straight line along time added, from one random gain to another."""
    ends_B2 = config.gain * (2 * uniform_B2 - 1)
    time_S = torch.linspace(0, 1, mel_BFS.shape[-1], device=mel_BFS.device)
    line_BS = ends_B2[:, :1] * (1 - time_S) + ends_B2[:, 1:] * time_S
    return mel_BFS + line_BS.unsqueeze(1)


def dead_zone(config: ViewsConfig, axis: Axis) -> float:
    """The largest displacement that two positives of one clip can have against each other along `axis`.

    In the unit of strength: root mean square over the axis of displacement / axis length. With boxes (start o, extent
    h) in the two views, the content at x in one appears at (o1 + h1 x - o2) / h2 in the other; the displacement is
    linear in x, and its largest mean square lies at a corner of the ranges.
    """
    if config.resize_crop is None:
        return 0.0
    low, high, canvas = config.resize_crop.sizes(axis)
    corners = [(h, place * (canvas - h)) for h in (low, high) for place in (0.0, 1.0)]
    return max(_relative_rms(*one, *other) for one, other in itertools.product(corners, corners))


def _relative_rms(extent_1: float, start_1: float, extent_2: float, start_2: float) -> float:
    constant = (start_1 - start_2) / extent_2
    slope = extent_1 / extent_2 - 1
    return math.sqrt(constant**2 + constant * slope + slope**2 / 3)
