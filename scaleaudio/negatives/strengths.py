"""How far patterns are displaced: the two strengths, their dead zone and their ramp.

A strength begins just outside the dead zone, which is what the positives themselves are moved by, and ramps up to the
config's value. With `strength_levels` n > 1 each clip draws one of n strengths between those two.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scaleaudio.negatives.base import NegativesSettings
from scaleaudio.views import Axis, ViewsConfig, dead_zone

Strength = Annotated[float, Field(ge=0, le=1)]
AXES: tuple[Axis, Axis] = ("frequency", "time")

_RAMP_LEVELS = 16  # maps are made anew when the ramp reaches the next level, not at every step


class DisplacingSettings(NegativesSettings):
    """What every adversary that displaces can be told."""

    frequency_strength: Annotated[
        Strength,
        Field(description="root mean square displacement along frequency, in lengths of the axis; 0 switches it off"),
    ] = 0.15
    time_strength: Annotated[Strength, Field(description="the same along time")] = 0.15
    strength_levels: Annotated[
        int, Field(ge=1, le=16, description="1: the full strength; n: each clip draws one of n, from the dead zone up")
    ] = 1
    score_stride: Annotated[
        int, Field(ge=1, le=8, description="frames that are averaged into one in what the search looks at: cheaper")
    ] = 1
    control: Annotated[
        Literal["none", "return"],
        Field(description="return: displaced and moved back, so that only seams and blur remain (a control)"),
    ] = "none"
    artefact_positives: Annotated[
        float,
        Field(
            ge=0, le=1, description="share of the views that are displaced and moved back, to bear the same artefacts"
        ),
    ] = 0.0

    @property
    def active(self) -> bool:
        """Whether anything is displaced at all."""
        return self.frequency_strength > 0 or self.time_strength > 0

    def strength(self, axis: Axis) -> float:
        """The strength along one axis."""
        return self.frequency_strength if axis == "frequency" else self.time_strength

    def check(self, views: ViewsConfig, num_mels: int, num_frames: int) -> None:
        """Refuses a strength that the positives themselves reach.

        Raises:
            ValueError: naming the config key, the strength and the dead zone.
        """
        for axis in AXES:
            strength, edge = self.strength(axis), dead_zone(views, axis)
            if 0 < strength <= edge:
                raise ValueError(
                    f"negatives.{axis}_strength {strength:g}: inside the dead zone, because the views' own resize crop "
                    f"moves patterns by up to {edge:.3f} along {axis}. Raise the strength above {edge:.3f}, set it to "
                    f"0, or narrow views.resize_crop.{axis}_scale."
                )

    def strengths(self, axis: Axis, edge: float, ramp: float) -> tuple[float, ...]:
        """The strengths along an axis that clips may draw now, the greatest last; `edge` is the dead zone's."""
        full = self.strength(axis)
        if full == 0:
            return (0.0,) * self.strength_levels
        reach = (full - edge) * max(round(ramp * _RAMP_LEVELS), 1) / _RAMP_LEVELS
        return tuple(edge + reach * (level + 1) / self.strength_levels for level in range(self.strength_levels))
