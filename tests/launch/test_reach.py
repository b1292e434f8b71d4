"""What a worker does where it does not see what the driver sees."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from servers import away, s3_server

from scaleaudio.data import storage
from scaleaudio.data.patience import Patience
from scaleaudio.errors import InputError
from scaleaudio.launch import reach


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as the driver begins it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: a\n")
    return tmp_path / "run"


def looking(run: Path) -> AbstractContextManager[None]:
    """As the first worker of a machine looks."""
    return reach.from_this_node(str(run), Patience(), first=True)


def test_a_folder_that_is_seen_and_written_is_left_as_it_was(run: Path) -> None:
    with looking(run):
        assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_a_folder_that_only_the_driver_has_is_named_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_SEEN_SECONDS", 0.1)
    named = rf"on node {socket.gethostname()}: the run folder {tmp_path}/run"
    with pytest.raises(InputError, match=named) as refused, looking(tmp_path / "run"):
        pytest.fail("it must not come so far")
    assert "every node reaches" in str(refused.value) and not (tmp_path / "run").exists()


def test_data_that_only_the_driver_has_are_named_with_the_node(run: Path) -> None:
    named = r"on node .*data.url .* no such folder.* every node reaches"
    with pytest.raises(InputError, match=named), looking(run):
        raise InputError('data.url "/mnt/shards": no such folder')


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_ends_the_run_at_its_start(run: Path) -> None:
    run.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"), looking(run):
        pass


def test_storage_that_fails_for_a_while_is_tried_again_by_the_next_attempt(run: Path) -> None:
    with pytest.raises(OSError, match=r"on node .*: no answer in 20 s"), looking(run):
        raise OSError("no answer in 20 s")


def test_the_other_workers_of_a_machine_leave_the_run_folder_alone(tmp_path: Path) -> None:
    with reach.from_this_node(str(tmp_path / "run"), Patience(), first=False):
        assert list(tmp_path.iterdir()) == []
    named = r"on node .*data.url .* no such folder"
    with pytest.raises(InputError, match=named), reach.from_this_node(str(tmp_path), Patience(), first=False):
        raise InputError('data.url "/mnt/shards": no such folder')


@pytest.mark.slow
def test_storage_that_is_away_when_a_worker_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An S3 server that hangs up on everybody for longer than Amazon's client tries by itself (6 s)."""
    with s3_server(monkeypatch, "runs") as (_, port), away(port) as between:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        between.come_back()
        run_url = f"s3://runs/away?scheme=http&endpoint_override=127.0.0.1:{between.port}"
        storage.write_atomic(storage.join(run_url, "config.yaml"), b"name: a")
        between.go_away()
        threading.Timer(9, between.come_back).start()
        failures: list[Exception] = []
        with reach.from_this_node(run_url, Patience(on_failure=failures.append), first=True):
            assert failures
        assert [entry.url.partition("?")[0] for entry in storage.list_entries(run_url)] == [
            "s3://runs/away/config.yaml"
        ]


def test_storage_that_stays_away_is_named_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch, "runs") as (_, port), away(port) as between:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        run_url = f"s3://runs/away?scheme=http&endpoint_override=127.0.0.1:{between.port}"
        patience = Patience(stall_seconds=1, deadline_seconds=1)
        with pytest.raises(OSError, match="on node "), reach.from_this_node(run_url, patience, first=True):
            pytest.fail("it must not come so far")
