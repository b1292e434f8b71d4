"""Position-sensitivity curves as a table, Markdown and a picture; the JSON is `report.scores.write_json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from scaleaudio.scores import Curve, Displaced, Sensitivity, Similarity, StageCurves

AT = (0.05, 0.15, 0.3, 0.5)  # strengths that have a column
HEADINGS = ("1 place", "1 stride", "2 strides", "at .05", "at .15", "at .30", "at .50", "back .15", "blind .15")
# One hue a motion, distinct for colour-blind readers (Okabe and Ito); a rearrangement of either axis has the same.
STYLES: dict[str, dict[str, Any]] = {
    "shift, floor": {"color": "#0072B2"},
    "shift, wrap": {"color": "#56B4E9", "linestyle": (0, (5, 2))},
    "flip": {"color": "#D55E00"},
    "reversal": {"color": "#D55E00"},
    "permutation": {"color": "#CC79A7"},
    "smooth field": {"color": "#E69F00"},
}
POSITIVE, OTHERS = "#009E73", "#777777"


def sensitivity_table(results: Sequence[Sensitivity]) -> Table:
    """A table for the terminal: a line a curve."""
    table = Table(caption=escape("\n".join(notes(results))), caption_justify="left", caption_style="dim")
    table.add_column("moved by")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for title, lines in _sections(results):
        table.add_row(f"[bold]{escape(title)}[/bold]")
        for name, cells in lines:
            table.add_row(f"  {name}", *cells)
        table.add_section()
    return table


def sensitivity_markdown(results: Sequence[Sensitivity]) -> str:
    """The same table in Markdown, with the notes as a list below it."""
    blocks = ["| | moved by | " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * len(HEADINGS)]
    for title, lines in _sections(results):
        blocks += [
            f"| {title if cells is lines[0][1] else ''} | {name} | {' | '.join(cells)} |" for name, cells in lines
        ]
    return "\n".join([*blocks, "", *(f"- {note}" for note in notes(results)), ""])


def notes(results: Sequence[Sensitivity]) -> list[str]:
    """What a reader must know beside the figures, and the levels that they are read against."""
    lines = [
        "Mean cosine similarity of clips to their displaced selves. at: by strength, the root mean square displacement "
        "/ axis length. back: displaced and moved back. blind: 1 is the clip itself, 0 as unlike as another clip. The "
        f"95 % bootstrap intervals over clips (not over training seeds) are at most ±{_short(_widest(results))}."
    ]
    for result in results:
        stride = f"; total stride {result.stride}" if result.stride else ""
        left_out = f"; {result.num_still} silent" if result.num_still else ""
        left_out += f"; {len(result.rejects)} files unusable" if result.rejects else ""
        levels = (
            f"{stage.stage}: two views {_short(stage.positive.mean)}, other clips {_short(stage.others.mean)}"
            for stage in result.stages
        )
        lines.append(
            f"{result.model}: {result.num_clips} crops of {result.clip_seconds:g} s of {result.corpus}, "
            f"{result.num_mels} mel bins x {result.num_frames} frames{stride}{left_out}. {'; '.join(levels)}."
        )
    return lines


def _widest(results: Sequence[Sensitivity]) -> float:
    stages = [stage for result in results for stage in result.stages]
    points = [point.similarity for stage in stages for curve in stage.curves for point in curve.points]
    return max((value.high - value.low) / 2 for value in points)


def _sections(results: Sequence[Sensitivity]) -> Iterator[tuple[str, list[tuple[str, tuple[str, ...]]]]]:
    """For each model and stage its title and its lines: the name of a curve and its cells."""
    for result in results:
        for stage in result.stages:
            lines = [(f"{curve.axis} {curve.motion}", tuple(_cells(result, stage, curve))) for curve in stage.curves]
            yield f"{result.model}, {stage.stage}", lines


def _cells(result: Sensitivity, stage: StageCurves, curve: Curve) -> Iterator[str]:
    by_places = {point.places: point.similarity for point in curve.points if point.places}
    stride = result.stride or -1  # of a shift that was not measured
    for places in (1, stride, 2 * stride):
        yield _cell(by_places.get(places))
    for strength in AT:
        yield _cell(_at(curve, strength))
    yield _cell(_at(curve, 0.15, returned=True))
    there = _at(curve, 0.15)
    yield "-" if there is None else _short(stage.blindness(there))


def _at(curve: Curve, strength: float, *, returned: bool = False) -> Similarity | None:
    """The curve's value at a strength, on the line between its points; None beyond its end."""
    all_points = [(point.strength, point.returned if returned else point.similarity) for point in curve.points]
    points = [(reached, value) for reached, value in all_points if value is not None]
    if strength > points[-1][0] + 0.005:
        return None
    xs = [reached for reached, _ in points]
    mean, low, high = (
        float(np.interp(strength, xs, [getattr(value, name) for _, value in points]))
        for name in ("mean", "low", "high")
    )
    return Similarity(mean, low, high)


