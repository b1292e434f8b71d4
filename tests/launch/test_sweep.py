"""Real sweeps over Tune: a trial that ASHA stops frees its workers, one that fails ends nothing, and they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from servers import away, s3_server

from scaleaudio import checkpoint
from scaleaudio.config import load
from scaleaudio.errors import InputError
from scaleaudio.launch.cluster import refuse_relative
from scaleaudio.launch.monitor import Event
from scaleaudio.launch.sweep import _located, _urls, sweep
from scaleaudio.report.runlog import read_events, read_metrics
from scaleaudio.report.trials import TrialRecord, read_trials, write_trial
from scaleaudio.sweep import Plan, load_sweep

RATE, LOWEST = "schedule.learning_rate", "frontend.min_hz"


@pytest.fixture(scope="module")
def plan(tiny_tree: dict[str, Any], clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """Four trials: one that hears the tones, one that is deaf to them, and two whose weights leave all numbers.

    A worker takes all four CPUs, and trials are compared after 10 of 20 steps.
    """
    path = tmp_path_factory.mktemp("sweep") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    keys = {
        "launch.workers": 1, "launch.cpus_per_worker": 4, "launch.engine": "plain", "launch.report_every_steps": 5,
        "schedule.steps": 20, "frontend.mean": -8.0, "frontend.std": 4.0, "checkpoint.every_steps": 10,
        "probe.tasks": [f"{clips}:pitch"], "probe.every_steps": 10, "sweep.grace_steps": 10, "sweep.repeats": 0,
        "sweep.searcher": "grid", "sweep.space": {RATE: [3e-4, 1e30], LOWEST: [60.0, 4000.0]},
    }  # fmt: skip

    def made(changes: dict[str, Any] | None = None) -> Plan:
        return load_sweep(path, keys | (changes or {}))

    return made


def ended(plan: Plan, number: int, state: Any, scores: list[tuple[int, float]]) -> TrialRecord:
    changes = plan.changes(number)
    assert changes is not None
    kind: Any = "search" if number else "baseline"
    return TrialRecord(number, kind, changes, plan.base.seed, state, scores, 20, run=f"{number:04d}", failure="x")


@pytest.fixture(scope="module")
def swept(plan: Callable[..., Plan], ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sweep that goes on when two trials are left, the deaf one and one without numbers; and what it told."""
    folder, events = tmp_path_factory.mktemp("swept") / "sweep", list[Event]()
    folder.mkdir()
    (folder / "sweep.yaml").write_text(plan().dump())
    for record in (
        ended(plan(), 0, "finished", [(10, 1.0), (20, 1.0)]),
        ended(plan(), 1, "finished", [(10, 1.0), (20, 1.0)]),
        ended(plan(), 4, "failed", []),
    ):
        write_trial(str(folder), record)
    began = time.time()
    return {"url": str(folder), "began": began, "events": events} | {
        "records": sweep(plan(), str(folder), on_event=events.append)
    }


def test_asha_stops_a_trial_for_what_others_scored_before_the_sweep_was_interrupted(swept: dict[str, Any]) -> None:
    stopped = swept["records"][2]
    assert stopped.state == "stopped" and stopped.step == 10 and (stopped.score or 0) < 1
    assert read_events(f"{swept['url']}/runs/0002")[-1]["kind"] == "ended"  # in good order, not killed


def test_a_stopped_trial_frees_its_workers_for_the_next(swept: dict[str, Any]) -> None:
    """Each needs all CPUs that there are."""
    first, second = (read_events(f"{swept['url']}/runs/000{number}") for number in (2, 3))
    assert second[0]["kind"] == "started" and second[0]["time"] > first[-1]["time"]
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.5)


def test_a_trial_that_fails_is_named_and_ends_nothing(swept: dict[str, Any]) -> None:
    failed = swept["records"][3]
    assert failed.state == "failed" and "not finite" in failed.failure and "\n" not in failed.failure
    begun = [event["record"].number for event in swept["events"] if event["kind"] == "trial"]
    assert set(begun) == {2, 3}  # the others have ended before


def test_scores_are_those_of_the_probe_in_the_run_s_own_log(swept: dict[str, Any]) -> None:
    logged = [record for record in read_metrics(f"{swept['url']}/runs/0002") if "probe/score" in record]
    assert swept["records"][2].scores == [(record["step"] + 1, record["probe/score"]) for record in logged]


