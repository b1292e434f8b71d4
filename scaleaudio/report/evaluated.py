"""What an evaluation found of a run, for its page: sensitivity curves and scores, read from their JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from scaleaudio.report.charts import Chart, Line
from scaleaudio.report.history import Bins
from scaleaudio.scores import METRICS

_COLOURS = {
    "shift, floor": ("c0", ""),
    "shift, wrap": ("c5", "dash"),
    "flip": ("c1", ""),
    "reversal": ("c1", ""),
    "permutation": ("c3", ""),
    "smooth field": ("c4", ""),
}  # the hues of report.sensitivity
_NOTE = (
    "Mean cosine similarity of clips to their displaced selves against displacement (root mean square / axis length)."
)


def sensitivity_charts(evaluation: Mapping[str, Any]) -> Iterator[tuple[Chart, tuple[float, float]]]:
    """A chart a model, stage and axis with its range of strengths; nothing where the JSON is of another form."""
    results = evaluation.get("sensitivity")
    for result in results if isinstance(results, Sequence) else ():
        try:
            yield from _charts(result)
        except (KeyError, TypeError, ValueError):
            continue


def _charts(result: Mapping[str, Any]) -> Iterator[tuple[Chart, tuple[float, float]]]:
    for stage in result["stages"]:
        for axis in ("frequency", "time"):
            curves = [curve for curve in stage["curves"] if curve["axis"] == axis]
            if not curves:
                continue
            lines = [_line(c["motion"], _bins(c)) for c in curves]
            end = max(float(line.bins.x_N[-1]) for line in lines)
            levels = (("two views", "c2", stage["positive"]), ("other clips", "c6", stage["others"]))
            lines += [Line(label, colour, _level(level, end), "dots") for label, colour, level in levels]
            title = f"{result['model']}, {stage['stage']}: moved in {axis}"
            yield Chart(title, tuple(lines), _NOTE, include=(1.0,)), (0.0, end)


def _line(motion: str, bins: Bins) -> Line:
    colour, dash = _COLOURS.get(motion, ("c7", ""))
    return Line(motion, colour, bins, dash)


def _bins(curve: Mapping[str, Any]) -> Bins:
    points = sorted(curve["points"], key=lambda point: float(point["strength"]))
    strength_N = np.array([float(point["strength"]) for point in points])
    mean_N, low_N, high_N = (np.array([float(p["similarity"][of]) for p in points]) for of in ("mean", "low", "high"))
    return Bins(strength_N, mean_N, low_N, high_N)


def _level(level: Mapping[str, Any], end: float) -> Bins:
    low, mean, high = (np.full(2, float(level[name])) for name in ("low", "mean", "high"))
    return Bins(np.array([0.0, end]), mean, low, high)


def score_rows(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Model, task, probe and score with its interval; nothing where the JSON is of another form."""
    tree = evaluation.get("scores")
    scores = tree.get("scores") if isinstance(tree, Mapping) else None
    for score in scores if isinstance(scores, Sequence) else ():
        try:
            values = [float(score[name]) for name in ("score", "low", "high")]
            names = str(score["model"]), str(score["task"]), METRICS.get(score["metric"], str(score["metric"]))
        except (KeyError, TypeError, ValueError):
            continue
        yield *names, "{:.3f} ({:.3f}-{:.3f})".format(*values)
