"""The objectives against their formulas, written out clip by clip."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from torch import Tensor

from scaleaudio.objectives import (
    BYOL,
    Against,
    BYOLConfig,
    EmbeddingTermConfig,
    HeadConfig,
    InfoNCE,
    InfoNCEConfig,
    Pairs,
    PredictConfig,
    gather,
)
from scaleaudio.objectives.pairs import Gradient
from scaleaudio.types import World

ONE = World()
B, D = 5, 7
ALL = torch.ones(B, dtype=torch.bool)
TINY = HeadConfig(hidden_dim=6, output_dim=D, norm="layer")


def vectors(seed: int) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def s(a_D: Tensor, b_D: Tensor) -> Tensor:
    return a_D @ b_D / (a_D.norm() * b_D.norm())


def against(n_BD: Tensor, valid_B: Tensor) -> Against:
    """One negative of every clip."""
    return Against(n_BD[:, None], valid_B[:, None], torch.arange(len(n_BD)))


# infonce


def infonce(config: InfoNCEConfig, a: Tensor, p: Tensor, n: Tensor | None, valid: list[bool]) -> Tensor:
    """The docstring's formula, one clip at a time."""
    losses = []
    for one, other in ((a, p), (p, a)):
        for i in range(B):
            total = sum(torch.exp(s(one[i], other[j]) / config.temperature) for j in range(B))
            if n is not None and valid[i]:
                negative = torch.exp(config.alpha * s(one[i], n[i]) / config.temperature)
                total = total + config.negative_weight * negative
            losses.append(-torch.log(torch.exp(s(one[i], other[i]) / config.temperature) / total))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("with_negatives", [True, False])
@pytest.mark.parametrize("config", [InfoNCEConfig(), InfoNCEConfig(temperature=0.5, alpha=0.3, negative_weight=2.0)])
def test_infonce_is_its_formula(config: InfoNCEConfig, with_negatives: bool) -> None:
    a, p, n = vectors(0), vectors(1), vectors(2)
    valid_B = torch.tensor([True, False, True, True, False])
    pairs = Pairs(a, p, against(n, valid_B) if with_negatives else None)
    expected = infonce(config, a, p, n if with_negatives else None, valid_B.tolist())
    torch.testing.assert_close(InfoNCE(config)(pairs, ONE, [B]), expected)


