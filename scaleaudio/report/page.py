"""The page of a run, or of several over one another: one HTML file that needs nothing beside it.

It is made on this machine from what the run folders hold at the moment; a content security policy in it forbids every
connection and every script but its own. All words of a run are escaped: a key or a path is text, whatever is in it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from scaleaudio import __version__
from scaleaudio.report.charts import draw
from scaleaudio.report.curves import COLOURS, charts_of_many, charts_of_one, marks, with_derived
from scaleaudio.report.evaluated import score_rows, sensitivity_charts
from scaleaudio.report.history import History, Series
from scaleaudio.report.timeline import clock, figures, happenings, state_of
from scaleaudio.trees import differences, flatten

_MAX_HAPPENINGS = 200  # of a run; the newest, and all faults
_GROUPS = ("Learning", "Collapse watch and optimisation", "Adversary", "Throughput", "Others")


def run_page(histories: Sequence[History]) -> str:
    """The page of some runs as HTML."""
    names = _names(histories)
    series = {name: with_derived(history) for name, history in zip(names, histories, strict=True)}
    script = text("page.js")
    page: str = template("page.html").render(
        title=", ".join(names),
        runs=[_run(name, history, number) for number, (name, history) in enumerate(zip(names, histories, strict=True))],
        groups=list(_groups(histories, series)),
        differing=_differing(names, histories),
        made=clock(max(history.read_at for history in histories)),
        version=__version__,
        style=text("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page


def _run(name: str, history: History, number: int) -> dict[str, Any]:
    state = state_of(history)
    happened = list(happenings(history.events))
    kept = [
        item
        for index, item in enumerate(happened)
        if len(happened) - index <= _MAX_HAPPENINGS or item.kind in ("fault", "recovery", "ended")
    ]
    return {
        "name": name,
        "url": history.url,
        "colour": COLOURS[number % len(COLOURS)],
        "state": state,
        "share": 100 * min(1.0, state.step / state.steps) if state.steps else None,
        "figures": list(figures(history, state)),
        "happened": kept[::-1],
        "num_left_out": len(happened) - len(kept),
        "config": [(key, value) for key, value in flatten(history.config)],
        "environment": [(key, value) for key, value in flatten(history.environment)],
        "sensitivity": [draw(chart, x_range) for chart, x_range in sensitivity_charts(history.evaluation)],
        "scores": list(score_rows(history.evaluation)),
    }


def _groups(
    histories: Sequence[History], series: Mapping[str, Mapping[str, Series]]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The groups of charts in their order; all charts of a page have the same steps from left to right."""
    alone = len(histories) == 1
    charts = list(charts_of_one(next(iter(series.values()))) if alone else charts_of_many(series))
    ends = [int(column.step_N[-1]) for columns in series.values() for column in columns.values() if len(column.step_N)]
    x_range = (0.0, float(max(ends, default=0) + 1))
    lines = marks(histories[0].events, round(x_range[1])) if alone else []
    by_group = sorted(charts, key=lambda pair: _GROUPS.index(pair[0]))
    for group, members in groupby(by_group, key=lambda pair: pair[0]):
        yield group, [draw(chart, x_range, lines) for _, chart in members]


def _differing(names: Sequence[str], histories: Sequence[History]) -> list[tuple[str, list[str]]]:
    """The config keys in which runs differ, each with a value for each run."""
    first = histories[0].config
    keys = sorted({line.partition(":")[0] for other in histories[1:] for line in differences(first, other.config)})
    flat = [dict(flatten(history.config)) for history in histories]
    return [(key, [str(tree.get(key, "")) for tree in flat]) for key in keys if key != "name"]


def _names(histories: Sequence[History]) -> list[str]:
    """A name for each run that no other has."""
    names = [history.name for history in histories]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def template(name: str) -> Any:
    """A template of report/page, which escapes all that it is given."""
    environment = Environment(
        loader=FunctionLoader(text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def text(name: str) -> str:
    """A file of report/page."""
    return (files("scaleaudio.report") / "page" / name).read_text(encoding="utf-8")
