"""Scores as a table for the terminal, Markdown, JSON and a picture: all from the same `Results`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from scaleaudio.scores import METRICS, Results, Score, Sensitivity, TaskFacts

# Distinct for colour-blind readers (Okabe and Ito).
COLOURS = ("#999999", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#E69F00", "#000000")


def score_table(results: Results) -> Table:
    """A table for the terminal: a line per task and probe, a column per model, the best of a line in bold."""
    table = Table(caption=escape("\n".join(notes(results))), caption_justify="left", caption_style="dim")
    table.add_column("task")
    table.add_column("probe")
    for model in results.models:
        table.add_column(escape(model.name), justify="right")
    for name, metric, cells, last in _lines(results):
        best = max((cell.score for cell in cells if cell), default=0.0)
        texts = [
            f"[bold]{cell_text(cell)}[/bold]" if cell and cell.score == best else cell_text(cell) for cell in cells
        ]
        table.add_row(escape(name), METRICS[metric], *texts, end_section=last)
    return table


def score_markdown(results: Results) -> str:
    """The same table in Markdown, with the notes as a list below it."""
    names = [model.name for model in results.models]
    lines = ["| task | probe | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for name, metric, cells, _ in _lines(results):
        lines.append(f"| {name} | {METRICS[metric]} | " + " | ".join(cell_text(cell) for cell in cells) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(results)), ""])


def cell_text(score: Score | None) -> str:
    """For example ".426 (.394-.458)"; "-" where the probe was not run."""
    if score is None:
        return "-"
    value, low, high = (short(number) for number in (score.score, score.low, score.high))
    return f"{value} ({low}-{high})"


def notes(results: Results) -> list[str]:
    """What a reader must know beside the figures: chance, counts, and everything that was left out, a line a task."""
    measures = " or ".join(dict.fromkeys(task.measure for task in results.tasks))
    said = f"{measures}, with the 95 % bootstrap interval over test clips (not over training seeds)."
    lines = [said[0].upper() + said[1:] if said.startswith("accuracy") else said]
    return lines + [f"{task.name}: {'; '.join(_said_of(task))}." for task in results.tasks]


def _said_of(task: TaskFacts) -> Iterator[str]:
    yield f"{task.num_train} train, {task.num_test} test, {task.num_classes} classes"
    chance = "the commonest class alone scores" if task.measure == "accuracy" else "mAP, of which chance gives"
    yield f"{task.protocol}; {chance} {short(task.majority)}"
    if task.num_unlabelled:
        yield f"{task.num_unlabelled} rows without a label"
    if task.num_unused:
        yield f"{task.num_unused} labelled rows in neither part"
    if task.num_unseen:
        yield f"{task.num_unseen} test clips of a class never trained on, counted as errors"
    if task.rejects:
        named = ", ".join(f"{reject.shard}/{reject.key} ({reject.reason})" for reject in task.rejects[:3])
        more = f" and {len(task.rejects) - 3} more, all in the JSON" if len(task.rejects) > 3 else ""
        yield f"{len(task.rejects)} files unusable: {named}{more}"
    yield from task.notes


def write_json(results: Results | Sequence[Sensitivity], path: Path) -> None:
    """Everything in `results`, counts, filters, seed and versions included, as JSON at `path`, replaced in one go."""
    tree = asdict(results) if isinstance(results, Results) else [asdict(result) for result in results]
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def draw_scores(results: Results, path: Path) -> None:
    """A PNG: a panel a probe, a group of bars a task, a bar a model with its interval; the dashes are chance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = results.metrics()
    width = max(6.0, 1.6 + len(results.tasks) * (0.5 + 0.42 * len(results.models)))
    figure = Figure(figsize=(min(width, 18.0), 1.3 + 2.5 * len(metrics)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_bars(axes, results, metric)
        _draw_chance(axes, results, metric)
        _dress(axes, results, metric)
    drawn = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    names = [*(model.name for model in results.models), "commonest class"]
    figure.legend([drawn[name] for name in names], names, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel("whiskers: 95 % interval over test clips", fontsize=8, color="#555555")
    figure.savefig(path, dpi=150, format="png")


def _draw_bars(axes: Any, results: Results, metric: str) -> None:
    bar = min(0.8 / len(results.models), 0.3)
    for number, model in enumerate(results.models):
        offset = (number - (len(results.models) - 1) / 2) * bar
        found = ((place, results.find(model.name, task.name, metric)) for place, task in enumerate(results.tasks))
        drawn = [(place + offset, score) for place, score in found if score]
        places, heights = [place for place, _ in drawn], [score.score for _, score in drawn]
        spans = [[score.score - score.low for _, score in drawn], [score.high - score.score for _, score in drawn]]
        axes.bar(places, heights, bar * 0.92, color=COLOURS[number % len(COLOURS)], label=model.name)
        axes.errorbar(places, heights, spans, fmt="none", ecolor="#333333", elinewidth=1.2, capsize=2.5)
        for place, score in drawn:
            above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(short(score.score), (place, score.high), **above)


def _draw_chance(axes: Any, results: Results, metric: str) -> None:
    for place, task in enumerate(results.tasks):
        dashes = {"color": "black", "linestyle": (0, (4, 3)), "linewidth": 1}
        label = "commonest class" if place == 0 else None
        axes.hlines(task.majority, place - 0.45, place + 0.45, label=label, **dashes)
        if all(results.find(model.name, task.name, metric) is None for model in results.models):
            axes.text(place, task.majority + 0.04, "not run", ha="center", color="#777777", fontsize=8)


def _dress(axes: Any, results: Results, metric: str) -> None:
    names = [task.name for task in results.tasks]
    long = max(map(len, names)) > 6 * (1 + len(results.models))
    axes.set_title(METRICS[metric], loc="left", fontsize=10)
    axes.set_ylabel(" or ".join(dict.fromkeys(task.measure for task in results.tasks)))
    axes.set_ylim(0, 1.12)
    axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
    axes.set_xticks(range(len(names)), names, rotation=20 if long else 0, ha="right" if long else "center")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5")
    axes.set_axisbelow(True)


def _lines(results: Results) -> Iterator[tuple[str, str, list[Score | None], bool]]:
    """(task name or "" after its first line, metric, a score a model, whether the task ends here)."""
    metrics = results.metrics()
    for task in results.tasks:
        for place, metric in enumerate(metrics):
            cells = [results.find(model.name, task.name, metric) for model in results.models]
            yield task.name if place == 0 else "", metric, cells, place == len(metrics) - 1


def short(number: float) -> str:
    """Three decimals, without the zero before them."""
    return f"{number:.3f}".removeprefix("0")
