"""Contenders take turns fairly, and one in another process says why it failed."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from scaleaudio.bench.turns import Elsewhere, Spread, Timing, Turn, clocked, ratio, take_turns


def test_every_contender_has_a_turn_a_round_and_each_begins_some_of_them() -> None:
    called: list[tuple[str, int]] = []

    def turn(name: str) -> Turn:
        def take(number: int) -> Timing:
            called.append((name, number))
            return Timing(1.0, float(number))

        return take

    timings = take_turns({name: turn(name) for name in "abc"}, 4, warm_up=2)
    assert [[name for name, number in called if number == n] for n in range(3)] == [
        list("abc"),
        list("bca"),
        list("cab"),
    ]
    assert [timing.cpu for timing in timings["a"]] == [2, 3, 4, 5]


def test_no_round_begins_after_the_time_is_over() -> None:
    timings = take_turns({"a": lambda number: Timing(1, 1), "b": lambda number: Timing(1, 1)}, 50, max_seconds=0)
    assert [len(own) for own in timings.values()] == [1, 1]


def test_a_ratio_is_taken_within_rounds_so_that_a_slow_round_does_not_show() -> None:
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Spread(2.0, 2.0, 2.0)


def test_sleeping_takes_the_clock_and_not_the_processor() -> None:
    import time

    found = clocked(lambda: time.sleep(0.2))
    assert found.wall >= 0.2 and found.cpu < 0.1


def counting(start: int) -> Turn:
    if start < 0:
        raise ValueError("start: expected 0 or more")
    return lambda number: Timing(start + number, 0.0)


def test_a_contender_that_is_killed_is_missed_and_one_may_tell_other_things_than_times() -> None:
    with closing(Elsewhere(telling, 10)) as one:
        one.ask(3)
        assert one.answer() == {"told": 13}
        one._process.kill()
        with pytest.raises(RuntimeError, match="its process ended with -9"):
            one(3)


def telling(start: int) -> Any:
    return lambda number: {"told": start + number}


def test_a_contender_elsewhere_takes_its_turns_there_and_says_why_it_fails() -> None:
    with closing(Elsewhere(counting, 10)) as one, closing(Elsewhere(counting, -1)) as other:
        assert one(3) == Timing(13, 0.0)
        with pytest.raises(RuntimeError, match="ValueError: start: expected 0"):
            other(0)