def test_it_leaves_a_table_a_picture_and_a_winner_that_pretrain_takes(swept: dict[str, Any]) -> None:
    folder = Path(swept["url"])
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    states = pq.read_table(folder / "trials.parquet").column("state").to_pylist()
    assert states == ["finished", "finished", "stopped", "failed", "failed"]
    assert "| baseline | finished |" in (folder / "trials.md").read_text()
    winner = load(folder / "winner.yaml")
    assert winner.schedule.learning_rate == 3e-4 and winner.frontend.min_hz == 60 and winner.name == "tiny-winner"
    assert not (folder / "ray").exists()


def test_a_finished_sweep_is_finished_at_once(swept: dict[str, Any], plan: Callable[..., Plan]) -> None:
    events: list[Event] = []
    assert sweep(plan(), swept["url"], on_event=events.append) == swept["records"]
    assert [event["kind"] for event in events] == ["ended"]  # no trial began


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


@pytest.mark.parametrize("key", ["data.url", "init_from"])
def test_shards_and_weights_that_trials_differ_in_are_looked_for_before_anything_starts(
    plan: Callable[..., Plan], tmp_path: Path, key: str
) -> None:
    with pytest.raises(InputError, match=rf"sweep\.space\.{key} 0: .*{tmp_path}/nothing"):
        sweep(plan({"sweep.space": {key: [f"{tmp_path}/nothing", plan().base.data.url]}}), str(tmp_path / "sweep"))
    with pytest.raises(InputError, match=rf"{key}.*{tmp_path}/nothing"):
        sweep(plan({key: f"{tmp_path}/nothing"}), str(tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_relative_paths_that_trials_differ_in_mean_the_same_to_all_and_are_named_on_a_cluster(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial has another working directory than the command."""
    made = plan(
        {"sweep.space": {"data.url": ["shards", "s3://bucket/shards"], RATE: {"low": 1e-4, "high": 1e-3, "levels": 2}}}
    )
    assert _located(made).space["data.url"] == (f"{Path.cwd()}/shards", "s3://bucket/shards")
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    with pytest.raises(InputError, match=r"sweep\.space\.data\.url 0 'shards': a relative path"):
        refuse_relative({key: url for key, url in _urls(made).items() if key.startswith("sweep.space")})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_outlives_storage_that_is_away(
    plan: Callable[..., Plan], ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder lies on an S3 server that hangs up on everybody for 30 s, longer than its client tries by itself."""
    with s3_server(monkeypatch, "sweeps") as (_, port), away(port) as between:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        between.come_back()
        url, events = f"s3://sweeps/away?scheme=http&endpoint_override=127.0.0.1:{between.port}", list[Event]()

        def on_event(event: Event) -> None:
            if event["kind"] == "trial" and event["record"].scores and not any(e["kind"] == "trial" for e in events):
                between.go_away()
                threading.Timer(30, between.come_back).start()
                events.append(event)
            elif event["kind"] == "warning":
                events.append(event)

        records = sweep(
            plan({"sweep.space": {LOWEST: [60.0, 4000.0]}, "sweep.scheduler": "none"}), url, on_event=on_event
        )
        assert [record.state for record in records] == ["finished"] * 3 and read_trials(url) == records
        said = [event["text"] for event in events if event["kind"] == "warning" and "trial" not in event]
        assert "storage does not answer" in said[0] and "storage answers again" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_under_pbt_a_weak_trial_goes_on_from_the_weights_of_one_that_hears(
    plan: Callable[..., Plan], ray_here: None, tmp_path: Path
) -> None:
    """Four trials at the same time, two of them deaf to the tones; compared after every 200 of 1,000 steps."""
    keys = {
        "sweep.scheduler": "pbt", "launch.cpus_per_worker": 1, "schedule.steps": 1000, "probe.every_steps": 200,
        "checkpoint.every_steps": 100, "sweep.grace_steps": 200,
        "sweep.space": {RATE: [3e-4, 1e-3], LOWEST: [60.0, 4000.0]},
    }  # fmt: skip
    *population, baseline = sorted(sweep(plan(keys), str(tmp_path)), key=lambda record: record.kind == "baseline")
    assert baseline.kind == "baseline" and [record.number for record in population] == [1, 2, 3, 4]
    assert all(record.state == "finished" and record.step == 1000 for record in population)
    went_on = [(record, step, source) for record in population for step, source in record.came_from]
    assert went_on
    for record, step, source in went_on:
        assert 0 < step < 1000 and source != record.number
        assert population[source - 1].changes[LOWEST] == 60.0 or population[source - 1].came_from


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
