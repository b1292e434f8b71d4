"""Which source fills which slot of which step: a pure function of lane, step and the mixture's history.

A mixture has phases, each from a step on with a whole-number weight for each source. Within a phase every lane gives
its slots to the sources in turn, as evenly as whole slots allow: of n slots the first source gets floor(n w / W), of
those that are left the second gets its part, and so on (Bresenham's line, once a source). So how many samples a lane
has taken of a source before any step is a sum over the phases, a source is read in its own order, pass after pass, and
the state of the stream is still one integer. With one source all of this is the order of that source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise, repeat
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from scaleaudio.data.order import Order
from scaleaudio.errors import InputError
from scaleaudio.types import Settings, keyed_seed

# Divisible by all numbers to 16, so that the usual shares are exact.
_HIGHEST_WEIGHT = 720_720


class PhaseConfig(Settings):
    """From a step on, how large each source's share of the clips is."""

    from_step: Annotated[int, Field(ge=0, description="the first step to which it applies")] = 0
    weights: Annotated[
        dict[str, float],
        Field(
            description="each source's share, by name; they need not sum to 1; a source that is not named gives "
            "nothing; without any, all sources weigh as much as they have clips"
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    temperature: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="weights to the power of 1 / temperature: high evens")
    ] = 1

    @model_validator(mode="after")
    def _some_weight(self) -> PhaseConfig:
        unfit = {name: weight for name, weight in self.weights.items() if not 0 <= weight < math.inf}
        if unfit:
            raise ValueError(f"weights: expected 0 or more, got {unfit}")
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights: all are 0; give one source at least a weight above 0")
        return self

    def build(self, num_clips: Mapping[str, int]) -> Phase:
        """The phase over the sources that `num_clips` names and counts.

        Raises:
            InputError: when it weighs a source that there is not, or no source has a clip.
        """
        unknown = self.weights.keys() - num_clips.keys()
        if unknown:
            raise InputError(f"data.mixture from step {self.from_step}: data.sources has no {sorted(unknown)}")
        if not any(num_clips.values()):
            raise InputError("data: no source has a clip: their indexes are empty. Index or build their shards anew")
        given = self.weights or num_clips
        highest = max(given.values())
        shares = [given.get(name, 0) for name in num_clips]
        powers = [(share / highest) ** (1 / self.temperature) for share in shares]
        # Nothing stays nothing, and something stays something: a power may be rounded to 0, and 0 ** 0 is 1.
        whole = [
            max(round(power * _HIGHEST_WEIGHT), 1) if share else 0 for share, power in zip(shares, powers, strict=True)
        ]
        return Phase(self.from_step, tuple(weight // math.gcd(*whole) for weight in whole))


class Phase(NamedTuple):
    """A whole-number weight for each source, from a step on."""

    from_step: int
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """Several sources in one stream.

    Attributes:
        orders: of each source.
        phases: from step 0 on, by rising step.
        lanes: of the stream (L).
        lane_clips: clips that a lane takes for one step.
    """

    orders: tuple[Order, ...]
    phases: tuple[Phase, ...]
    lanes: int
    lane_clips: int

    @property
    def step_clips(self) -> int:
        """Clips of one step over all lanes."""
        return self.lanes * self.lane_clips

    @property
    def num_clips(self) -> int:
        """Clips of all sources together."""
        return sum(order.num_samples for order in self.orders)

    def taken(self, lane: int, step: int) -> list[int]:
        """How many samples `lane` has taken of each source before `step`."""
        total = [0] * len(self.orders)
        for phase, end in zip(self.phases, [*(later.from_step for later in self.phases[1:]), step], strict=True):
            slots = (min(end, step) - phase.from_step) * self.lane_clips
            if slots > 0:
                total = [a + b for a, b in zip(total, self._shares(phase, lane, slots), strict=True)]
        return total

    def picks(self, lane: int, start_step: int) -> Iterator[int]:
        """The source of each slot of `lane`, from `start_step` on without end."""
        if len(self.orders) == 1:
            yield from repeat(0)
        for step in count(start_step):
            yield from self._picks(lane, step)

    def samples(self, step: int, lanes: range) -> list[tuple[int, int]]:
        """(source, number) of each clip that `lanes` read at `step`, in slot order."""
        found = []
        for lane in lanes:
            taken = self.taken(lane, step)
            for source in self._picks(lane, step):
                found.append((source, self.orders[source].sample(lane, taken[source])))
                taken[source] += 1
        return found

    def _picks(self, lane: int, step: int) -> list[int]:
        phase = next(phase for phase in reversed(self.phases) if phase.from_step <= step)
        first = (step - phase.from_step) * self.lane_clips
        counts = [self._shares(phase, lane, slots) for slots in range(first, first + self.lane_clips + 1)]
        return [
            next(source for source, (a, b) in enumerate(zip(before, after, strict=True)) if b > a)
            for before, after in pairwise(counts)
        ]

    def _shares(self, phase: Phase, lane: int, slots: int) -> list[int]:
        """How many of a lane's first `slots` slots in `phase` each source fills."""
        rest, rest_weight, shares = slots, sum(phase.weights), []
        for weight in phase.weights:
            # Lanes are out of step with each other, so that a source of small weight comes little but often.
            share = (rest * weight + lane * rest_weight // self.lanes) // rest_weight if weight else 0
            shares.append(share)
            rest -= share
            rest_weight -= weight
        return shares


def make_mixture(
    num_clips: Mapping[str, int],
    phases: Sequence[PhaseConfig],
    *,
    step_clips: int,
    lanes: int,
    chunk_samples: int,
    window_samples: int,
    seed: int,
) -> Mixture:
    """The mixture of the sources that `num_clips` names and counts; `step_clips` clips make a global batch.

    Raises:
        InputError: when a source has too few clips for its part of a batch.
    """

    def order(position: int, number: int) -> Order:
        # The first source has the order that it would have alone; equal sources are not read in parallel.
        own_seed = seed if position == 0 else keyed_seed(seed, "source", position)
        batch = step_clips if number >= step_clips or len(num_clips) == 1 else lanes
        return Order(number, batch, lanes, chunk_samples, window_samples, own_seed)

    built = tuple(phase.build(num_clips) for phase in phases)
    for phase in built:
        for (name, number), weight in zip(num_clips.items(), phase.weights, strict=True):
            part = max(-(-step_clips * weight // sum(phase.weights)), lanes)
            if weight and number < part and len(num_clips) > 1:
                raise InputError(
                    f"data.sources.{name}: {number} clips are fewer than its part of one batch ({part}, one a lane at "
                    f"least) from step {phase.from_step} on. Lower its weight, data.global_batch or data.lanes."
                )
    orders = tuple(order(*item) for item in enumerate(num_clips.values()))
    return Mixture(orders, built, lanes, step_clips // lanes)
