"""Optuna as the searcher: it learns from scores, and an attempt that goes on knows what was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleaudio.report.trials import TrialRecord
from scaleaudio.sweep import Plan, load_sweep
from scaleaudio.sweep.plan import is_baseline
from scaleaudio.sweep.proposer import Proposer
from scaleaudio.sweep.space import FREQUENCY, TIME

pytest.importorskip("optuna", reason="optuna is an extra")


@pytest.fixture
def plan(tiny_tree: dict[str, Any], tmp_path: Path) -> Plan:
    """A search for one strength, with widths as a list of lists beside it."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    space = {FREQUENCY: {"low": 0.1, "high": 0.45}, TIME: [0, 0.4], "encoder.widths": [[8, 16], [16, 16]]}
    keys = {"probe.tasks": ["x:pitch"], "sweep.searcher": "optuna", "sweep.space": space, "sweep.num_trials": 40}
    return load_sweep(path, keys)


def score(record: TrialRecord) -> float:
    """Best at .3, with the wider encoder, along both axes."""
    changes = record.changes
    return 1 - abs(changes[FREQUENCY] - 0.3) - 0.2 * (changes["encoder.widths"] == [8, 16]) - 0.2 * (changes[TIME] == 0)


def tried(proposer: Proposer, numbers: range) -> list[TrialRecord]:
    records = []
    for number in numbers:
        record = proposer.propose(number)
        record = record.scored(record.steps, score(record))
        proposer.hear(record, failed=False)
        records.append(record)
    return records


def test_it_comes_closer_to_the_best_than_its_first_guesses(plan: Plan) -> None:
    records = tried(Proposer(plan, []), range(1, 41))
    assert [record.number for record in records] == list(range(1, 41))
    late, early = (sum(map(score, part)) / len(part) for part in (records[-10:], records[:10]))
    assert late > early + 0.1
    assert all(plan.config(record.number, record.changes, 0) for record in records[::10])


def test_an_attempt_that_goes_on_has_learned_from_the_trials_before(plan: Plan) -> None:
    before = [
        record if number % 3 else TrialRecord(**{**vars(record), "state": "failed", "scores": []})
        for number, record in enumerate(tried(Proposer(plan, []), range(1, 31)))
    ]
    ended = [TrialRecord(**{**vars(r), "state": "finished"}) if r.state != "failed" else r for r in before]
    proposer = Proposer(plan, ended)
    assert proposer.num_known == 30
    later = tried(proposer, range(31, 41))
    assert sum(map(score, later)) / 10 > sum(map(score, before[:10])) / 10 + 0.05
    assert not {str(record.changes) for record in later} & {str(record.changes) for record in before}


def test_a_trial_stopped_early_counts_and_one_that_failed_is_no_score(plan: Plan) -> None:
    proposer = Proposer(plan, [])
    stopped, failed = proposer.propose(1), proposer.propose(2)
    proposer.hear(stopped.scored(5, 0.2).scored(10, 0.3), failed=False)
    proposer.hear(failed, failed=True)
    proposer.hear(failed, failed=True)  # told twice, by Tune and by a sweep that goes on
    states = [trial.state.name for trial in proposer._study.get_trials()]
    assert states == ["PRUNED", "FAIL"]


def test_it_never_proposes_the_baseline_as_a_trial(plan: Plan, tiny_tree: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "flat.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    space = {FREQUENCY: [0, 0.4], TIME: [0, 0.4]}
    keys = {"probe.tasks": ["x:pitch"], "sweep.searcher": "optuna", "sweep.space": space}
    proposer = Proposer(load_sweep(path, keys), [])
    assert not any(is_baseline(proposer.propose(number).changes) for number in range(1, 12))
