"""The plan of a sweep: an experiment, the space around it, and which trials there are, all known before the first.

A sweep is a config file like any other with a part `sweep` more. Trial 0 is the plain baseline.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from scaleaudio.config import Config, error_lines, known_keys, override, read_tree, validate
from scaleaudio.errors import InputError
from scaleaudio.sweep.space import (
    FREQUENCY,
    TIME,
    Changes,
    Range,
    Space,
    Values,
    corners,
    default_space,
    grid,
    grid_size,
    points,
)
from scaleaudio.types import Settings

_DRAWS = 100  # for a point that no trial has yet
_MOST_CHECKED = 100
MOST_TRIALS = 9_999  # the numbers from 10,000 on are those of repeats
BASELINE = {FREQUENCY: 0.0, TIME: 0.0}
_OF_NEGATIVES = (
    "negatives.", "objective.alpha", "objective.negative_", "objective.embedding.negative_", "objective.predict.",
)  # fmt: skip


class SweepConfig(Settings):
    """Which trials there are, who proposes them and who stops them early."""

    space: Annotated[
        dict[str, Range | Values] | None,
        Field(description="config keys with lists of values or ranges; null: both strengths, K and alpha"),
    ] = None
    searcher: Annotated[
        Literal["random", "grid", "optuna"],
        Field(description="who proposes the trials; optuna learns from their scores"),
    ] = "random"
    scheduler: Annotated[
        Literal["asha", "pbt", "none"],
        Field(description="asha stops the weaker at rungs; pbt lets them go on from the stronger; none does neither"),
    ] = "asha"
    num_trials: Annotated[
        int | None, Field(ge=1, le=MOST_TRIALS, description="besides the baseline; null: 16, or the whole grid")
    ] = None
    grace_steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="asha's first rung, pbt's interval; null: an eighth of the steps, at least a probe's interval",
        ),
    ] = None
    reduction_factor: Annotated[
        float, Field(gt=1, description="asha: a rung is this many times the one before, and passes one in so many")
    ] = 2.0
    repeats: Annotated[
        int, Field(ge=0, le=1000, description="further seeds of the best trial and of the baseline, paired")
    ] = 4
    max_concurrent: Annotated[
        int | None, Field(ge=1, description="trials at a time; null: as many as the cluster has room for now")
    ] = None
    keep_runs: Annotated[
        int, Field(ge=1, description="how many of the best trials keep their checkpoints once they have ended")
    ] = 3
    seed: Annotated[int, Field(ge=0, description="of what is proposed; the trials' own is the experiment's")] = 0

    @field_validator("space", mode="before")
    @classmethod
    def _each_key_has_values(cls, space: Any) -> Any:
        for key, values in space.items() if isinstance(space, Mapping) else ():
            if isinstance(values, Mapping):
                try:
                    Range.model_validate(values)
                except ValidationError as error:
                    raise ValueError(
                        "; ".join(f"sweep.space.{key}.{line}" for line in error_lines(error, Range))
                    ) from None
            elif not isinstance(values, list | tuple | Range) or not values:
                raise ValueError(f"sweep.space.{key} {values!r}: expected a list of values, or a range (low, high)")
        return space

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.scheduler == "pbt" and self.searcher == "optuna":
            raise ValueError("sweep.scheduler pbt changes the trials itself: set sweep.searcher to random or grid")
        if self.searcher == "grid":
            for key, values in (self.space or {}).items():
                if isinstance(values, Range) and values.levels is None:
                    raise ValueError(f"sweep.space.{key}: a grid needs `levels`, or a list of values")
        return self


class _SweepFile(Config):
    sweep: SweepConfig = SweepConfig()


@dataclass(frozen=True)
class Plan:
    """A sweep that can begin.

    Attributes:
        sweep: its settings.
        space: the keys that are varied.
        tree: the experiment as a tree, without the part `sweep`.
        base: the same, resolved.
    """

    sweep: SweepConfig
    space: Space
    tree: dict[str, Any]
    base: Config

    @property
    def num_trials(self) -> int:
        """Trials besides the baseline and the repeats."""
        if self.sweep.searcher == "grid":
            return len(self._grid)
        return self.sweep.num_trials or 16

    def changes(self, number: int) -> Changes | None:
        """What trial `number` changes; 0 is the baseline; None where only the searcher will know."""
        if number == 0:
            return dict(BASELINE)
        if self.sweep.searcher == "optuna":
            return None
        if self.sweep.searcher == "grid":
            return dict(self._grid[number - 1])
        return dict(self._random[number - 1])

    @property
    def probe_steps(self) -> int:
        """After how many steps a trial is scored again."""
        return self.base.probe.every_steps or self.base.checkpoint.every_steps

    @property
    def grace_steps(self) -> int:
        """The first step at which a scheduler compares trials."""
        return self.sweep.grace_steps or max(self.base.schedule.steps // 8, self.probe_steps)

    def with_keys(self, keys: Mapping[str, Any]) -> Plan:
        """The plan of the same sweep around an experiment with these keys set."""
        tree = override(self.tree, keys)
        return replace(self, tree=tree, base=validate(tree, "the experiment of the sweep"))

    def dump(self) -> str:
        """The sweep as YAML, every default spelt out."""
        space = {
            key: values.model_dump(mode="json") if isinstance(values, Range) else list(values)
            for key, values in self.space.items()
        }
        tree = {**self.base.model_dump(mode="json"), "sweep": self.sweep.model_dump(mode="json") | {"space": space}}
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)

    def config(self, number: int, changes: Mapping[str, Any], seed: int) -> Config:
        """The experiment of one trial.

        Raises:
            InputError: naming the key, for values that do not go together.
        """
        return validate(trial_tree(self.tree, changes, number=number, seed=seed), f"trial {number}")

    @cached_property
    def _grid(self) -> list[Changes]:
        return [point for point in grid(self.space) if not is_baseline(point)]

    @cached_property
    def _random(self) -> list[Changes]:
        """A point for each trial, none of them twice while a few draws find another."""
        drawn, seen = list[Changes](), set[str]()
        for number in range(1, self.num_trials + 1):
            some = (point for point in points(self.space, self.sweep.seed, number) if not is_baseline(point))
            first, others = next(some), itertools.islice(some, _DRAWS)
            new = next((point for point in itertools.chain([first], others) if repr(point) not in seen), first)
            drawn.append(new)
            seen.add(repr(new))
        return drawn


def trial_tree(tree: Mapping[str, Any], changes: Mapping[str, Any], *, number: int, seed: int) -> dict[str, Any]:
    """The experiment `tree` as one trial runs it."""
    return override(tree, {**changes, "seed": seed, "name": f"{tree['name']}-{number:04d}"})


def is_baseline(changes: Mapping[str, Any]) -> bool:
    """Whether both strengths are off and all else that changes matters to negatives alone."""
    off = all(key in changes and changes[key] == 0 for key in BASELINE)
    return off and all(key.startswith(_OF_NEGATIVES) or key == "objective.predict" for key in changes)


def load_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The plan that a config file with a part `sweep` spells out; any experiment's file is one with the defaults.

    Raises:
        InputError: naming the key; also for a point of the space that its trial would refuse, before any trial starts.
    """
    tree = override(read_tree(path), overrides or {})
    try:
        whole = _SweepFile.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(error_lines(error, _SweepFile))) from error
    base_tree = {key: value for key, value in tree.items() if key != "sweep"}
    base = validate(base_tree, str(path))
    space = default_space(base) if whole.sweep.space is None else whole.sweep.space
    plan = Plan(whole.sweep, space, base_tree, base)
    _check(plan, str(path))
    return plan


