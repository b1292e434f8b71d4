"""Faults while a run goes on: killed workers, losses that are not finite, full disks, unusable data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaleaudio import checkpoint
from scaleaudio.config import Config
from scaleaudio.errors import RunFailed
from scaleaudio.launch.monitor import Event
from scaleaudio.launch.pretrain import pretrain
from scaleaudio.report.runlog import read_events, read_metrics
from scaleaudio.train import PlainEngine, fit

pytestmark = pytest.mark.usefixtures("ray_here")
ALONE = {"launch.workers": 1, "launch.engine": "plain", "frontend.mean": -8.0, "frontend.std": 4.0}


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

    config = tiny({"frontend.mean": -8.0, "frontend.std": 4.0, "checkpoint.keep_last": 100})
    outcome = pretrain(config, run_url, on_event=kill)

    assert outcome.finished and len(killed) == 1
    first, second = started(run_url)
    committed = {event["step"] for event in read_events(run_url) if event["kind"] == "checkpoint"}
    assert first == 0 and 0 < second < config.schedule.steps and second in committed
    logged = {record["step"]: record["loss"] for record in read_metrics(run_url)}
    expected = losses(config)
    assert list(logged) == list(range(1, 60, 2))
    assert [logged[step] for step in logged] == pytest.approx([expected[step] for step in logged], rel=2e-3)


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
