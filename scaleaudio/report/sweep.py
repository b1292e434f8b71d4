"""A sweep as a table for the terminal, Markdown, Parquet and a picture: all from the same records of its trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from scaleaudio.report.trials import TrialRecord, baseline, gain, ranking, verdict

STRENGTHS = ("negatives.frequency_strength", "negatives.time_strength")
_ORDER = {"baseline": 0, "finished": 1, "stopped": 2, "running": 3, "waiting": 4, "failed": 5}


def sweep_table(trials: Sequence[TrialRecord]) -> Table:
    """A table for the terminal: the baseline, then the trials, the best first; what the sweep says below it."""
    keys = varied_keys(trials)
    caption = escape("\n".join([*failures(trials), verdict(trials)]))
    table = Table(caption=caption, caption_justify="left", caption_style="dim")
    for head in ("trial", "state", "score", "step", *(key.rpartition(".")[2] for key in keys)):
        table.add_column(head, justify="left" if head == "state" else "right")
    best = ranking(trials)
    for trial in in_order(trials):
        style = "bold" if best and trial.number == best[0].number else None
        table.add_row(*map(escape, _cells(trial, keys)), style=style, end_section=trial.kind == "baseline")
    return table


def sweep_markdown(trials: Sequence[TrialRecord]) -> str:
    """The same in Markdown, with the repeats over seeds as a table of their own."""
    keys = varied_keys(trials)
    heads = ["trial", "state", "score", "step", *keys]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(_cells(trial, keys))} |" for trial in in_order(trials)]
    found, best = gain(trials), ranking(trials)
    if found is not None:
        scores = {(trial.repeat_of, trial.seed): trial.score or 0.0 for trial in trials if trial.kind == "repeat"}
        lines += ["", f"| seed | baseline | trial {best[0].number} | gain |", "|---|---|---|---|"]
        for seed, difference in found.by_seed.items():
            pair = (scores[0, seed], scores[best[0].number, seed])
            lines.append(f"| {seed} | {_short(pair[0])} | {_short(pair[1])} | {difference:+.3f} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in [*failures(trials), verdict(trials)]), ""])


def failures(trials: Sequence[TrialRecord]) -> list[str]:
    """A line for each trial that failed."""
    return [f"Trial {trial.number} failed: {trial.failure}" for trial in trials if trial.state == "failed"]


def varied_keys(trials: Sequence[TrialRecord]) -> list[str]:
    """The keys that any trial changes, the strengths first."""
    keys = dict.fromkeys(key for trial in trials for key in trial.changes)
    return [*(key for key in STRENGTHS if key in keys), *(key for key in keys if key not in STRENGTHS)]


def in_order(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials but for repeats: the baseline, then the whole ones, the best first, then the rest by score."""
    shown = [trial for trial in trials if trial.kind != "repeat"]
    return sorted(
        shown,
        key=lambda trial: (
            _ORDER["baseline" if trial.kind == "baseline" else trial.state],
            -(trial.score or 0.0),
            trial.number,
        ),
    )


def _cells(trial: TrialRecord, keys: Sequence[str]) -> list[str]:
    name = "baseline" if trial.kind == "baseline" else str(trial.number)
    score = "-" if trial.score is None else _short(trial.score)
    values = [_value(trial.changes[key]) if key in trial.changes else "" for key in keys]
    return [name, trial.state, score, str(trial.step), *values]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_trial_table(trials: Sequence[TrialRecord], path: Path) -> None:
    """A Parquet table, a row a trial, repeats too; a column for each key, as text where it holds other than numbers."""
    keys = varied_keys(trials)
    plain = ("number", "kind", "state", "seed", "score", "step", "steps", "repeat_of", "seconds", "run", "failure")
    columns: dict[str, Any] = {name: [getattr(trial, name) for trial in trials] for name in plain}
    for key in keys:
        values = [trial.changes.get(key) for trial in trials]
        numbers = all(value is None or (isinstance(value, int | float) and value is not True) for value in values)
        columns[key] = [None if v is None else (float(v) if numbers else str(v)) for v in values]
    types = {"score": pa.float64(), "failure": pa.string(), "repeat_of": pa.int64()}
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path)


