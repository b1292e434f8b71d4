"""The task: one module from a batch to losses, in which the negatives disturb nothing but the loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, BYOL, GLOBAL_BATCH, INDEPENDENT, INDEPENDENT_BYOL, NO_NEGATIVES, batch, config
from torch import Tensor

from scaleaudio.negatives import Found
from scaleaudio.negatives.displace import FREQUENCY_FAMILIES, TIME_FAMILIES
from scaleaudio.task import PretrainTask, TaskConfig
from scaleaudio.types import Draws, Views, World

KINDS = [{}, AUDIO_NTT, BYOL, AUDIO_NTT | BYOL]


def grads(task: PretrainTask, step: int = 0) -> dict[str, Tensor]:
    task(batch(task.config, step)).total.backward()
    return {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


def norm_state(task: PretrainTask) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in task.named_buffers() if "running" in name or "num_batches" in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What comes out.


@pytest.mark.parametrize("changes", KINDS)
def test_every_trained_parameter_gets_a_gradient_and_the_target_none(changes: dict[str, Any]) -> None:
    task = config(changes).build()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert grads(task).keys() == trained
    assert not any(name.startswith("target.") for name in trained)


def test_losses_hold_the_total_the_parts_and_the_anchors_embeddings() -> None:
    losses = config().build()(batch(config()))
    assert losses.total.requires_grad and losses.total.ndim == 0
    assert losses.embedding_BD.shape == (GLOBAL_BATCH, 16) and not losses.embedding_BD.requires_grad
    sides = {"positive", "others", "negative"}
    watched = {f"similarity/{side}" for side in sides} | {f"similarity/embedding_{side}" for side in sides}
    families = {f"negatives/family_{name}" for name in (*FREQUENCY_FAMILIES, *TIME_FAMILIES)}
    assert losses.parts.keys() == {"loss", "negatives/valid"} | families | watched
    assert torch.equal(losses.parts["loss"], losses.total.detach())
    assert not any(part.requires_grad for part in losses.parts.values())
    plain = config(NO_NEGATIVES).build()(batch(config()))
    of_negatives = {"similarity/negative", "similarity/embedding_negative", "negatives/valid"} | families
    assert plain.parts.keys() == losses.parts.keys() - of_negatives


def test_the_log_tells_the_share_of_each_family_that_the_adversary_chose() -> None:
    families = ["frequency_shift", "frequency_flip"]
    changed = config({"negatives.families": families, "negatives.time_strength": 0.0})
    parts = changed.build()(batch(changed)).parts
    shares = [float(parts[f"negatives/family_{name}"]) for name in families]
    assert sum(shares) == 1 and min(shares) > 0
    alone = config({"negatives.families": families[:1], "negatives.time_strength": 0.0})
    assert not any("family" in name for name in alone.build()(batch(alone)).parts)


def test_a_positive_is_more_like_its_anchor_than_another_clip_is() -> None:
    """Without noise in the views, so that this holds for fresh weights."""
    changed = config({"views.mixup": None, "views.fader": None})
    parts = changed.build()(batch(changed)).parts
    assert parts["similarity/embedding_positive"] > parts["similarity/embedding_others"]


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT | BYOL])
def test_bfloat16_trains_every_parameter_close_to_float32(changes: dict[str, Any]) -> None:
    """Weights that the search casts without gradient must not be taken for those of the loss."""
    exact = config(changes, {"negatives.num_candidates": 1}).build()
    rounded = config(changes, {"negatives.num_candidates": 1, "precision": "bfloat16"}).build()
    expected, found = (task(batch(exact.config)).total.detach() for task in (exact, rounded))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    searched = config(changes, {"negatives.num_candidates": 3, "precision": "bfloat16"}).build()
    assert grads(searched).keys() == grads(exact).keys()
    assert searched(batch(searched.config)).total.dtype == torch.float32


# What decides it.


def test_weights_depend_on_the_seed_and_the_encoders_on_nothing_else() -> None:
    torch.manual_seed(1)
    one = config().build().state_dict()
    torch.manual_seed(2)
    assert same(one, config().build().state_dict())
    assert not same(one, config({"seed": 1}).build().state_dict())
    with_byol = config(BYOL).build().encoder.state_dict()
    assert same(with_byol, config().build_encoder().state_dict())


def test_building_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(1)
    config().build()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))


def test_a_step_depends_on_seed_and_step_alone() -> None:
    changed = config(AUDIO_NTT)
    torch.manual_seed(1)
    one = changed.build()(batch(changed)).total
    torch.manual_seed(2)
    assert torch.equal(one, changed.build()(batch(changed)).total)
    same_clips_later = replace(batch(changed), step=1)
    assert not torch.equal(one, changed.build()(same_clips_later).total)


def test_dropout_is_drawn_anew_at_every_step_and_on_every_worker() -> None:
    views = {"views": {"mixup": None, "resize_crop": None, "fader": None}}
    changed = config(AUDIO_NTT, BYOL, NO_NEGATIVES, views)
    task = changed.build()
    one = task(batch(changed)).embedding_BD
    assert torch.equal(one, task(batch(changed)).embedding_BD)
    assert not torch.equal(one, task(replace(batch(changed), step=1)).embedding_BD)
    assert not torch.equal(one, changed.build(World(1, 2))(batch(changed)).embedding_BD)


@pytest.mark.parametrize("size", [2, 3])
def test_each_worker_makes_of_its_clips_what_one_worker_makes_of_them(size: int) -> None:
    """Views, negatives and embeddings; byol needs no other worker, so no group is needed here."""
    changed = config(INDEPENDENT_BYOL)
    whole = changed.build()(batch(changed))
    parts = [changed.build(World(rank, size))(batch(changed, 0, World(rank, size))) for rank in range(size)]
    torch.testing.assert_close(torch.cat([part.embedding_BD for part in parts]), whole.embedding_BD)
    torch.testing.assert_close(sum(part.total for part in parts) / size, whole.total)


# The negatives beside it.


@pytest.mark.parametrize("batch_norm", ["views", "split", "eval"])
@pytest.mark.parametrize("changes", KINDS)
def test_negatives_beside_a_batch_change_neither_its_outputs_nor_the_running_statistics(
    changes: dict[str, Any], batch_norm: str
) -> None:
    plain = config(changes, NO_NEGATIVES).build()
    beside = config(changes, {"negatives.batch_norm": batch_norm}).build()
    for step in range(2):
        expected, found = plain(batch(plain.config, step)), beside(batch(plain.config, step))
        assert torch.equal(expected.embedding_BD, found.embedding_BD)
        for part in ("similarity/positive", "similarity/embedding_positive"):
            assert torch.equal(expected.parts[part], found.parts[part])
    torch.testing.assert_close(norm_state(beside), norm_state(plain), rtol=1e-6, atol=1e-7)


def test_byols_own_loss_is_the_same_with_and_without_negatives() -> None:
    """With a weight that rounds away, all that is left is the loss of the views."""
    plain = config(AUDIO_NTT, BYOL, NO_NEGATIVES).build()
    beside = config(AUDIO_NTT, BYOL, {"objective.negative_weight": 1e-30}).build()
    assert torch.equal(plain(batch(plain.config)).total, beside(batch(plain.config)).total)


def test_shared_statistics_are_moved_by_the_negatives() -> None:
    plain, shared = config(NO_NEGATIVES).build(), config({"negatives.batch_norm": "shared"}).build()
    expected, found = plain(batch(plain.config)), shared(batch(plain.config))
    assert not torch.equal(expected.embedding_BD, found.embedding_BD)
    assert not same(norm_state(plain), norm_state(shared))


@pytest.mark.parametrize(
    ("batch_norm", "same_clip"), [("views", True), ("shared", True), ("split", False), ("eval", False)]
)
def test_statistics_of_the_views_embed_a_clip_among_negatives_as_they_embed_it_among_views(
    batch_norm: str, same_clip: bool
) -> None:
    """Some negatives differ from their anchors here and some are their anchors moved back, the clips themselves."""
    returned = {"families": ["frequency_shift", "time_reversal"], "control": "return", "num_candidates": 1}
    task = config({"negatives": returned | {"batch_norm": batch_norm}}).build()
    with torch.no_grad():
        part = batch(task.config)
        mel_BFS = task.frontend(part.wave_BT)
        sought = task._find(mel_BFS, Draws(0, part, mel_BFS.device), part)
        views, negatives = task._embed(torch.cat([mel_BFS, mel_BFS]), sought)
    assert sought is not None and negatives is not None
    own_M = (sought.found.mel_NFS == mel_BFS[sought.clip_M]).all(2).all(1)
    anchor_MD = views.projected_ND[sought.clip_M]
    atol = 1e-4 if batch_norm == "views" else 1e-5  # its statistics are read off, not computed again
    assert 0 < own_M.sum() < len(own_M)
    assert torch.allclose(anchor_MD[own_M], negatives.projected_ND[own_M], atol=atol) == same_clip


@pytest.mark.parametrize("batch_norm", ["views", "split", "eval", "shared"])
def test_every_treatment_of_negatives_pushes_through_the_encoder(batch_norm: str) -> None:
    changes = {"negatives.batch_norm": batch_norm}
    one = grads(config(changes).build())
    other = grads(config(changes, {"objective.negative_weight": 1e-9}).build())
    assert not torch.allclose(one["encoder.stem.0.weight"], other["encoder.stem.0.weight"], rtol=1e-3)


def test_norms_keep_their_running_statistics_and_modes_after_a_step() -> None:
    task = config(AUDIO_NTT, BYOL).build()
    keys = task.state_dict().keys()
    grads(task)
    assert task.state_dict().keys() == keys
    assert all(module.training for module in task.modules())
    assert all(getattr(m, "track_running_stats", True) for m in task.modules())


def search(task: PretrainTask) -> Found:
    mel_BFS = task.frontend(batch(task.config).wave_BT)
    sought = task._find(mel_BFS, Draws(0, batch(task.config), torch.device("cpu")), batch(task.config))
    assert sought is not None
    return sought.found


def test_the_search_leaves_no_gradient_and_no_running_statistic_changed() -> None:
    task = config(AUDIO_NTT, {"negatives.num_candidates": 4}).build()
    before = norm_state(task)
    assert not search(task).mel_NFS.requires_grad
    assert same(norm_state(task), before)
    assert all(p.grad is None for p in task.parameters())
    assert all(module.training for module in task.modules())


def test_the_search_scores_anchors_and_candidates_in_eval_mode_in_the_projector() -> None:
    """So its choice depends neither on dropout nor on the other clips of the batch."""
    task = config(AUDIO_NTT, {"encoder.dropout": 0.9, "negatives.num_candidates": 4}).build()
    grads(task)  # some running statistics
    seen: list[Tensor] = []
    task.projector.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    found = [search(task), search(task)]
    assert [len(scored) for scored in seen] == [5 * GLOBAL_BATCH] * 2
    assert torch.equal(*seen) and torch.equal(found[0].mel_NFS, found[1].mel_NFS)


# Where negatives act.

EVERY_PLACE: list[dict[str, Any]] = [
    {"objective.negative_on": "embedding", "objective.embedding": {}},
    {"objective.negative_on": "both", "objective.embedding": {}},
    {"objective.embedding": {}},
    {"objective.negative_gradient": "anchor"},
    {"objective.negative_gradient": "negative"},
    {"objective.predict": {"hidden_dim": 8}},
    {"negatives.fraction": 0.5, "negatives.num_kept": 2, "objective.negative_on": "both", "objective.embedding": {}},
    BYOL | {"objective.negative_on": "both", "objective.embedding": {}},
    BYOL | {"objective.negative_side": "target"},
    BYOL | {"objective.predict": {"hidden_dim": 8}},
]


@pytest.mark.parametrize("changes", EVERY_PLACE)
@pytest.mark.parametrize("batch_norm", ["views", "split", "eval", "shared"])
def test_wherever_negatives_act_every_parameter_is_trained_and_they_count(
    changes: dict[str, Any], batch_norm: str
) -> None:
    task = config(
        BYOL if "kind" in changes.get("objective", {}) else {}, changes, {"negatives.batch_norm": batch_norm}
    ).build()
    losses = task(batch(task.config))
    losses.total.backward()
    assert all((p.grad is not None) == p.requires_grad for p in task.parameters())
    plain = config(BYOL if "kind" in changes.get("objective", {}) else {}, changes, NO_NEGATIVES).build()
    assert not torch.equal(plain(batch(plain.config)).total, losses.total)


def encoder_gradient(task: PretrainTask) -> Tensor:
    return grads(task)["encoder.stem.0.weight"]


def test_repelled_in_the_embedding_alone_the_projector_has_the_plain_gradient() -> None:
    embedding = {"objective.embedding": {}}
    plain = config(embedding, NO_NEGATIVES).build()
    apart = config(embedding, {"objective.negative_on": "embedding"}).build()
    expected, found = grads(plain), grads(apart)
    assert torch.equal(expected["projector.3.weight"], found["projector.3.weight"])
    assert not torch.allclose(expected["encoder.stem.0.weight"], found["encoder.stem.0.weight"], rtol=1e-3)


@pytest.mark.parametrize("where", ["projector", "embedding", "both"])
def test_a_step_against_what_negatives_add_lowers_it_by_as_much_as_its_gradient_says(where: str) -> None:
    """Without what the gradient takes for constant: statistics of batch norm and standardising, and the choice."""
    embedding = {"negative_weight": 8.0, "standardise": False}
    settings = INDEPENDENT | {"objective.embedding": embedding, "negatives.num_candidates": 1}
    repelling = config(settings, {"objective.negative_on": where}).build()
    plain = config(settings, NO_NEGATIVES).build()

    def added() -> float:
        with torch.no_grad():
            return float(repelling(batch(repelling.config)).total - plain(batch(plain.config)).total)

    with_negatives, without = grads(repelling), grads(plain)
    away = {name: grad - without[name] for name, grad in with_negatives.items()}
    size = float(torch.sqrt(sum((grad.square().sum() for grad in away.values()), torch.zeros(()))))
    before, step = added(), 3e-4
    with torch.no_grad():
        for task in (repelling, plain):
            for name, parameter in task.named_parameters():
                if name in away:
                    parameter -= step / size * away[name]
    assert before - added() == pytest.approx(step * size, rel=0.1)


def test_a_negative_without_gradient_costs_no_backward_pass() -> None:
    task = config({"objective.negative_gradient": "anchor"}).build()
    modes: list[bool] = []
    task.projector.register_forward_hook(lambda module, inputs, output: modes.append(output.requires_grad))
    task(batch(task.config))
    assert modes == [False, True, False]  # the search, the views, the negatives


# The displace-and-return control, and positives that bear artefacts.


def test_the_control_shows_the_objective_the_anchor_with_seams_only() -> None:
    changes = {"negatives.families": ["frequency_shift", "time_shift"], "negatives.control": "return"}
    task = config(changes).build()
    mel_BFS = task.frontend(batch(task.config).wave_BT)
    mel_NFS = search(task).mel_NFS
    moved = (mel_NFS != mel_BFS).flatten(1)
    floor = (mel_NFS == mel_BFS.amin(dim=(1, 2), keepdim=True)).flatten(1)
    assert moved.any(dim=1).all() and (floor | ~moved).all()
    assert not search(config(changes | {"negatives.control": "none"}).build()).mel_NFS.equal(mel_NFS)


SHIFT_IN_TIME = {"kind": "hardest_of_k", "families": ["time_shift"], "frequency_strength": 0}


@pytest.mark.parametrize("negatives", [SHIFT_IN_TIME, {"kind": "field"}], ids=["hardest_of_k", "field"])
def test_positives_bear_the_artefacts_that_are_asked_for(negatives: dict[str, Any]) -> None:
    for share in (0.0, 0.5, 1.0):
        task = config({"negatives": negatives | {"artefact_positives": share}}).build()
        views = Views(*(torch.randn(GLOBAL_BATCH, 16, 20) for _ in range(2)))
        scarred = task._scarred(views, Draws(0, batch(task.config), torch.device("cpu")), 0)
        for one, other in zip(views, scarred, strict=True):
            changed = (one != other).flatten(1).any(dim=1).float().mean()
            assert changed == share if share != 0.5 else 0.15 < changed < 0.85
            if negatives["kind"] == "hardest_of_k":
                assert (one == other).float().mean() > 0.7  # all but what a shift loses lies where it was


# The target.


def test_the_target_starts_as_a_copy_and_moves_by_the_momentum() -> None:
    task = config(BYOL).build()
    online, target = task.target_pairs()
    assert all(torch.equal(o, t) for o, t in zip(online, target, strict=True))
    with torch.no_grad():
        for parameter in online:
            parameter += 1.0
    task.update_target(0.75)
    for o, t in zip(online, target, strict=True):
        torch.testing.assert_close(t, o - 0.75)


def test_without_a_target_there_is_nothing_to_move() -> None:
    task = config().build()
    task.update_target(0.5)
    assert task.target_pairs() == ([], [])


# What is refused.


def test_a_strength_in_the_dead_zone_stops_the_task_from_being_built() -> None:
    with pytest.raises(ValueError, match=r"negatives\.time_strength 0\.05: inside the dead zone.* 0\.053"):
        config({"negatives.time_strength": 0.05}).build()


def test_a_part_without_a_kind_is_of_the_default_kind() -> None:
    tree = {"negatives": {"time_strength": 0.2}, "encoder": {"widths": [8]}, "objective": {"temperature": 0.3}}
    found = TaskConfig.model_validate(tree)
    assert (found.negatives.kind, found.encoder.kind, found.objective.kind) == ("hardest_of_k", "resnet", "infonce")
    assert tree["negatives"] == {"time_strength": 0.2}  # what was given stays as it is
