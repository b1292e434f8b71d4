"""What each part of a training step adds to its floor.

The floor is the encoder, the heads and the objective, forward and backward, on spectrograms that are there already:
whatever learns the same has to do that. Each further way takes the step with one part more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scaleaudio.bench.adversary import changed
from scaleaudio.bench.noise import noise
from scaleaudio.bench.turns import Spread, Timing, Turn, clocked, ratio, spread
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.stream import DataConfig, Stream
from scaleaudio.objectives import Pairs
from scaleaudio.task import PretrainTask, TaskConfig
from scaleaudio.train import OptimizerConfig, PlainEngine, StepReport, fit
from scaleaudio.types import Batch

if TYPE_CHECKING:
    from rich.table import Table

FLOOR, OPTIMIZER, FRONTEND, WHOLE = "floor", "+ optimizer", "+ front-end", "+ views: whole step"
NEGATIVES, DATA = "whole step, negatives", "whole step, real data"
STEPS_A_TURN = 3


class Way(NamedTuple):
    """A way to take steps, and the way that it is compared with beside the floor."""

    turn: Turn
    over: str


class StepCost(NamedTuple):
    """What a step takes in one way.

    Attributes:
        way: which parts it has.
        over: what it is compared with beside the floor.
        cpu_ms, wall_ms: of processors and clock.
        of_floor: processor time over the floor's.
        of_over, wall_of_over: processor time and clock over those of `over`.
        data_wait: the part of the clock in which the step waits for its batch.
    """

    way: str
    over: str
    cpu_ms: float
    wall_ms: float
    of_floor: Spread
    of_over: Spread
    wall_of_over: Spread
    data_wait: Spread

    @classmethod
    def of(cls, way: Mapping[str, Any]) -> StepCost:
        """From plain data."""
        values: dict[str, Any] = {k: Spread(*v) if isinstance(v, list | tuple) else v for k, v in way.items()}
        return cls(**values)


def without_negatives(config: TaskConfig) -> TaskConfig:
    """The task of `config` as the plain baseline."""
    return changed(config, {"negatives": {"kind": "none"}})


def ways(config: TaskConfig, data: DataConfig, optimizer: OptimizerConfig, device: torch.device) -> dict[str, Way]:
    """The ways that need no data, no Ray and no DeepSpeed, each with an engine of its own."""
    plain = without_negatives(config)
    engines = [PlainEngine(plain.build().train(), optimizer, device) for _ in range(4)]
    batch = noise(plain, 0, data.global_batch, data.lanes).to(device)
    with torch.no_grad():
        mel_NFS = engines[0].task.frontend(batch.wave_BT).repeat(2, 1, 1)

    def floor(step: int) -> None:
        engines[0].task.zero_grad(set_to_none=True)
        _loss(engines[0].task, mel_NFS, batch).backward()  # type: ignore[no-untyped-call]

    def with_optimizer(step: int) -> None:
        engines[1].learn(_loss(engines[1].task, mel_NFS, batch), step)

    def with_frontend(step: int) -> None:
        mel_BFS = engines[2].task.frontend(batch.wave_BT)
        engines[2].learn(_loss(engines[2].task, torch.cat([mel_BFS, mel_BFS]), batch), step)

    found = {
        FLOOR: Way(steps(floor, device), FLOOR),
        OPTIMIZER: Way(steps(with_optimizer, device), FLOOR),
        FRONTEND: Way(steps(with_frontend, device), OPTIMIZER),
        WHOLE: Way(engine_steps(engines[3], batch), FRONTEND),
    }
    if config.negatives.active:
        adversarial = PlainEngine(config.build().train(), optimizer, device)
        found[NEGATIVES] = Way(engine_steps(adversarial, batch), WHOLE)
    return found


def engine_steps(engine: Any, batch: Batch) -> Turn:
    """A turn of some steps of an engine on one batch."""
    return steps(lambda step: engine.step(replace(batch, step=step)), engine.device)


def steps(take: Callable[[int], object], device: torch.device) -> Turn:
    """A turn of some steps."""

    def turn(number: int) -> Timing:
        first = number * STEPS_A_TURN
        timing = clocked(lambda: [take(step) for step in range(first, first + STEPS_A_TURN)], device)
        return timing.over(STEPS_A_TURN)

    return turn


def data_steps(tree: Mapping[str, Any], data: DataConfig, optimizer: OptimizerConfig, threads: int) -> Turn:
    """A turn of steps on batches of the stream; those that were decoded between turns do not count.

    It belongs in a process of its own (`Elsewhere`), as its threads decode ahead while others have their turn.
    """
    torch.set_num_threads(threads)
    plain = without_negatives(TaskConfig.model_validate(tree))
    indexes = [ShardIndex.load(url) for url in data.urls.values()]
    rate_hz, frames = plain.frontend.sample_rate_hz, plain.clip_samples
    stream = Stream(data, indexes, seed=plain.seed, sample_rate_hz=rate_hz, crop_frames=frames)
    reports = fit(PlainEngine(plain.build(), optimizer), stream.batches())

    def turn(number: int) -> Timing:
        for _ in range(data.read_ahead + 1):
            next(reports)
        taken: list[StepReport] = []
        timing = clocked(lambda: taken.extend(next(reports) for _ in range(STEPS_A_TURN)))
        waited = sum(report.data_wait_seconds for report in taken)
        return timing._replace(wait=waited).over(STEPS_A_TURN)

    return turn


def costs(timings: Mapping[str, list[Timing]], over: Mapping[str, str]) -> list[StepCost]:
    """What each way costs, from the timings of all turns."""
    cpu = {way: [timing.cpu for timing in own] for way, own in timings.items()}
    wall = {way: [timing.wall for timing in own] for way, own in timings.items()}
    return [
        StepCost(
            way,
            over[way],
            1e3 * statistics.median(cpu[way]),
            1e3 * statistics.median(wall[way]),
            ratio(cpu[way], cpu[FLOOR]),
            ratio(cpu[way], cpu[over[way]]),
            ratio(wall[way], wall[over[way]]),
            spread([timing.wait / timing.wall for timing in own]),
        )
        for way, own in timings.items()
    ]


def table(found: list[StepCost]) -> Table:
    """The costs for the terminal."""
    from rich.table import Table

    made = Table(title="a training step", caption="ratios: median over rounds (quartiles); of processor time, or clock")
    for name in ("way", "CPU ms", "clock ms", "/ floor", "compared with", "CPU ratio", "clock ratio", "waits for data"):
        made.add_column(name, justify="left" if name in ("way", "compared with") else "right")
    for cost in found:
        wait = f"{cost.data_wait:.1%}" if cost.data_wait.high > 0 else ""
        made.add_row(
            cost.way,
            f"{cost.cpu_ms:.1f}",
            f"{cost.wall_ms:.1f}",
            f"{cost.of_floor:.3f}",
            cost.over,
            f"{cost.of_over:.3f}",
            f"{cost.wall_of_over:.3f}",
            wait,
        )
    return made


def _loss(task: PretrainTask, mel_NFS: Tensor, batch: Batch) -> Tensor:
    """The plain objective on both views, as little around it as can be."""
    counts = task.world.counts(batch.num_lanes, batch.lane_batch)
    with torch.autocast(mel_NFS.device.type, torch.bfloat16, enabled=task.config.precision == "bfloat16"):
        target_ND = None if task.target is None else task.target(mel_NFS)
        z_ND = task.projector(task.encoder(mel_NFS))
    num = len(mel_NFS) // 2
    targets = (None, None) if target_ND is None else (target_ND[:num], target_ND[num:])
    loss: Tensor = task.objective(Pairs(z_ND[:num], z_ND[num:], None, *targets).float(), task.world, counts)
    return loss
