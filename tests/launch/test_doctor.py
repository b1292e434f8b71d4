"""What `scaleaudio doctor` finds, and that nothing keeps it from an answer."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import s3_server

from scaleaudio.data.index import INDEX_NAME
from scaleaudio.launch.apart import Asked, Finding, examine
from scaleaudio.launch.machine import limits, python
from scaleaudio.launch.nodes import _compared, _names, _relative
from scaleaudio.launch.nodes import ray as of_cluster
from scaleaudio.launch.reach import clock_finding, data, out, witnessed

WELL = [Finding("python", "ok", "", facts={"versions": {"ray": "2.60.0", "torch": "2.11.0"}})]


def doctor(*words: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        [sys.executable, "-m", "scaleaudio", "doctor", *words], capture_output=True, text=True, env=kept | environment
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_a_machine_that_has_all_is_told_so_as_json(shards: Path, tmp_path: Path) -> None:
    code, said, error = doctor(
        "--data", str(shards), "--out", str(tmp_path / "runs" / "a"), "--json", CUDA_VISIBLE_DEVICES=""
    )
    found = {one["check"]: one for one in json.loads(said)}
    assert code == 0, error
    assert found.keys() >= {
        "python",
        "limits",
        "memory",
        "shm",
        "disk",
        "gpu",
        "deepspeed",
        "data",
        "out",
        "clock",
        "ray",
    }
    assert all(one["status"] in ("ok", "warn") and (one["status"] == "ok" or one["fix"]) for one in found.values())
    assert found["data"]["facts"]["shards"] == 2 and found["data"]["facts"]["clips"] == 48
    assert list(tmp_path.iterdir()) == []  # what was written to try is gone, and no folder was made


def test_what_hangs_is_a_line_at_its_deadline(tmp_path: Path) -> None:
    """A FIFO that nobody writes to, in place of the index: to open it waits for ever, as does a dead network mount."""
    os.mkfifo(tmp_path / INDEX_NAME)
    began = time.monotonic()
    (found,) = examine(["scaleaudio.launch.reach:data"], Asked((str(tmp_path),)), seconds=5)
    assert time.monotonic() - began < 15
    assert (found.check, found.status, found.text) == ("data", "fail", "no answer in 5 s") and "hangs" in found.fix


def test_a_check_that_crashes_is_a_line_with_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
    (found,) = examine(["crashing:crash"], Asked())
    assert found.status == "fail" and "the check died (SIGSEGV)" in found.text and found.fix


def test_a_shard_that_is_not_as_indexed_is_named(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    tar = sorted((tmp_path / "copy").glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[:5000])
    (found,) = data(Asked((str(tmp_path / "copy"),)))
    assert found.status == "fail" and f"{tar.name} has 5000 bytes" in found.text and "shards verify" in found.fix
    tar.unlink()
    (found,) = data(Asked((str(tmp_path / "copy"),)))
    assert found.status == "fail" and f"{tar.name} is not there" in found.text


def test_each_source_has_a_line_of_its_own(shards: Path, tmp_path: Path) -> None:
    found = list(data(Asked((str(tmp_path / "none"), str(shards)))))
    assert [one.status for one in found] == ["fail", "ok"] and "no such folder" in found[0].text


@pytest.mark.parametrize("name", ["file", "file/below", "", "https://127.0.0.1/runs", "pipe:cat"])
def test_a_folder_that_cannot_be_written_is_a_failure(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = out(Asked(out=str(tmp_path / name) if name.startswith("file") else name))
    assert found.status == "fail" and "cannot be written" in found.text and "--out" in found.fix


def test_an_object_store_is_written_read_cleared_and_asked_for_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    from scaleaudio.data import storage

    with s3_server(monkeypatch, "bucket"):
        found = {one.check: one for one in out(Asked(out="s3://bucket/runs"))}
        assert storage.list_files("s3://bucket") == []
    assert found["out"].status == "ok" and found["clock"].status == "ok"
    assert abs(found["clock"].facts["skew_seconds"]) < 3


@pytest.mark.parametrize(
    ("skew", "certain_to", "status"),
    [(0.5, 1.0, "ok"), (-2.5, 1.0, "ok"), (4.0, 1.0, "warn"), (-4.0, 3.0, "ok"), (-900.0, 1.0, "fail")],
)
def test_a_clock_is_judged_beyond_what_is_certain(skew: float, certain_to: float, status: str) -> None:
    found = clock_finding(skew, "the other", certain_to)
    assert found.status == status and bool(found.fix) == (status != "ok")


def test_few_open_files_are_warned_of_with_the_command_that_raises_them() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, before[0]), before[1]))
    try:
        (found,) = limits(Asked())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found.status == "warn" and "ulimit -n 65536" in found.fix and found.facts["open_files"] == 1000


def test_the_packages_here_are_those_that_the_program_asks_for() -> None:
    (found,) = python(Asked())
    assert found.status == "ok" and {"python", "ray", "torch", "pyarrow"} <= found.facts["versions"].keys()


def test_the_address_of_the_dashboard_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    (found,) = of_cluster(Asked())
    assert found.status == "fail" and "ray job submit" in found.fix


def test_an_address_where_nobody_answers_is_a_failure_with_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (found,) = examine(["scaleaudio.launch.nodes:ray"], Asked(), seconds=12)
    assert found.status == "fail" and ("127.0.0.1:1" in found.text or "no answer" in found.text) and found.fix


def test_without_an_address_the_cluster_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (found,) = of_cluster(Asked())
    assert found.status == "ok" and "of its own" in found.text


def test_nodes_with_the_same_complaint_share_a_line_and_other_versions_are_named() -> None:
    low = Finding("shm", "warn", "/dev/shm 0.1 of 0.1 GiB free", "more")
    other = [Finding("python", "ok", "", facts={"versions": {"ray": "2.59.0", "torch": "2.11.0"}})]
    nodes = {f"10.0.0.{number}": [*WELL, low] for number in range(5)} | {"10.0.1.1": other, "10.0.1.2": WELL}
    found = list(_compared(nodes, [Finding("node", "fail", "10.0.2.1: no answer", "Look at it")]))
    assert [one.check for one in found] == ["node", "shm", "node", "versions"]
    assert found[1].text == "10.0.0.0, 10.0.0.1, 10.0.0.2 and 2 more: /dev/shm 0.1 of 0.1 GiB free"
    assert found[2].text == "2 of 8 node(s) have all that is asked for"
    assert found[3].status == "fail" and "2.59.0 on 10.0.1.1" in found[3].text and "torch" not in found[3].text


def test_a_folder_of_runs_that_is_not_the_driver_s_is_a_failure(tmp_path: Path) -> None:
    with witnessed(Asked(out=str(tmp_path / "runs" / "a"), seconds=2)) as asked:
        assert asked.witness is not None and Path(asked.witness).parent == tmp_path
        assert next(one.status for one in out(asked) if one.check == "out") != "fail"
        Path(asked.witness).unlink()  # as on a machine with a disk of its own there
        (found,) = out(asked)
    assert found.status == "fail" and "another folder than the driver's" in found.text and "share" in found.fix
    assert list(tmp_path.iterdir()) == []


def test_relative_paths_are_failures_where_each_machine_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    found = _relative(Asked(("shards", "s3://bucket/shards", "/mnt/shards"), "runs/a"))
    assert [(one.check, one.status, one.text.partition(":")[0]) for one in found] == [
        ("data", "fail", "shards"),
        ("out", "fail", "runs/a"),
    ]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that this process asks, and no other node yet."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def found_on(out: str) -> list[Finding]:
    return list(examine(["scaleaudio.launch.nodes:ray"], Asked(out=out, seconds=60), seconds=170))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_on_two_nodes_a_relative_folder_of_runs_is_refused_and_a_shared_one_is_not(
    cluster: Any, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1)
    assert [one.text for one in found_on("runs/a") if one.check == "out"] == [
        "runs/a: a relative path is another folder on each machine"
    ]
    assert [one for one in found_on(str(tmp_path)) if one.status == "fail"] == [] and list(tmp_path.iterdir()) == []


def may_mount() -> bool:
    """Whether this process may give another one mounts of its own."""
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs `unshare --mount`, which root may")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_with_a_disk_of_its_own_at_the_folder_of_runs_is_named(cluster: Any, tmp_path: Path) -> None:
    """The second node is a raylet that has another file system mounted there."""
    ray = Path(sys.executable).with_name("ray")
    start = f"mount -t tmpfs none {tmp_path} && exec {ray} start --address {cluster.address} --num-cpus 1 --block"
    apart = subprocess.Popen(["unshare", "--mount", "sh", "-c", start], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while len(cluster.global_state._live_node_ids()) < 2:
            assert apart.poll() is None and time.monotonic() < end, "the second node did not come"
            time.sleep(0.5)
        found = found_on(str(tmp_path))
        (failure,) = [one for one in found if one.status == "fail"]
        assert failure.check == "out" and "another folder than the driver's" in failure.text
        assert len(failure.facts["nodes"]) == 1 and list(tmp_path.iterdir()) == []
        (both,) = [one.facts["nodes"] for one in found if one.check == "ray"]
        assert len(both) == 2 and failure.facts["nodes"][0] in both
    finally:
        apart.terminate()
        try:
            apart.wait(60)
        finally:
            apart.kill()


def test_several_nodes_of_one_machine_have_a_name_each() -> None:
    nodes = [
        {"NodeID": f"{letter}" * 56, "NodeManagerAddress": f"10.0.0.{last}"} for letter, last in ("a1", "b1", "c2")
    ]
    assert list(_names(nodes).values()) == ["10.0.0.1 (aaaaaaaa)", "10.0.0.1 (bbbbbbbb)", "10.0.0.2"]
