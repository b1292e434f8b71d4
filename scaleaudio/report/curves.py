"""Which charts a run's scalars make: the known ones in their places, any other by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaleaudio.negatives.strengths import AXES, DisplacingSettings
from scaleaudio.report.charts import Chart, Line, Mark
from scaleaudio.report.history import Bins, History, Series, binned
from scaleaudio.schedule import ramp
from scaleaudio.task import TaskConfig
from scaleaudio.views import dead_zone

NUM_BINS = 300  # of a chart about 400 pixels wide
COLOURS = tuple(f"c{number}" for number in range(8))  # CSS classes
_DASHES = ("", "dash", "dots")
_WATCH = "Collapse watch and optimisation"
_MOST_MARKS = 100
_MOST_OTHERS = 48  # scalars of no known name, each with a chart of its own
_FAMILY = "negatives/family_"
_WAIT, _STEP = "data_wait_seconds", "step_seconds"


@dataclass(frozen=True)
class Wanted:
    """A chart that is drawn where a run has any of its scalars: each has a label and a colour."""

    group: str
    title: str
    names: Mapping[str, tuple[str, str]]
    note: str = ""
    log: bool = False
    include: tuple[float, ...] = ()
    threshold: tuple[float, str] | None = None


_PROBE = "probe/"
_SIMILAR = {"positive": ("positive", "c2"), "negative": ("negative", "c1"), "others": ("other clips", "c6")}
WANTED = (
    Wanted("Learning", "Loss", {"loss": ("loss", "c0")}, "It depends on the strength, so it chooses nothing."),
    Wanted(
        "Learning",
        "Similarity in the projection",
        {f"similarity/{name}": style for name, style in _SIMILAR.items()},
        "Cosine similarity to the anchor, where the objective works.",
    ),
    Wanted(
        "Learning",
        "Similarity in the embedding",
        {f"similarity/embedding_{name}": style for name, style in _SIMILAR.items()},
        "The same in what is kept.",
    ),
    Wanted(
        _WATCH,
        "Spread of the embedding",
        {"embedding/std": ("std", "c0")},
        "1: the embeddings fill the sphere; 0: all are the same.",
        include=(0.0,),
        threshold=(0.05, "collapsed"),
    ),
    Wanted(
        _WATCH,
        "Effective rank of the embedding",
        {"embedding/rank": ("rank", "c0")},
        "How many dimensions are in use.",
        include=(0.0,),
        threshold=(2.0, "collapsed"),
    ),
    Wanted("Adversary", "Clips with a valid negative", {"negatives/valid": ("share", "c0")}, include=(0.0, 1.0)),
    Wanted(
        "Adversary",
        "Strength",
        {f"strength/{axis}": (axis, colour) for axis, colour in zip(AXES, ("c0", "c1"), strict=True)},
        "Root mean square displacement / axis length, from the config's ramp.",
        include=(0.0,),
    ),
    Wanted(_WATCH, "Learning rate", {"learning_rate": ("learning rate", "c0")}, include=(0.0,)),
    Wanted(_WATCH, "Norm of the gradient", {"grad_norm": ("norm", "c0")}, "Before it is clipped.", log=True),
    Wanted("Throughput", "Clips a second", {"clips_per_second": ("clips/s", "c0")}, include=(0.0,)),
    Wanted(
        "Throughput",
        "Seconds a step",
        {_STEP: ("step", "c0"), _WAIT: ("of it waiting for data", "c1")},
        include=(0.0,),
    ),
    Wanted("Throughput", "Share of the time spent waiting for data", {"wait": ("share", "c1")}, include=(0.0,)),
)  # fmt: skip


def with_derived(history: History) -> dict[str, Series]:
    """The run's scalars, and those that follow from them or from its config."""
    series = {name: column for name, column in history.series.items() if name != "time"}
    if _WAIT in series and _STEP in series and np.array_equal(series[_WAIT].step_N, series[_STEP].step_N):
        step_N, seconds_N = series[_STEP]
        with np.errstate(divide="ignore", invalid="ignore"):
            series["wait"] = Series(step_N, series[_WAIT].value_N / seconds_N)
    if series:
        longest = max(series.values(), key=lambda column: len(column.step_N))
        series |= _strengths(history.config, longest.step_N)
    return series


def _strengths(config: Mapping[str, Any], step_N: np.ndarray[Any, Any]) -> dict[str, Series]:
    """The two strengths over the steps; nothing where nothing is displaced or the config is of another version."""
    try:
        task = TaskConfig.model_validate({k: v for k, v in config.items() if k in TaskConfig.model_fields})
    except ValueError:
        return {}
    negatives = task.negatives
    if not isinstance(negatives, DisplacingSettings) or not negatives.active:
        return {}
    ends = np.unique(np.linspace(step_N[0], step_N[-1], NUM_BINS).astype(np.int64))
    found = {}
    for axis in AXES:
        edge = dead_zone(task.views, axis)
        values = [negatives.strengths(axis, edge, ramp(int(step), task.schedule))[-1] for step in ends]
        found[f"strength/{axis}"] = Series(ends, np.array(values))
    return found


