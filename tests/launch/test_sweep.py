"""A real sweep over Tune: a trial that ASHA stops frees its workers, one that fails ends nothing, and it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from scaleaudio import checkpoint
from scaleaudio.config import load
from scaleaudio.errors import InputError
from scaleaudio.launch.monitor import Event
from scaleaudio.launch.sweep import sweep
from scaleaudio.report.runlog import read_events, read_metrics
from scaleaudio.report.trials import TrialRecord, read_trials
from scaleaudio.sweep import Plan, load_sweep

RATE = "schedule.learning_rate"
# A rate that moves the weights to where all clips look the same, one that they survive, and one that no number does.
RATES = [3e-4, 1e3, 1e30]


@pytest.fixture(scope="module")
def plan(tiny_tree: dict[str, Any], clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """`plan({"sweep.repeats": 1})`: three learning rates in a grid, one worker each, compared after 10 of 20 steps."""
    path = tmp_path_factory.mktemp("sweep") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    keys = {
        "launch.workers": 1, "launch.engine": "plain", "launch.report_every_steps": 5, "schedule.steps": 20,
        "checkpoint.every_steps": 10, "probe.tasks": [f"{clips}:pitch"], "probe.every_steps": 10,
        "sweep.space": {RATE: RATES}, "sweep.searcher": "grid", "sweep.grace_steps": 10, "sweep.repeats": 0,
    }  # fmt: skip

    def made(changes: dict[str, Any] | None = None) -> Plan:
        return load_sweep(path, keys | (changes or {}))

    return made


@pytest.fixture(scope="module")
def swept(plan: Callable[..., Plan], ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sweep by one trial at a time; what was free when each began."""
    url = str(tmp_path_factory.mktemp("swept") / "sweep")
    events: list[Event] = []
    records = sweep(plan({"sweep.max_concurrent": 1}), url, on_event=events.append)
    return {"url": url, "records": records, "events": events}


def test_asha_stops_a_trial_and_the_next_one_finds_its_workers_free(swept: dict[str, Any]) -> None:
    states = {record.number: record.state for record in swept["records"]}
    assert states == {0: "finished", 1: "finished", 2: "stopped", 3: "failed"}
    stopped = swept["records"][2]
    assert stopped.step == 10 and (stopped.score or 0) < (swept["records"][0].score or 0)
    assert read_events(f"{swept['url']}/runs/0002")[-1]["kind"] == "ended"  # in good order, not killed


def test_a_trial_that_fails_is_named_and_the_others_go_on(swept: dict[str, Any]) -> None:
    failed = swept["records"][3]
    assert failed.state == "failed" and "not finite" in (failed.failure or "")
    assert "\n" not in (failed.failure or "")


def test_nothing_holds_a_worker_once_the_sweep_is_over(swept: dict[str, Any]) -> None:
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.5)


def test_scores_are_those_of_the_probe_in_each_run_s_own_log(swept: dict[str, Any]) -> None:
    for record in swept["records"][:3]:
        logged = read_metrics(f"{swept['url']}/runs/{record.run}")
        assert record.scores == [(r["step"] + 1, r["probe/score"]) for r in logged if "probe/score" in r]


def test_it_leaves_a_table_a_picture_and_a_winner_that_pretrain_takes(swept: dict[str, Any]) -> None:
    folder = Path(swept["url"])
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert pq.read_table(folder / "trials.parquet").column("state").to_pylist()[2] == "stopped"
    assert "| baseline | finished |" in (folder / "trials.md").read_text()
    winner = load(folder / "winner.yaml")
    assert winner.schedule.learning_rate == RATES[0] and winner.name == "tiny-winner"
    assert not (folder / "ray").exists()


def test_a_finished_sweep_is_finished_at_once(swept: dict[str, Any], plan: Callable[..., Plan]) -> None:
    began = [event for event in swept["events"] if event["kind"] == "trial"]
    assert began
    again = sweep(plan({"sweep.max_concurrent": 1}), swept["url"], on_event=pytest.fail)
    assert again == swept["records"]


def test_another_sweep_in_the_same_folder_is_refused_by_its_keys(
    swept: dict[str, Any], plan: Callable[..., Plan], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"sweep\.reduction_factor: 2\.0, 3\.0"):
        sweep(plan({"sweep.reduction_factor": 3}), swept["url"])
    (tmp_path / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(InputError, match="no sweep's"):
            sweep(plan(), str(tmp_path), fresh=fresh)
    assert (tmp_path / "thesis.txt").exists()


def runs_begun(url: str) -> dict[str, list[int]]:
    """By run folder, the steps at which its attempts started."""
    return {
        folder.name: [event["step"] for event in read_events(str(folder)) if event["kind"] == "started"]
        for folder in sorted(Path(url, "runs").iterdir())
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_whose_driver_is_killed_goes_on_where_it_was(
    tiny_tree: dict[str, Any], clips: Path, tmp_path: Path
) -> None:
    """One trial has ended, the next is in the middle of its steps: kill -9 of the driver and all that it started."""
    tree = tiny_tree | {
        "launch": {"workers": 1, "engine": "plain", "report_every_steps": 5},
        "schedule": {"steps": 4000, "warmup_steps": 4, "learning_rate": 3e-4},
        "checkpoint": {"every_steps": 50},
        "probe": {"tasks": [f"{clips}:pitch"], "every_steps": 500},
        "sweep": {
            "space": {"schedule.steps": [400, 4000]}, "searcher": "grid", "scheduler": "none", "repeats": 1,
            "max_concurrent": 1,
        },
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    url = str(tmp_path / "sweep")
    words = [sys.executable, "-m", "scaleaudio", "sweep", str(tmp_path / "tiny.yaml"), "--out", url]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen(words, env=environment, start_new_session=True)

    def halfway() -> list[TrialRecord] | None:
        records = read_trials(url)
        running = [
            r for r in records if r.state == "running" and checkpoint.list_checkpoints(f"{url}/runs/{r.number:04d}")
        ]
        return records if running and any(record.ended for record in records) else None

    deadline = time.monotonic() + 500
    while (before := halfway()) is None:
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.5)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    begun = runs_begun(url)
    assert subprocess.run(words, env=environment, timeout=800).returncode == 0
    after, again = read_trials(url), runs_begun(url)
    assert all(record.ended for record in after) and len(after) > len(before)
    for record in before:
        if record.ended:
            assert again[f"{record.number:04d}"] == begun[f"{record.number:04d}"], "a trial that had ended was repeated"
        elif record.state == "running":
            assert again[f"{record.number:04d}"][-1] > 0, "a trial did not go on from its checkpoint"
