"""A space of changes: config keys, each with a list of values or a range, and ways to walk in it.

Points are drawn by (seed, number) alone, so the same number is the same point in every attempt at a sweep.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from scaleaudio.task import TaskConfig
from scaleaudio.types import Settings, keyed_seed
from scaleaudio.views import dead_zone

Changes = dict[str, Any]

FREQUENCY, TIME = "negatives.frequency_strength", "negatives.time_strength"
_MOST_CORNERS = 100
_ROOM = 1.1  # the lowest strength of the default space, in dead zones
_LOWEST, _HIGHEST = 0.05, 0.4


class Range(Settings):
    """Numbers between two others."""

    low: FiniteFloat
    high: FiniteFloat
    log: Annotated[bool, Field(description="drawn evenly over orders of magnitude")] = False
    integer: bool = False
    levels: Annotated[int | None, Field(ge=2, le=100, description="into how many values a grid cuts it")] = None

    @model_validator(mode="after")
    def _there_is_something_between(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g}, high {self.high:g}: expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g}: a logarithmic range begins above 0")
        for name, end in (("low", self.low), ("high", self.high)):
            if self.integer and not end.is_integer():
                least = ", a logarithmic one at 1 or more" if self.log else ""
                raise ValueError(f"{name} {end:g}: a range of integers begins and ends at whole numbers{least}")
        return self

    def at(self, place: float) -> float | int:
        """The number at `place` in [0, 1] of the way."""
        if self.log:
            value = math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + place * (self.high - self.low)
        return self.clip(value)

    def clip(self, value: float) -> float | int:
        """The nearest number in the range."""
        inside = min(max(value, self.low), self.high)
        return round(inside) if self.integer else float(f"{inside:.6g}")

    @property
    def ends(self) -> tuple[float | int, ...]:
        """The least and the greatest."""
        return self.clip(self.low), self.clip(self.high)

    @property
    def grid(self) -> tuple[float | int, ...]:
        """The `levels` values that a grid takes."""
        levels = self.levels or 0
        return tuple(dict.fromkeys(self.at(level / (levels - 1)) for level in range(levels)))


Values = Annotated[tuple[Any, ...], Field(min_length=1)]
Space = dict[str, Range | Values]


def default_space(task: TaskConfig) -> Space:
    """Both strengths, from just outside the dead zone on or 0, and K and alpha where this task has them."""
    space: Space = {}
    for axis, key in (("frequency", FREQUENCY), ("time", TIME)):
        if hasattr(task.negatives, f"{axis}_strength"):
            low = max(_LOWEST, _ROOM * dead_zone(task.views, "frequency" if axis == "frequency" else "time"))
            steps = [low * (_HIGHEST / low) ** (level / 3) for level in range(4)] if low < _HIGHEST else [low]
            space[key] = (0.0, *(math.ceil(100 * step) / 100 for step in steps))
    if hasattr(task.negatives, "num_candidates"):
        space["negatives.num_candidates"] = (1, 2, 4)
    if hasattr(task.objective, "alpha"):
        space["objective.alpha"] = (0.5, 1.0, 1.5)
    return space


def points(space: Mapping[str, Range | Values], seed: int, number: int) -> Iterator[Changes]:
    """Random points of the space, the first of which is point `number` of this seed; without end."""
    random = np.random.default_rng(keyed_seed(seed, "point", number))
    while True:
        yield {key: _draw_value(values, random) for key, values in space.items()}


def _draw_value(values: Range | Values, random: np.random.Generator) -> Any:
    if isinstance(values, Range):
        return values.at(float(random.random()))
    return values[int(random.integers(len(values)))]


def grid(space: Mapping[str, Range | Values]) -> Iterator[Changes]:
    """Every combination of the values, the last key changing fastest."""
    choices = [values.grid if isinstance(values, Range) else values for values in space.values()]
    for combination in itertools.product(*choices):
        yield dict(zip(space, combination, strict=True))


def grid_size(space: Mapping[str, Range | Values]) -> int:
    """How many combinations `grid` gives."""
    return math.prod(len(values.grid if isinstance(values, Range) else values) for values in space.values())


def corners(space: Mapping[str, Range | Values]) -> Iterator[Changes]:
    """Combinations of the ends of ranges and all listed values: all, or where there are many, one key at a time.

    What is refused for a value is refused for it in most company, so that one at a time finds nearly all.
    """
    choices = [values.ends if isinstance(values, Range) else values for values in space.values()]
    if math.prod(map(len, choices)) <= _MOST_CORNERS:
        for combination in itertools.product(*choices):
            yield dict(zip(space, combination, strict=True))
        return
    middle = [choice[len(choice) // 2] for choice in choices]
    for place, choice in enumerate(choices):
        for value in choice:
            yield dict(zip(space, [*middle[:place], value, *middle[place + 1 :]], strict=True))


def perturb(space: Mapping[str, Range | Values], changes: Changes, seed: int, factor: float = 1.2) -> Changes:
    """A point near `changes`: each number times or over `factor`, each listed value a neighbour, or one in four anew.

    It stays in the space, which keeps strengths out of the dead zone.
    """
    random = np.random.default_rng(keyed_seed(seed, "perturb"))
    return {key: _perturb_value(values, changes.get(key), random, factor) for key, values in space.items()}


def _perturb_value(values: Range | Values, value: Any, random: np.random.Generator, factor: float) -> Any:
    up = bool(random.random() < 0.5)
    if random.random() < 0.25 or value is None:
        return _draw_value(values, random)
    if isinstance(values, Range):
        return values.clip(value * factor if up else value / factor)
    place = values.index(value) if value in values else 0
    return values[min(max(place + (1 if up else -1), 0), len(values) - 1)]
