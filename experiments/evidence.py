"""Arms by seeds: trains each cell with the project's own parts, scores it, and compares the arms seed by seed.

A cell is one arm at one seed, in a process of one thread. It leaves one JSON file when it is scored, so the same
command goes on where it was stopped. `table` prints every arm's mean and its paired difference to the baseline, with a
95 % interval (Student's t over seeds).
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

BASELINE = "baseline"
METRIC = "linear_c0.05"

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="YAML file with base, tasks and arms")],
    data: Annotated[str, typer.Option(help="shards to train on")],
    tasks: Annotated[Path, typer.Option(help="folder that holds the labelled folders")],
    out: Annotated[Path, typer.Option(help="folder for encoders and scores")],
    seeds: Annotated[str, typer.Option(help="by comma")] = "0,1,2,3,4",
    arms: Annotated[str | None, typer.Option(help="by comma; default: all, in order")] = None,
    processes: Annotated[int, typer.Option(help="cells at a time, of one thread each")] = 2,
) -> None:
    """Train and score every cell that has no score yet."""
    tree = yaml.safe_load(spec.read_text())
    names = arms.split(",") if arms else list(tree["arms"])
    if unknown := [name for name in names if name not in tree["arms"]]:
        raise SystemExit(f"{spec}: no arm {unknown[0]!r}; it has {', '.join(tree['arms'])}")
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


@app.command()
def table(out: Annotated[Path, typer.Argument(help="folder of `run`")]) -> None:
    """Print each arm's scores and what it gains over the baseline, seed by seed."""
    print(markdown(read(out)))


def _cell(
    tree: Mapping[str, Any], name: str, seed: int, data: str, tasks: str, out: str
) -> tuple[str, int, dict[str, float]]:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from scaleaudio import bundle
    from scaleaudio.evaluate import Task, evaluate

    config = cell_config(tree, name, seed, data)
    began = time.time()
    encoder, watched = train(config)
    seconds = time.time() - began
    bundle.save(encoder, Path(out) / "encoders" / f"{name}-{seed}")
    wanted = [Task.model_validate({**task, "folder": str(Path(tasks) / task["folder"])}) for task in tree["tasks"]]
    results = evaluate({name: encoder}, wanted)
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


def read(out: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Scores by arm, seed and task/metric, of all cells that are scored."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for file in sorted((out / "scores").glob("*.json")):
        row = json.loads(file.read_text())
        found.setdefault(row["arm"], {})[row["seed"]] = row["scores"]
    return found


def markdown(scores: Mapping[str, Mapping[int, Mapping[str, float]]], metric: str = METRIC) -> str:
    """A table: a line an arm, its mean on each task; below it the paired differences to the baseline."""
    tasks = list(dict.fromkeys(k.split("/")[0] for arm in scores.values() for s in arm.values() for k in s))
    order = sorted(scores, key=lambda arm: arm != BASELINE)
    lines = [f"| arm | seeds | {' | '.join(tasks)} |", "|---|---|" + "---|" * len(tasks)]
    for arm in order:
        means = [_mean([s[f"{task}/{metric}"] for s in scores[arm].values()]) for task in tasks]
        lines.append(f"| {arm} | {len(scores[arm])} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    lines += ["", f"| minus {BASELINE} | pairs | {' | '.join(tasks)} |", "|---|---|" + "---|" * len(tasks)]
    for arm in order:
        pairs = sorted(scores[arm].keys() & scores.get(BASELINE, {}).keys())
        if arm == BASELINE or not pairs:
            continue
        cells = []
        for task in tasks:
            key = f"{task}/{metric}"
            cells.append(_interval([scores[arm][seed][key] - scores[BASELINE][seed][key] for seed in pairs]))
        lines.append(f"| {arm} | {len(pairs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(differences: list[float]) -> str:
    from scipy.stats import t

    mean = _mean(differences)
    if len(differences) < 2:
        return f"{mean:+.3f}"
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (len(differences) - 1))
    half = float(t.ppf(0.975, len(differences) - 1)) * deviation / math.sqrt(len(differences))
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


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
