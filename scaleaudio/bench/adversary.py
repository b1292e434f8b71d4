"""What the adversary costs: whole training steps with it against steps without it, in turns.

Machines are noisy, so every round takes one step of each arm, and an arm's cost is the median over rounds of its time
over the baseline's of the same round. On a CPU that time is processor time, which other programs hardly change.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch

from scaleaudio.bench.noise import noise
from scaleaudio.bench.turns import Timing, Turn, clocked, ratio, take_turns
from scaleaudio.data.stream import DataConfig
from scaleaudio.negatives.displace import Family, axis_of
from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig, PlainEngine

if TYPE_CHECKING:
    from rich.table import Table

BASELINE = "no negatives"


@dataclass(frozen=True)
class Cost:
    """What a step of one arm takes.

    Attributes:
        arm: its name.
        step_ms: median time of a step.
        ratio: median over rounds of the time over the baseline's.
        low, high: its quartiles.
        clips_per_second: at the median time.
    """

    arm: str
    step_ms: float
    ratio: float
    low: float
    high: float
    clips_per_second: float


def arms(config: TaskConfig) -> dict[str, TaskConfig]:
    """The config without negatives, as it is, and with other kinds, K, fractions, and each family alone."""
    own = config.negatives.model_dump()
    kept = ("frequency_strength", "time_strength", "fraction", "score_stride", "batch_norm")
    shared = {name: own[name] for name in kept if name in own}
    hardest = shared | {"kind": "hardest_of_k"}
    changes: dict[str, dict[str, Any]] = {BASELINE: {"negatives": {"kind": "none"}}, "as configured": {}}
    for num in (1, 2, 4, 8):
        changes[f"hardest of {num}"] = {"negatives": hardest | {"num_candidates": num}}
    four = hardest | {"num_candidates": 4}
    changes["hardest of 4, all clips"] = {"negatives": four | {"fraction": 1.0}}
    changes["hardest of 4, a quarter of the clips"] = {"negatives": four | {"fraction": 0.25}}
    changes["hardest of 4, scored at full resolution"] = {"negatives": four | {"score_stride": 1}}
    changes["hardest of 4, no gradient to the negative"] = {"negatives": four, "negative_gradient": "anchor"}
    if config.objective.negative_on != "projector":
        changes["hardest of 4, in the projection alone"] = {"negatives": four, "negative_on": "projector"}
    for steps in (1, 2):
        changes[f"field, {steps} step{'s' * (steps > 1)}"] = {
            "negatives": shared | {"kind": "field", "num_steps": steps}
        }
    changes["value"] = {"negatives": {"kind": "value", "fraction": own.get("fraction", 1.0)}}
    for family in get_args(Family):
        other = {"frequency": "time", "time": "frequency"}.get(axis_of(family) or "")
        alone = {"num_candidates": 1, "families": [family]} | ({f"{other}_strength": 0.0} if other else {})
        changes[f"{family} alone"] = {"negatives": hardest | alone}
    return {name: changed(config, change) for name, change in changes.items()}


def changed(config: TaskConfig, change: Mapping[str, Any]) -> TaskConfig:
    """The task of a config with other `negatives`, and with other keys of its objective."""
    tree = config.model_dump(include=set(TaskConfig.model_fields))
    acting = {name: value for name, value in change.items() if name != "negatives"}
    negatives = change.get("negatives", tree["negatives"])
    return TaskConfig.model_validate(tree | {"negatives": negatives, "objective": tree["objective"] | acting})


def measure(
    arms: Mapping[str, TaskConfig], data: DataConfig, optimizer: OptimizerConfig, *, rounds: int, device: torch.device
) -> list[Cost]:
    """The cost of each arm.

    Args:
        arms: what to compare, among them BASELINE.
        data: says how many clips a step has.
        optimizer: that of the run.
        rounds: how many steps each arm takes that are counted.
        device: where.
    """
    engines = {name: PlainEngine(config.build().train(), optimizer, device) for name, config in arms.items()}

    def turn(name: str) -> Turn:
        def take(step: int) -> Timing:
            batch = noise(arms[name], step, data.global_batch, data.lanes).to(device)
            return clocked(lambda: engines[name].step(batch), device)

        return take

    timings = take_turns({name: turn(name) for name in arms}, rounds)
    seconds = {name: [timing.cpu for timing in own] for name, own in timings.items()}
    return [_cost(name, seconds[name], seconds[BASELINE], data.global_batch) for name in arms]


def table(costs: list[Cost], device: torch.device) -> Table:
    """The costs for the terminal."""
    from rich.table import Table

    clock = "GPU" if device.type == "cuda" else "processor time"
    found = Table(caption=f"ratio: median over rounds (quartiles) of the step's time over the baseline's; {clock}")
    for column in ("negatives", "ms a step", "ratio", "clips/s"):
        found.add_column(column, justify="left" if column == "negatives" else "right")
    for cost in costs:
        ratio = f"{cost.ratio:.2f} ({cost.low:.2f}-{cost.high:.2f})"
        found.add_row(cost.arm, f"{cost.step_ms:.1f}", ratio, f"{cost.clips_per_second:.0f}")
    return found


def _cost(name: str, seconds: list[float], baseline: list[float], clips: int) -> Cost:
    over = ratio(seconds, baseline)
    median = statistics.median(seconds)
    return Cost(name, 1e3 * median, over.median, over.low, over.high, clips / median)
