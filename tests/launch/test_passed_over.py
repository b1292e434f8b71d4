"""A run whose last steps are passed over ends like any other: one worker's part of it, without its process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from scaleaudio import checkpoint
from scaleaudio.config import Config
from scaleaudio.launch.lease import Lease
from scaleaudio.launch.monitor import Monitor
from scaleaudio.launch.stop import Back
from scaleaudio.launch.watchdog import Watchdog
from scaleaudio.launch.worker import _Run
from scaleaudio.report.runlog import read_events, read_metrics
from scaleaudio.train import PlainEngine

BAD = 6
RARE = {"launch.report_every_steps": 50, "checkpoint.every_steps": 50, "launch.not_finite": "skip"}


@pytest.fixture
def make(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Config]:
    """A run of so many steps, of which the one numbered BAD is not finite."""
    monkeypatch.syspath_prepend(str(Path.cwd()))
    brittle = {"negatives": {"kind": "tests.support.brittle:Brittle", "options": {"at": BAD}}}
    measured = {"frontend.mean": -8.0, "frontend.std": 4.0}
    return lambda steps: tiny(RARE | brittle | measured | {"schedule.steps": steps})


def train(config: Config, run_url: str, skip: list[int], fault: dict[str, Any] | None = None) -> _Run:
    """The worker's part, from the newest checkpoint on; it has ended when this returns."""
    lease = Lease(run_url)
    lease.take()
    settings = {"run_url": run_url, "config": config.model_dump(mode="json"), "skip": skip, "stop_at": None}
    settings |= {"monitor": ray.remote(Monitor).options(num_cpus=0).remote(), "lease": lease.url}
    watchdog = Watchdog(600, on_hang=lambda told: None, on_beat=lambda step: None)
    stream = config.build_stream()
    run = _Run(config, settings, PlainEngine(config.build(), config.optimizer), stream, watchdog)
    step = run.resume()
    run.back = Back(fault, step, time.time(), time.time())
    run.end(run.train(step))
    stream.close()
    run.close()
    watchdog.close()
    lease.release()
    return run


def test_a_run_whose_last_step_is_passed_over_is_reported_scored_and_finished(
    ray_here: None, make: Callable[[int], Config], clips: Path, tmp_path: Path
) -> None:
    config = make(BAD + 1)
    config = config.model_copy(update={"probe": config.probe.model_copy(update={"tasks": (f"{clips}:pitch",)})})
    run_url = str(tmp_path / "run")
    assert train(config, run_url, [BAD]).step == BAD + 1
    found = checkpoint.newest(run_url)
    assert found is not None and found[0].step == BAD + 1
    assert all(bool(tensor.isfinite().all()) for tensor in found[1].values())
    logged = read_metrics(run_url)
    assert [record["step"] for record in logged if "loss" in record] == [BAD - 1]
    assert [record["probe/score"] for record in logged if "probe/score" in record] == [found[0].score]
    ended = read_events(run_url)[-1]
    assert (ended["kind"], ended["step"], ended["failure"], ended["reason"]) == ("ended", BAD + 1, None, None)


def test_a_step_that_is_not_finite_before_a_last_one_passed_over_reaches_no_checkpoint(
    ray_here: None, make: Callable[[int], Config], tmp_path: Path
) -> None:
    run = train(make(BAD + 2), str(tmp_path / "run"), [BAD + 1])
    assert (run._stop.reason, run._stop.skip_step) == ("not_finite", BAD)
    assert checkpoint.list_checkpoints(str(tmp_path / "run")) == []


def test_a_run_that_has_only_the_step_left_that_is_passed_over_tells_that_it_recovered(
    ray_here: None, make: Callable[[int], Config], tmp_path: Path
) -> None:
    run_url = str(tmp_path / "run")
    longer = make(BAD + 1).model_copy(update={"schedule": make(BAD).schedule})
    train(longer, run_url, [])
    now = time.time()
    fault = {"name": "not_finite", "what": "x", "step": BAD, "at": now, "noticed_at": now, "found_at": now}
    train(make(BAD + 1), run_url, [BAD], fault)
    told = [(event["kind"], event["step"]) for event in read_events(run_url)]
    assert told[-3:] == [("recovery", BAD), ("checkpoint", BAD + 1), ("ended", BAD + 1)]
