"""Which Ray a run gets, and what it may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from scaleaudio.config import Config, LaunchConfig
from scaleaudio.errors import InputError
from scaleaudio.launch.cluster import _fitting, cluster, refuse_relative, workers
from scaleaudio.launch.pretrain import pretrain

pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.fixture(autouse=True)
def no_cluster_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_ray_that_is_there_is_used_and_left_running() -> None:
    before = ray.get_runtime_context().get_job_id()
    with cluster(LaunchConfig()):
        assert ray.get_runtime_context().get_job_id() == before
    assert ray.is_initialized() and ray.get_runtime_context().get_job_id() == before


def test_auto_is_one_worker_where_there_is_no_gpu() -> None:
    assert workers(LaunchConfig(), 4) == (1, False)


def test_a_machine_has_room_for_as_many_workers_as_its_cores_divide_into() -> None:
    machines = [{"Resources": {"CPU": cores}} for cores in (33.0, 3.2, 1.0)]
    assert _fitting({"CPU": 1.1}, machines) == 30 + 2  # 33 / 1.1 is a little less than 30 in floats


def test_more_workers_than_this_machine_serves_are_refused_instead_of_waited_for() -> None:
    with pytest.raises(InputError, match=r"launch.workers 99: they need 99 CPU, Ray has 4 here"):
        workers(LaunchConfig(workers=99), 240)


def test_a_cluster_elsewhere_may_still_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:10001")
    assert workers(LaunchConfig(workers=99), 240) == (99, False)


def test_fewer_lanes_than_workers_are_refused(tiny: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.lanes 1: 2 workers need"):
        pretrain(tiny({"data.lanes": 1}), str(tmp_path / "run"))


def test_relative_paths_are_refused_in_a_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_relative({"data.url": "shards", "the run folder": "runs/a"})
    monkeypatch.setenv("RAY_JOB_ID", "1")
    refuse_relative({"data.url": "s3://bucket/shards", "the run folder": "/shared/runs/a"})
    with pytest.raises(InputError, match=r"data.url 'shards': a relative path"):
        refuse_relative({"data.url": "shards"})
