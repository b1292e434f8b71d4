"""The adversary keeps outside the dead zone, picks what the encoder confuses most, and knows what is no negative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import GLOBAL_BATCH, batch, config
from torch import Tensor

from scaleaudio.negatives import Found, HardestOfK
from scaleaudio.negatives.displace import FREQUENCY_FAMILIES, TIME_FAMILIES, Family
from scaleaudio.types import Draws
from scaleaudio.views import Axis, ResizeCropConfig, ViewsConfig, dead_zone

VIEWS = ViewsConfig()
F, S = 24, 40


def draws(step: int = 0) -> Draws:
    return Draws(0, batch(config(), step), torch.device("cpu"))


def noise() -> Tensor:
    return torch.randn(GLOBAL_BATCH, F, S, generator=torch.Generator().manual_seed(0))


def project(mel_BFS: Tensor) -> Tensor:
    """A random linear encoder."""
    weight = torch.randn(F * S, 8, generator=torch.Generator().manual_seed(1))
    return mel_BFS.flatten(1) @ weight


def find(settings: HardestOfK, mel_BFS: Tensor, ramp: float = 1.0, step: int = 0) -> Found:
    return settings.build(VIEWS).find(mel_BFS, project, draws(step), ramp)


# Strength.


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_a_strength_in_the_dead_zone_is_refused_with_both_numbers(axis: Axis) -> None:
    edge = dead_zone(VIEWS, axis)
    for strength in (0.03, edge):
        settings = HardestOfK.model_validate({f"{axis}_strength": strength})
        with pytest.raises(
            ValueError, match=rf"negatives\.{axis}_strength {strength:g}: inside the dead zone"
        ) as caught:
            settings.check(VIEWS, 64, 96)
        assert "0.053" in str(caught.value)
    HardestOfK.model_validate({f"{axis}_strength": edge + 0.001}).check(VIEWS, 64, 96)


def test_a_strength_that_a_family_cannot_reach_is_refused_by_config_key() -> None:
    with pytest.raises(
        ValueError, match=r"negatives\.time_strength 0\.57: segment_permutation cannot move .* 96 places"
    ):
        HardestOfK(time_strength=0.57).check(VIEWS, 64, 96)


def motions(found: Found, axis: Axis, fill: str) -> tuple[Tensor, Tensor]:
    """How far each clip's content was moved along the axis and along the other: root mean square in axis lengths.

    Of clips whose cells count up from 0, so that they say where they come from.
    """
    mel_BFS = found.mel_NFS
    source_F = mel_BFS.long() // S
    source_S = mel_BFS.long() % S
    far = {
        "frequency": (source_F - torch.arange(F)[:, None]).abs().double() / F,
        "time": (source_S - torch.arange(S)).abs().double() / S,
    }
    if fill == "wrap":  # the first family is the shift, which wraps around
        around_B11 = (found.family_N == 0)[:, None, None]
        far = {name: torch.where(around_B11, torch.minimum(v, 1 - v), v) for name, v in far.items()}
    empty = (mel_BFS == 0).flatten(1).sum(1) > 1
    kept = ~(empty[:, None, None] & (mel_BFS == 0))
    rms = {n: ((v**2 * kept).flatten(1).sum(1) / kept.flatten(1).sum(1)).sqrt() for n, v in far.items()}
    return rms.pop(axis), next(iter(rms.values()))


@pytest.mark.parametrize("fill", ["floor", "wrap"])
@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_no_displacement_lies_in_the_dead_zone_at_any_point_of_the_ramp(axis: Axis, fill: str) -> None:
    other: Axis = "time" if axis == "frequency" else "frequency"
    settings = HardestOfK.model_validate(
        {f"{axis}_strength": 0.4, f"{other}_strength": 0, "num_candidates": 1, "fill": fill}
    )
    wide = ViewsConfig(resize_crop=ResizeCropConfig(frequency_scale=(0.8, 1), time_scale=(0.8, 1)))
    edge = dead_zone(wide, axis)
    assert edge == pytest.approx(0.25)  # whole places on both axes, so that rounding up does not lead out of it
    cells = torch.arange(F * S).float().view(1, F, S).expand(GLOBAL_BATCH, F, S)
    means = {}
    for step, ramp in enumerate([0.0, 1e-6, 0.03, 0.1, 0.25, 0.5, 0.75, 0.97, 1.0]):
        found = settings.build(wide).find(cells, project, draws(step), ramp)
        along_B, across_B = motions(found, axis, fill)
        assert along_B.min() > edge + 0.005
        assert (across_B == 0).all()
        means[ramp] = float(along_B.mean())
    assert means[0.0] < 0.31 < means[0.5] < 0.4 <= means[1.0] < 0.45  # it starts small, and grows


def test_a_smooth_field_is_ramped_too() -> None:
    settings = HardestOfK(families=("smooth_field",), num_candidates=1)
    steady = torch.linspace(0, 1, S).expand(GLOBAL_BATCH, F, S)
    early, late = (find(settings, steady, ramp).mel_NFS - steady for ramp in (0.0, 1.0))
    assert 0 < early.square().mean() < 0.5 * late.square().mean()


# The search.


@pytest.mark.parametrize(
    "settings",
    [
        HardestOfK(num_candidates=6),
        HardestOfK(families=("time_shift", "smooth_field"), frequency_strength=0.1),
    ],
)
def test_the_candidate_most_like_the_anchor_is_picked(settings: HardestOfK) -> None:
    adversary = settings.build(VIEWS)
    num = settings.num_candidates
    candidates = adversary.displacer.draw(noise(), draws(), 1.0, num, back=False)
    mel_BKFS, family_BK = candidates.mel_NFS.unflatten(0, (-1, num)), candidates.family_N.view(-1, num)
    found = adversary.find(noise(), project, draws())
    similarity_BK = torch.stack(
        [torch.cosine_similarity(project(noise()), project(mel_BKFS[:, k])) for k in range(mel_BKFS.shape[1])], dim=1
    )
    best_B = similarity_BK.argmax(dim=1)
    assert len(best_B.unique()) > 1
    for clip, best in enumerate(best_B.tolist()):
        assert torch.equal(found.mel_NFS[clip], mel_BKFS[clip, best])
        assert found.family_N[clip] == family_BK[clip, best]


def test_one_candidate_is_taken_without_asking_the_encoder() -> None:
    def refuse(mel: Tensor) -> Tensor:
        raise AssertionError("the encoder was asked")

    adversary = HardestOfK(num_candidates=1).build(VIEWS)
    found = adversary.find(noise(), refuse, draws())
    assert torch.equal(found.mel_NFS, adversary.displacer.draw(noise(), draws(), 1.0, 1, back=False).mel_NFS)


def test_the_search_runs_without_gradient() -> None:
    def embed(mel: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return project(mel)

    HardestOfK().build(VIEWS).find(noise(), embed, draws())


def test_the_same_step_finds_the_same_negatives_and_the_next_one_others() -> None:
    settings = HardestOfK()
    assert torch.equal(find(settings, noise()).mel_NFS, find(settings, noise()).mel_NFS)
    assert not torch.equal(find(settings, noise()).mel_NFS, find(settings, noise(), step=1).mel_NFS)


def test_every_active_family_is_drawn_and_no_other() -> None:
    settings = HardestOfK(families=("smooth_field", *TIME_FAMILIES, *FREQUENCY_FAMILIES), num_candidates=1)
    drawn = {int(f) for step in range(8) for f in find(settings, noise(), step=step).family_N}
    assert drawn == set(range(7))
    only_time = HardestOfK(frequency_strength=0)
    assert only_time.active_families == TIME_FAMILIES


def test_frequency_strength_zero_leaves_every_frequency_where_it_is() -> None:
    steady = torch.arange(float(F))[:, None].expand(GLOBAL_BATCH, F, S)
    only_time = HardestOfK(frequency_strength=0, fill="wrap")
    assert torch.equal(find(only_time, steady).mel_NFS, steady)


# What is no negative.


def test_silence_and_what_a_displacement_does_not_change_is_no_negative() -> None:
    mel_BFS = noise()
    mel_BFS[0] = -5.0  # silence
    mel_BFS[1] = torch.randn(F, 1)  # a steady spectrum, displaced along time alone
    found = find(HardestOfK(frequency_strength=0, fill="wrap", num_candidates=1), mel_BFS)
    assert found.valid_N.tolist() == [False, False] + [True] * (GLOBAL_BATCH - 2)


def test_a_candidate_that_changes_nothing_is_not_picked_though_it_is_the_most_similar() -> None:
    steady = torch.randn(1, F, 1).expand(GLOBAL_BATCH, F, S)  # reversing it in time changes nothing
    families: tuple[Family, ...] = ("time_reversal", "frequency_shift")
    found = find(HardestOfK(families=families, fill="wrap", num_candidates=16), steady)
    assert found.valid_N.all() and set(found.family_N.tolist()) == {0}  # frequency families come first


def test_min_change_is_a_part_of_the_clips_own_spread() -> None:
    loud = 100 * noise()
    for scale_free in (noise(), loud):
        assert find(HardestOfK(min_change=0.1), scale_free).valid_N.all()
        assert not find(HardestOfK(min_change=100), scale_free).valid_N.any()


# Settings.


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"families": []}, "at least one family"),
        ({"families": ["time_shift", "time_shift"]}, "each named once"),
        (
            {"families": ["time_shift"]},
            r"frequency_strength 0\.15: no family of \['time_shift'\] moves along frequency",
        ),
        ({"families": ["frequency_flip"], "frequency_strength": 0}, r"time_strength 0\.15: no family"),
        ({"num_candidates": 0}, "greater than or equal to 1"),
        ({"time_strength": -0.1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HardestOfK.model_validate(keys)


def test_only_strengths_of_zero_make_it_inactive() -> None:
    assert not HardestOfK(frequency_strength=0, time_strength=0).active
    assert HardestOfK(frequency_strength=0.1, time_strength=0).active