def test_the_gradient_of_infonce_is_that_of_finite_differences() -> None:
    valid_B = torch.tensor([True, False, True, True, False])
    inputs = [vectors(seed).requires_grad_() for seed in range(3)]

    def loss(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return InfoNCE(InfoNCEConfig())(Pairs(a, p, against(n, valid_B)), ONE, [B])  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(loss, inputs)


def test_an_invalid_negative_has_no_gradient_and_a_valid_one_is_pushed_away() -> None:
    a, p, n = vectors(0), vectors(1), vectors(2).requires_grad_()
    valid_B = torch.tensor([True, False, True, True, True])
    InfoNCE(InfoNCEConfig())(Pairs(a, p, against(n, valid_B)), ONE, [B]).backward()
    assert n.grad is not None and n.grad[1].abs().max() == 0
    moved = n.detach() - 1e-3 * n.grad
    assert s(moved[0], a[0]) + s(moved[0], p[0]) < s(n[0], a[0]) + s(n[0], p[0])


def test_infonce_is_finite_at_any_scale_and_lowest_when_pairs_agree() -> None:
    objective = InfoNCE(InfoNCEConfig(temperature=0.01))
    a = torch.eye(B, D)
    agree = objective(Pairs(1e4 * a, a, against(-a, ALL)), ONE, [B])
    worst = objective(Pairs(a, -a, against(a, ALL)), ONE, [B])
    assert float(agree) == pytest.approx(0, abs=1e-5) and 100 < float(worst) < 1000


# byol


def byol(margin: float = 0.2, weight: float = 1.0) -> BYOL:
    torch.manual_seed(0)
    return BYOLConfig(margin=margin, negative_weight=weight, projector=TINY, predictor=TINY).build().double()


def byol_pairs(n: Tensor | None = None, valid: list[bool] | None = None) -> Pairs:
    negatives = None if n is None or valid is None else against(n, torch.tensor(valid))
    return Pairs(vectors(0), vectors(1), negatives, vectors(3), vectors(4))


def test_byol_is_its_formula() -> None:
    objective, n, valid = byol(margin=0.3, weight=2.0), vectors(2), [True, True, False, True, True]
    a, p, target_a, target_p = (vectors(seed) for seed in (0, 1, 3, 4))
    q = objective.predictor
    expected = []
    for i in range(B):
        loss = 2 - 2 * s(q(a[i]), target_p[i]) + 2 - 2 * s(q(p[i]), target_a[i])
        hinge = torch.relu(s(a[i], n[i]) - s(a[i], p[i]) + 0.3)
        expected.append(loss + (2.0 * hinge if valid[i] else 0))
    torch.testing.assert_close(objective(byol_pairs(n, valid), ONE, [B]), torch.stack(expected).mean())


def test_the_hinge_is_bounded_and_has_no_pull_where_the_margin_is_kept() -> None:
    """A bare minus cosine would go on pulling for ever."""
    a = vectors(0)
    for n, p in ((a, -a), (1e6 * a, -a), (1e-6 * a, a)):
        negative = n.clone().requires_grad_()
        pairs = Pairs(a, p, against(negative, ALL), vectors(3), vectors(4))
        base = byol()(pairs._replace(against=None), ONE, [B])
        assert 0 <= float((byol()(pairs, ONE, [B]) - base).detach()) <= 2 + 0.2 + 1e-9
    far = (-a).requires_grad_()
    pairs = Pairs(a, a, against(far, ALL), vectors(3), vectors(4))
    byol()(pairs, ONE, [B]).backward()
    assert far.grad is not None and far.grad.abs().max() == 0


def test_the_hinge_does_not_push_positives_apart_or_together() -> None:
    p = vectors(1).requires_grad_()
    objective = byol()
    for negatives in (None, against(vectors(2), ALL)):
        pairs = Pairs(vectors(0), p, negatives, vectors(3), vectors(4))
        objective(pairs, ONE, [B]).backward()
    assert p.grad is not None
    with_hinge = p.grad.clone()
    p.grad = None
    objective(Pairs(vectors(0), p, None, vectors(3), vectors(4)), ONE, [B]).backward()
    torch.testing.assert_close(with_hinge, 2 * p.grad)


def test_targets_get_no_gradient_and_the_predictor_does() -> None:
    objective = byol()
    targets = [vectors(3).requires_grad_(), vectors(4).requires_grad_()]
    objective(Pairs(vectors(0).requires_grad_(), vectors(1), None, *targets), ONE, [B]).backward()
    assert all(target.grad is None for target in targets)
    assert all(p.grad is not None and p.grad.abs().any() for p in objective.predictor.parameters())


def test_losses_are_computed_in_float32_whatever_the_encoder_gives() -> None:
    a, p, n = (vectors(seed).bfloat16() for seed in range(3))
    pairs = Pairs(a, p, against(n, ALL), vectors(3).half())
    single = pairs.float()
    assert pairs.against is not None and single.against is not None
    vectors_BD = (single.anchor_BD, single.positive_BD, single.against.z_MPD, single.target_anchor_BD)
    assert [None if z is None else z.dtype for z in vectors_BD] == [torch.float32] * 4
    assert single.against.valid_MP is pairs.against.valid_MP and single.target_positive_BD is None


# Several negatives, of some clips.

SOME = Against(
    torch.stack([vectors(7)[:2], vectors(8)[:2]], dim=1),
    torch.tensor([[True, False], [True, True]]),
    torch.tensor([3, 1]),
)


def test_infonce_adds_up_several_negatives_of_the_clips_that_have_them() -> None:
    config, a, p = InfoNCEConfig(temperature=0.5, negative_weight=2.0), vectors(0), vectors(1)
    extra = torch.zeros(2, B, dtype=torch.float64)
    for row, clip in enumerate(SOME.clip_M.tolist()):
        for n, valid in zip(SOME.z_MPD[row], SOME.valid_MP[row], strict=True):
            for way, one in enumerate((a, p)):
                extra[way, clip] += 2.0 * torch.exp(s(one[clip], n) / 0.5) * valid
    losses = []
    for way, (one, other) in enumerate(((a, p), (p, a))):
        for i in range(B):
            total = extra[way, i] + sum(torch.exp(s(one[i], other[j]) / 0.5) for j in range(B))
            losses.append(-torch.log(torch.exp(s(one[i], other[i]) / 0.5) / total))
    torch.testing.assert_close(InfoNCE(config)(Pairs(a, p, SOME), ONE, [B]), torch.stack(losses).mean())


def test_with_a_margin_infonce_pushes_a_negative_no_further_than_that_below_the_positive() -> None:
    a = torch.eye(B, D, dtype=torch.float64)
    for distance, pushed in ((0.1, True), (0.4, False)):  # s(a,p) = 1, s(a,n) = 1 - distance
        n = (
            (1 - distance) * a + (1 - (1 - distance) ** 2) ** 0.5 * torch.eye(D, dtype=torch.float64)[D - 1]
        ).requires_grad_()
        loss = InfoNCE(InfoNCEConfig(negative_margin=0.2))(Pairs(a, a, against(n, ALL)), ONE, [B])
        loss.backward()
        assert n.grad is not None and (n.grad.abs().max() > 1e-4) == pushed
        similarity = max(1 - distance, 0.8)
        total = math.exp(1 / 0.15) + B - 1 + 8 * math.exp(similarity / 0.15)
        assert float(loss.detach()) == pytest.approx(math.log(total) - 1 / 0.15)


def test_byols_hinge_is_the_mean_over_a_clips_negatives() -> None:
    objective, a, p = byol(margin=0.3, weight=2.0), vectors(0), vectors(1)
    hinge = torch.stack(
        [
            torch.relu(s(a[c], n) - s(a[c], p[c]) + 0.3)
            for c, n in zip([3, 1, 1], SOME.z_MPD.flatten(0, 1)[[0, 2, 3]], strict=True)
        ]
    )
    plain = objective(byol_pairs(), ONE, [B])
    found = objective(byol_pairs()._replace(against=SOME), ONE, [B])
    torch.testing.assert_close(found - plain, 2.0 * hinge.sum() / 2 / B)


def test_the_hinge_seen_from_the_target_moves_the_prediction_alone() -> None:
    config = BYOLConfig(margin=0.3, negative_side="target", projector=TINY, predictor=TINY)
    torch.manual_seed(0)
    objective, n = config.build().double(), vectors(2)
    q, a, target_p = objective.predictor, vectors(0), vectors(4)
    hinge = torch.stack([torch.relu(s(q(a[i]), n[i]) - s(q(a[i]), target_p[i]) + 0.3) for i in range(B)])
    pairs = byol_pairs(n, [True] * B)
    found = objective(pairs, ONE, [B]) - objective(byol_pairs(), ONE, [B])
    torch.testing.assert_close(found, hinge.mean())


@pytest.mark.parametrize("keys", [{"negative_on": "both", "embedding": {}}, {"negative_gradient": "negative"}])
def test_a_target_that_would_need_gradient_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="negative_side target: the EMA target has no gradient"):
        BYOLConfig.model_validate({"negative_side": "target", **keys})


