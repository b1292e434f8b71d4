"""Shards built over a cluster are those of one machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from scaleaudio.data import storage
from scaleaudio.data.build import BuildConfig
from scaleaudio.data.build import build as build_here
from scaleaudio.launch.shards import build

pytestmark = pytest.mark.usefixtures("ray_here")
FEW = BuildConfig(num_workers=0, min_shards=2)  # each task that builds starts a process, which takes seconds
MANY = BuildConfig(num_workers=0, shard_samples=4)


@pytest.fixture(scope="module")
def audio(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The clips, and a file that is no audio."""
    folder = tmp_path_factory.mktemp("audio") / "audio"
    shutil.copytree(clips, folder)
    (folder / "clip07x.wav").write_text("not audio")
    return str(folder)


def contents(out: str) -> dict[str, bytes]:
    return {url.removeprefix(out): storage.read_bytes(url) for url in storage.list_files(out)}


def test_a_build_over_ray_is_bit_for_bit_that_of_one_machine(audio: str, tmp_path: Path) -> None:
    here, out = str(tmp_path / "here"), str(tmp_path / "out")
    done = build(audio, out, FEW)
    assert done == build_here(audio, here, FEW) and (done.accepted, done.rejected, done.shards) == (48, 1, 2)
    assert contents(out) == contents(here)


@pytest.mark.slow
def test_a_build_over_ray_killed_midway_goes_on_and_ends_the_same(audio: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "scaleaudio", "shards", "build", audio, str(out), "shard_samples=4", "--ray"]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    job = subprocess.Popen(command, env=environment, start_new_session=True)
    while not (done := list(out.glob(".build/unit-*.json"))) and job.poll() is None:
        time.sleep(0.002)
    os.killpg(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL and done and not (out / "index.parquet").exists()
    time.sleep(1.0)  # its tasks are ended by Ray
    first = out / f"shard-{done[0].stem.removeprefix('unit-')}-00.tar"
    before = first.stat().st_mtime_ns
    assert build(audio, str(out), MANY) == build_here(audio, str(tmp_path / "here"), MANY)
    assert first.stat().st_mtime_ns == before and contents(str(out)) == contents(str(tmp_path / "here"))
