"""Faults while a run goes on: killed workers, losses that are not finite, full disks, unusable data."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers import away, s3_server

from scaleaudio import checkpoint
from scaleaudio.config import Config
from scaleaudio.errors import RunFailed
from scaleaudio.launch.monitor import Event
from scaleaudio.launch.pretrain import pretrain
from scaleaudio.report.runlog import read_events, read_metrics
from scaleaudio.train import PlainEngine, fit

pytestmark = pytest.mark.usefixtures("ray_here")
MEASURED = {"frontend.mean": -8.0, "frontend.std": 4.0}
ALONE = {"launch.workers": 1, "launch.engine": "plain"} | MEASURED


def started(run_url: str) -> list[int]:
    return [event["step"] for event in read_events(run_url) if event["kind"] == "started"]


def workers() -> list[psutil.Process]:
    """The processes of this Ray that train at the moment."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("RayTrainWorker" in word for word in child.cmdline())]


def test_a_killed_worker_costs_only_the_steps_since_the_last_checkpoint(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    """Two workers, one of them killed with signal 9; the losses are those of one plain engine never disturbed."""
    run_url, killed = str(tmp_path / "run"), []

    def kill(event: Event) -> None:
        if event["kind"] == "checkpoint" and not killed:
            killed.append(workers()[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    config = tiny(MEASURED | {"checkpoint.keep_last": 100})
    outcome = pretrain(config, run_url, on_event=kill)

    assert outcome.finished and len(killed) == 1
    first, second = started(run_url)
    committed = {event["step"] for event in read_events(run_url) if event["kind"] == "checkpoint"}
    assert first == 0 and 0 < second < config.schedule.steps and second in committed
    logged = {record["step"]: record["loss"] for record in read_metrics(run_url)}
    expected = losses(config)
    assert list(logged) == list(range(1, 60, 2))
    assert [logged[step] for step in logged] == pytest.approx([expected[step] for step in logged], rel=2e-3)
    struck, went_on = of_kind(run_url, "fault"), of_kind(run_url, "recovery")
    assert [event["fault"] for event in (*struck, *went_on)] == ["worker", "worker"]
    assert f"pid {killed[0]}" in struck[0]["what"] and first < struck[0]["step"]
    assert went_on[0]["step"] == second and went_on[0]["lost_steps"] == max(0, struck[0]["step"] - second)
    assert "noticed" in went_on[0]["breakdown"] and went_on[0]["time"] > struck[0]["time"]


def of_kind(run_url: str, kind: str) -> list[Event]:
    return [event for event in read_events(run_url) if event["kind"] == kind]


def losses(config: Config) -> list[float]:
    """The losses of every step, without Ray or DeepSpeed."""
    stream = config.build_stream()
    engine = PlainEngine(config.build(), config.optimizer)
    values = [report.metrics()["loss"] for report in fit(engine, stream.batches())]
    stream.close()
    return values


def test_a_loss_that_is_not_finite_ends_the_run_by_its_step_and_clips(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    """Reports and checkpoints are rarer than the fault, which is in the second step and does not reach the disk."""
    wild = {"schedule.learning_rate": 1e30, "schedule.warmup_steps": 0, "launch.report_every_steps": 20}
    with pytest.raises(RunFailed, match=r"step 1: .*not finite.*clip\d\d, .*schedule.learning_rate"):
        pretrain(tiny(ALONE | wild | {"checkpoint.every_steps": 7}), str(tmp_path / "run"))
    assert [event["step"] for event in of_kind(str(tmp_path / "run"), "fault")] == [1]
    assert started(str(tmp_path / "run")) == [0]
    assert checkpoint.list_checkpoints(str(tmp_path / "run")) == []


def test_a_run_folder_that_cannot_be_written_ends_the_run(tiny: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run"):
        pretrain(tiny(ALONE), str(tmp_path / "file" / "run"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for the first files of a run, and not for a checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mount refused: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_and_leaves_the_last_checkpoint_whole(
    tiny: Callable[..., Config], full_disk: Path
) -> None:
    """With one attempt alone: another would find no more room."""
    subprocess.run(["mount", "-o", "remount,size=1m", str(full_disk)], check=True)
    run_url, told = str(full_disk / "run"), list[Event]()
    every = {"checkpoint.every_steps": 1, "checkpoint.keep_last": 1000}
    with pytest.raises(RunFailed, match="No space left"):
        pretrain(tiny(ALONE | every), run_url, on_event=told.append)
    written = [event["step"] for event in told if event["kind"] == "checkpoint"]
    found = checkpoint.newest(run_url)
    assert found is not None and found[0].step == written[-1] > 0 and found[2] == []
    assert [event["fault"] for event in told if event["kind"] == "fault"] == ["disk_full"]
    assert [event["kind"] for event in told].count("started") == 1


@pytest.mark.slow
def test_a_frozen_worker_is_given_up_and_the_run_goes_on(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """One of two is stopped as a debugger would; the other waits for it in a collective, until its deadline."""
    run_url, frozen = str(tmp_path / "run"), list[int]()

    def freeze(event: Event) -> None:
        if event["kind"] == "checkpoint" and not frozen:
            frozen.append(workers()[-1].pid)
            os.kill(frozen[0], signal.SIGSTOP)

    patience = {"launch.hang_seconds": 60, "checkpoint.patience_seconds": 25}
    try:
        outcome = pretrain(tiny(MEASURED | patience), run_url, on_event=freeze)
    finally:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert outcome.finished
    (struck,) = of_kind(run_url, "fault")
    assert struck["fault"] == "hung" and "made no step for 6" in struck["what"] and "it was in" in struck["what"]
    assert [event["fault"] for event in of_kind(run_url, "recovery")] == ["hung"]


@pytest.mark.slow
def test_a_torn_newest_checkpoint_costs_its_steps_and_is_told(tiny: Callable[..., Config], tmp_path: Path) -> None:
    run_url, config = str(tmp_path / "run"), tiny(ALONE | {"schedule.steps": 10, "checkpoint.keep_last": 9})
    assert pretrain(config, run_url).finished
    part = next(Path(checkpoint.list_checkpoints(run_url)[-1]).glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1])
    assert pretrain(config, run_url).finished
    assert started(run_url) == [0, 5]
    (told,) = of_kind(run_url, "fault")
    assert told["fault"] == "torn_checkpoint" and told["step"] == 5
    assert "step-00000010: torn checkpoint passed over" in told["what"] and "step 5 is used instead" in told["what"]
    found = checkpoint.newest(run_url)
    assert found is not None and found[0].step == 10 and found[2] == []


@pytest.mark.slow
@pytest.mark.parametrize("bad", [3, 5])
def test_a_step_that_is_not_finite_is_passed_over_where_the_rule_says_so(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """One of six steps goes wrong, in the middle or at the end; the others are taken, each once."""
    monkeypatch.syspath_prepend(str(Path.cwd()))  # where workers look too
    run_url = str(tmp_path / "run")
    rule = {"launch.not_finite": "skip", "launch.report_every_steps": 1, "checkpoint.every_steps": 1}
    brittle = {"negatives": {"kind": "tests.support.brittle:Brittle", "options": {"at": bad}}, "schedule.steps": 6}
    assert pretrain(tiny(ALONE | rule | brittle), run_url).finished
    (struck,) = of_kind(run_url, "fault")
    assert struck["fault"] == "not_finite" and re.search(rf"step {bad}: .*clip\d\d", struck["what"])
    assert [record["step"] for record in read_metrics(run_url)] == [step for step in range(6) if step != bad]
    found = checkpoint.newest(run_url)
    assert found is not None and found[0].step == 6
    assert all(bool(tensor.isfinite().all()) for tensor in found[1].values())


@pytest.mark.slow
def test_storage_that_is_away_for_a_while_is_waited_for_by_the_whole_run(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folder lies on an S3 server that hangs up on everybody for ten seconds after the first checkpoint."""
    with s3_server(monkeypatch, "runs") as (_, port), away(port) as between:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        between.come_back()
        run_url, gone = f"s3://runs/away?scheme=http&endpoint_override=127.0.0.1:{between.port}", list[float]()

        def go_away(event: Event) -> None:
            if event["kind"] == "checkpoint" and not gone:
                gone.append(time.monotonic())
                between.go_away()
                threading.Timer(10, between.come_back).start()

        assert pretrain(tiny(MEASURED), run_url, on_event=go_away).finished
        assert time.monotonic() - gone[0] > 10
        assert of_kind(run_url, "fault") == [] and started(run_url) == [0]
        assert [record["step"] for record in read_metrics(run_url)] == list(range(1, 60, 2))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line(tiny: Callable[..., Config], full_disk: Path) -> None:
    with pytest.raises(RunFailed, match="No space left") as failed:
        pretrain(tiny(ALONE | {"launch.max_failures": 0}), str(full_disk / "run"))
    assert "\n" not in str(failed.value)


@pytest.mark.slow
def test_unusable_data_ends_the_run_without_further_attempts(
    tiny: Callable[..., Config], shards: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    for tar in broken.rglob("*.tar"):
        data = tar.read_bytes()
        tar.write_bytes(data.replace(b"fLaC", b"NOPE"))
    events: list[dict[str, Any]] = []
    with pytest.raises(RunFailed, match=r"other clips could be used .* scaleaudio shards verify"):
        pretrain(tiny(ALONE | {"data.url": str(broken)}), str(tmp_path / "run"), on_event=events.append)
    assert [event["kind"] for event in events].count("ended") == 1
    assert len(started(str(tmp_path / "run"))) == 1