@pytest.mark.parametrize("gradient", ["both", "anchor", "negative"])
def test_a_negatives_similarity_moves_the_sides_that_are_named(gradient: Gradient) -> None:
    anchor_BD, z_MPD = vectors(0).requires_grad_(), SOME.z_MPD.clone().requires_grad_()
    SOME._replace(z_MPD=z_MPD).similarity(anchor_BD, gradient).sum().backward()
    assert (anchor_BD.grad is not None) == (gradient != "negative")
    assert (z_MPD.grad is not None) == (gradient != "anchor")


# In the embedding that is kept.


@pytest.mark.parametrize("lane_batch", [B, 1])
@pytest.mark.parametrize("standardise", [True, False])
def test_the_embedding_term_is_its_formula(standardise: bool, lane_batch: int) -> None:
    config = EmbeddingTermConfig(weight=3.0, temperature=0.4, negative_weight=2.0, standardise=standardise)
    a, p, n = vectors(0) + 5, vectors(1) + 5, SOME.z_MPD + 5
    views = torch.cat([a, p])
    mean, deviation = (views.mean(0), views.std(0, correction=0)) if standardise else (0, 1)
    e_a, e_p, e_n = ((x - mean) / deviation for x in (a, p, n))
    losses = []
    for one, other in ((e_a, e_p), (e_p, e_a)):
        for clip in range(B):
            lane = [j for j in range(B) if j // lane_batch == clip // lane_batch]
            total = sum(torch.exp(s(one[clip], other[j]) / 0.4) for j in lane)
            for row in (SOME.clip_M == clip).nonzero().flatten().tolist():
                valid_P = SOME.valid_MP[row]
                total = total + sum(2.0 * torch.exp(s(one[clip], e) / 0.4) for e in e_n[row][valid_P])
            losses.append(-torch.log(torch.exp(s(one[clip], other[clip]) / 0.4) / total))
    found = config.build("both")(Pairs(a, p, SOME._replace(z_MPD=n)), ONE, [B], lane_batch)
    torch.testing.assert_close(found, 3.0 * torch.stack(losses).mean())


def test_the_gradient_of_the_embedding_term_is_that_of_finite_differences() -> None:
    term = EmbeddingTermConfig(standardise=False).build("both")

    def loss(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return term(Pairs(a, p, SOME._replace(z_MPD=n)), ONE, [B], B)

    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in (vectors(0), vectors(1), SOME.z_MPD)])


