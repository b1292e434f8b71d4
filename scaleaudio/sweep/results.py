"""What comes out of a sweep: a table, a picture, and the winner as a config for `pretrain`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scaleaudio.config import dump, error_lines, override, validate
from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.report.sweep import STRENGTHS, draw_sweep, sweep_markdown, write_trial_table
from scaleaudio.report.trials import TrialRecord, baseline, ranking, verdict
from scaleaudio.sweep.plan import Plan
from scaleaudio.views import ViewsConfig, dead_zone

SWEEP = "sweep.yaml"
WINNER, PICTURE, TABLE, TEXT = "winner.yaml", "sweep.png", "trials.parquet", "trials.md"


def write_results(plan: Plan, sweep_url: str, trials: Sequence[TrialRecord]) -> None:
    """Writes the table, the picture and, once a trial is whole, the winner into the sweep's folder."""
    write_pictures(sweep_url, trials, plan.base.views)
    if ranking(trials):
        storage.write_atomic(storage.join(sweep_url, WINNER), winner_yaml(plan, trials).encode())


def write_pictures(sweep_url: str, trials: Sequence[TrialRecord], views: ViewsConfig) -> None:
    """Writes the table and the picture into the sweep's folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_trial_table(trials, Path(folder, TABLE))
        draw_sweep(trials, Path(folder, PICTURE), dead_zones(views))
        for name in (TABLE, PICTURE):
            storage.write_atomic(storage.join(sweep_url, name), Path(folder, name).read_bytes())
    storage.write_atomic(storage.join(sweep_url, TEXT), sweep_markdown(trials).encode())


def read_views(sweep_url: str) -> ViewsConfig:
    """The views that the trials of a sweep had.

    Raises:
        InputError: when there is no sweep, or its description is damaged.
    """
    path = storage.join(sweep_url, SWEEP)
    if not storage.exists(path):
        raise InputError(f"{sweep_url}: no {SWEEP} here, so it is no sweep")
    try:
        return ViewsConfig.model_validate(read_sweep(path)["views"])
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(error_lines(error, ViewsConfig))) from error


def read_sweep(path: str) -> dict[str, Any]:
    """What the description of a sweep says.

    Raises:
        InputError: when it is damaged, or no sweep's.
    """
    try:
        tree = yaml.safe_load(storage.read_bytes(path))
    except (yaml.YAMLError, UnicodeDecodeError):
        tree = None
    if not isinstance(tree, dict) or not tree.keys() >= {"sweep", "views", "frontend"}:
        raise InputError(f"{path}: damaged, or not the description of a sweep. Restore it, or give another folder.")
    return tree


def dead_zones(views: ViewsConfig) -> dict[str, float]:
    """Up to where each strength would be refused."""
    return {STRENGTHS[0]: dead_zone(views, "frequency"), STRENGTHS[1]: dead_zone(views, "time")}


def winner_yaml(plan: Plan, trials: Sequence[TrialRecord]) -> str:
    """The config of the best trial, with where it comes from above it."""
    best, base = ranking(trials)[0], baseline(trials)
    tree = override(plan.tree, {**best.changes, "name": f"{plan.base.name}-winner"})
    against = f", the baseline {base.score:.3f}" if base is not None else ""
    lines = [
        f"The best of {len([trial for trial in trials if trial.kind == 'search'])} trials of the sweep "
        f"{plan.base.name}: trial {best.number} scored {best.score:.3f}{against} after {best.step} steps.",
        verdict(trials),
        *(f"  {key}: {value}" for key, value in best.changes.items()),
    ]
    head = "".join(f"# {line}\n" for line in lines)
    return head + dump(validate(tree, "the winner"))
