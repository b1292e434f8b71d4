"""Which trials a sweep wants, and what their records say after what Tune tells. No Ray."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleaudio.errors import RunFailed
from scaleaudio.launch.lease import Lease
from scaleaudio.launch.ledger import Ledger, wanted_trials
from scaleaudio.report.trials import TrialRecord, read_trials
from scaleaudio.sweep import Plan, load_sweep

FREQUENCY = "negatives.frequency_strength"


@pytest.fixture
def plan(tiny_tree: dict[str, Any], tmp_path: Path) -> Plan:
    """Three trials, two repeats."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_tree))
    keys = {"probe.tasks": ["x:pitch"], "sweep.num_trials": 3, "sweep.repeats": 2, "sweep.keep_runs": 1}
    return load_sweep(tmp_path / "tiny.yaml", keys)


def numbers(records: list[TrialRecord]) -> list[int]:
    return [record.number for record in records]


def ended(record: TrialRecord, score: float) -> TrialRecord:
    return replace(record, state="finished", scores=[(60, score)])


def result(record: TrialRecord, **what: Any) -> dict[str, Any]:
    about = {"run": f"{record.number:04d}", "changes": record.changes, "came_from": [], "time_total_s": 3.0}
    return {"kind": "result", **about, **what}


def test_at_first_the_baseline_and_every_trial_are_wanted_and_no_repeats(plan: Plan) -> None:
    wanted = wanted_trials(plan, [], "search")
    assert numbers(wanted) == [0, 1, 2, 3] and wanted[0].kind == "baseline"
    assert numbers(wanted_trials(plan, [], "repeat")) == [0]


def test_what_has_ended_is_not_wanted_again(plan: Plan) -> None:
    first = wanted_trials(plan, [], "search")
    known = [ended(first[0], 0.5), replace(first[1], state="stopped"), replace(first[2], state="failed")]
    known.append(replace(first[3], state="running", run="0003", scores=[(5, 0.3)]))
    assert wanted_trials(plan, known, "search") == [known[3]]


def test_the_best_and_the_baseline_are_repeated_on_the_same_further_seeds(plan: Plan) -> None:
    first = wanted_trials(plan, [], "search")
    known = [ended(record, score) for record, score in zip(first, (0.5, 0.4, 0.8, 0.6), strict=True)]
    repeats = wanted_trials(plan, known, "repeat")
    assert [(r.number, r.repeat_of, r.seed) for r in repeats] == [
        (10_000, 0, 1), (10_002, 2, 1), (20_000, 0, 2), (20_002, 2, 2)
    ]  # fmt: skip
    assert repeats[1].changes == known[2].changes and repeats[0].changes[FREQUENCY] == 0
    known += [ended(repeats[0], 0.5)]
    assert numbers(wanted_trials(plan, known, "repeat")) == [10_002, 20_000, 20_002]


def test_under_pbt_the_baseline_stays_out_of_the_population(plan: Plan) -> None:
    pbt = replace(plan, sweep=plan.sweep.model_copy(update={"scheduler": "pbt"}))
    assert numbers(wanted_trials(pbt, [], "search")) == [1, 2, 3]
    assert numbers(wanted_trials(pbt, [], "repeat")) == [0]


def test_a_trial_that_the_scheduler_ends_is_stopped_and_one_that_ends_by_itself_is_not(
    plan: Plan, tmp_path: Path
) -> None:
    first = wanted_trials(plan, [], "search")
    told: list[TrialRecord] = []
    ledger = Ledger(plan, str(tmp_path), first, lambda event: told.append(event["record"]))
    for number in range(4):
        ledger.on_change(number, {"kind": "begins"})
        ledger.on_change(number, result(first[number], step=10, score=0.1 * number))
    assert ledger.num_running == 4
    ledger.on_change(1, {"kind": "complete"})
    ledger.on_change(2, result(first[2], step=60, score=0.9))
    ledger.on_change(2, result(first[2], step=60, score=0.9, state="finished"))
    ledger.on_change(2, {"kind": "complete"})
    ledger.on_change(0, result(first[0], step=10, score=0.0, state="interrupted"))
    ledger.on_change(0, {"kind": "complete"})
    ledger.on_change(3, {"kind": "error", "failure": "lost"})
    records = read_trials(str(tmp_path))
    assert [record.state for record in records] == ["running", "stopped", "finished", "failed"]
    assert records[2].scores == [(10, 0.2), (60, 0.9)] and records[3].failure == "lost"
    assert records == ledger.records() and ledger.num_running == 0
    assert told[-1] == records[3] and records[2].seconds == 3.0


