"""The training step through Ray and DeepSpeed, beside the plain one, in turns.

A Ray Train worker waits for its turn, takes steps with the engine that it is asked for, and tells what they took; so
the driver's own ways and the worker's meet the same machine.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from scaleaudio.bench import step
from scaleaudio.bench.noise import noise
from scaleaudio.bench.turns import Elsewhere, Timing, Turn, machine, take_turns
from scaleaudio.config import Config
from scaleaudio.launch import cluster as clusters
from scaleaudio.task import TaskConfig

DEEPSPEED, RAY, BOTH = "DeepSpeed", "Ray, plain engine", "Ray and DeepSpeed"


def bench_step(
    config: Config,
    *,
    rounds: int,
    threads: int,
    with_ray: bool,
    with_data: bool,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Each way to take a step of `config`, in turns; as plain data.

    Args:
        config: the experiment.
        rounds: turns of each way that count.
        threads: of torch, in each way.
        with_ray: also through DeepSpeed, Ray, and both.
        with_data: also on the shards at data.url.
        on_done: told how many rounds of how many are over.
    """
    import torch

    if with_data:
        config.build_stream()  # so that data which cannot be read is said at once
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    tree = config.model_dump(include=set(TaskConfig.model_fields))
    task = TaskConfig.model_validate(tree)
    with ExitStack() as stack:
        ways = step.ways(task, config.data, config.optimizer, device)
        if with_data:
            args = (step.data_steps, tree, config.data, config.optimizer, threads)
            elsewhere = stack.enter_context(closing(Elsewhere(*args)))
            ways[step.DATA] = step.Way(elsewhere, step.WHOLE)
        if with_ray:
            ways[DEEPSPEED] = step.Way(stack.enter_context(_deepspeed_here(config)), step.WHOLE)
            ray_turn = stack.enter_context(_in_ray(config, threads))
            ways[RAY] = step.Way(lambda number: ray_turn("plain", number), step.WHOLE)
            ways[BOTH] = step.Way(lambda number: ray_turn("deepspeed", number), step.WHOLE)
        about = machine(device)
        timings = take_turns({name: way.turn for name, way in ways.items()}, rounds, on_done=on_done)
    found = step.costs(timings, {name: way.over for name, way in ways.items()})
    shown = {
        "batch": config.data.global_batch,
        "encoder": config.encoder.model_dump(mode="json"),
        "rounds": len(timings[step.FLOOR]),
    }
    return {"machine": about, **shown, "ways": [cost._asdict() for cost in found]}


def engine_turn(config: Config, engine: str) -> Turn:
    """Steps of the plain baseline on noise by an engine; `torch.distributed` has to be initialised for DeepSpeed."""
    from scaleaudio.train import PlainEngine

    task = step.without_negatives(config)
    batch = noise(task, 0, config.data.global_batch, config.data.lanes)
    if engine == "plain":
        return step.engine_steps(PlainEngine(task.build().train(), config.optimizer), batch)
    from scaleaudio.launch.engine import DeepSpeedEngine

    return step.engine_steps(
        DeepSpeedEngine(task.build().train(), config.optimizer, zero_stage=config.launch.zero_stage), batch
    )


@contextmanager
def _deepspeed_here(config: Config) -> Iterator[Turn]:
    import torch.distributed as dist

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= alone
    dist.init_process_group("gloo")
    try:
        yield engine_turn(config, "deepspeed")
    finally:
        dist.destroy_process_group()
        for name in alone:
            del os.environ[name]


class _Turns:
    """A mailbox, run as a Ray actor: the driver asks for turns, the worker takes them and answers."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask(self, what: tuple[str, int] | None) -> None:
        """Asks for a turn of an engine, or with None for the end."""
        self._asked.put(what)

    def asked(self) -> tuple[str, int] | None:
        """What is asked for next."""
        return self._asked.get()  # type: ignore[no-any-return]

    def tell(self, timing: tuple[float, ...]) -> None:
        """Answers."""
        self._answers.put(timing)

    def answer(self) -> tuple[float, ...]:
        """What the turn took."""
        return self._answers.get()  # type: ignore[no-any-return]


@contextmanager
def _in_ray(config: Config, threads: int) -> Iterator[Callable[[str, int], Timing]]:
    """Turns of a Ray Train worker that was started as those of a run are."""
    import tempfile

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory() as folder, clusters.cluster(config.launch):
        turns = ray.remote(_Turns).options(num_cpus=0, max_concurrency=4).remote()
        trainer = TorchTrainer(
            _take_turns,
            train_loop_config={"config": config.model_dump(mode="json"), "threads": threads, "turns": turns},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="bench", storage_path=folder),
        )
        running = threading.Thread(target=trainer.fit, daemon=True)
        running.start()

        def turn(engine: str, number: int) -> Timing:
            ray.get(turns.ask.remote((engine, number)))
            return Timing(*ray.get(turns.answer.remote(), timeout=300))

        try:
            yield turn
        finally:
            ray.get(turns.ask.remote(None))
            running.join(60)


def _take_turns(settings: dict[str, Any]) -> None:
    import ray
    import torch

    torch.set_num_threads(settings["threads"])
    config = Config.model_validate(settings["config"])
    turns = {engine: engine_turn(config, engine) for engine in ("plain", "deepspeed")}
    while (asked := ray.get(settings["turns"].asked.remote())) is not None:
        engine, number = asked
        ray.get(settings["turns"].tell.remote(tuple(turns[engine](number))))
