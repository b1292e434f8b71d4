"""Learning rate, adversary ramp and EMA momentum as pure functions of the step.

Nothing here has state, so a resumed run is at the right place by knowing its step.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from scaleaudio.types import Settings


class ScheduleConfig(Settings):
    """What changes while training goes on."""

    steps: Annotated[int, Field(ge=1, description="steps of the whole run")] = 1000
    warmup_steps: Annotated[int, Field(ge=0, description="steps in which the learning rate rises to its peak")] = 50
    learning_rate: Annotated[float, Field(gt=0, description="the peak; from there it falls by a half cosine")] = 1e-3
    final_learning_rate: Annotated[float, Field(ge=0, description="where it ends")] = 1e-6
    ramp_steps: Annotated[
        int,
        Field(
            ge=0, description="steps in which the negatives' strength rises to its full size; 0: full from the start"
        ),
    ] = 0
    ema_momentum: Annotated[float, Field(ge=0, le=1, description="how slowly BYOL's target follows, at the start")] = (
        0.99
    )
    final_ema_momentum: Annotated[float, Field(ge=0, le=1, description="and at the end")] = 1.0

    @model_validator(mode="after")
    def _warmup_ends_before_the_run(self) -> ScheduleConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps}: expected fewer than steps ({self.steps})")
        return self


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """Linear warm-up to `learning_rate`, then a half cosine down to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return _cosine(config.learning_rate, config.final_learning_rate, progress)


def ema_momentum(step: int, config: ScheduleConfig) -> float:
    """A half cosine from `ema_momentum` to `final_ema_momentum` (BYOL, arXiv 2006.07733, section 3.2)."""
    return _cosine(config.ema_momentum, config.final_ema_momentum, step / config.steps)


def ramp(step: int, config: ScheduleConfig) -> float:
    """Which part of the adversary's way from the dead zone to its full strength is gone, in [0, 1]."""
    return 1.0 if config.ramp_steps == 0 else min(1.0, step / config.ramp_steps)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