def draw_sweep(trials: Sequence[TrialRecord], path: Path, dead_zones: Mapping[str, float] | None = None) -> None:
    """A PNG: the score over both strengths as a map, and against each alone, with the baseline marked in all.

    Args:
        trials: as they are; those that were stopped are hollow and show their newest score.
        path: where it goes.
        dead_zones: up to where a key's values are refused.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = [trial for trial in trials if trial.kind == "search" and trial.scores]
    keys = [key for key in varied_keys(trials) if all(_is_number(trial.changes.get(key)) for trial in scored)][:2]
    panels = len(keys) + (len(keys) == 2)
    figure = Figure(figsize=(1.0 + 4.2 * max(panels, 1), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, max(panels, 1), squeeze=False)[0])
    for panel, key in zip(axes[-len(keys) or len(axes) :], keys, strict=False):
        _draw_line(panel, key, trials, scored, (dead_zones or {}).get(key, 0.0))
    if len(keys) == 2:
        _draw_map(figure, axes[0], keys, trials, scored, dead_zones or {})
    handles, labels = axes[-1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(verdict(trials), fontsize=10)
    figure.savefig(path, dpi=140, format="png")


def _draw_map(
    figure: Any, axes: Any, keys: Sequence[str], trials: Sequence[TrialRecord], scored: Sequence[TrialRecord],
    dead_zones: Mapping[str, float],
) -> None:  # fmt: skip
    base, best = baseline(trials), ranking(trials)
    shown = [trial for trial in [base, *scored] if trial is not None]
    spread = _spread([tuple(trial.changes.get(key, 0.0) for key in keys) for trial in shown])
    colours = [trial.score or 0.0 for trial in shown]
    sizes = [320 if trial.kind == "baseline" else 90 if trial.state == "finished" else 35 for trial in shown]
    limits = {"vmin": min(colours, default=0.0), "vmax": max(colours, default=1.0), "cmap": "viridis"}
    for kind, marker in (("search", "o"), ("baseline", "*")):
        chosen = [place for place, trial in enumerate(shown) if trial.kind == kind]
        if chosen:
            drawn = axes.scatter(
                [spread[place][0] for place in chosen], [spread[place][1] for place in chosen],
                c=[colours[place] for place in chosen], s=[sizes[place] for place in chosen], marker=marker,
                edgecolors="#D55E00" if kind == "baseline" else "white", linewidths=1.6 if kind == "baseline" else 0.6,
                zorder=3, **limits,
            )  # fmt: skip
            last = drawn
    if shown:
        figure.colorbar(last, ax=axes, label="score", shrink=0.85)
    if best:
        place = next(place for place, trial in enumerate(shown) if trial.number == best[0].number)
        axes.scatter(*spread[place], s=230, facecolors="none", edgecolors="black", linewidths=1.6, zorder=4)
    for key, span in zip(keys, (axes.axvspan, axes.axhspan), strict=True):
        if dead_zones.get(key):
            span(1e-9, dead_zones[key], color="#EEEEEE", zorder=0)
    axes.set_xlabel(_words(keys[0]))
    axes.set_ylabel(_words(keys[1]))
    axes.set_title("score over both (star: baseline, ring: winner, small: stopped early)", loc="left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(
    axes: Any, key: str, trials: Sequence[TrialRecord], scored: Sequence[TrialRecord], dead_zone: float
) -> None:
    base, best = baseline(trials), ranking(trials)
    if base is not None:
        seeds = [trial.score for trial in trials if trial.kind == "repeat" and trial.repeat_of == 0 and trial.scores]
        reach = [score for score in [base.score, *seeds] if score is not None]
        if seeds:
            axes.axhspan(min(reach), max(reach), color="#D55E00", alpha=0.15, label="baseline over seeds")
        axes.axhline(base.score, color="#D55E00", linestyle="--", linewidth=1.4, label="baseline (strength 0)")
    for state, colour, label in (("finished", "#0072B2", "whole trial"), ("stopped", "none", "stopped early")):
        some = [trial for trial in scored if (trial.state == "finished") == (state == "finished")]
        if some:
            places = [trial.changes.get(key, 0.0) for trial in some]
            axes.scatter(
                places, [trial.score for trial in some], s=34, color=colour if colour != "none" else None,
                facecolors=colour, edgecolors="#0072B2", label=label, zorder=3,
            )  # fmt: skip
    if best:
        at = best[0].changes.get(key, 0.0)
        axes.scatter(at, best[0].score, s=170, facecolors="none", edgecolors="black", label="winner", zorder=4)
        repeats = [t.score for t in trials if t.kind == "repeat" and t.repeat_of == best[0].number and t.scores]
        if repeats:
            axes.scatter([at] * len(repeats), repeats, marker="x", color="black", s=28, label="winner, other seeds")
    if dead_zone:
        axes.axvspan(1e-9, dead_zone, color="#EEEEEE", zorder=0, label="dead zone")
    axes.set_xlabel(_words(key))
    axes.set_ylabel("score")
    axes.grid(axis="y", color="#E5E5E5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _spread(points: Sequence[tuple[float, ...]]) -> list[tuple[float, float]]:
    """The points, those that coincide moved apart on a small circle."""
    reach = [max((abs(point[axis]) for point in points), default=1.0) or 1.0 for axis in (0, 1)]
    seen: dict[tuple[float, ...], int] = {}
    placed = []
    for point in points:
        number = seen[point] = seen.get(point, -1) + 1
        turn, radius = 2.4 * number, 0.022 * number**0.5  # the golden angle, nearly
        x = point[0] + 2 * reach[0] * radius * math.cos(turn)
        placed.append((x, point[1] + 2 * reach[1] * radius * math.sin(turn)))
    return placed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _short(number: float) -> str:
    return f"{number:.3f}".removeprefix("0")
