"""The page of an evaluation: one HTML file that needs nothing beside it, in the dress of a run's page.

Scores and differences are drawn as dots with their intervals on a common scale, confusions as tables, and maps as
points; every word that comes from a task or a model is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from scaleaudio import __version__
from scaleaudio.findings import ClipMap, Comparison, Confusion
from scaleaudio.report.charts import Chart, Line, draw
from scaleaudio.report.curves import COLOURS
from scaleaudio.report.evaluated import sensitivity_charts
from scaleaudio.report.findings import sections, signed
from scaleaudio.report.history import Bins
from scaleaudio.report.page import template, text
from scaleaudio.report.scores import cell_text, notes, short
from scaleaudio.scores import METRICS, Results, Sensitivity, TaskFacts

_BEST_FIRST = ("linear", "linear_c0.05", "knn")
_MOST_CLASSES_WRITTEN = 30  # beyond it, the pairs that are confused most stand in place of the table


def evaluation_page(results: Results, curves: Sequence[Sensitivity] = ()) -> str:
    """The page as HTML."""
    script = text("page.js")
    hues = {model.name: COLOURS[place % len(COLOURS)] for place, model in enumerate(results.models)}
    others = {"sensitivity": [asdict(curve) for curve in curves]}
    page: str = template("evaluation.html").render(
        title=", ".join(model.name for model in results.models),
        models=[(model, hues[model.name]) for model in results.models],
        tasks=[_task(results, task, hues) for task in results.tasks],
        comparisons=list(_differences(results)),
        few_shot=list(_few_shot(results, hues)),
        stages=list(_stages(results, hues)),
        confusions=[_confusion(confusion) for confusion in results.confusions],
        maps=[_map(laid) for laid in results.maps],
        sensitivity=[draw(chart, x_range) for chart, x_range in sensitivity_charts(others)],
        tables={section.title: section for section in sections(results)},
        notes=notes(results),
        versions=", ".join(f"{name} {number}" for name, number in results.versions.items()),
        seed=results.seed,
        min_seconds=results.min_seconds,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=text("page.css") + text("evaluation.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page


def _task(results: Results, task: TaskFacts, hues: dict[str, str]) -> dict[str, Any]:
    """The dots of one task: a group a probe, a dot a model; places are percent of the scale from 0 to 1."""
    groups = []
    for metric in results.metrics():
        found = [(model.name, results.find(model.name, task.name, metric)) for model in results.models]
        scores = [score for _, score in found if score]
        best = max((score.score for score in scores), default=0.0)
        dots = [
            {
                "name": name,
                "colour": hues[name],
                "at": 100 * score.score,
                "low": 100 * score.low,
                "wide": 100 * (score.high - score.low),
                "text": cell_text(score),
                "best": score.score == best and len(scores) > 1,
                "title": f"{score.setting}; {score.num_train} train, {score.num_test} test clips",
            }
            for name, score in found
            if score
        ]
        if dots:
            groups.append((METRICS[metric], dots))
    return {"facts": task, "chance": 100 * task.majority, "chance_text": short(task.majority), "groups": groups}


def _differences(results: Results) -> Iterator[dict[str, Any]]:
    """The differences of each task by its best probe on one scale, 0 in the middle; the table has all probes."""
    reach = max((abs(end) for found in results.comparisons for end in (found.low, found.high)), default=0.0) or 1.0
    for task in dict.fromkeys(found.task for found in results.comparisons):
        of_task = [found for found in results.comparisons if found.task == task]
        metric = next(m for m in _BEST_FIRST if any(found.metric == m for found in of_task))
        dots = [_difference(found, reach) for found in of_task if found.metric == metric]
        yield {"task": task, "probe": METRICS[metric], "dots": dots, "reach": f"{reach:.2f}"}


def _difference(found: Comparison, reach: float) -> dict[str, Any]:
    def at(value: float) -> float:
        return 50 + 50 * value / reach

    alone = "" if found.only_model is None else f"; {found.only_model} against {found.only_other} clips right alone"
    return {
        "name": f"{found.model} - {found.other}",
        "at": at(found.difference),
        "low": at(found.low),
        "wide": at(found.high) - at(found.low),
        "kind": "up" if found.low > 0 else "down" if found.high < 0 else "open",
        "text": f"{signed(found.difference)} ({signed(found.low)} to {signed(found.high)})",
        "p": "p < .001" if found.p < 0.001 else f"p = {short(found.p)}",
        "title": f"{found.test}{alone}",
    }


def _few_shot(results: Results, hues: dict[str, str]) -> Iterator[dict[str, Any]]:
    for task in results.tasks:
        points = [point for point in results.few_shot if point.task == task.name]
        for metric in dict.fromkeys(point.metric for point in points):
            lines, shots = [], sorted({point.shots for point in points})
            for model in dict.fromkeys(point.model for point in points):
                own = sorted((p for p in points if (p.model, p.metric) == (model, metric)), key=lambda p: p.shots)
                lines.append(_line(model, hues[model], [float(p.shots) for p in own], own))
            note = f"{task.measure} against clips a class"
            chart = Chart(f"{task.name}, {METRICS[metric]}", tuple(lines), note, include=_ends(lines))
            end = float(shots[-1] + 1)
            yield draw(chart, (0.0, end)) | {"x_ticks": [(100 * num / end, str(num)) for num in shots]}


def _stages(results: Results, hues: dict[str, str]) -> Iterator[dict[str, Any]]:
    for task, metric in dict.fromkeys((stage.task, stage.metric) for stage in results.stages):
        found = [stage for stage in results.stages if (stage.task, stage.metric) == (task, metric)]
        lines = []
        for model in dict.fromkeys(stage.model for stage in found):
            own = sorted((stage for stage in found if stage.model == model), key=lambda stage: stage.place)
            lines.append(_line(model, hues[model], [float(stage.place + 1) for stage in own], own))
        last = max(stage.place for stage in found) + 1
        note = "score against the stage, the embedding last; their names are in the table"
        chart = Chart(f"{task}, {METRICS[metric]}", tuple(lines), note, include=_ends(lines))
        yield draw(chart, (0.5, last + 0.5))


def _line(label: str, colour: str, x: list[float], points: Sequence[Any]) -> Line:
    mean_N, low_N, high_N = (np.array([getattr(p, name) for p in points]) for name in ("score", "low", "high"))
    return Line(label, colour, Bins(np.array(x), mean_N, low_N, high_N))


def _ends(lines: Sequence[Line]) -> tuple[float, float]:
    """The ends of all bands, so that the scale holds them."""
    return min(float(line.bins.low_N.min()) for line in lines), max(float(line.bins.high_N.max()) for line in lines)


def _confusion(confusion: Confusion) -> dict[str, Any]:
    count_CC = np.array(confusion.counts)
    totals_C = count_CC.sum(axis=1)
    share_CC = count_CC / np.maximum(totals_C, 1)[:, None]
    wrong_CC = count_CC - np.diag(np.diag(count_CC))
    written = len(confusion.classes) <= _MOST_CLASSES_WRITTEN
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[: 3 if written else 10]
    worst = [divmod(int(place), len(count_CC)) for place in order]
    names = confusion.classes
    return {
        "title": f"{confusion.model}: {confusion.task}, {METRICS[confusion.metric]}",
        "classes": confusion.classes,
        "written": written,
        "rows": [
            (name, int(total), [(int(count), round(100 * float(share))) for count, share in zip(*cells, strict=True)])
            for name, total, *cells in zip(confusion.classes, totals_C, count_CC, share_CC, strict=True)
        ],
        "worst": [
            f"{names[row]} taken for {names[column]} ({wrong_CC[row, column]} of {totals_C[row]})"
            for row, column in worst
            if wrong_CC[row, column]
        ],
    }


def _map(laid: ClipMap) -> dict[str, Any]:
    """The points in a square of 1000, and a hue and a shape for each class: filled, then rings, then again."""
    xy_N2 = np.array(laid.xy_N2)
    low_2, high_2 = xy_N2.min(axis=0), xy_N2.max(axis=0)
    at_N2 = 25 + 950 * (xy_N2 - low_2) / np.maximum(high_2 - low_2, 1e-9)
    looks = [
        (COLOURS[place % len(COLOURS)], "ring" if place // len(COLOURS) % 2 else "")
        for place in range(len(laid.classes))
    ]
    return {
        "title": f"{laid.model}: {laid.task}",
        "note": f"{laid.method}; {len(xy_N2)} test clips. Near points have near embeddings; the axes mean nothing."
        + (" Looks repeat." if len(laid.classes) > 2 * len(COLOURS) else ""),
        "points": [
            (round(x, 1), round(1000 - y, 1), *looks[label], laid.classes[label])
            for (x, y), label in zip(at_N2.tolist(), laid.label_N, strict=True)
        ],
        "legend": [(name, *look) for name, look in zip(laid.classes, looks, strict=True)],
    }
