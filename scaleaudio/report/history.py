"""What a run has told so far, as columns: read line by line, since weeks of training write a million lines."""

from __future__ import annotations

import json
import math
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import yaml

from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.report.pieces import METRICS, piece_urls, read_lines
from scaleaudio.report.runlog import read_events, read_rejects

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
EVALUATION = "evaluation"  # a folder in the run folder


class Series(NamedTuple):
    """One scalar over the steps, each step once and in order; values may be NaN or infinite."""

    step_N: np.ndarray[Any, Any]
    value_N: np.ndarray[Any, Any]


class Bins(NamedTuple):
    """A series as it is drawn: by consecutive bins of steps.

    Attributes:
        x_N: mean step of a bin.
        mean_N: of the finite values; NaN where there is none.
        low_N: the least finite value.
        high_N: the greatest.
        num_bad: how many values were not finite, over all bins.
        bad_x_N: mean steps of the bins that they are in.
    """

    x_N: np.ndarray[Any, Any]
    mean_N: np.ndarray[Any, Any]
    low_N: np.ndarray[Any, Any]
    high_N: np.ndarray[Any, Any]
    num_bad: int = 0
    bad_x_N: np.ndarray[Any, Any] = np.empty(0)


@dataclass(frozen=True)
class History:
    """A run that may still be going.

    Attributes:
        url: the run folder.
        series: the scalars of metrics.jsonl by name; "time" is in seconds since the epoch.
        events: the records of events.jsonl.
        config: the resolved config as a tree; empty where there is none yet.
        environment: versions and machines.
        num_rejects: clips that were replaced; None where the table cannot be read.
        evaluation: what lies in its folder `evaluation`: "scores" and "sensitivity" as `report.scores` wrote them.
        read_at: when all this was read, in seconds since the epoch.
    """

    url: str
    series: dict[str, Series]
    events: list[dict[str, Any]]
    config: dict[str, Any]
    environment: dict[str, Any]
    num_rejects: int | None
    evaluation: dict[str, Any]
    read_at: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        """The last part of its address."""
        path = storage.absolute(self.url).partition("?")[0].rstrip("/")
        return path.rpartition("/")[2] or "run"


def read_history(
    run_url: str, evaluation_url: str | None = None, on_line: Callable[[int], None] = lambda done: None
) -> History:
    """What the run folder holds now; parts that are not there yet are empty.

    Args:
        run_url: a path or URL.
        evaluation_url: the folder that `scaleaudio evaluate --out` wrote; the run's own `evaluation` by default.
        on_line: is told now and then how many lines of metrics.jsonl have been read.

    Raises:
        InputError: when it is no run folder, or `evaluation_url` holds no evaluation.
    """
    if not any(storage.exists(storage.join(run_url, name)) for name in (CONFIG, METRICS)):
        raise InputError(f"{run_url}: no run here: expected a folder with {CONFIG}, such as runs/NAME")
    evaluation = {
        name: tree
        for name in ("scores", "sensitivity")
        if (tree := _tree(evaluation_url or storage.join(run_url, EVALUATION), f"{name}.json", json.loads))
    }
    if evaluation_url is not None and not evaluation:
        raise InputError(
            f"{evaluation_url}: neither scores.json nor sensitivity.json here. Make them: scaleaudio evaluate"
        )
    try:
        num_rejects: int | None = len(read_rejects(run_url))
    except InputError:
        num_rejects = None
    return History(
        url=run_url,
        series=read_series(run_url, on_line),
        events=read_events(run_url),
        config=_mapping(_tree(run_url, CONFIG, yaml.safe_load)),
        environment=_mapping(_tree(run_url, ENVIRONMENT, json.loads)),
        num_rejects=num_rejects,
        evaluation=evaluation,
    )


def read_series(run_url: str, on_line: Callable[[int], None] = lambda done: None) -> dict[str, Series]:
    """The scalars of metrics.jsonl; of a step that comes twice the later value, and damaged lines are left out."""
    columns: dict[str, tuple[array[int], array[float]]] = {}
    lines = (line for url in piece_urls(run_url) for line in read_lines(url))
    for number, line in enumerate(lines):
        if line.record is not None:
            _take(line.record, columns)
        if number % 10_000 == 0:
            on_line(number)
    return {name: _sorted(np.asarray(steps), np.asarray(values)) for name, (steps, values) in columns.items()}


def _take(record: dict[str, Any], columns: dict[str, tuple[array[int], array[float]]]) -> None:
    if type(step := record.pop("step", None)) is not int or abs(step) >= 2**63:
        return
    for name, value in record.items():
        if type(value) is float or (type(value) is int and abs(value) < 2**63):
            if name not in columns:
                columns[name] = array("q"), array("d")
            steps, values = columns[name]
            steps.append(step)
            values.append(value)


def _sorted(step_N: np.ndarray[Any, Any], value_N: np.ndarray[Any, Any]) -> Series:
    if np.all(step_N[1:] > step_N[:-1]):
        return Series(step_N, value_N)
    order = np.argsort(step_N, kind="stable")
    step_N, value_N = step_N[order], value_N[order]
    last = np.append(step_N[1:] != step_N[:-1], True)
    return Series(step_N[last], value_N[last])


def binned(series: Series, num_bins: int) -> Bins:
    """At most `num_bins` bins of equal width in steps; a short series keeps each of its points."""
    step_N, value_N = series
    if len(step_N) <= num_bins:
        starts = np.arange(len(step_N))
    else:
        width = (int(step_N[-1]) - int(step_N[0]) + 1) / num_bins
        starts = np.unique((step_N - step_N[0]) // width, return_index=True)[1]
    if not len(starts):
        empty = np.empty(0)
        return Bins(empty, empty, empty, empty)
    finite_N = np.isfinite(value_N)
    counts = np.add.reduceat(finite_N.astype(np.int64), starts)
    mean = np.add.reduceat(np.where(finite_N, value_N, 0.0), starts) / np.maximum(counts, 1)
    low = np.minimum.reduceat(np.where(finite_N, value_N, math.inf), starts)
    high = np.maximum.reduceat(np.where(finite_N, value_N, -math.inf), starts)
    sizes = np.diff(np.append(starts, len(step_N)))
    x = np.add.reduceat(step_N.astype(np.float64), starts) / sizes
    none = counts == 0
    mean[none] = low[none] = high[none] = math.nan
    return Bins(x, mean, low, high, int((~finite_N).sum()), x[counts < sizes])


def _tree(url: str, name: str, parse: Callable[[bytes], Any]) -> Any:
    path = storage.join(url, name)
    if not storage.exists(path):
        return None
    try:
        return parse(storage.read_bytes(path))
    except (ValueError, yaml.YAMLError, RecursionError):
        return None


def _mapping(tree: Any) -> dict[str, Any]:
    return dict(tree) if isinstance(tree, Mapping) else {}
