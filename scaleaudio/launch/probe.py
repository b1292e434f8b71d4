"""A score on labelled clips while training goes on: a loss depends on the strength, so it cannot choose one.

Rank 0 embeds the clips and scores them; the others wait for it at their next collective. So labelled folders are small:
what a probe costs, it costs on every worker.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaleaudio import bundle
from scaleaudio.config import ProbeConfig
from scaleaudio.data import storage
from scaleaudio.errors import InputError


def check_tasks(config: ProbeConfig) -> None:
    """Raises InputError for a labelled folder that cannot be probed from here."""
    if not config.tasks:
        return
    from scaleaudio.evaluate.split import plan_task  # scikit-learn: seconds that only a probe is worth
    from scaleaudio.evaluate.tasks import parse_tasks, read_labels

    for task in parse_tasks([_here(word, "labels.csv") for word in config.tasks]):
        plan_task(task, read_labels(task.table_path))


def _here(word: str, suffix: str = "") -> str:
    """The same task with its folder on this machine; of one behind a URL the files that end in `suffix` are copied."""
    if storage.is_local(word):
        return word
    address, _, columns = word.rpartition(":")
    has_columns = not columns.startswith("//") and "/" not in columns
    folder = _copied(address if has_columns else word, suffix)
    return f"{folder}:{columns}" if has_columns else folder


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """Gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="scaleaudio-probe-")


@cache
def _copied(url: str, suffix: str) -> str:
    urls = storage.list_files(url, suffix)
    if not urls:
        raise InputError(f"probe.tasks {url}: no labels.csv there")
    top = storage.join(url, "").rstrip("/")
    target = Path(tempfile.mkdtemp(dir=_kept().name), top.partition("?")[0].rpartition("/")[2])

    def copy(source: str) -> None:
        path = target / source.partition("?")[0].removeprefix(top.partition("?")[0]).strip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.read_bytes(source))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(copy, urls))
    return str(target)


def is_due(config: ProbeConfig, step: int, *, saving: bool, last: bool) -> bool:
    """Whether the probe is taken after `step` steps."""
    if not config.tasks:
        return False
    return last or (saving if config.every_steps is None else step % config.every_steps == 0)


def probe(
    config: ProbeConfig, tree: Mapping[str, Any], tensors: Mapping[str, Tensor], step: int, device: torch.device
) -> dict[str, float]:
    """The score of each task by "probe/TASK", and their mean by "probe/score".

    Args:
        config: the tasks and the metric.
        tree: the run's resolved config.
        tensors: the engine's tensors.
        step: how many steps the encoder has had.
        device: where the clips are embedded.

    Raises:
        InputError: when a task cannot be scored by this metric.
    """
    from scaleaudio.evaluate import evaluate, parse_tasks

    encoder = bundle.from_tensors(tree, tensors, step).to(device)
    tasks = parse_tasks([_here(word) for word in config.tasks])
    results = evaluate({"run": encoder}, tasks, linear=config.metric != "knn")
    scores: dict[str, float] = {}
    for task in tasks:
        found = results.find("run", task.title, config.metric)
        if found is None:
            raise InputError(
                f"probe.metric {config.metric}: {task.title} has a class with fewer than two training clips. Set "
                "probe.metric to knn or linear_c0.05."
            )
        scores[f"probe/{task.title}"] = found.score
    return scores | {"probe/score": sum(scores.values()) / len(scores)}
