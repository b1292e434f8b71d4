"""Batches of made-up sound, for steps that are timed."""

from __future__ import annotations

import math

import torch

from scaleaudio.task import TaskConfig
from scaleaudio.types import Batch


def noise(config: TaskConfig, step: int, num: int, lanes: int) -> Batch:
    """A whole batch of `num` clips of noise that comes and goes, so that displacing it changes it."""
    generator = torch.Generator().manual_seed(step)
    time_T = torch.arange(config.clip_samples) / config.clip_samples
    swell_BT = (2 * math.pi * (1 + torch.arange(num) % 5)[:, None] * time_T).sin()
    wave_BT = 0.1 * swell_BT * torch.randn(num, config.clip_samples, generator=generator)
    keys = tuple(f"noise-{row}" for row in range(num))
    return Batch(wave_BT, keys, torch.arange(num), step, num, num // lanes)