def charts_of_one(series: Mapping[str, Series]) -> Iterator[tuple[str, Chart]]:
    """Each chart of one run with its group: a colour a scalar."""
    for wanted in WANTED:
        lines = tuple(
            Line(label, colour, binned(series[name], NUM_BINS))
            for name, (label, colour) in wanted.names.items()
            if name in series
        )
        if lines:
            yield wanted.group, _chart(wanted, wanted.title, lines)
    if probes := [name for name in series if name.startswith(_PROBE)]:
        shown = enumerate(sorted(probes, key=lambda name: (name != "probe/score", name)))
        lines = tuple(
            Line(name.removeprefix(_PROBE), COLOURS[number % len(COLOURS)], binned(series[name], NUM_BINS))
            for number, name in shown
        )
        yield "Learning", Chart("Held-out probe", lines, "Accuracy on labelled clips.")
    if any(name.startswith(_FAMILY) for name in series):
        yield "Adversary", families(series, "What the adversary chose")
    for number, name in enumerate(_others(series)):
        yield "Others", Chart(name, (Line(name, COLOURS[number % len(COLOURS)], binned(series[name], NUM_BINS)),))


def charts_of_many(runs: Mapping[str, Mapping[str, Series]]) -> Iterator[tuple[str, Chart]]:
    """Each chart of several runs with its group: a colour a run, a chart a scalar."""
    colours = {run: COLOURS[number % len(COLOURS)] for number, run in enumerate(runs)}
    dashes = {run: _DASHES[number // len(COLOURS) % len(_DASHES)] for number, run in enumerate(runs)}

    def lines(name: str) -> tuple[Line, ...]:
        having = {run: series[name] for run, series in runs.items() if name in series}
        longest = max((int(column.step_N[-1]) for column in having.values()), default=0)
        return tuple(Line(run, colours[run], binned(c, _share(c, longest)), dashes[run]) for run, c in having.items())

    for wanted in WANTED:
        for name, (label, _) in wanted.names.items():
            if found := lines(name):
                title = wanted.title if len(wanted.names) == 1 else f"{wanted.title}: {label}"
                yield wanted.group, _chart(wanted, title, found)
    for run, series in runs.items():
        if any(name.startswith(_FAMILY) for name in series):
            yield "Adversary", families(series, f"What the adversary chose: {run}")
    for name in sorted({name for series in runs.values() for name in series if name.startswith(_PROBE)}):
        yield "Learning", Chart(f"Held-out probe: {name.removeprefix(_PROBE)}", lines(name))
    for name in sorted({name for series in runs.values() for name in _others(series)}):
        yield "Others", Chart(name, lines(name))


def _share(series: Series, longest: int) -> int:
    """Bins for a run beside a longer one: as wide as that one's, but never too few to see a course."""
    return max(30, round(NUM_BINS * int(series.step_N[-1]) / max(longest, 1)))


def _chart(wanted: Wanted, title: str, lines: tuple[Line, ...]) -> Chart:
    return Chart(title, lines, wanted.note, wanted.log, False, wanted.include, wanted.threshold)


def families(series: Mapping[str, Series], title: str) -> Chart:
    """The share of each family of displacements among the negatives, stacked."""
    names = [name for name in series if name.startswith(_FAMILY)]
    bins = [binned(series[name], NUM_BINS) for name in names]
    longest = max(bins, key=lambda found: len(found.x_N))
    lines = tuple(
        Line(name.removeprefix(_FAMILY).replace("_", " "), COLOURS[number % len(COLOURS)], _on(longest, found))
        for number, (name, found) in enumerate(zip(names, bins, strict=True))
    )
    return Chart(title, lines, "Share of each family among the negatives.", stacked=True, include=(0.0, 1.0))


def _on(grid: Bins, bins: Bins) -> Bins:
    """The bins at the places of others, so that they can lie on one another."""
    if np.array_equal(grid.x_N, bins.x_N) or not len(bins.x_N):
        return bins
    mean_N = np.interp(grid.x_N, bins.x_N, bins.mean_N)
    return Bins(grid.x_N, mean_N, mean_N, mean_N, bins.num_bad, bins.bad_x_N)


def _others(series: Mapping[str, Series]) -> list[str]:
    known = {name for wanted in WANTED for name in wanted.names}
    return sorted(name for name in series if name not in known and not name.startswith((_FAMILY, _PROBE)))[
        :_MOST_OTHERS
    ]


def marks(events: Sequence[Mapping[str, Any]], num_steps: int) -> list[Mark]:
    """What the charts show of the events: faults, and where the run went on; those that would touch are one."""
    found: dict[tuple[str, int], Mark] = {}
    for event in events:
        step, kind = event.get("step", 0), event.get("kind")
        if type(step) is not int or not 0 <= step <= num_steps:
            continue
        if kind == "fault":
            mark = Mark(step, "fault", str(event.get("what") or event.get("fault")))
        elif kind == "started" and step > 0:
            mark = Mark(step, "resumed", f"goes on with {event.get('workers', '?')} worker(s)")
        else:
            continue
        found[mark.kind, _MOST_MARKS * step // max(num_steps, 1)] = mark
    return list(found.values())
