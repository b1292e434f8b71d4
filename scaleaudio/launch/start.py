"""From the command to the first step: how long each part of the way takes, beside what it consists of by itself.

A run of one step is started as anybody would start it, in turns with its parts: the imports of driver and worker in a
fresh interpreter, and a Ray that starts and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scaleaudio.bench.turns import Spread, Timing, Turn, machine, spread, take_turns
from scaleaudio.config import Config
from scaleaudio.data import storage
from scaleaudio.errors import RunFailed
from scaleaudio.report.events import EVENTS
from scaleaudio.report.pieces import METRICS

if TYPE_CHECKING:
    from rich.table import Table

STAGES = ("driver ready", "workers ready", "first step")
IMPORTS, RAY = "the imports alone", "ray.init alone"
_IMPORTS = "import scaleaudio.launch.pretrain, scaleaudio.launch.worker, ray.train.torch"
_RAY = (
    "from scaleaudio.config import LaunchConfig\nfrom scaleaudio.launch.cluster import cluster\n"
    "import time\nbegan = time.perf_counter()\n"
    "with cluster(LaunchConfig(workers={workers})): print('took', time.perf_counter() - began)"
)


def bench_launch(
    config: Config,
    *,
    workers: tuple[int, ...],
    rounds: int,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Runs of one step by each number of workers, in turns with what they consist of; as plain data.

    Args:
        config: the experiment.
        workers: numbers of workers.
        rounds: how often each is started.
        on_done: told how many rounds of how many are over.

    Raises:
        RunFailed: when a run or a part of it does not end well.
    """
    with tempfile.TemporaryDirectory() as folder:
        stages: dict[int, list[list[float]]] = {num: [] for num in workers}
        turns: dict[str, Turn] = {IMPORTS: lambda number: _timed(_imports(config)), RAY: _ray(max(workers))}
        for num in workers:
            turns[_name(num)] = _run(config, num, Path(folder), stages[num])
        about = machine()
        timings = take_turns(turns, rounds, warm_up=0, on_done=on_done)
        compiled = sum(1 for path in (Path(folder) / "extensions").rglob("*") if path.is_file())
    parts = {name: spread([timing.wall for timing in own]) for name, own in timings.items()}
    reached = {
        str(num): {stage: spread([run[at] for run in own]) for at, stage in enumerate(STAGES)}
        for num, own in stages.items()
    }
    return {
        "machine": about,
        "alone": {name: parts[name] for name in (IMPORTS, RAY)},
        "reached": reached,
        "compiled_files": compiled,
    }


def table(result: Mapping[str, Any]) -> Table:
    """What was found, for the terminal."""
    from rich.table import Table

    made = Table(
        title="seconds from the command",
        caption=f"median (quartiles); files compiled at run time: {result['compiled_files']}",
    )
    made.add_column("")
    for num in result["reached"]:
        made.add_column(_name(int(num)), justify="right")
    for stage in STAGES:
        made.add_row(stage, *(f"{Spread(*own[stage]):.1f}" for own in result["reached"].values()))
    for name, own in result["alone"].items():
        made.add_row(name, f"{Spread(*own):.1f}")
    return made


def _run(config: Config, num: int, folder: Path, reached: list[list[float]]) -> Turn:
    """Starts the run and notes when each stage was reached; the turn's time is that until the first step."""
    path = folder / f"workers-{num}.yaml"
    path.write_text(yaml.safe_dump(one_step(config, num)))

    def turn(number: int) -> Timing:
        out = folder / f"run-{num}-{number}"
        env = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
        began = time.time()
        _call([sys.executable, "-m", "scaleaudio", "pretrain", str(path), "--out", str(out)], env)
        events = [json.loads(line) for line in (out / EVENTS).read_text().splitlines()]
        started = next(event for event in events if event["kind"] == "started")
        first = json.loads((out / METRICS).read_text().splitlines()[0])
        reached.append(
            [moment - began for moment in (started["time"] - started["seconds"], started["time"], first["time"])]
        )
        return Timing(reached[-1][-1], reached[-1][-1])

    return turn


def one_step(config: Config, num: int) -> dict[str, Any]:
    """The config of a run of one step by so many workers that probes nothing, as a tree."""
    tree = config.model_dump(mode="json")
    tree["data"] = config.data.located(storage.absolute).model_dump(mode="json")
    tree["schedule"] |= {"steps": 1, "warmup_steps": 0, "ramp_steps": 0}
    tree["launch"] |= {"workers": num, "report_every_steps": 1}
    tree["probe"] |= {"tasks": []}
    return tree


def _imports(config: Config) -> str:
    return _IMPORTS + (", scaleaudio.launch.engine" if config.launch.engine == "deepspeed" else "")


def _ray(num_workers: int) -> Turn:
    def turn(number: int) -> Timing:
        out = _call([sys.executable, "-c", _RAY.format(workers=num_workers)], dict(os.environ))
        seconds = float(out.rpartition("took ")[2].split()[0])
        return Timing(seconds, seconds)

    return turn


def _timed(code: str) -> Timing:
    began = time.perf_counter()
    _call([sys.executable, "-c", code], dict(os.environ))
    seconds = time.perf_counter() - began
    return Timing(seconds, seconds)


def _call(command: list[str], env: dict[str, str]) -> str:
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    if ran.returncode:
        raise RunFailed(f"{' '.join(command[:4])} ...: ended with {ran.returncode}: {ran.stderr.strip()[-400:]}")
    return ran.stdout


def _name(num: int) -> str:
    return f"{num} worker{'s' * (num > 1)}"
