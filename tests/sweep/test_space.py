"""A space of changes: what is drawn stays in it, and the same number is the same point."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleaudio.sweep.space import Range, corners, grid, perturb, points
from scaleaudio.types import Settings

SPACE: dict[str, Range | tuple[Any, ...]] = {
    "negatives.time_strength": Range(low=0.1, high=0.4),
    "schedule.learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "negatives.num_candidates": Range(low=1, high=8, integer=True),
    "encoder.widths": ([8, 16], [16, 32]),
}


def inside(changes: dict[str, Any]) -> bool:
    assert changes.keys() == SPACE.keys()
    return all(
        values.low <= changes[key] <= values.high if isinstance(values, Range) else changes[key] in values
        for key, values in SPACE.items()
    )


@given(st.integers(0, 2**32), st.integers(1, 10_000))
def test_a_drawn_point_lies_in_the_space_and_depends_on_seed_and_number_alone(seed: int, number: int) -> None:
    first = next(points(SPACE, seed, number))
    assert inside(first) and first == next(points(SPACE, seed, number))
    assert first != next(points(SPACE, seed, number + 1))


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_however_often_a_point_is_perturbed_it_stays_in_the_space(seed: int, times: int) -> None:
    changes = next(points(SPACE, seed, 1))
    for step in range(times):
        before, changes = changes, perturb(SPACE, changes, seed + step)
        assert inside(changes)
    assert changes != before or times == 1


def test_logarithmic_ranges_give_each_order_of_magnitude_its_share() -> None:
    drawn = [next(points(SPACE, 0, number))["schedule.learning_rate"] for number in range(400)]
    assert 0.4 < sum(rate < 1e-3 for rate in drawn) / 400 < 0.6


def test_a_grid_is_every_combination_of_lists_and_levels() -> None:
    space = {
        "a": Range(low=0.0, high=1.0, levels=3),
        "b": ("x", "y"),
        "c": Range(low=1, high=2, integer=True, levels=5),
    }
    expected = [dict(zip("abc", point, strict=True)) for point in itertools.product((0, 0.5, 1), ("x", "y"), (1, 2))]
    assert list(grid(space)) == expected


def test_the_ends_of_a_great_space_are_visited_one_key_at_a_time() -> None:
    space = {name: tuple(range(10)) for name in "abcd"}
    visited = list(corners(space))
    assert len(visited) == 40
    assert all({point[name] for point in visited} == set(range(10)) for name in "abcd")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"low": 1, "high": 1}, "low < high"), ({"low": 0, "high": 1, "log": True}, "begins above 0")],
)
def test_a_range_without_anything_in_it_is_refused(wrong: dict[str, Any], said: str) -> None:
    assert issubclass(Range, Settings)
    with pytest.raises(ValueError, match=said):
        Range.model_validate(wrong)
