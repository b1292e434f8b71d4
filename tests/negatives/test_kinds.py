"""Laws of every adversary: what it finds lies where it says, depends on its clip alone, and moves no weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import GLOBAL_BATCH, INDEPENDENT, LANE_BATCH, batch, config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scaleaudio.negatives import (
    Adversary,
    FieldAdversary,
    FieldNegatives,
    Found,
    HardestOfK,
    NegativesSettings,
    ValueNegatives,
)
from scaleaudio.negatives.displace import smooth_field, warp
from scaleaudio.task import PretrainTask
from scaleaudio.types import Draws, World
from scaleaudio.views import ViewsConfig, dead_zone

CPU = torch.device("cpu")
VIEWS = ViewsConfig()
F, S = 24, 40
HARDEST: dict[str, Any] = {"negatives": {"kind": "hardest_of_k", "num_candidates": 4, "num_kept": 2, "fraction": 0.5}}
LEVELS: dict[str, Any] = {"negatives": {"kind": "hardest_of_k", "strength_levels": 3, "families": ["smooth_field"]}}
FIELD: dict[str, Any] = {"negatives": {"kind": "field", "fraction": 0.5, "strength_levels": 2}}
VALUE: dict[str, Any] = {"negatives": {"kind": "value"}}
OWN: dict[str, Any] = {"negatives": {"kind": "test_kinds:Mirrored", "options": {"axis": 2}}}
KINDS = {"hardest_of_k": HARDEST, "levels": LEVELS, "field": FIELD, "value": VALUE, "own": OWN}


class Mirrored:
    """A user's own adversary."""

    def __init__(self, views: ViewsConfig, axis: int) -> None:
        self._axis = axis

    def find(self, anchor_BFS: Tensor, embed: Any, draws: Draws, ramp: float = 1.0) -> Found:
        nothing_B = torch.zeros(len(anchor_BFS), dtype=torch.long)
        return Found(anchor_BFS.flip(self._axis), nothing_B == 0, nothing_B, torch.zeros(len(anchor_BFS), 2))


@pytest.fixture(autouse=True)
def _own_kind_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "test_kinds", __import__("sys").modules[__name__])


def noise() -> Tensor:
    return torch.randn(GLOBAL_BATCH, F, S, generator=torch.Generator().manual_seed(0))


def draws(step: int = 0) -> Draws:
    return Draws(0, batch(config(), step), CPU)


def smooth_encoder(mel_NFS: Tensor) -> Tensor:
    """Random weights, smooth in its input."""
    weight = torch.randn(F * S, 12, generator=torch.Generator().manual_seed(1))
    return torch.tanh(mel_NFS.flatten(1) @ weight.to(mel_NFS.dtype) / 10)


def search(task: PretrainTask, world: World | None = None) -> Found:
    part = batch(task.config, 0, world)
    sought = task._find(task.frontend(part.wave_BT), Draws(0, part, CPU), part)
    assert sought is not None
    return sought.found


# All kinds.


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_leaves_no_gradient_and_no_statistic_changed(kind: str) -> None:
    task = config(KINDS[kind]).build()
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    found = search(task)
    assert not any(tensor.requires_grad for tensor in found)
    assert all(p.grad is None for p in task.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())
    assert all(module.training for module in task.modules())


