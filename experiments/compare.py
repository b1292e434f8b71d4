"""The cells of `evidence.py` side by side: scores and their paired differences, sensitivity curves, and a picture.

Arms are compared with the baseline of the same seed. Intervals are 95 %, Student's t over the seeds' differences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

BASELINE = "baseline"
METRIC = "linear_c0.05"
POSITION_TASKS = ("fsdd", "mandarin_tones", "piano one-shot")  # what position decides
MOTIONS = (("frequency", "shift, wrap"), ("frequency", "permutation"), ("time", "reversal"), ("time", "permutation"))

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def table(
    out: Annotated[Path, typer.Argument(help="folder of `evidence.py`")],
    metric: Annotated[str, typer.Option(help="knn, linear or linear_c0.05")] = METRIC,
) -> None:
    """Print each arm's scores and what it gains over the baseline, seed by seed."""
    print(markdown(read(out), metric))


@app.command()
def curves(
    out: Annotated[Path, typer.Argument(help="folder of `evidence.py`")],
    corpus: Annotated[str, typer.Option(help="folder of audio to displace")],
    arms: Annotated[str, typer.Option(help="by comma")],
    num_clips: Annotated[int, typer.Option(min=2)] = 100,
) -> None:
    """Measure the position-sensitivity curve of every encoder of some arms that has none yet."""
    import scaleaudio
    from scaleaudio.evaluate import measure_sensitivity
    from scaleaudio.report.scores import write_json

    (out / "curves").mkdir(exist_ok=True)
    for arm in arms.split(","):
        for folder in sorted((out / "encoders").glob(f"{arm}-*")):
            file = out / "curves" / f"{folder.name}.json"
            if not file.exists():
                write_json([measure_sensitivity(scaleaudio.load(folder), corpus, name=arm, num_clips=num_clips)], file)
                print(file, flush=True)


@app.command()
def picture(
    out: Annotated[Path, typer.Argument(help="folder of `evidence.py`")],
    file: Annotated[Path, typer.Argument(help="PNG to write")],
    arms: Annotated[str | None, typer.Option(help="by comma; default: all")] = None,
) -> None:
    """Draw each arm's paired differences by task, and the curves that were measured."""
    draw(read(out), read_curves(out), file, arms.split(",") if arms else None)


