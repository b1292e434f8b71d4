"""Verbs that measure: bench."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from scaleaudio.cli.app import ConfigFile, Overrides, bench_app, load_config, print_table
from scaleaudio.errors import InputError

AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


@bench_app.command("plan")
def bench_plan(
    shards: Annotated[int, typer.Option(min=1, help="how many shards of 1,000 samples")] = 1_000_000,
    ranks: Annotated[int, typer.Option(min=1, help="how many workers, each with 8 lanes")] = 1024,
    as_json: AsJson = False,
) -> None:
    """What it costs a worker to know what it reads next, over an index of a billion samples that do not exist."""
    from scaleaudio.bench.plan import PlanScale, plan_table
    from scaleaudio.bench.plan import bench_plan as measure

    _show(measure(PlanScale(shards=shards, ranks=ranks)), plan_table, as_json)


@bench_app.command("loader")
def bench_loader(
    url: Annotated[str | None, typer.Option(help="local shards with an index, instead of clips made for it")] = None,
    shards: Annotated[int, typer.Option(min=1, help="how many shards are made")] = 10,
    workers: Annotated[
        str, typer.Option(help="numbers to try: threads of this stream, processes of the other loaders")
    ] = "1,2,4",
    crop_seconds: Annotated[float, typer.Option(min=0.01, help="how much of each clip is used")] = 0.96,
    seconds: Annotated[float, typer.Option(min=0.1, help="how long each is measured")] = 4.0,
    repeats: Annotated[int, typer.Option(min=1, help="how often, in turns")] = 3,
    as_json: AsJson = False,
) -> None:
    """This stream beside the usual WebDataset recipe and bare tar bytes: clips a second and a core, memory."""
    from scaleaudio.bench.contenders import LoaderScale
    from scaleaudio.bench.loader import bench_loader as measure
    from scaleaudio.bench.loader import loader_table

    numbers = _numbers("--workers", workers)
    scale = LoaderScale(
        url=url, shards=shards, workers=numbers, crop_seconds=crop_seconds, seconds=seconds, repeats=repeats
    )
    with _bar() as on_done:
        result = measure(scale, on_done)
    _show(result, loader_table, as_json)


@bench_app.command("adversary")
def bench_adversary(
    config: ConfigFile,
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="steps of each kind that are timed, in turns")] = 10,
    only: Annotated[str, typer.Option(help="kinds whose name holds this")] = "",
    threads: Annotated[int, typer.Option(min=1, help="of torch, without a GPU")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure a training step with every kind of negatives against the step without them."""
    from dataclasses import asdict

    import torch

    from scaleaudio.bench import adversary

    torch.set_num_threads(threads)
    loaded = load_config(config, overrides)
    arms = {name: arm for name, arm in adversary.arms(loaded).items() if only in name or name == adversary.BASELINE}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    costs = adversary.measure(arms, loaded.data, loaded.optimizer, rounds=rounds, device=device)
    _show([asdict(cost) for cost in costs], lambda _: adversary.table(costs, device), as_json)


@bench_app.command("step")
def bench_step(
    config: ConfigFile,
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each way, of 3 steps each; fewer after 150 s")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="of torch")] = 1,
    ray: Annotated[bool, typer.Option(help="also through Ray, DeepSpeed and both")] = True,
    data: Annotated[bool, typer.Option(help="also on the shards at data.url")] = True,
    as_json: AsJson = False,
) -> None:
    """What front-end, views, negatives, DeepSpeed, Ray and real data each add to a training step."""
    from scaleaudio.bench import step
    from scaleaudio.launch.bench import bench_step as measure

    loaded = load_config(config, overrides)
    with _bar() as on_done:
        result = measure(loaded, rounds=rounds, threads=threads, with_ray=ray, with_data=data, on_done=on_done)
    _show(result, lambda found: step.table([step.StepCost.of(way) for way in found["ways"]]), as_json)


