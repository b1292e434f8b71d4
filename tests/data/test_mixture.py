"""A mixture is a pure function of lane, step and history: whole shares, no gap, no doubling, whatever changes when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleaudio.data.mixture import Mixture, Phase, PhaseConfig, make_mixture
from scaleaudio.data.order import Order
from scaleaudio.data.stream import DataConfig
from scaleaudio.errors import InputError

SHAPE = {"chunk_samples": 4, "window_samples": 9, "seed": 3}


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    lanes, lane_clips = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    counts = draw(st.lists(st.integers(lanes * lane_clips, 150), min_size=1, max_size=4))
    names = [f"s{number}" for number in range(len(counts))]
    weights = st.dictionaries(st.sampled_from(names), st.floats(0.01, 5), min_size=1)
    steps = sorted(draw(st.sets(st.integers(1, 30), max_size=3)))
    phases = [PhaseConfig(from_step=step, weights=draw(weights)) for step in (0, *steps)]
    return make_mixture(
        dict(zip(names, counts, strict=True)), phases, step_clips=lanes * lane_clips, lanes=lanes, **SHAPE
    )


@settings(deadline=None, max_examples=60)
@given(mixture=mixtures(), step=st.integers(0, 60), data=st.data())
def test_what_a_lane_has_taken_is_what_its_steps_took(mixture: Mixture, step: int, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, mixture.lanes - 1))
    picks = Counter(islice(mixture.picks(lane, 0), step * mixture.lane_clips))
    assert [picks[source] for source in range(len(mixture.orders))] == mixture.taken(lane, step)
    assert list(islice(mixture.picks(lane, step), 40)) == list(
        islice(mixture.picks(lane, 0), step * mixture.lane_clips, step * mixture.lane_clips + 40)
    )


@settings(deadline=None, max_examples=25)
@given(mixture=mixtures(), more=st.integers(0, 9))
def test_each_source_is_read_once_in_each_of_its_passes(mixture: Mixture, more: int) -> None:
    num_steps = 5 * mixture.num_clips // mixture.step_clips + more  # so that some source is read five times at least
    most_passes = 0
    for source, order in enumerate(mixture.orders):
        passes: list[list[int]] = []
        taken = [mixture.taken(lane, num_steps)[source] for lane in range(mixture.lanes)]
        for lane in range(mixture.lanes):
            read = first(order.windows(lane, 0), taken[lane])
            for at, number in enumerate(read):
                if at // order.lane_samples == len(passes):
                    passes.append([])
                passes[at // order.lane_samples].append(number)
        assert all(len(set(numbers)) == len(numbers) for numbers in passes)
        whole = order.lane_samples * mixture.lanes
        assert whole > order.num_samples - mixture.step_clips
        complete = min(taken) // order.lane_samples  # by all lanes
        assert all(len(numbers) == whole for numbers in passes[:complete])
        most_passes = max(most_passes, complete)
    assert most_passes >= 2


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures(), step=st.integers(0, 60))
def test_a_batch_holds_a_clip_twice_only_where_it_lies_over_the_end_of_a_pass(mixture: Mixture, step: int) -> None:
    clips = Counter(mixture.samples(step, range(mixture.lanes)))
    for source, order in enumerate(mixture.orders):
        passes = {
            number // order.lane_samples
            for lane in range(mixture.lanes)
            for number in range(mixture.taken(lane, step)[source], mixture.taken(lane, step + 1)[source])
        }
        assert all(times <= len(passes) for (of, _), times in clips.items() if of == source)


@settings(deadline=None, max_examples=15)
@given(mixture=mixtures(), step=st.integers(0, 40))
def test_a_step_holds_what_its_lanes_read_next_of_each_source(mixture: Mixture, step: int) -> None:
    for lane in range(mixture.lanes):
        taken = mixture.taken(lane, step)
        windows = [order.windows(lane, count) for order, count in zip(mixture.orders, taken, strict=True)]
        queues = [first(window, mixture.lane_clips) for window in windows]
        assert [
            (source, queues[source].pop(0)) for source in islice(mixture.picks(lane, step), mixture.lane_clips)
        ] == (mixture.samples(step, range(lane, lane + 1)))


def first(windows: Iterator[np.ndarray], count: int) -> list[int]:
    return list(islice((int(number) for window in windows for number in window), count))


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures(), step=st.integers(0, 50))
def test_every_batch_has_the_shares_that_its_phase_says_up_to_whole_clips(mixture: Mixture, step: int) -> None:
    phase = [phase for phase in mixture.phases if phase.from_step <= step][-1]
    counts = Counter(source for source, _ in mixture.samples(step, range(mixture.lanes)))
    assert counts.total() == mixture.step_clips
    for source, weight in enumerate(phase.weights):
        share = mixture.step_clips * weight / sum(phase.weights)
        assert (counts[source] == 0) if weight == 0 else abs(counts[source] - share) < 1.5 * len(phase.weights)


def test_over_many_steps_the_shares_are_exact() -> None:
    mixture = make_mixture(
        {"a": 900, "b": 500, "c": 300}, [PhaseConfig(weights={"a": 5, "b": 2, "c": 1})], step_clips=64, lanes=8, **SHAPE
    )
    assert np.sum([mixture.taken(lane, 1000) for lane in range(8)], axis=0) == pytest.approx(
        [40_000, 16_000, 8000], abs=8
    )


def test_one_source_has_the_order_that_it_has_alone() -> None:
    mixture = make_mixture({"": 1000}, [PhaseConfig()], step_clips=16, lanes=4, **SHAPE)
    order = Order(1000, 16, 4, 4, 9, 3)
    for step in (0, 7, 61, 62, 200):
        assert [number for _, number in mixture.samples(step, range(4))] == order.samples(step, range(4)).tolist()


def test_adding_a_source_later_leaves_the_steps_before_as_they_were() -> None:
    alone = make_mixture({"a": 500}, [PhaseConfig()], step_clips=16, lanes=4, **SHAPE)
    phases = [PhaseConfig(weights={"a": 1}), PhaseConfig(from_step=9, weights={"a": 3, "b": 1})]
    both = make_mixture({"a": 500, "b": 40}, phases, step_clips=16, lanes=4, **SHAPE)
    assert all(alone.samples(step, range(4)) == both.samples(step, range(4)) for step in range(9))
    assert {source for source, _ in both.samples(9, range(4))} == {0, 1}


def test_temperature_evens_the_shares_and_clips_weigh_where_nothing_is_said() -> None:
    sizes = {"a": 900, "b": 100}

    def share(**keys: object) -> float:
        weights = PhaseConfig(**keys).build(sizes).weights
        return weights[1] / sum(weights)

    assert share() == pytest.approx(0.1, rel=1e-5)
    assert share(temperature=2) == pytest.approx(1 / 4, rel=1e-5)
    assert share(temperature=1e9) == pytest.approx(0.5)
    assert share(weights={"b": 3, "a": 1}) == pytest.approx(0.75)
    assert PhaseConfig(weights={"b": 0.25}).build(sizes) == Phase(0, (0, 1))


def test_no_weight_gives_nothing_and_any_weight_something_at_any_temperature() -> None:
    sizes = {"a": 900, "b": 900, "c": 900}
    for temperature in (1e-320, 1e-3, 1, 1e300):
        assert PhaseConfig(weights={"a": 1, "b": 0}, temperature=temperature).build(sizes) == Phase(0, (1, 0, 0))
        tiny = PhaseConfig(weights={"a": 1e-300, "b": 1e300}, temperature=temperature).build(sizes).weights
        assert tiny[0] > 0 and tiny[2] == 0
    for temperature in (math.inf, math.nan):
        with pytest.raises(ValueError, match="finite"):
            PhaseConfig(temperature=temperature)


@pytest.mark.parametrize("phase", [PhaseConfig(), PhaseConfig(weights={"a": 1})])
@pytest.mark.parametrize("sizes", [{"a": 0}, {"a": 0, "b": 0}])
def test_sources_without_a_clip_are_refused(sizes: dict[str, int], phase: PhaseConfig) -> None:
    with pytest.raises(InputError, match="no source has a clip"):
        make_mixture(sizes, [phase], step_clips=8, lanes=8, **SHAPE)


def test_a_billion_steps_in_is_counted_at_once() -> None:
    phases = [PhaseConfig(weights={"a": 1, "b": 2}), PhaseConfig(from_step=10**9, weights={"a": 1})]
    mixture = make_mixture({"a": 10**9, "b": 10**9}, phases, step_clips=4096, lanes=64, **SHAPE)
    first, second = mixture.taken(5, 10**9 + 10)
    assert first + second == (10**9 + 10) * 64 and abs(second - 2 * 64 * 10**9 / 3) < 2**20


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (PhaseConfig(weights={"c": 1}), r"data\.mixture from step 0: data\.sources has no \['c'\]"),
        (PhaseConfig(weights={"b": 1}), r"data\.sources\.b: 20 clips are fewer than its part of one batch \(64"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_by_name(phase: PhaseConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_mixture({"a": 900, "b": 20}, [phase], step_clips=64, lanes=8, **SHAPE)


@pytest.mark.parametrize(("weights", "message"), [({"a": -1}, "0 or more"), ({"a": 0}, "all are 0")])
def test_weights_that_are_none_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhaseConfig(weights=weights)


def test_the_example_of_the_documentation_is_a_config_and_mixes_as_it_says() -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text()
    config = DataConfig(**yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["data"])
    sizes = dict.fromkeys(config.sources, 10_000)
    assert [phase.build(sizes).weights for phase in config.mixture] == [(2, 1, 0), (2, 2, 1)]


def test_a_source_of_small_weight_comes_little_but_often() -> None:
    weights = {"a": 31, "b": 1}
    mixture = make_mixture({"a": 900, "b": 900}, [PhaseConfig(weights=weights)], step_clips=32, lanes=8, **SHAPE)
    taken = [sum(mixture.taken(lane, step)[1] for lane in range(8)) for step in range(100)]
    assert {later - earlier for earlier, later in pairwise(taken)} == {1}