class NoHostSync(TorchDispatchMode):
    """Refuses what makes the host wait for the device: reading a number, and shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        by_mask = name == "aten::index.Tensor" and any(i is not None and i.dtype == torch.bool for i in args[1])
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")
        assert not by_mask and name.split("::")[1].split(".")[0] not in waits, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_negatives_never_waits_for_the_device(kind: str) -> None:
    everything = {"objective.negative_on": "both", "objective.embedding": {}, "objective.negative_margin": 0.2}
    task = config(KINDS[kind], everything, {"negatives.fraction": 0.5}).build()
    with NoHostSync():
        task(batch(task.config)).total.backward()
    with pytest.raises(AssertionError, match="waits for the device"), NoHostSync():
        float(torch.zeros(1))


@pytest.mark.parametrize("kind", KINDS)
def test_negatives_of_several_workers_are_those_of_one(kind: str) -> None:
    whole = search(config(INDEPENDENT, KINDS[kind]).build())
    for size in (2, 3):
        parts = [search(config(INDEPENDENT, KINDS[kind]).build(World(r, size)), World(r, size)) for r in range(size)]
        for one, several in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(several), one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_every_parameter(kind: str, precision: str) -> None:
    task = config(KINDS[kind], {"precision": precision}).build()
    losses = task(batch(task.config))
    losses.total.backward()
    assert losses.total.isfinite() and 0 < losses.parts["negatives/valid"] <= 1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.75, 1.0])
def test_a_fraction_of_every_lane_gets_negatives_and_at_least_one_clip(fraction: float) -> None:
    rows = NegativesSettings(fraction=fraction).rows(GLOBAL_BATCH, LANE_BATCH)
    share = max(1, round(fraction * LANE_BATCH))
    assert rows.tolist() == [lane + k for lane in range(0, GLOBAL_BATCH, LANE_BATCH) for k in range(share)]


def test_clips_without_negatives_have_the_plain_loss() -> None:
    """With one clip a lane pushed, its own loss changes; and so does nothing but the share of it."""
    changes = {"negatives": {"kind": "hardest_of_k", "num_candidates": 1}, "objective.negative_weight": 1e3}
    plain, half, whole = (
        config(changes, {"negatives.fraction": fraction}).build()
        if fraction
        else config({"negatives": {"kind": "none"}}).build()
        for fraction in (0, 0.5, 1)
    )
    totals = [float(task(batch(task.config)).total.detach()) for task in (plain, half, whole)]
    assert totals[0] < totals[1] < totals[2]
    assert (totals[1] - totals[0]) / (totals[2] - totals[0]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_every_drawn_strength_lies_between_the_dead_zone_and_the_full_one(levels: int, ramp: float) -> None:
    settings = FieldNegatives(time_strength=0.3, strength_levels=levels)
    strengths = settings.strengths("time", 0.06, ramp)
    assert len(set(strengths)) == levels and list(strengths) == sorted(strengths)
    assert all(0.06 < s <= 0.3 + 1e-9 for s in strengths)
    assert (max(strengths) == pytest.approx(0.3)) == (ramp == 1)


@pytest.mark.parametrize("family", ["time_shift", "time_reversal", "segment_permutation"])
def test_each_clip_draws_a_strength_of_its_own(family: str) -> None:
    """Seen in a ramp along time, which says where each frame comes from."""
    frames = (torch.arange(float(S)) / S).expand(GLOBAL_BATCH, F, S)
    keys = {"frequency_strength": 0, "time_strength": 0.4, "num_candidates": 1, "families": [family], "fill": "floor"}
    for levels in (1, 4):
        settings = HardestOfK.model_validate(keys | {"strength_levels": levels})
        rms = []
        for step in range(4):
            mel_NFS = settings.build(VIEWS).find(frames, smooth_encoder, draws(step)).mel_NFS
            kept = (mel_NFS > 0) | (frames == 0)
            rms += (((mel_NFS - frames).square() * kept).sum(dim=(1, 2)) / kept.sum(dim=(1, 2))).sqrt().tolist()
        assert min(rms) > 0.0527  # the dead zone
        spread = max(rms) - min(rms)
        assert spread > 0.2 if levels == 4 else spread < 0.15


def test_the_choice_in_bfloat16_is_that_of_float32_up_to_ties() -> None:
    settings = HardestOfK(num_candidates=8)
    chosen = [
        settings.build(VIEWS).find(noise(), embed, draws()).mel_NFS
        for embed in (smooth_encoder, lambda mel_NFS: smooth_encoder(mel_NFS.bfloat16()))
    ]
    assert (chosen[0] == chosen[1]).flatten(1).all(dim=1).float().mean() > 0.8
    z_BD = smooth_encoder(noise())
    exact, rounded = (torch.cosine_similarity(z_BD, smooth_encoder(mel)) for mel in chosen)
    assert (exact >= rounded - 1e-6).all() and (exact - rounded).max() < 0.02
    plain = HardestOfK(num_candidates=1).build(VIEWS).find(noise(), smooth_encoder, draws()).mel_NFS
    assert (exact - torch.cosine_similarity(z_BD, smooth_encoder(plain))).mean() > 0.2  # far more than rounding


# field


def field_adversary(**keys: Any) -> FieldAdversary:
    return FieldNegatives.model_validate(keys).build(VIEWS)


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_a_found_field_lies_on_its_shell(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adversary = field_adversary(frequency_strength=0.1, time_strength=0.25, num_steps=num_steps, step_size=3.0)
    fields: list[Tensor] = []

    def spied(*arguments: Any) -> Tensor:
        fields.append(smooth_field(*arguments))
        return fields[-1]

    monkeypatch.setattr("scaleaudio.negatives.field.smooth_field", spied)
    found = adversary.find(noise(), smooth_encoder, draws())
    assert len(fields) == num_steps + 1
    for field in fields:
        rms_B2 = field.detach().square().mean(dim=(2, 3)).sqrt()
        torch.testing.assert_close(rms_B2, torch.tensor([0.1, 0.25]).expand(GLOBAL_BATCH, 2))
    assert torch.equal(found.mel_NFS, warp(noise(), fields[-1]))
    del fields[:]
    field_adversary(strength_levels=3, num_steps=0, time_strength=0).find(noise(), smooth_encoder, draws())
    drawn = fields[0].square().mean(dim=(2, 3)).sqrt()[:, 0]
    edge = dead_zone(VIEWS, "frequency")
    assert {round(float(s), 4) for s in drawn} == {round(edge + (0.15 - edge) * k / 3, 4) for k in (1, 2, 3)}


def test_each_ascent_brings_the_negatives_closer_to_their_anchors() -> None:
    mel_BFS = torch.nn.functional.avg_pool2d(noise(), 5, 1, padding=2)  # patterns wider than a cell
    z_BD = smooth_encoder(mel_BFS)
    means = []
    for num_steps in (0, 2, 6, 12):
        found = field_adversary(num_steps=num_steps, step_size=0.3).find(mel_BFS, smooth_encoder, draws())
        means.append(float(torch.cosine_similarity(z_BD, smooth_encoder(found.mel_NFS)).mean()))
    assert means == sorted(means) and means[-1] > means[0] + 0.15


def test_the_gradient_of_the_field_search_is_that_of_finite_differences() -> None:
    mel_BFS = torch.nn.functional.avg_pool2d(noise()[:2].double(), 5, 1, padding=2)
    lattice = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    strength_B2 = torch.full((2, 2), 0.15, dtype=torch.float64)
    z_BD = smooth_encoder(mel_BFS)
    adversary = field_adversary()

    def similarity(lattice: Tensor) -> Tensor:
        return adversary.similarity(lattice, mel_BFS, z_BD, smooth_encoder, strength_B2)

    assert torch.autograd.gradcheck(similarity, lattice, eps=1e-7, atol=1e-4)


def test_a_field_along_one_axis_leaves_the_other_where_it_is() -> None:
    steady = torch.arange(float(F))[:, None].expand(GLOBAL_BATCH, F, S)
    found = field_adversary(frequency_strength=0).find(steady, smooth_encoder, draws())
    torch.testing.assert_close(found.mel_NFS, steady, atol=1e-4, rtol=0)
    assert not found.valid_N.any()  # which is no negative
    assert (found.motion_N2[:, 0] == 0).all()


def test_the_field_is_searched_in_fewer_frames_and_applied_to_all_of_them() -> None:
    seen: list[int] = []

    def embed(mel_NFS: Tensor) -> Tensor:
        seen.append(mel_NFS.shape[2])
        return mel_NFS.flatten(1)

    found = field_adversary(score_stride=2, num_steps=1).find(noise(), embed, draws())
    assert seen == [S // 2] * 2 and found.mel_NFS.shape == noise().shape


def test_a_field_in_the_dead_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"negatives\.time_strength 0\.05: inside the dead zone.* 0\.053"):
        config({"negatives": {"kind": "field", "time_strength": 0.05}})


# value


def test_values_are_changed_by_epsilon_in_the_mean_square() -> None:
    found = ValueNegatives(epsilon=0.3).build(VIEWS).find(noise(), smooth_encoder, draws())
    rms_B = (found.mel_NFS - noise()).square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(rms_B, torch.full((GLOBAL_BATCH,), 0.3))


def test_the_step_on_values_goes_where_the_encoder_notices_least() -> None:
    z_BD = smooth_encoder(noise())
    found = ValueNegatives(epsilon=0.3).build(VIEWS).find(noise(), smooth_encoder, draws())
    random = noise() + 0.3 * (torch.rand(noise().shape, generator=torch.Generator().manual_seed(3)) - 0.5).sign()
    similarities = [torch.cosine_similarity(z_BD, smooth_encoder(mel)).mean() for mel in (found.mel_NFS, random)]
    assert similarities[0] > similarities[1] + 0.02


# own


def test_a_users_own_adversary_is_asked_with_its_options() -> None:
    task = config(OWN).build()
    part = batch(task.config)
    assert torch.equal(search(task).mel_NFS, task.frontend(part.wave_BT).flip(2))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("test_kinds:Missing", r"negatives\.kind 'test_kinds:Missing': cannot be imported"),
        ("no_such_package:Class", r"negatives\.kind 'no_such_package:Class': cannot be imported"),
        ("scaleaudio.views:ViewsConfig", "unexpected|find|extra"),
    ],
)
def test_an_own_adversary_that_is_none_is_refused_by_name(kind: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        config({"negatives": {"kind": kind}}).build()


def test_an_adversary_is_a_protocol_that_the_shipped_ones_keep() -> None:
    made: list[Adversary] = [config(KINDS[kind]).negatives.build(VIEWS) for kind in KINDS]  # type: ignore[union-attr]
    assert all(callable(adversary.find) for adversary in made)
