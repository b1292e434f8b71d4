"""A sweep as table, Markdown, Parquet and picture."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from rich.console import Console

from scaleaudio.report.sweep import draw_sweep, sweep_markdown, sweep_table, write_trial_table
from scaleaudio.report.trials import TrialRecord

FREQUENCY, TIME = "negatives.frequency_strength", "negatives.time_strength"


@pytest.fixture
def trials() -> list[TrialRecord]:
    """A baseline, a whole trial, a stopped one, a failed one, and two further seeds."""
    base = TrialRecord(0, "baseline", {FREQUENCY: 0.0, TIME: 0.0}, 0, "finished", [(20, 0.4), (40, 0.5)], 40)
    whole = TrialRecord(
        1, "search", {FREQUENCY: 0.2, TIME: 0.1, "objective.alpha": 1.5}, 0, "finished", [(40, 0.7)], 40
    )
    stopped = TrialRecord(
        2, "search", {FREQUENCY: 0.3, TIME: 0.4, "objective.alpha": 1.0}, 0, "stopped", [(20, 0.3)], 40
    )
    failed = replace(stopped, number=3, state="failed", scores=[], failure="step 3: loss is not finite [x]")
    again = [replace(base, number=10_000 * s, kind="repeat", repeat_of=0, seed=s) for s in (1, 2)]
    again += [replace(whole, number=10_000 * s + 1, kind="repeat", repeat_of=1, seed=s) for s in (1, 2)]
    return [base, whole, stopped, failed, *again]


def test_the_table_begins_with_the_baseline_then_the_best(trials: list[TrialRecord]) -> None:
    text = io.StringIO()
    Console(file=text, width=120).print(sweep_table(trials))
    lines = [line for line in text.getvalue().splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["baseline", "1", "2", "3"]
    assert "Trial 3 failed: step 3: loss is not finite [x]" in text.getvalue()


def test_markdown_says_what_each_trial_changed_and_how_the_seeds_compare(trials: list[TrialRecord]) -> None:
    text = sweep_markdown(trials)
    assert f"| trial | state | score | step | {FREQUENCY} | {TIME} | objective.alpha |" in text
    assert "| baseline | finished | .500 | 40 | 0 | 0 |  |" in text
    assert "| 2 | stopped | .300 | 20 | 0.3 | 0.4 | 1 |" in text
    assert "| 1 | .500 | .700 | +0.200 |" in text and "It exceeds the noise between seeds." in text


def test_parquet_has_a_row_a_trial_and_a_column_a_key(trials: list[TrialRecord], tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    write_trial_table([*trials, replace(trials[1], number=4, changes={"encoder.widths": [8, 16]})], path)
    rows = pq.read_table(path).to_pylist()
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 10_000, 20_000, 10_001, 20_001, 4]
    assert rows[1][FREQUENCY] == 0.2 and rows[1]["score"] == 0.7 and rows[3]["score"] is None
    assert rows[-1]["encoder.widths"] == "[8, 16]" and rows[0]["objective.alpha"] is None
    write_trial_table([], path)
    assert pq.read_table(path).num_rows == 0


def test_the_picture_has_a_map_and_a_panel_a_strength_with_the_baseline_in_each(
    trials: list[TrialRecord], tmp_path: Path
) -> None:
    path = tmp_path / "sweep.png"
    draw_sweep(trials, path, {FREQUENCY: 0.05, TIME: 0.05})
    picture = imread(path)[..., :3]
    orange = np.abs(picture - np.array([0xD5, 0x5E, 0x00]) / 255).max(axis=-1) < 0.08
    thirds = np.array_split(orange, 3, axis=1)
    assert all(third.sum() > 60 for third in thirds)  # the star's edge, and a dashed line in the other two
    draw_sweep([replace(trial, scores=[]) for trial in trials], path)  # nothing scored yet


def test_a_sweep_of_one_key_or_of_none_that_is_a_number_is_drawn_too(trials: list[TrialRecord], tmp_path: Path) -> None:
    one = [replace(trial, changes={FREQUENCY: trial.changes[FREQUENCY]}) for trial in trials]
    words = [replace(trial, changes={"encoder.norm": "group"}) for trial in trials]
    for number, some in enumerate((one, words, [], trials[:1])):
        draw_sweep(some, tmp_path / f"{number}.png")
        assert imread(tmp_path / f"{number}.png").std() > 0.01