@bench_app.command("scaling")
def bench_scaling(
    config: ConfigFile,
    overrides: Overrides = None,
    workers: Annotated[str, typer.Option(help="numbers of workers, each of one thread")] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="turns of each, of 3 steps each; fewer after 150 s")] = 10,
    clips_per_gpu: Annotated[int, typer.Option(min=1, help="assumed: clips a step on each GPU of a cluster")] = 512,
    step_ms: Annotated[float, typer.Option(min=0.01, help="assumed: what a GPU computes a step")] = 50.0,
    gigabytes_per_second: Annotated[float, typer.Option(min=0.01, help="assumed: what a GPU sends")] = 40.0,
    latency_us: Annotated[float, typer.Option(min=0, help="assumed: from one GPU to another")] = 15.0,
    as_json: AsJson = False,
) -> None:
    """One worker beside several on this machine, and what a step would send between 8 to 1,024 GPUs."""
    from scaleaudio.bench import cluster, scaling

    numbers = _numbers("--workers", workers)
    if numbers[0] != 1 or len(numbers) < 2:
        raise InputError(f"--workers {workers}: expected 1 and then other numbers with commas between, as 1,2,4")
    loaded = load_config(config, overrides)
    assumed = cluster.Assumed(
        clips_per_gpu=clips_per_gpu, step_ms=step_ms, gigabytes_per_second=gigabytes_per_second, latency_us=latency_us
    )
    with _bar() as on_done:
        measured = scaling.measure(
            loaded, loaded.data, loaded.optimizer, workers=numbers, rounds=rounds, on_done=on_done
        )
    projected = cluster.projection(cluster.Traffic.of(loaded.build()), assumed)
    _show(
        measured | {"assumed": assumed.model_dump(), "projected": [row._asdict() for row in projected]},
        scaling.table,
        as_json,
    )
    if not as_json:
        print_table(cluster.table(projected, assumed), width=150)


@bench_app.command("memory")
def bench_memory(
    config: ConfigFile,
    overrides: Overrides = None,
    devices: Annotated[str, typer.Option(help="numbers of devices")] = "1,8,64",
    clips: Annotated[int, typer.Option(min=1, help="clips of which a device keeps activations")] = 64,
    as_json: AsJson = False,
) -> None:
    """What each device has to hold at every ZeRO stage, by tensor bytes; nothing of that size is made."""
    from scaleaudio.bench import memory

    loaded = load_config(config, overrides)
    _show(memory.memory(loaded, devices=_numbers("--devices", devices), clips=clips), memory.table, as_json)


@bench_app.command("launch")
def bench_launch(
    config: ConfigFile,
    overrides: Overrides = None,
    workers: Annotated[str, typer.Option(help="numbers of workers")] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="how often each is started, in turns")] = 3,
    as_json: AsJson = False,
) -> None:
    """From the command to the first step: by stages, beside the imports and the Ray that it consists of."""
    from scaleaudio.launch import start

    loaded = load_config(config, overrides)
    with _bar() as on_done:
        result = start.bench_launch(loaded, workers=_numbers("--workers", workers), rounds=rounds, on_done=on_done)
    _show(result, start.table, as_json)


@bench_app.command("encoders")
def bench_encoders(
    only: Annotated[str, typer.Option(help="encoders whose name holds this")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="how often each is timed, in turns")] = 5,
    out: Annotated[Path | None, typer.Option(help="Markdown page to write, such as docs/encoders.md")] = None,
    as_json: AsJson = False,
) -> None:
    """Parameters, multiplications and time a second of audio of every kind of encoder."""
    from dataclasses import asdict

    import torch

    from scaleaudio.bench import encoders

    torch.set_num_threads(1)
    chosen = {name: tree for name, tree in encoders.ENCODERS.items() if only in name}
    if not chosen:
        raise InputError(f"--only {only!r}: no such encoder; there are {'; '.join(encoders.ENCODERS)}")
    made = {name: encoders.build(tree) for name, tree in chosen.items()}
    with _bar() as on_done:
        ms = encoders.measure_ms(made, rounds=rounds, on_done=on_done)
    sizes = [encoders.size(name, encoder) for name, encoder in made.items()]
    if out is not None:
        encoders.write_markdown(sizes, ms, out)
    result = [asdict(size) | {"ms": ms[size.name]} for size in sizes]
    _show(result, lambda _: encoders.encoder_table(sizes, ms), as_json)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    if not all(number.isdecimal() and int(number) for number in text.split(",")):
        raise InputError(f"{option} {text}: expected numbers from 1 on with commas between, as 1,2,4")
    return tuple(map(int, text.split(",")))


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; gives what moves it."""
    from rich.progress import Progress

    with Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("measuring")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(result: Any, table: Any, as_json: bool) -> None:
    """Prints what a benchmark found."""
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print_table(table(result), width=150)
