"""Arms by seeds: trains each cell with the project's own parts, scores it, and compares the arms seed by seed.

A cell is one arm at one seed, in a process of one thread. It leaves one JSON file when it is scored, so the same
command goes on where it was stopped. `compare.py` beside this file makes tables and pictures of the cells.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

METRIC = "linear_c0.05"

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def main(
    spec: Annotated[Path, typer.Argument(help="YAML file with base, tasks and arms")],
    data: Annotated[str, typer.Option(help="shards to train on")],
    tasks: Annotated[Path, typer.Option(help="folder that holds the labelled folders")],
    out: Annotated[Path, typer.Option(help="folder for encoders and scores")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]", help="of the base")] = None,
    seeds: Annotated[str, typer.Option(help="by comma")] = "0,1,2,3,4",
    arms: Annotated[str | None, typer.Option(help="by comma; default: all, in order")] = None,
    processes: Annotated[int, typer.Option(help="cells at a time, of one thread each")] = 2,
) -> None:
    """Train and score every cell that has no score yet."""
    from scaleaudio.evaluate.tasks import read_labels

    tree = read_spec(spec, overrides or [])
    names = arms.split(",") if arms else list(tree["arms"])
    if unknown := [name for name in names if name not in tree["arms"]]:
        raise SystemExit(f"{spec}: no arm {unknown[0]!r}; it has {', '.join(tree['arms'])}")
    for task in _tasks(tree, str(tasks)):
        read_labels(task.table_path)  # now, and not after a cell's training
    cells = [(name, int(seed)) for seed in seeds.split(",") for name in names]
    waiting = [cell for cell in cells if not _score_file(out, *cell).exists()]
    print(f"{len(cells)} cells, {len(cells) - len(waiting)} of them scored")
    began = time.time()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running = [pool.submit(_cell, tree, name, seed, data, str(tasks), str(out)) for name, seed in waiting]
        for number, done in enumerate(as_completed(running), start=1):
            name, seed, scores = done.result()
            said = " ".join(f"{task} {score:.3f}" for task, score in scores.items())
            print(
                f"[{number}/{len(waiting)}, {(time.time() - began) / 60:.0f} min] {name} seed {seed}: {said}",
                flush=True,
            )


def read_spec(file: Path, overrides: list[str]) -> dict[str, Any]:
    """The base, tasks and arms of a file, `overrides` laid on the base."""
    from scaleaudio.config import override, parse_overrides

    tree: dict[str, Any] = yaml.safe_load(file.read_text())
    return tree | {"base": override(tree["base"], parse_overrides(overrides))}


def _cell(
    tree: Mapping[str, Any], name: str, seed: int, data: str, tasks: str, out: str
) -> tuple[str, int, dict[str, float]]:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from scaleaudio import bundle
    from scaleaudio.evaluate import evaluate

    config = cell_config(tree, name, seed, data)
    began = time.time()
    encoder, watched = train(config)
    seconds = time.time() - began
    bundle.save(encoder, Path(out) / "encoders" / f"{name}-{seed}")
    results = evaluate({name: encoder}, _tasks(tree, tasks))
    scores = {f"{score.task}/{score.metric}": score.score for score in results.scores}
    row = {
        "arm": name, "seed": seed, "train_seconds": seconds, "scores": scores, "watched": watched,
        "overrides": tree["arms"][name],
    }  # fmt: skip
    file = _score_file(Path(out), name, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".tmp").write_text(json.dumps(row, indent=1))
    file.with_suffix(".tmp").rename(file)
    return name, seed, {key.split("/")[0]: score for key, score in scores.items() if key.endswith(METRIC)}


def _tasks(tree: Mapping[str, Any], folder: str) -> list[Any]:
    from scaleaudio.evaluate import Task

    return [Task.model_validate({**task, "folder": str(Path(folder) / task["folder"])}) for task in tree["tasks"]]


def cell_config(tree: Mapping[str, Any], name: str, seed: int, data: str) -> Any:
    """The config of one cell: the base, the arm's keys over it, the seed and the shards."""
    from scaleaudio.config import override, validate

    whole = override(_merged(tree["base"], tree["arms"][name] or {}), {"name": name, "seed": seed, "data.url": data})
    return validate(whole, f"arm {name}")


def train(config: Any) -> tuple[Any, dict[str, float]]:
    """The trained encoder, and the means of what the task watched over the last fifth of the steps."""
    from scaleaudio.bundle import AudioEncoder
    from scaleaudio.data.normalise import with_constants
    from scaleaudio.train import PlainEngine, fit

    config = config.model_copy(update={"frontend": with_constants(config.frontend, config.build_stream())})
    stream = config.build_stream()
    engine = PlainEngine(config.build(), config.optimizer)
    sums: dict[str, float] = {}
    late = range(config.schedule.steps - max(1, config.schedule.steps // 5), config.schedule.steps)
    for report in fit(engine, stream.batches(0)):
        parts = {key: float(value) for key, value in report.stepped.losses.parts.items()}
        if not math.isfinite(parts["loss"]):
            raise RuntimeError(f"{config.name}, seed {config.seed}: the loss of step {report.step} is {parts['loss']}")
        if report.step in late:
            sums = {key: sums.get(key, 0.0) + value for key, value in parts.items()}
    stream.close()
    watched = {key: value / len(late) for key, value in sums.items()}
    return AudioEncoder(config, engine.task.frontend, engine.task.encoder, config.schedule.steps), watched


def _score_file(out: Path, name: str, seed: int) -> Path:
    return out / "scores" / f"{name}-{seed}.json"


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; another `kind` replaces its whole part."""
    result = dict(base)
    for key, value in over.items():
        under = result.get(key)
        same = (
            isinstance(value, Mapping) and isinstance(under, Mapping) and value.get("kind") in (None, under.get("kind"))
        )
        result[key] = _merged(under, value) if same else value
    return result


if __name__ == "__main__":
    app()