def _check(plan: Plan, path: str) -> None:
    if not plan.base.probe.tasks:
        raise InputError(
            f"{path}: probe.tasks is empty, and trials are compared by a held-out score, never by the loss. Name a "
            "labelled folder: probe.tasks=['FOLDER:COLUMN']"
        )
    steps = plan.base.schedule.steps
    if plan.sweep.scheduler != "none" and plan.probe_steps >= steps:
        raise InputError(
            f"{path}: sweep.scheduler {plan.sweep.scheduler}: compares trials on their way, but they are scored every "
            f"{plan.probe_steps} of {steps} steps. Set probe.every_steps to {max(1, steps // 8)} or so."
        )
    if plan.grace_steps > steps:
        raise InputError(f"{path}: sweep.grace_steps {plan.grace_steps}: more than schedule.steps ({steps})")
    if not hasattr(plan.base.negatives, "frequency_strength"):
        raise InputError(f"{path}: negatives.kind {plan.base.negatives.kind}: has no strengths, so no baseline at 0")
    if not plan.space or all(map(is_baseline, itertools.islice(corners(plan.space), 256))):
        raise InputError(f"{path}: sweep.space: no point of it differs from the baseline; name a key and its values")
    known = set(known_keys(Config))
    for key in plan.space:
        if key in ("seed", "name") or key.partition(".")[0] in ("probe", "launch", "checkpoint", "sweep"):
            raise InputError(f"{path}: sweep.space.{key}: decides nothing that a score may choose; take it out")
        if key.startswith("objective.embedding.") and plan.base.objective.embedding is None:
            raise InputError(
                f"{path}: sweep.space.{key}: trials would contrast embeddings and the baseline would not; set "
                "objective.embedding to {} in the experiment"
            )
        if key not in known:
            _check_unknown(plan, key, path)
    _check_points(plan, path)


def _check_unknown(plan: Plan, key: str, path: str) -> None:
    """Raises InputError, with the nearest known key, for one that no part of the experiment takes."""
    values = plan.space[key]
    try:
        plan.with_keys({key: values.low if isinstance(values, Range) else values[0]})
    except InputError as error:
        raise InputError(f"{path}: sweep.space.{key}: {str(error).partition(': ')[2]}") from error


def _check_points(plan: Plan, path: str) -> None:
    sweep = plan.sweep
    if sweep.searcher == "grid" and (size := grid_size(plan.space)) > MOST_TRIALS:
        raise InputError(
            f"{path}: sweep.searcher grid: the space has {size} points, expected {MOST_TRIALS} at most. Name fewer "
            "values or levels, or choose another searcher."
        )
    if sweep.searcher == "grid" and sweep.num_trials is not None and sweep.num_trials != plan.num_trials:
        raise InputError(
            f"{path}: sweep.num_trials {sweep.num_trials}: the grid has {plan.num_trials} points besides the baseline. "
            "Leave num_trials out, or choose another searcher."
        )
    for changes in _points(plan):
        try:
            plan.config(0, changes, plan.base.seed)
        except InputError as error:
            reason = str(error).partition(": ")[2]
            named = ", ".join(f"{key}={value}" for key, value in changes.items())
            raise InputError(f"{path}: sweep.space: the trial with {named} would be refused: {reason}") from error


def _points(plan: Plan) -> Iterator[Changes]:
    """What is tried before any trial starts: the baseline, the ends of the space, and the first of the plan."""
    yield dict(BASELINE)
    yield from corners(plan.space)
    planned = range(1, min(plan.num_trials, _MOST_CHECKED) + 1)
    yield from (changes for number in planned if (changes := plan.changes(number)) is not None)
