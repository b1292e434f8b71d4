"""The augmentations, what they draw, and how far apart they can move one pattern."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import GLOBAL_BATCH, LANE_BATCH, batch, config
from torch import Tensor

from scaleaudio.types import Draws, World
from scaleaudio.views import (
    Axis,
    FaderConfig,
    MixupConfig,
    ResizeCropConfig,
    ViewsConfig,
    dead_zone,
    fade,
    make_views,
    mixup,
    resize_crop,
)

OFF = ViewsConfig(mixup=None, resize_crop=None, fader=None)
ALMOST_ONE = 1 - 2**-24


def draws(step: int = 0, world: World | None = None, seed: int = 0) -> Draws:
    return Draws(seed, batch(config(), step, world), torch.device("cpu"))


def mels(num_mels: int = 16, num_frames: int = 31) -> Tensor:
    return torch.randn(GLOBAL_BATCH, num_mels, num_frames, generator=torch.Generator().manual_seed(1))


# What is drawn.


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_workers_draws_are_its_rows_of_the_whole_batch(size: int) -> None:
    parts = [draws(world=World(rank, size)).uniform("x", 2, 3) for rank in range(size)]
    assert torch.equal(torch.cat(parts), draws().uniform("x", 2, 3))


def test_a_lane_draws_the_same_beside_few_others_and_beside_many() -> None:
    def second_lane(global_batch: int) -> Tensor:
        part = replace(batch(config()), slot_B=torch.arange(3, 6), global_batch=global_batch, lane_batch=3)
        return Draws(0, part, torch.device("cpu")).uniform("x", 2)

    assert second_lane(6).shape == (3, 2)
    assert torch.equal(second_lane(6), second_lane(6_000_000_000))  # so it draws for no lane but its own


def test_a_draw_depends_on_seed_step_and_name_and_not_on_what_was_drawn_before() -> None:
    other = draws()
    other.uniform("y", 5)
    assert torch.equal(draws().uniform("x"), other.uniform("x"))
    for changed in (draws().uniform("y"), draws(step=1).uniform("x"), draws(seed=1).uniform("x")):
        assert not torch.equal(changed, draws().uniform("x"))


def test_draws_are_uniform_between_zero_and_one() -> None:
    numbers = draws().uniform("x", 1000)
    assert 0 <= float(numbers.min()) < 0.01 and 0.99 < float(numbers.max()) < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.02)


# Mixup.


def partners(uniform_B: Tensor, lane_batch: int) -> list[int]:
    """Whom each clip was mixed with, read off the mixture: clip k is log(2 ** k) everywhere."""
    power_B = 2.0 ** torch.arange(len(uniform_B), dtype=torch.float64)
    mel_BFS = power_B.log()[:, None, None].expand(-1, 2, 3)
    uniform_B2 = torch.stack([torch.full_like(uniform_B, 0.5), uniform_B], dim=1)
    mixed_B = mixup(mel_BFS, uniform_B2, MixupConfig(ratio=0.5), lane_batch=lane_batch)[:, 0, 0].exp()
    return ((mixed_B - 0.75 * power_B) / 0.25).log2().round().int().tolist()


@given(st.integers(1, 4), st.integers(2, 8), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_mixup_partner_is_another_clip_of_the_same_lane(lanes: int, lane_batch: int, seed: int) -> None:
    uniform_B = torch.rand(lanes * lane_batch, generator=torch.Generator().manual_seed(seed))
    uniform_B[0], uniform_B[-1] = 0.0, ALMOST_ONE
    for row, partner in enumerate(partners(uniform_B, lane_batch)):
        assert partner != row
        assert partner // lane_batch == row // lane_batch


def test_every_other_clip_of_the_lane_can_be_the_partner() -> None:
    found = {partners(torch.full((5,), place), 5)[2] for place in (0.1, 0.3, 0.6, 0.9)}
    assert found == {0, 1, 3, 4}


def test_mixup_adds_powers_and_keeps_the_clip_where_nothing_is_added() -> None:
    mel_BFS = torch.tensor([0.0, 2.0]).log1p()[:, None, None].expand(2, 4, 5)  # powers 1 and 3
    half = mixup(mel_BFS, torch.tensor([[0.5, 0.0], [0.0, 0.0]]), MixupConfig(ratio=0.4), lane_batch=2)
    torch.testing.assert_close(half[0].exp(), torch.full((4, 5), 0.8 * 1 + 0.2 * 3))
    assert torch.equal(half[1], mel_BFS[1])


# Resize crop.


def test_the_whole_spectrogram_as_the_box_changes_nothing() -> None:
    full = ResizeCropConfig(frequency_scale=(1, 1), time_scale=(1, 1))
    torch.testing.assert_close(resize_crop(mels(), torch.rand(GLOBAL_BATCH, 4), full), mels(), atol=1e-5, rtol=0)


def test_a_box_is_stretched_to_the_full_size() -> None:
    ramp_S = torch.arange(40.0) + 0.5
    mel_BFS = ramp_S.expand(1, 20, 40) + 100 * (torch.arange(20.0) + 0.5)[:, None]
    box = ResizeCropConfig(frequency_scale=(0.5, 0.5), time_scale=(0.25, 0.25))
    cut = resize_crop(mel_BFS, torch.tensor([[0.0, 0.4, 0.0, 0.6]]), box)[0]
    left, top = 0.6 * 30, 0.4 * 10  # in places: 0.6 of the room beside a box of 10 of 40; 0.4 beside 10 of 20
    torch.testing.assert_close(cut[3], left + ramp_S * 0.25 + 100 * (top + 3.5 * 0.5))


def test_what_lies_outside_the_spectrogram_reads_as_the_mean() -> None:
    wide = ResizeCropConfig(frequency_scale=(2, 2), time_scale=(1, 1), frequency_canvas=2)
    grown = resize_crop(torch.ones(1, 16, 8), torch.zeros(1, 4), wide)[0]
    assert torch.equal(grown[:3], torch.zeros(3, 8)) and torch.equal(grown[-3:], torch.zeros(3, 8))
    torch.testing.assert_close(grown[5:11], torch.ones(6, 8))


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.8)])
def test_a_scale_that_is_no_range_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="expected 0 < low <= high"):
        ResizeCropConfig(time_scale=scale)


# Fader and the whole.


def test_the_fader_adds_a_straight_line_along_time_between_its_gains() -> None:
    faded = fade(mels(), torch.tensor([[0.0, 1.0]] * GLOBAL_BATCH), FaderConfig(gain=2.0)) - mels()
    torch.testing.assert_close(faded, torch.linspace(-2, 2, 31).expand_as(faded), atol=1e-5, rtol=0)


def test_views_are_two_different_ones_and_all_switched_off_is_the_clip_itself() -> None:
    anchor, positive = make_views(mels(), ViewsConfig(), draws(), lane_batch=LANE_BATCH)
    assert not torch.equal(anchor, positive) and not torch.equal(anchor, mels())
    assert all(torch.equal(view, mels()) for view in make_views(mels(), OFF, draws(), lane_batch=LANE_BATCH))


@pytest.mark.parametrize("off", ["mixup", "resize_crop", "fader"])
def test_each_augmentation_can_be_switched_off_alone_and_leaves_the_others_draws_alone(off: str) -> None:
    rest = ViewsConfig().model_copy(update={off: None})
    found, _ = make_views(mels(), rest, draws(), lane_batch=LANE_BATCH)
    expected = mels()
    if off != "mixup":
        uniform = draws().uniform("anchor/mixup", 2)
        expected = mixup(expected, uniform, MixupConfig(), lane_batch=LANE_BATCH)
    if off != "resize_crop":
        expected = resize_crop(expected, draws().uniform("anchor/resize_crop", 4), ResizeCropConfig())
    if off != "fader":
        expected = fade(expected, draws().uniform("anchor/fader", 2), FaderConfig())
    assert torch.equal(found, expected)


def test_the_views_of_a_clip_do_not_depend_on_the_number_of_workers() -> None:
    whole = make_views(mels(), ViewsConfig(), draws(), lane_batch=LANE_BATCH)
    for rank in range(2):
        half = slice(rank * GLOBAL_BATCH // 2, (rank + 1) * GLOBAL_BATCH // 2)
        part = make_views(mels()[half], ViewsConfig(), draws(world=World(rank, 2)), lane_batch=LANE_BATCH)
        assert torch.equal(part.anchor_BFS, whole.anchor_BFS[half])


# Dead zone.


def displacements(start_1: np.ndarray, extent_1: np.ndarray, start_2: np.ndarray, extent_2: np.ndarray) -> np.ndarray:
    """Root mean square over places x of a pattern at x in view 1 that lies elsewhere in view 2."""
    x_N1 = (np.arange(500)[:, None] + 0.5) / 500
    there_NM = (start_1 + extent_1 * x_N1 - start_2) / extent_2
    return np.sqrt(((there_NM - x_N1) ** 2).mean(axis=0))


def boxes(low: float, high: float, canvas: float, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and extents of random boxes, drawn to their limits."""
    random = np.random.default_rng(seed)
    size, place = random.uniform(-0.2, 1.2, (2, num)).clip(0, 1)
    extent = np.minimum(low, canvas) + (min(high, canvas) - min(low, canvas)) * size
    return place * (canvas - extent) - (canvas - 1) / 2, extent


