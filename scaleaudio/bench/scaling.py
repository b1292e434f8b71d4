"""How steps per second grow with workers: one, two and more beside each other in turns, and what they tell each other.

The workers are processes of this machine that share the global batch, as those of a run do. Beside them the same
processes step the same shares and say nothing to each other: more than that the machine does not give. What a step
sends is counted as it is sent; `bench/cluster.py` says what that comes to on machines that are not here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scaleaudio.bench.noise import noise
from scaleaudio.bench.step import engine_steps, without_negatives
from scaleaudio.bench.turns import Elsewhere, Spread, Timing, Turn, machine, ratio, take_turns
from scaleaudio.data.stream import DataConfig
from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig, PlainEngine
from scaleaudio.types import Batch, World

if TYPE_CHECKING:
    from rich.table import Table

COUNT = -1  # the turn that counts what is sent instead of timing


class Sent(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that each kind of collective was given, and how often it was called."""

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes: dict[str, int] = {}
        self.num_calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts a collective and lets it through."""
        if func.namespace == "c10d":
            name = func._opname.strip("_").removesuffix("_base")
            given = args[1] if name.startswith("allgather") else args[0]
            size = sum(t.nbytes for t in tree_leaves(given) if isinstance(t, Tensor))
            self.num_bytes[name] = self.num_bytes.get(name, 0) + size
            self.num_calls[name] = self.num_calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def measure(
    config: TaskConfig,
    data: DataConfig,
    optimizer: OptimizerConfig,
    *,
    workers: tuple[int, ...],
    rounds: int,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Steps by different numbers of workers, each of one thread, in turns; as plain data.

    Args:
        config: the task; it is stepped without negatives.
        data: says how many clips a step has, over all workers, and in how many lanes.
        optimizer: that of the run.
        workers: numbers of workers, the first of them 1.
        rounds: turns of each that count.
        on_done: told how many rounds of how many are over.

    Raises:
        ValueError: there are more workers than lanes.
    """
    World(0, max(workers)).share(data.lanes)
    task = without_negatives(config)
    tree = task.model_dump()
    with ExitStack() as stack:
        ways = [(num, apart) for num in workers for apart in (False, True)[:num]]
        groups = {way: _group(stack, tree, data, optimizer, *way) for way in ways}
        sent = {way: _ask(group, COUNT)[0] for way, group in groups.items()}
        turns = {_name(*way): _turn(group) for way, group in groups.items()}
        timings = take_turns(turns, rounds, on_done=on_done)
    wall = {way: [timing.wall for timing in timings[_name(*way)]] for way in ways}
    cpu = {way: [timing.cpu for timing in timings[_name(*way)]] for way in ways}
    one = (1, False)
    found = [
        {
            "workers": way[0],
            "apart": way[1],
            "step_ms": 1e3 * sorted(wall[way])[len(wall[way]) // 2],
            "times_one": ratio(wall[one], wall[way]),
            "cpu_of_one": ratio(cpu[way], cpu[one]),
            "sent": sent[way],
        }
        for way in ways
    ]
    return {"machine": machine(), "batch": data.global_batch, "measured": found}


def worker(
    tree: Mapping[str, Any], data: DataConfig, optimizer: OptimizerConfig, world: World, port: int | None
) -> Turn:
    """One worker's turns, in its own process; without a port it is on its own with its share of the clips."""
    torch.set_num_threads(1)
    config = TaskConfig.model_validate(tree)
    if port is None:
        lanes, world = len(world.share(data.lanes)), World()
        batch = noise(config, 0, lanes * data.global_batch // data.lanes, lanes)
    else:
        batch = _share(noise(config, 0, data.global_batch, data.lanes), world)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=world.rank, world_size=world.size)
    engine = PlainEngine(config.build(world).train(), optimizer)
    take = engine_steps(engine, batch)

    def turn(number: int) -> Any:
        if number != COUNT:
            return take(number)
        with Sent() as sent:
            engine.step(replace(batch, step=0))
        return {name: [sent.num_calls[name], size] for name, size in sent.num_bytes.items()}

    return turn


def table(result: dict[str, Any]) -> Table:
    """What was measured."""
    from rich.table import Table

    made = Table(
        title=f"{result['batch']} clips a step, shared by workers of one thread",
        caption="ratios: median over rounds (quartiles); apart: the same processes that say nothing to each other",
    )
    for name in (
        "workers",
        "ms a step",
        "times one worker's steps/s",
        "processor time of one worker's",
        "sent by each",
    ):
        made.add_column(name, justify="right")
    for row in result["measured"]:
        sent = ", ".join(f"{name} {calls} x, {size / 1e6:.2f} MB" for name, (calls, size) in row["sent"].items())
        times, cpu = Spread(*row["times_one"]), Spread(*row["cpu_of_one"])
        made.add_row(
            _name(row["workers"], row["apart"]),
            f"{row['step_ms']:.0f}",
            f"{times:.2f}",
            f"{cpu:.2f}",
            sent or "nothing",
        )
    return made


def _group(
    stack: ExitStack, tree: Mapping[str, Any], data: DataConfig, optimizer: OptimizerConfig, num: int, apart: bool
) -> list[Elsewhere]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = None if apart else probe.getsockname()[1]
    worlds = [World(rank, num) for rank in range(num)]
    return [stack.enter_context(closing(Elsewhere(worker, tree, data, optimizer, world, port))) for world in worlds]


def _name(num: int, apart: bool) -> str:
    return f"{num}, apart" if apart else str(num)


def _ask(group: list[Elsewhere], number: int) -> list[Any]:
    for one in group:
        one.ask(number)
    return [one.answer() for one in group]


def _turn(group: list[Elsewhere]) -> Turn:
    def turn(number: int) -> Timing:
        found = _ask(group, number)
        return Timing(max(one.wall for one in found), sum(one.cpu for one in found))

    return turn


def _share(batch: Batch, world: World) -> Batch:
    lanes, each = world.share(batch.num_lanes), batch.lane_batch
    rows = slice(lanes.start * each, lanes.stop * each)
    return replace(batch, wave_BT=batch.wave_BT[rows], key_B=batch.key_B[rows], slot_B=batch.slot_B[rows])