def test_a_resumed_trial_adds_to_its_time_and_keeps_its_scores(plan: Plan, tmp_path: Path) -> None:
    first = wanted_trials(plan, [], "search")
    before = replace(first[1], state="running", seconds=100.0, scores=[(10, 0.1), (20, 0.2)], run="0001")
    ledger = Ledger(plan, str(tmp_path), [before], lambda event: None)
    ledger.on_change(1, result(before, step=10, score=0.1))
    ledger.on_change(1, result(before, step=20, score=0.25))
    assert ledger.records()[0].scores == [(10, 0.1), (20, 0.25)] and ledger.records()[0].seconds == 103.0


def test_a_trial_that_is_tried_again_says_why_and_keeps_its_time(plan: Plan, tmp_path: Path) -> None:
    first, told = wanted_trials(plan, [], "search"), list[dict[str, Any]]()
    ledger = Ledger(plan, str(tmp_path), first, told.append)
    ledger.on_change(1, {"kind": "begins"})
    ledger.on_change(1, result(first[1], step=10, score=0.5))
    ledger.on_change(1, {"kind": "recovers", "failure": "the node was lost"})
    ledger.on_change(1, {"kind": "begins"})
    ledger.on_change(1, result(first[1], step=20, score=0.6))
    assert [event["text"] for event in told if event["kind"] == "warning"] == ["the node was lost; it is tried again"]
    record = ledger.records()[1]
    assert (record.state, record.scores, record.seconds) == ("running", [(10, 0.5), (20, 0.6)], 6.0)


def test_only_the_best_and_the_baseline_keep_their_checkpoints(plan: Plan, tmp_path: Path) -> None:
    first = wanted_trials(plan, [], "search")
    ledger = Ledger(plan, str(tmp_path), first, lambda event: None)
    for record, score in zip(first, (0.1, 0.2, 0.9, 0.4), strict=True):
        folder = tmp_path / "runs" / f"{record.number:04d}"
        (folder / "checkpoints" / "step-00000060").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("")
        ledger.on_change(record.number, {"kind": "begins"})
        ledger.on_change(record.number, result(record, step=60, score=score, state="finished"))
    kept = {path.parent.name for path in (tmp_path / "runs").glob("*/checkpoints")}
    assert kept == {"0000", "0002", "0003"}  # the last to end may still have workers
    ledger.prune()
    kept = {path.parent.name for path in (tmp_path / "runs").glob("*/checkpoints")}
    assert kept == {"0000", "0002"} and len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) == 4


def test_records_wait_for_storage_that_is_away_and_the_user_is_told_once(plan: Plan, tmp_path: Path) -> None:
    """The folder of records cannot be made for a second: something else is in its place."""
    first, told = wanted_trials(plan, [], "search"), list[dict[str, Any]]()
    ledger = Ledger(plan, str(tmp_path), first, told.append)
    (tmp_path / "trials").write_text("")
    back = threading.Timer(1, (tmp_path / "trials").unlink)
    back.start()
    ledger.on_change(1, {"kind": "begins"})
    back.join()
    assert [record.state for record in read_trials(str(tmp_path))] == ["running"]
    assert [event["kind"] for event in told] == ["warning", "warning", "trial"]
    assert "is tried again for 20 minutes (" in told[0]["text"] and told[1]["text"] == "storage answers again"


def test_storage_that_stays_away_ends_a_sweep_in_a_line_and_a_stop_ends_the_waiting(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("")
    short = plan.with_keys({"checkpoint.patience_seconds": 0.1})
    for patience, stop_asked in ((short, False), (plan, True)):
        ledger = Ledger(patience, str(tmp_path), [], lambda event: None, stop_asked=lambda said=stop_asked: said)
        ledger.add(wanted_trials(plan, [], "search")[1])
        began = time.monotonic()
        with pytest.raises(RunFailed, match=r"trials.*; the same command goes on$"):
            ledger.on_change(1, {"kind": "begins"})
        assert time.monotonic() - began < 5


def test_a_sweep_that_another_driver_took_over_writes_no_more_records(plan: Plan, tmp_path: Path) -> None:
    lease = Lease(str(tmp_path))
    lease.take()
    ledger = Ledger(plan, str(tmp_path), wanted_trials(plan, [], "search"), lambda event: None, lease.url)
    ledger.on_change(1, {"kind": "begins"})
    lease.release()
    with pytest.raises(RunFailed, match="another driver took the run over"):
        ledger.on_change(2, {"kind": "begins"})
    assert numbers(read_trials(str(tmp_path))) == [1]


def test_checkpoints_that_cannot_be_deleted_end_no_sweep(plan: Plan, tmp_path: Path) -> None:
    first = [ended(record, 0.5) for record in wanted_trials(plan, [], "search")]
    first[2] = replace(first[2], run="a/../" * 2000)  # a path that is too long
    Ledger(plan, str(tmp_path), first, lambda event: None).prune()
