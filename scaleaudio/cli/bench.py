"""Verbs that measure: bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scaleaudio.cli.app import Overrides, bench_app, print_table
from scaleaudio.errors import InputError


@bench_app.command("plan")
def bench_plan(
    shards: Annotated[int, typer.Option(min=1, help="how many shards of 1,000 samples")] = 1_000_000,
    ranks: Annotated[int, typer.Option(min=1, help="how many workers, each with 8 lanes")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """What it costs a worker to know what it reads next, over an index of a billion samples that do not exist."""
    from scaleaudio.bench.plan import PlanScale, plan_table
    from scaleaudio.bench.plan import bench_plan as measure

    _show(measure(PlanScale(shards=shards, ranks=ranks)), plan_table, as_json)


@bench_app.command("loader")
def bench_loader(
    url: Annotated[str | None, typer.Option(help="local shards with an index, instead of clips made for it")] = None,
    shards: Annotated[int, typer.Option(min=1, help="how many shards are made")] = 10,
    workers: Annotated[str, typer.Option(help="numbers of decoding threads and of the others' processes")] = "1,2,4",
    crop_seconds: Annotated[float, typer.Option(min=0.01, help="how much of each clip is used")] = 0.96,
    seconds: Annotated[float, typer.Option(min=0.1, help="how long each is measured")] = 4.0,
    repeats: Annotated[int, typer.Option(min=1, help="how often, in turns")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """This stream beside the usual WebDataset recipe and bare tar bytes: clips a second and a core, memory."""
    from rich.progress import Progress

    from scaleaudio.bench.loader import LoaderScale, loader_table
    from scaleaudio.bench.loader import bench_loader as measure

    if not all(number.isdecimal() and int(number) for number in workers.split(",")):
        raise InputError(f"--workers {workers}: expected numbers from 1 on with commas between, as 1,2,4")
    numbers = tuple(map(int, workers.split(",")))
    scale = LoaderScale(
        url=url, shards=shards, workers=numbers, crop_seconds=crop_seconds, seconds=seconds, repeats=repeats
    )
    with Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("measuring")
        result = measure(scale, lambda done, total: bar.update(task, completed=done, total=total))
    _show(result, loader_table, as_json)


@bench_app.command("adversary")
def bench_adversary(
    config: Annotated[Path, typer.Argument(help="YAML file")],
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="steps of each kind that are timed, in turns")] = 10,
    only: Annotated[str, typer.Option(help="kinds whose name holds this")] = "",
    threads: Annotated[int, typer.Option(min=1, help="of torch, without a GPU")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Measure a training step with every kind of negatives against the step without them."""
    from dataclasses import asdict

    import torch

    from scaleaudio.bench import adversary
    from scaleaudio.config import load, parse_overrides

    torch.set_num_threads(threads)
    loaded = load(config, parse_overrides(overrides or []))
    arms = {name: arm for name, arm in adversary.arms(loaded).items() if only in name or name == adversary.BASELINE}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    costs = adversary.measure(arms, loaded.data, loaded.optimizer, rounds=rounds, device=device)
    _show([asdict(cost) for cost in costs], lambda _: adversary.table(costs, device), as_json)


def _show(result: Any, table: Any, as_json: bool) -> None:
    """Prints what a benchmark found."""
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print_table(table(result), width=150)