@pytest.mark.parametrize("axis", ["frequency", "time"])
@pytest.mark.parametrize(
    ("scale", "canvas"),
    [((0.95, 1.0), 1.0), ((0.6, 1.5), 1.5), ((0.6, 1.5), 1.0), ((0.3, 0.3), 1.0), ((1.0, 1.4), 1.4), ((0.9, 1.1), 1.2)],
)
def test_the_dead_zone_is_the_most_that_random_boxes_reach(
    axis: Axis, scale: tuple[float, float], canvas: float
) -> None:
    views = ViewsConfig(resize_crop=ResizeCropConfig.model_validate({f"{axis}_scale": scale, f"{axis}_canvas": canvas}))
    one, other = boxes(*scale, canvas, 4000, seed=0), boxes(*scale, canvas, 4000, seed=1)
    most = displacements(*one, *other).max()
    assert most <= dead_zone(views, axis) * 1.0001
    assert most >= dead_zone(views, axis) * 0.97


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_real_views_move_patterns_within_the_dead_zone(axis: Axis) -> None:
    """The views of a ramp say where each cell's content was, so their boxes are read off them."""
    ramp = (torch.arange(100.0) + 0.5) / 100
    mel_BFS = ramp.expand(2000, 20, 100) if axis == "time" else ramp[:, None].expand(2000, 100, 20)
    read = []
    for seed in (0, 1):
        uniform_B4 = torch.rand(2000, 4, generator=torch.Generator().manual_seed(seed))
        view = resize_crop(mel_BFS, (1.4 * uniform_B4 - 0.2).clamp(0, 1), ResizeCropConfig())  # often at a limit
        line_BN = (view[:, 10] if axis == "time" else view[:, :, 10]).double().numpy()
        extent = (line_BN[:, 89] - line_BN[:, 10]) / 0.79
        read += [line_BN[:, 10] - 0.105 * extent, extent]
    most = displacements(*read).max()
    edge = dead_zone(ViewsConfig(), axis)
    assert 0.98 * edge < most <= 1.0001 * edge


def test_without_a_resize_crop_there_is_no_dead_zone() -> None:
    assert dead_zone(OFF, "time") == 0.0
