"""What a worker does where it does not see what the driver sees."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from scaleaudio.errors import InputError
from scaleaudio.launch import reach


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as the driver begins it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: a\n")
    return tmp_path / "run"


def test_a_folder_that_is_seen_and_written_is_left_as_it_was(run: Path) -> None:
    with reach.from_this_node(str(run)):
        assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_a_folder_that_only_the_driver_has_is_named_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_SEEN_SECONDS", 0.1)
    named = rf"on node {socket.gethostname()}: the run folder {tmp_path}/run"
    with pytest.raises(InputError, match=named) as refused, reach.from_this_node(str(tmp_path / "run")):
        pytest.fail("it must not come so far")
    assert "every node reaches" in str(refused.value) and not (tmp_path / "run").exists()


def test_data_that_only_the_driver_has_are_named_with_the_node(run: Path) -> None:
    named = r"on node .*data.url .* no such folder.* every node reaches"
    with pytest.raises(InputError, match=named), reach.from_this_node(str(run)):
        raise InputError('data.url "/mnt/shards": no such folder')


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_ends_the_run_at_its_start(run: Path) -> None:
    run.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"), reach.from_this_node(str(run)):
        pass


def test_storage_that_fails_for_a_while_is_tried_again_by_the_next_attempt(run: Path) -> None:
    with pytest.raises(OSError, match=r"on node .*: no answer in 20 s"), reach.from_this_node(str(run)):
        raise OSError("no answer in 20 s")