def read(out: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Scores by arm, seed and task/metric, of all cells that are scored."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for file in sorted((out / "scores").glob("*.json")):
        row = json.loads(file.read_text())
        found.setdefault(row["arm"], {})[row["seed"]] = row["scores"]
    return found


def markdown(scores: Scores, metric: str = METRIC) -> str:
    """A table: a line an arm, its mean on each task; below it the paired differences to the baseline."""
    tasks = _tasks(scores)
    order = sorted(scores, key=lambda arm: arm != BASELINE)
    lines = [f"| arm | seeds | {' | '.join(tasks)} |", "|---|---|" + "---|" * len(tasks)]
    for arm in order:
        means = [_mean([s[f"{task}/{metric}"] for s in scores[arm].values()]) for task in tasks]
        lines.append(f"| {arm} | {len(scores[arm])} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    by_position = [task for task in POSITION_TASKS if task in tasks]
    heads = [*tasks, f"mean of {len(by_position)} by position"] if by_position else tasks
    lines += ["", f"| minus {BASELINE} | pairs | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for arm in order[1:]:
        gains = differences(scores, arm, metric)
        columns = [*([task] for task in tasks), *([by_position] if by_position else [])]
        cells = [_interval([_mean([gain[task] for task in column]) for gain in gains]) for column in columns if gains]
        lines.append(f"| {arm} | {len(gains)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(scores: Scores, arm: str, metric: str = METRIC) -> list[dict[str, float]]:
    """What the arm has more than the baseline by task, an entry for each seed that both have."""
    mine, base = scores[arm], scores.get(BASELINE, {})
    return [
        {task: mine[seed][f"{task}/{metric}"] - base[seed][f"{task}/{metric}"] for task in _tasks(scores)}
        for seed in sorted(mine.keys() & base.keys())
    ]


def read_curves(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What `curves` measured, by arm."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((out / "curves").glob("*.json")):
        row = json.loads(file.read_text())
        found.setdefault(file.stem.rsplit("-", 1)[0], []).append(row[0] if isinstance(row, list) else row)
    return found


def draw(
    scores: Scores, curves: Mapping[str, Sequence[Mapping[str, Any]]], file: Path, arms: Sequence[str] | None = None
) -> None:
    """A PNG: above, a panel a task with each arm's gain seed by seed; below, similarity against displacement."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [arm for arm in arms or scores if arm != BASELINE and differences(scores, arm)]
    figure = Figure(figsize=(12.0, 2.2 + 0.34 * len(shown) + (3.2 if curves else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(2 if curves else 1, 1, height_ratios=[1.4 + 0.34 * len(shown), 3.2][: 2 if curves else 1])
    above, below = (parts[0], parts[1]) if curves else (parts, None)
    for task, axes in zip(
        _tasks(scores), above.subplots(1, len(_tasks(scores)), sharey=True, squeeze=False)[0], strict=True
    ):
        _draw_gains(axes, {arm: [100 * gain[task] for gain in differences(scores, arm)] for arm in shown})
        axes.set_title(task, loc="left", fontsize=10, weight="bold")
    above.supxlabel("points of accuracy above the baseline of the same seed", fontsize=8)
    if below is not None:
        panels = below.subplots(1, len(MOTIONS))
        for (axis, motion), axes in zip(MOTIONS, panels, strict=True):
            _draw_curves(axes, curves, axis, motion)
        panels[0].set_ylabel("blindness to a move (1 the clip, 0 another)", fontsize=8)
        panels[-1].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110, format="png")


def _draw_gains(axes: Any, gains: Mapping[str, Sequence[float]]) -> None:
    for row, values in enumerate(gains.values()):
        mean, half = _mean(values), _half_width(values)
        colour = "#0072B2" if mean - half > 0 else "#D55E00" if mean + half < 0 else "#666666"
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.35, markersize=4)
        axes.plot([mean - half, mean + half], [row, row], color=colour, linewidth=2)
        axes.plot([mean], [row], "D", color=colour, markersize=6)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(gains)), [arm.replace("_", " ") for arm in gains], fontsize=9)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#E8E8E8")


def _draw_curves(axes: Any, curves: Mapping[str, Sequence[Mapping[str, Any]]], axis: str, motion: str) -> None:
    """Mean over seeds, and the range of the seeds as a band."""
    colours = ("#666666", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
    order = sorted(curves, key=lambda arm: arm != BASELINE)
    for arm, colour in zip(order, colours, strict=False):
        lines = [_blindness(result, axis, motion) for result in curves[arm]]
        xs = [x for x, _ in lines[0]]
        by_point = list(zip(*([y for _, y in line] for line in lines), strict=True))
        axes.plot(xs, [_mean(ys) for ys in by_point], color=colour, linewidth=1.8, label=arm.replace("_", " "))
        axes.fill_between(xs, [min(ys) for ys in by_point], [max(ys) for ys in by_point], color=colour, alpha=0.15)
    axes.set_title(f"{motion.split(',')[0]} in {axis}", loc="left", fontsize=10, weight="bold")
    axes.set_xlabel("displacement / axis length", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _blindness(result: Mapping[str, Any], axis: str, motion: str) -> list[tuple[float, float]]:
    """(strength, (s - others) / (1 - others)) along one curve of the embedding."""
    stage = next(stage for stage in result["stages"] if stage["stage"] == "embedding")
    curve = next(c for c in stage["curves"] if (c["axis"], c["motion"]) == (axis, motion))
    others = stage["others"]["mean"]
    return [(p["strength"], (p["similarity"]["mean"] - others) / (1 - others)) for p in curve["points"]]


def _tasks(scores: Scores) -> list[str]:
    return list(dict.fromkeys(k.split("/")[0] for arm in scores.values() for s in arm.values() for k in s))


def _interval(values: Sequence[float]) -> str:
    mean = _mean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = _half_width(values)
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def _half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean; 0 for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    app()