def _cell(value: Similarity | None) -> str:
    return "-" if value is None else _short(value.mean)


def _short(number: float) -> str:
    return f"{number:.3f}".replace("0.", ".", 1) if abs(number) < 0.9995 else f"{number:.3f}"


def draw_sensitivity(results: Sequence[Sensitivity], path: Path) -> None:
    """A PNG: a row a model and stage, a column an axis; a line a motion with its band, and the levels beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(result, stage) for result in results for stage in result.stages]
    figure = Figure(figsize=(11.0, 1.5 + 3.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 2, sharey="row", squeeze=False)
    for pair, (result, stage) in zip(panels, rows, strict=True):
        for axes, axis in zip(pair, ("frequency", "time"), strict=True):
            curves = [curve for curve in stage.curves if curve.axis == axis]
            for curve in curves:
                _draw_curve(axes, curve, result.stride)
            _draw_level(axes, stage.positive, POSITIVE, "two views")
            _draw_level(axes, stage.others, OTHERS, "other clips")
            _dress(axes, result, axis, curves)
            axes.set_title(f"{result.model}, {stage.stage}: moved in {axis}", loc="left", fontsize=10, weight="bold")
        pair[0].set_ylabel("similarity to the clip")
    handles = {
        label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, format="png")


def _draw_curve(axes: Any, curve: Curve, stride: int | None) -> None:
    style = STYLES[curve.motion]
    label = "flip or reversal" if curve.motion in ("flip", "reversal") else curve.motion
    strengths = [point.strength for point in curve.points]
    axes.plot(strengths, [p.similarity.mean for p in curve.points], label=label, linewidth=1.8, zorder=3, **style)
    lows, highs = [p.similarity.low for p in curve.points], [p.similarity.high for p in curve.points]
    axes.fill_between(strengths, lows, highs, color=style["color"], alpha=0.16, linewidth=0)
    ringed = [p for p in curve.points if p.places and stride and p.places % stride == 0]
    if ringed:
        ring = {"linestyle": "none", "marker": "o", "markersize": 5.5, "markerfacecolor": "white", "zorder": 4}
        xs, ys = [p.strength for p in ringed], [p.similarity.mean for p in ringed]
        axes.plot(xs, ys, markeredgecolor=style["color"], markeredgewidth=1.5, **ring)
        axes.plot([], [], markeredgecolor="#333333", label="shift by a multiple of the total stride", **ring)
    returns = [(point.strength, point.returned.mean) for point in curve.points if point.returned]
    if any(mean < 1 for _, mean in returns):
        dots = {"color": style["color"], "linestyle": (0, (1, 1.5)), "linewidth": 1.6}
        axes.plot([at for at, _ in returns], [mean for _, mean in returns], zorder=2, **dots)
        axes.plot([], [], label="control: there and back", **dots | {"color": "#333333"})


def _draw_level(axes: Any, level: Similarity, colour: str, label: str) -> None:
    axes.axhspan(level.low, level.high, color=colour, alpha=0.18, linewidth=0, zorder=1)
    axes.axhline(level.mean, color=colour, linewidth=1.2, label=label, zorder=1)


def _dress(axes: Any, result: Sensitivity, axis: str, curves: Sequence[Curve]) -> None:
    axes.set_xlim(0, max(curve.points[-1].strength for curve in curves) * 1.02)
    low = axes.get_ylim()[0]
    axes.set_ylim(low, 1 + 0.05 * (1 - low))
    axes.set_xlabel("displacement, root mean square / axis length", fontsize=9)
    points = [point for curve in curves for point in curve.points]
    above = axes.secondary_xaxis("top")
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.4, 0.5) if tick <= axes.get_xlim()[1]]
    above.set_xticks(ticks, [_amount(points, tick, result.length(axis), axis) for tick in ticks], fontsize=8)
    above.tick_params(length=2, color="#999999", labelcolor="#555555")
    above.spines["top"].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E8E8E8")
    axes.set_axisbelow(True)


def _amount(points: Sequence[Displaced], strength: float, length: int, axis: str) -> str:
    """For example "6 bins ≈ 11 st" or "180 ms"."""
    known = sorted({(p.strength, p.amount) for p in points if p.amount is not None})
    places = f"{strength * length:.0f} {'bins' if axis == 'frequency' else 'frames'}"
    if not known:
        return places
    amount = float(np.interp(strength, [of for of, _ in known], [amount for _, amount in known]))
    return f"{places} ≈ {amount:.0f} st" if axis == "frequency" else f"{amount:.0f} ms"
