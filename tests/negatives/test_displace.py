"""Displacements move what they say, as far as they say, and change nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scaleaudio.negatives.displace import (
    FLOOR,
    FREQUENCY_FAMILIES,
    TIME_FAMILIES,
    Family,
    Fill,
    axis_of,
    displace,
    moves,
    random_lattice_size,
    returned,
    rms_displacement,
    smooth_field,
    warp,
    way_back,
)
from scaleaudio.negatives.displace import motion as mean_motion

FAMILIES = (*FREQUENCY_FAMILIES, *TIME_FAMILIES)
SHIFTS: tuple[Family, ...] = ("frequency_shift", "time_shift")
NUM = 200  # draws: enough for every row of a family and many starts


def maps(family: Family, length: int, strength: float, fill: Fill = "floor", num: int = NUM) -> Tensor:
    """Drawn maps (num, length) of one family."""
    uniform = torch.rand(num, 2, generator=torch.Generator().manual_seed(length))
    uniform[0], uniform[1] = 0.0, 1 - 2**-24
    return moves((family,), length, (strength,), fill).draw(torch.zeros(num, dtype=torch.long), uniform)


def motion(source_BN: Tensor, fill: Fill) -> Tensor:
    """Root mean square of how far content comes, in axis lengths; around the circle where it wraps."""
    length = source_BN.shape[1]
    far_BN = (source_BN - torch.arange(length)).abs().double()
    if fill == "wrap":
        far_BN = torch.minimum(far_BN, length - far_BN)
    kept_BN = source_BN != FLOOR
    return ((far_BN**2 * kept_BN).sum(1) / kept_BN.sum(1)).sqrt() / length


def distinct(length_F: int = 12, length_S: int = 20) -> Tensor:
    """Three spectrograms in which no two cells are alike."""
    return (
        torch.randperm(3 * length_F * length_S, generator=torch.Generator().manual_seed(0))
        .float()
        .view(3, length_F, -1)
    )


# How far.


@pytest.mark.parametrize("strength", [0.06, 0.15, 0.25, 0.4])
@pytest.mark.parametrize("length", [16, 31, 64, 401])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_map_displaces_by_the_strength_and_hardly_more(family: Family, length: int, strength: float) -> None:
    fill: Fill = "wrap" if family in SHIFTS and length % 2 else "floor"
    found_B = motion(maps(family, length, strength, fill), fill)
    assert found_B.min() >= strength - 1e-6
    assert found_B.max() <= max(1.25 * strength, strength + 1 / length) + 1e-6


@pytest.mark.parametrize("family", ["frequency_flip", "time_reversal"])
def test_a_reversed_window_is_the_shortest_that_reaches_the_strength(family: Family) -> None:
    map_N = maps(family, 64, 0.2)[0]
    width = int((map_N != torch.arange(64)).sum())
    assert rms_displacement(list(range(width))[::-1], 64) >= 0.2 > rms_displacement(list(range(width - 1))[::-1], 64)


def test_rms_displacement_is_measured_over_the_axis_without_filled_cells() -> None:
    assert rms_displacement([1, 0], 8) == pytest.approx(math.sqrt(2 / 8) / 8)
    assert rms_displacement([FLOOR, FLOOR, 0, 1], 4) == 0.5


@pytest.mark.parametrize(
    ("family", "strength", "fill"),
    [
        ("time_shift", 1.0, "floor"),
        ("time_shift", 0.6, "wrap"),
        ("frequency_flip", 0.6, "floor"),
        ("band_permutation", 0.57, "floor"),
    ],
)
def test_a_strength_beyond_a_familys_reach_is_refused_by_name(family: Family, strength: float, fill: Fill) -> None:
    with pytest.raises(
        ValueError, match=f"strength {strength:g}: {family} cannot move patterns that far along an axis"
    ):
        moves((family,), 64, (strength,), fill)


# Where to.


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_lie_anywhere_and_nothing_outside_them_moves(family: Family) -> None:
    source_BN = maps(family, 48, 0.1)
    moved_BN = source_BN != torch.arange(48)
    if family in SHIFTS:
        assert moved_BN.all()
        assert {int(row[20]) - 20 for row in source_BN} == {-5, 5}  # up and down
    else:
        assert moved_BN[:, 0].any() and moved_BN[:, -1].any() and not moved_BN.all(dim=1).any()
        assert len({tuple(row.tolist()) for row in source_BN}) > 20
    assert source_BN.max() < 48 and source_BN.min() >= FLOOR


def test_segments_are_put_into_many_orders() -> None:
    source_BN = maps("segment_permutation", 96, 0.15)
    orders = {tuple((row - torch.arange(96)).unique_consecutive().tolist()) for row in source_BN}
    assert len(orders) > 20


def test_a_clip_of_no_listed_family_stays_as_it_is() -> None:
    drawn = moves(("time_shift",), 20, (0.2,), "floor").draw(torch.tensor([-1, 0, 1]), torch.full((3, 2), 0.5))
    assert torch.equal(drawn[0], torch.arange(20)) and torch.equal(drawn[2], torch.arange(20))
    assert not torch.equal(drawn[1], torch.arange(20))


def test_each_clip_is_given_its_own_family() -> None:
    both = moves(("time_shift", "time_reversal"), 20, (0.2,), "wrap").draw(torch.tensor([0, 1]), torch.zeros(2, 2))
    assert torch.equal(
        both[0], moves(("time_shift",), 20, (0.2,), "wrap").draw(torch.tensor([0]), torch.zeros(1, 2))[0]
    )
    assert torch.equal(
        both[1], moves(("time_reversal",), 20, (0.2,), "wrap").draw(torch.tensor([0]), torch.zeros(1, 2))[0]
    )


# What is kept.


@pytest.mark.parametrize("family", FAMILIES)
def test_content_is_moved_as_it_is_along_its_own_axis_alone(family: Family) -> None:
    mel_BFS = distinct()
    along_frequency = axis_of(family) == "frequency"
    source_BN = maps(family, 12 if along_frequency else 20, 0.2, "wrap", num=3)
    same_F, same_S = torch.arange(12).expand(3, -1), torch.arange(20).expand(3, -1)
    moved_BFS = displace(mel_BFS, *((source_BN, same_S) if along_frequency else (same_F, source_BN)))
    assert moved_BFS.dtype == mel_BFS.dtype and not torch.equal(moved_BFS, mel_BFS)
    lines, moved = (mel_BFS, moved_BFS) if along_frequency else (mel_BFS.mT, moved_BFS.mT)
    for clip in range(3):
        assert sorted(moved[clip].tolist()) == sorted(lines[clip].tolist())


@pytest.mark.parametrize("family", SHIFTS)
def test_a_shift_with_floor_fills_with_the_clips_minimum(family: Family) -> None:
    mel_BFS = distinct()
    along_frequency = family == "frequency_shift"
    source_BN = maps(family, 12 if along_frequency else 20, 0.25, num=3)
    same_F, same_S = torch.arange(12).expand(3, -1), torch.arange(20).expand(3, -1)
    moved_BFS = displace(mel_BFS, *((source_BN, same_S) if along_frequency else (same_F, source_BN)))
    for clip in range(3):
        empty_N = source_BN[clip] == FLOOR
        assert int(empty_N.sum()) == (3 if along_frequency else 5)
        filled = moved_BFS[clip][empty_N] if along_frequency else moved_BFS[clip][:, empty_N]
        assert (filled == mel_BFS[clip].min()).all()


def test_maps_of_both_axes_go_together() -> None:
    mel_BFS = distinct()
    both = displace(mel_BFS, torch.arange(11, -1, -1).expand(3, -1), torch.arange(19, -1, -1).expand(3, -1))
    assert torch.equal(both, mel_BFS.flip(1, 2))


# The smooth field.


def lattice(num: int) -> Tensor:
    return 2 * torch.rand(num, *random_lattice_size(), generator=torch.Generator().manual_seed(0)) - 1


def test_a_smooth_field_has_the_strength_of_each_axis_and_is_smooth() -> None:
    field = smooth_field(lattice(50), (64, 96), torch.tensor((0.1, 0.2)).expand(50, 2))
    rms = field.square().mean(dim=(2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.tensor([0.1, 0.2]).expand(50, 2))
    assert field.diff(dim=3).abs().max() < 0.1 * field.abs().max()


def test_a_field_of_zero_strength_along_an_axis_moves_nothing_along_it() -> None:
    field = smooth_field(lattice(3), (12, 20), torch.tensor((0.0, 0.2)).expand(3, 2))
    steady = torch.arange(12.0)[:, None].expand(3, 12, 20)
    torch.testing.assert_close(warp(steady, field), steady, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("axis", "size"), [(0, 12), (1, 20)])
def test_a_warp_takes_content_from_as_far_away_as_the_field_says(axis: int, size: int) -> None:
    field = torch.zeros(3, 2, 12, 20)
    field[:, axis] = 3 / size
    moved = warp(distinct(), field)
    inside, source = (moved[:, :9], distinct()[:, 3:]) if axis == 0 else (moved[:, :, :17], distinct()[:, :, 3:])
    torch.testing.assert_close(inside, source, atol=1e-2, rtol=0)


# There and back again.


@pytest.mark.parametrize("fill", ["floor", "wrap"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_displaced_and_moved_back_lies_where_it_was_or_is_lost(family: Family, fill: Fill) -> None:
    source_BN = maps(family, 24, 0.2, fill)
    back_BN = returned(source_BN)
    kept_BN = back_BN != FLOOR
    assert torch.equal(back_BN[kept_BN], torch.arange(24).expand_as(back_BN)[kept_BN])
    for there, back in zip(source_BN.tolist(), back_BN.tolist(), strict=True):
        assert [place for place, source in enumerate(back) if source == FLOOR] == [
            p for p in range(24) if p not in there
        ]
    lost = 5 if family in SHIFTS and fill == "floor" else 0
    assert ((~kept_BN).sum(dim=1) == lost).all()


def test_a_field_and_its_way_back_move_nothing_and_leave_blur() -> None:
    size, num = (64, 96), 20
    field = smooth_field(lattice(num), size, torch.tensor([0.05, 0.05]).expand(num, 2))
    back = way_back(field)
    rows, frames = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    inside = (slice(None), slice(12, -12), slice(12, -12))  # what comes from beyond the border is not moved back
    for places in (rows / 64, frames / 96):
        there = warp(places.expand(num, *size), field)
        error = (warp(there, back) - places)[inside]
        assert (there - places)[inside].square().mean().sqrt() > 0.02
        assert error.abs().mean() < 0.002
        assert error.square().mean().sqrt() < 0.01
    noise = torch.randn(num, *size, generator=torch.Generator().manual_seed(0))
    assert warp(warp(noise, field), back).square().mean() < 0.8 * noise.square().mean()


@pytest.mark.parametrize("fill", ["floor", "wrap"])
def test_the_mean_motion_says_which_way_a_shift_goes_and_nothing_of_a_rearrangement(fill: Fill) -> None:
    assert mean_motion(torch.tensor([[FLOOR, 0, 1, 2, 3]])).item() == pytest.approx(1 / 5)
    assert mean_motion(torch.tensor([[1, 2, 3, 4, FLOOR]])).item() == pytest.approx(-1 / 5)
    for family in ("time_reversal", "segment_permutation", "band_permutation"):
        assert mean_motion(maps(family, 24, 0.2, fill)).abs().max() < 1e-6


# Several strengths, and multiples.


@pytest.mark.parametrize("family", FAMILIES)
def test_each_strength_has_maps_of_its_own(family: Family) -> None:
    both = moves((family,), 40, (0.1, 0.25), "floor")
    uniform = torch.rand(NUM, 2, generator=torch.Generator().manual_seed(0))
    for level, strength in enumerate((0.1, 0.25)):
        alone = moves((family,), 40, (strength,), "floor").draw(torch.zeros(NUM, dtype=torch.long), uniform)
        assert torch.equal(both.draw(torch.full((NUM,), level), uniform), alone)


@pytest.mark.parametrize(("multiple", "steps"), [(1, 7), (4, 8), (8, 8), (16, 16)])
def test_shifts_go_by_multiples_and_never_less_than_the_strength(multiple: int, steps: int) -> None:
    drawn = moves(("time_shift",), 48, (0.14,), "wrap", multiple).draw(
        torch.zeros(NUM, dtype=torch.long), torch.rand(NUM, 2)
    )
    assert {int(row[0]) for row in drawn} == {steps, 48 - steps}


def test_a_multiple_that_leads_beyond_the_axis_is_refused() -> None:
    with pytest.raises(
        ValueError, match="time_shift cannot move patterns that far along an axis of 12 places by multiples of 16"
    ):
        moves(("time_shift",), 12, (0.2,), "floor", 16)
