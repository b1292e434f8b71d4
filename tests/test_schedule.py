"""Learning rate, ramp and momentum at every step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from pydantic import ValidationError

from scaleaudio.schedule import ScheduleConfig, ema_momentum, learning_rate, ramp

CONFIG = ScheduleConfig(steps=100, warmup_steps=10, learning_rate=0.5, final_learning_rate=0.1, ramp_steps=8)


def test_the_learning_rate_warms_up_linearly_and_never_starts_at_zero() -> None:
    assert [learning_rate(step, CONFIG) for step in range(10)] == pytest.approx([0.05 * (n + 1) for n in range(10)])


def test_after_the_warm_up_the_learning_rate_falls_by_half_a_cosine() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(10, 101)]
    assert rates[0] == 0.5 and rates[45] == pytest.approx(0.3) and rates[90] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[0] - rates[1] < rates[44] - rates[45]  # flat at the start: no straight line


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(0, ScheduleConfig(steps=5, warmup_steps=0, learning_rate=0.5)) == 0.5


def test_the_momentum_rises_from_its_first_to_its_last_value() -> None:
    values = [ema_momentum(step, CONFIG) for step in range(101)]
    assert values[0] == 0.99 and values[50] == pytest.approx(0.995) and values[100] == 1.0
    assert values == sorted(values)


def test_the_ramp_rises_to_one_and_stays() -> None:
    assert [ramp(step, CONFIG) for step in (0, 2, 4, 8, 9, 1000)] == [0.0, 0.25, 0.5, 1.0, 1.0, 1.0]


def test_no_ramp_is_full_strength_at_once() -> None:
    assert ramp(0, ScheduleConfig(ramp_steps=0)) == 1.0


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"warmup_steps 100: expected fewer than steps \(100\)"):
        ScheduleConfig(steps=100, warmup_steps=100)
