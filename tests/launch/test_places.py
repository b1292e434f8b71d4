"""How much room is found for workers, how soon, and that it is not cut short while more still comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group

from scaleaudio.launch import places
from scaleaudio.launch.places import Grower, Places, await_places

pytestmark = pytest.mark.usefixtures("ray_here")
ONE = {"CPU": 1.0}


@pytest.fixture
def held() -> Iterator[list[Any]]:
    """Two of the four CPUs, held by somebody else."""
    groups = [placement_group([ONE]) for _ in range(2)]
    assert all(group.wait(10) for group in groups)
    yield groups
    for group in groups:
        remove_placement_group(group)
    wait_for_cpus(4)


def wait_for_cpus(number: int) -> None:
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < number:
        assert time.monotonic() < end
        time.sleep(0.05)


def found(fewest: int, most: int, *, ran_before: bool = True, wait_seconds: float = 60.0) -> tuple[int, float]:
    """How many, and after how many seconds."""
    began = time.monotonic()
    number = await_places(
        ONE, fewest, most, ran_before=ran_before, wait_seconds=wait_seconds, on_wait=lambda ready: True
    )
    took = time.monotonic() - began
    return number, took


def test_a_thousand_places_are_had_as_one_group_and_given_back() -> None:
    wait_for_cpus(4)
    before = len(placement_group_table())
    told = {"fewest": 1, "most": 1000, "wait_seconds": 60.0, "on_wait": lambda ready: True}
    assert await_places({"CPU": 0.004}, ran_before=True, **told) == 1000
    assert len(placement_group_table()) < before + 10
    wait_for_cpus(4)


def test_after_a_fault_nobody_waits_for_more_than_the_machines_have() -> None:
    wait_for_cpus(4)
    number, took = found(1, 6)
    assert number == 4 and took < 5


def test_at_the_start_machines_that_join_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_GATHER_SECONDS", 3.0)
    wait_for_cpus(4)
    number, took = found(1, 6, ran_before=False)
    assert number == 4 and 3 < took < 15


def test_what_others_hold_is_waited_for_until_nothing_new_has_come(
    held: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_REGATHER_SECONDS", 2.0)
    number, took = found(1, 4)
    assert number == 2 and 2 < took < 10


def test_while_places_still_come_the_search_goes_on(held: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both come later than the first was waited for, and each sooner than that after the one before it."""
    monkeypatch.setattr(places, "_REGATHER_SECONDS", 4.0)
    timers = [threading.Timer(2.5 * (1 + at), remove_placement_group, [group]) for at, group in enumerate(held)]
    for timer in timers:
        timer.start()
    number, took = found(1, 4)
    assert number == 4 and took > 5


def test_too_few_are_none_once_the_time_is_over(held: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_REGATHER_SECONDS", 0.5)
    number, took = found(3, 4, wait_seconds=1.5)
    assert number == 0 and took < 10
    wait_for_cpus(2)


def test_a_group_for_which_there_is_no_room_comes_down_to_the_places_that_there_are(held: list[Any]) -> None:
    asked, end = Places(ONE), time.monotonic() + 20
    asked.ask(7)
    while asked.num_ready() < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    asked.ask(7)  # more are not asked for
    asked.release()
    wait_for_cpus(2)


def test_room_for_one_of_many_that_are_missing_is_seen(held: list[Any]) -> None:
    class Asked:
        def __init__(self) -> None:
            self.reasons: list[str] = []

        def request_stop(self, reason: str) -> None:
            self.reasons.append(reason)

        def told(self) -> list[str]:
            return self.reasons

    monitor: Any = ray.remote(Asked).options(num_cpus=0).remote()
    grower, end = Grower(monitor, ONE, 5, 0.0), time.monotonic() + 30
    while not ray.get(monitor.told.remote()):
        assert time.monotonic() < end
        grower.look()
        time.sleep(0.1)
    grower.close()
    assert ray.get(monitor.told.remote()) == ["resize"]
