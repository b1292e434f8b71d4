"""`ray job submit` to a real `ray start --head`, with a token, a head that trains nothing, and nodes beside it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from scaleaudio import checkpoint
from scaleaudio.report.runlog import read_events, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = str(Path(sys.executable).with_name("ray"))
STEPS = 400


def free_port() -> int:
    """A port below those that the kernel, and Ray too, hand out by themselves: they would take it meanwhile."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@contextlib.contextmanager
def node(words: list[str], environment: dict[str, str], log: Path, within: tuple[str, ...] = ()) -> Iterator[int]:
    """A node of Ray that is up and lives while the block runs; gives the port of its agent."""
    for _ in range(3):  # Ray itself gives up after 30 s, which a busy machine may need
        agent = free_port()
        ports = [f"--{name}={free_port()}" for name in ("metrics-export-port", "dashboard-agent-grpc-port")]
        command = [*within, RAY, "start", "--block", f"--dashboard-agent-listen-port={agent}", *ports, *words]
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, process_group=0)
        try:
            until(lambda: process.poll() is not None or "Ray runtime started" in log.read_text())  # noqa: B023
            if process.poll() is None:
                yield agent
                return
        finally:
            end(process)
    raise AssertionError(f"{' '.join(command)}: {log.read_text()[-3000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it began."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in reversed(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, timeout=20)[1]:
            one.kill()
    process.wait()


@dataclass
class Cluster:
    """A head without CPUs and a node with two, and how to speak to them."""

    gcs: str
    dashboard: int
    agent: int
    environment: dict[str, str]
    folder: Path

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [RAY, *words]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=self.folder)

    def submit(self, *words: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir .` of a run of tiny.yaml, which is in that folder."""
        how = [] if wait else ["--no-wait"]
        return self.ray("job", "submit", "--working-dir", ".", *how, "--", *PRETRAIN, *words)


def complaints(printed: str) -> set[str]:
    """What the program said was wrong; Ray repeats the end of a failed job's log."""
    return {line for line in printed.splitlines() if line.startswith("scaleaudio: ")}


PRETRAIN = ["python", "-m", "scaleaudio", "pretrain", "tiny.yaml"]


def until(true: Callable[[], Any], seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.5)
    raise AssertionError("waited in vain")


@pytest.fixture(scope="module")
def cluster(tiny_tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("job")
    tree = tiny_tree | {"schedule": {"steps": STEPS, "warmup_steps": 4}, "checkpoint": {"every_steps": 100_000}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets lie below it, and their names may not be long
    gcs, dashboard = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    starting = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    head = ["--head", f"--port={gcs}", "--num-cpus=0", f"--temp-dir={short}", f"--dashboard-port={dashboard}"]
    head += [f"--ray-client-server-port={free_port()}"]
    try:
        worker = [f"--address=127.0.0.1:{gcs}", "--num-cpus=2"]
        with node(head, starting, folder / "head.log") as agent, node(worker, starting, folder / "node.log"):
            yield Cluster(f"127.0.0.1:{gcs}", dashboard, agent, environment, folder)
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _answer(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_probes_of_the_manifests_are_answered_without_a_token_and_jobs_are_not(cluster: Cluster) -> None:
    head = f"http://127.0.0.1:{cluster.dashboard}/api/gcs_healthz"
    assert until(lambda: _answer(head)) == 200
    agent = f"http://127.0.0.1:{cluster.agent}/api/local_raylet_healthz"  # which starts after the head
    assert until(lambda: _answer(agent)) == 200
    assert _answer(f"http://127.0.0.1:{cluster.dashboard}/api/jobs/") == 401


def test_wrong_input_fails_the_job_with_one_line_in_its_log(cluster: Cluster) -> None:
    """The default run folder is a relative path, which in a job would be another folder on each machine."""
    ended = cluster.submit()
    assert ended.returncode != 0
    (line,) = complaints(ended.stdout)
    assert "the run folder 'runs/tiny': a relative path means another folder on each machine" in line
    assert "Traceback" not in ended.stdout


def test_a_stopped_job_leaves_a_checkpoint_from_which_the_next_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    begun = cluster.submit("--out", run, wait=False)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    name = next(word.strip("'") for word in begun.stdout.split() if word.strip("'").startswith("raysubmit_"))
    until(lambda: (Path(run) / "metrics.jsonl").exists() and len(read_metrics(run)) > 3)

    stopped = cluster.ray("job", "stop", name)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "was stopped" in cluster.ray("job", "status", name).stdout
    (url,) = checkpoint.list_checkpoints(run)
    step = checkpoint.step_of(url)
    assert 0 < step < STEPS
    log = cluster.ray("job", "logs", name).stdout
    assert f"stopped; the same command goes on at step {step}: {run}" in log
    assert "2 worker(s) ready after" in log and "stopping: a checkpoint is written first" in log
    ours = log.partition("Running entrypoint")[2]  # Ray's own lines before it have colours
    assert max(map(len, ours.splitlines())) < 250 and "\x1b[" not in ours and "Traceback" not in ours

    ended = cluster.submit("--out", run)
    assert ended.returncode == 0, ended.stdout
    assert f"the run goes on at step {step}" in ended.stdout and f"finished at step {STEPS}: {run}" in ended.stdout
    assert [event["step"] for event in read_events(run) if event["kind"] == "started"] == [0, step]
    assert [record["step"] for record in read_metrics(run)] == list(range(1, STEPS, 2))


@pytest.fixture
def blind(cluster: Cluster, shards: Path, tmp_path: Path) -> Iterator[Path]:
    """A node more, on which `tmp_path` and the shards are empty folders; gives the log of it."""
    hide = f'mount -t tmpfs tmpfs {tmp_path} && mount -t tmpfs tmpfs {shards} && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", hide, "sh", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to a mount namespace")
    starting = {name: value for name, value in cluster.environment.items() if name != "RAY_ADDRESS"}
    log = cluster.folder / "blind.log"
    within = ("unshare", "-m", "sh", "-c", hide, "sh")
    with node([f"--address={cluster.gcs}", "--num-cpus=2"], starting, log, within):
        yield log


def test_a_node_that_does_not_see_the_data_is_named_by_the_run_and_by_doctor(
    cluster: Cluster, blind: Path, shards: Path, tmp_path: Path
) -> None:
    ended = cluster.submit("launch.workers=4", "--out", str(tmp_path / "run"))
    assert ended.returncode != 0
    (line,) = complaints(ended.stdout)
    assert f"on node {socket.gethostname()}: " in line and "paths that every node reaches" in line
    assert "the run folder" in line or f'data.url "{shards}"' in line

    words = ["doctor", "--data", str(shards), "--out", str(tmp_path), "--json"]
    asked = [sys.executable, "-m", "scaleaudio", *words]
    environment = cluster.environment | {"RAY_ADDRESS": cluster.gcs}
    told = subprocess.run(asked, capture_output=True, text=True, env=environment)
    found = json.loads(told.stdout)
    assert told.returncode == 1
    assert any(one["check"] == "ray" and "3 node(s)" in one["text"] for one in found), found
    (failed,) = (one for one in found if one["status"] == "fail")
    assert failed["check"] == "data" and f'data.url "{shards}"' in failed["text"] and len(failed["facts"]["nodes"]) == 1