# Predicting instead.


def test_the_predictors_loss_is_cross_entropy_and_squared_error_over_valid_negatives() -> None:
    torch.manual_seed(0)
    predictor = PredictConfig(weight=0.5, hidden_dim=6).build(D, num_families=3).float()
    family_N, motion_N2 = torch.tensor([0, 2, 1, 1]), torch.randn(4, 2)
    pairs = Pairs(vectors(0), vectors(1), SOME).float()
    assert pairs.against is not None
    losses = []
    for row, clip, kept in ((0, 3, 0), (1, 1, 0), (1, 1, 1)):
        both = torch.cat([pairs.anchor_BD[clip], pairs.against.z_MPD[row, kept]])
        logits, motion = predictor.head(both)[:3], predictor.head(both)[3:]
        number = 2 * row + kept
        losses.append(-logits.log_softmax(0)[family_N[number]] + (motion - motion_N2[number]).square().sum())
    found = predictor(pairs, family_N, motion_N2, ONE, [B])
    torch.testing.assert_close(found, 0.5 * torch.stack(losses).sum() / 2 / B)


# heads


def test_a_head_has_one_hidden_layer_and_its_norm() -> None:
    kinds = [type(layer).__name__ for layer in HeadConfig().build(10)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert type(HeadConfig(norm="layer").build(10)[1]).__name__ == "LayerNorm"
    assert HeadConfig(hidden_dim=6, output_dim=7).build(10, 3)(torch.randn(4, 10)).shape == (4, 3)


# Several workers.

COUNTS = [1, 3, 1]  # uneven: gloo would abort without padding


def own_rows(world: World) -> slice:
    start = sum(COUNTS[: world.rank])
    return slice(start, start + COUNTS[world.rank])


def gathered_and_losses(world: World, folder: Path) -> dict[str, Tensor]:
    """What three workers with uneven parts of one batch find."""
    rows = own_rows(world)
    keys = vectors(0)[rows].requires_grad_()
    whole = gather(keys, world, COUNTS)
    # Each worker weighs the gathered rows in its own way; each row's gradient is the sum of all weights.
    weight = (world.rank + 1.0) * torch.arange(1.0, B + 1, dtype=torch.float64)[:, None]
    (whole * weight).sum().backward()  # type: ignore[no-untyped-call]
    inputs = [vectors(seed)[rows].requires_grad_() for seed in range(3)]
    valid_B = torch.tensor([True, False, True, True, False])[rows]
    a, p, n = inputs
    loss = InfoNCE(InfoNCEConfig())(Pairs(a, p, against(n, valid_B)), world, COUNTS)
    loss = loss + EmbeddingTermConfig().build("both")(Pairs(a, p, against(n, valid_B)), world, COUNTS, 1)
    loss.backward()
    grads = [x.grad for x in inputs if x.grad is not None]
    assert keys.grad is not None
    return {"whole": whole.detach(), "keys_grad": keys.grad, "loss": loss.detach(), "grads": torch.stack(grads)}


def test_uneven_workers_gather_with_gradient_and_agree_with_one(tmp_path: Path) -> None:
    found = ranks.run(__file__, "gathered_and_losses", size=3, folder=tmp_path)
    rows = torch.arange(1.0, B + 1, dtype=torch.float64)[:, None].expand(B, D)
    for rank, part in enumerate(found):
        assert torch.equal(part["whole"], vectors(0))
        assert torch.equal(part["keys_grad"], 6 * rows[own_rows(World(rank, 3))])

    inputs = [vectors(seed).requires_grad_() for seed in range(3)]
    valid_B = torch.tensor([True, False, True, True, False])
    a, p, n = inputs
    loss = InfoNCE(InfoNCEConfig())(Pairs(a, p, against(n, valid_B)), ONE, [B])
    loss = loss + EmbeddingTermConfig().build("both")(Pairs(a, p, against(n, valid_B)), ONE, [B], 1)
    loss.backward()
    torch.testing.assert_close(sum(part["loss"] for part in found) / 3, loss.detach())
    # The mean over workers is what an engine makes of gradients.
    together = torch.cat([part["grads"] for part in found], dim=1) / 3
    torch.testing.assert_close(together, torch.stack([x.grad for x in inputs if x.grad is not None]))


def test_one_worker_gathers_nothing() -> None:
    keys = vectors(0)
    assert gather(keys, ONE, [B]) is keys


# A user's own.


class Pulling(torch.nn.Module):
    """Pulls positives together, and their negatives apart by a rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        pull = -torch.cosine_similarity(pairs.anchor_BD, pairs.positive_BD).sum()
        if pairs.against is not None:
            pull = pull + self.rate * pairs.against.similarity(pairs.anchor_BD, "both").sum()
        return pull * world.size / sum(counts)


@pytest.fixture
def _own_kind_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "their_objectives", sys.modules[__name__])


@pytest.mark.usefixtures("_own_kind_can_be_imported")
def test_an_own_objective_is_trained_on_views_and_negatives() -> None:
    def loss(rate: float) -> Tensor:
        own = {"kind": "their_objectives:Pulling", "options": {"rate": rate}}
        task = tiny.config({"objective": {**own, "projector": TINY.model_dump()}}).build()
        total = task(tiny.batch(task.config)).total
        total.backward()
        assert all(p.grad is not None for p in task.parameters())
        return total.detach()

    assert not torch.equal(loss(0.0), loss(1.0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_package:Loss", "cannot be imported"),
        ("their_objectives:B", "expected a class, got int"),
        ("fractions:Fraction", "expected a subclass of torch.nn.Module"),
    ],
)
@pytest.mark.usefixtures("_own_kind_can_be_imported")
def test_an_own_objective_that_cannot_be_used_is_named(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config({"objective": {"kind": kind}}).build()
