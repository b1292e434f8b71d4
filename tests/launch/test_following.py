"""The driver's ears: what the caller's own functions raise is not lost, and a stop is heard while the driver waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from scaleaudio.config import Config
from scaleaudio.launch.attempts import _Attempts
from scaleaudio.launch.following import Ears, following
from scaleaudio.launch.monitor import Event, Monitor
from scaleaudio.report.runlog import read_events


@pytest.fixture
def monitor(ray_here: None) -> Any:
    return ray.remote(Monitor).options(num_cpus=0).remote()


def post(monitor: Any, *steps: int) -> None:
    ray.get([monitor.post.remote({"kind": "checkpoint", "step": step}) for step in steps])


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_the_caller_raises_over_an_event_stops_the_run_and_reaches_the_caller(monitor: Any) -> None:
    """The events after it are heard all the same: the driver's own account of the run depends on them."""
    heard: list[int] = []

    def on_event(event: Event) -> None:
        heard.append(event["step"])
        if event["step"] == 1:
            raise KeyError("my own mistake")

    def run() -> None:
        with following(monitor, on_event) as ears:
            post(monitor, 1, 2)
            wait_for(lambda: ears.stop_reason is not None)
            post(monitor, 3)
            assert ray.get(monitor.stop_requested.remote()) == "asked"

    with pytest.raises(KeyError, match="my own mistake"):
        run()
    assert heard == [1, 2, 3]


def test_what_the_caller_raises_when_asked_for_a_stop_reaches_the_caller(monitor: Any) -> None:
    def stop_asked() -> bool:
        raise KeyError("my own mistake")

    with (
        pytest.raises(KeyError, match="my own mistake"),
        following(monitor, lambda event: None, stop_asked) as ears,
    ):
        wait_for(lambda: ears.stop_reason is not None)


@pytest.fixture
def struck(tiny: Callable[..., Config], monitor: Any, tmp_path: Path) -> _Attempts:
    """A run after three faults in a row, of eleven that it may have."""
    settings = {"monitor": monitor, "run_url": str(tmp_path), "began": time.time(), "driver_lost": None}
    run = _Attempts(tiny({"launch.max_failures": 10}), (1, False), settings, lambda event: None)
    run._num_failed = 3
    return run


def test_a_stop_ends_the_pause_between_two_attempts(struck: _Attempts, monitor: Any) -> None:
    """A pause of more than 40 s; and none of the workers that there is room for is started then."""
    began = time.monotonic()
    with following(monitor, struck.on_event, lambda: time.monotonic() > began + 1) as ears:
        fault = struck._struck(OSError("no answer"), ears)
        assert fault is not None and fault.name == "storage" and 1 < time.monotonic() - began < 20
        assert struck.to_the_end(ears)["reason"] == "asked"
    (said, ended) = read_events(struck._settings["run_url"])
    assert said["kind"] == "fault" and ended["kind"] == "ended" and ended["reason"] == "asked"


def test_a_pause_that_nobody_ends_lasts_its_time(monitor: Any) -> None:
    ears, began = Ears(monitor, lambda event: None, lambda: False), time.monotonic()
    ears.wait(0.5)
    assert time.monotonic() - began >= 0.5
