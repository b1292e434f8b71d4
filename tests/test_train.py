"""The loop, the plain engine, and what is watched while they run."""

from __future__ import annotations

import math
import resource
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import BYOL, GLOBAL_BATCH, NO_NEGATIVES, batch, batches, config
from torch import Tensor, nn

from scaleaudio.schedule import learning_rate
from scaleaudio.train import OptimizerConfig, PlainEngine, check_finite, collapse_watch, fit
from scaleaudio.types import World

SHORT = {"schedule": {"steps": 3, "warmup_steps": 1, "learning_rate": 0.01}}


def engine(*changes: dict[str, Any], **optimizer: float) -> PlainEngine:
    return PlainEngine(config(*changes).build(), OptimizerConfig(**optimizer))


# The loop.


def test_the_loop_ends_at_the_schedules_last_step_without_asking_for_another_batch() -> None:
    trained = engine(SHORT)
    endless = (batch(trained.task.config, step) for step in count())
    assert [report.step for report in fit(trained, endless)] == [0, 1, 2]
    assert next(endless).step == 3
    assert list(fit(trained, batches(trained.task.config, 3, 5))) == []


def test_a_report_names_the_step_its_clips_and_its_learning_rate() -> None:
    trained = engine(SHORT)
    report = next(fit(trained, batches(trained.task.config, 1, 3)))
    assert report.step == 1 and report.key_B == tuple(f"clip-{n}" for n in range(GLOBAL_BATCH)) and report.rejects == ()
    assert report.learning_rate == learning_rate(1, trained.task.config.schedule)
    metrics = report.metrics()
    assert {"loss", "grad_norm", "learning_rate", "embedding/std", "embedding/rank", "step_seconds"} <= metrics.keys()
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert 0 <= report.data_wait_seconds <= report.step_seconds
    assert check_finite(report, metrics) is None


def test_a_metric_that_is_not_finite_is_named_with_step_and_clips() -> None:
    trained = engine(SHORT)
    report = next(fit(trained, batches(trained.task.config, 0, 1)))
    line = check_finite(report, {"loss": math.nan, "grad_norm": math.inf, "fine": 1.0})
    assert line is not None
    assert line.startswith("step 0: loss, grad_norm not finite. The clips on this rank were clip-0, clip-1,")
    assert "clip-7 ..." in line and "clip-8" not in line


def test_training_lowers_the_loss() -> None:
    trained = engine(NO_NEGATIVES, {"views.mixup": None})
    same_clips = [batch(trained.task.config, 0)] * 12
    losses = [float(report.stepped.losses.total.detach()) for report in fit(trained, same_clips)]
    assert losses[-1] < 0.8 * losses[0]


# The engine.


def test_a_step_is_adamw_on_clipped_gradients() -> None:
    """Against torch's own parts, put together by hand."""
    trained = engine(max_grad_norm=0.1)
    task = config().build()
    decayed, free = ([p for p in task.parameters() if (p.ndim > 1) is many] for many in (True, False))
    groups = [{"params": decayed}, {"params": free, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    for step in range(3):
        stepped = trained.step(batch(task.config, step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, task.config.schedule)
        optimizer.zero_grad()
        task(batch(task.config, step)).total.backward()
        norm = nn.utils.clip_grad_norm_(task.parameters(), 0.1)
        optimizer.step()
        torch.testing.assert_close(stepped.grad_norm, norm)
        assert norm > 0.1
    for expected, found in zip(task.parameters(), trained.task.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_biases_and_norms_are_not_decayed() -> None:
    decayed, free = OptimizerConfig(weight_decay=0.5).build(config().build()).param_groups
    assert decayed["weight_decay"] == 0.5 and all(p.ndim > 1 for p in decayed["params"])
    assert free["weight_decay"] == 0.0 and all(p.ndim == 1 for p in free["params"])


def test_the_target_is_not_trained_but_follows_by_the_schedules_momentum() -> None:
    trained = engine(BYOL, {"schedule.ema_momentum": 0.25, "schedule.final_ema_momentum": 0.25})
    before = [p.clone() for p in trained.task.target_pairs()[1]]
    trained.step(batch(trained.task.config))
    online, target = trained.task.target_pairs()
    for old, new, leader in zip(before, target, online, strict=True):
        torch.testing.assert_close(new, 0.25 * old + 0.75 * leader)
    assert not any("target" in name for name, _ in trained.tensors() if name.startswith("exp_avg"))


def test_a_parameter_without_gradient_has_its_moments_too() -> None:
    trained = engine()
    trained.task.encoder.unused = nn.Parameter(torch.ones(3))
    trained = PlainEngine(trained.task, OptimizerConfig())
    trained.step(batch(trained.task.config))
    tensors = dict(trained.tensors())
    assert torch.equal(tensors["exp_avg.encoder.unused"], torch.zeros(3))
    trained.load(tensors, 1)


def test_tensors_are_parameters_moments_and_buffers_by_name() -> None:
    trained = engine(SHORT)
    trained.step(batch(trained.task.config))
    tensors = dict(trained.tensors())
    names = {name for name, _ in trained.task.named_parameters()}
    for prefix in ("parameter", "exp_avg", "exp_avg_sq"):
        assert {n.removeprefix(f"{prefix}.") for n in tensors if n.startswith(f"{prefix}.")} == names
    assert {"buffer.frontend.mean", "buffer.frontend.std", "buffer.encoder.stem.1.running_mean"} <= tensors.keys()
    assert not any("window" in name or name.endswith(".fb") for name in tensors)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (BYOL, r"checkpoint: \d+ tensors missing, 0 not known"),
        ({"encoder.widths": [8, 16, 16]}, "tensors missing"),
        ({"encoder.widths": [8, 24]}, r"checkpoint: parameter\.encoder\S+ is \[16\S*.*\], expected \[24"),
    ],
)
def test_tensors_of_another_task_are_refused(other: dict[str, Any], message: str) -> None:
    tensors = dict(engine().tensors())
    with pytest.raises(ValueError, match=message):
        engine(other).load(tensors, 0)


# The collapse watch.


def sphere(num: int, dim: int) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(0))


def test_embeddings_that_fill_the_sphere_have_std_one_and_nearly_full_rank() -> None:
    watch = collapse_watch(sphere(2000, 16))
    assert watch["embedding/std"] == pytest.approx(1, abs=0.01)
    assert 15.5 < watch["embedding/rank"] <= 16
    assert collapse_watch(100 * sphere(2000, 16)) == pytest.approx(watch, rel=1e-4)


def test_embeddings_on_a_plane_have_rank_two_and_equal_ones_rank_one() -> None:
    plane = sphere(500, 2) @ sphere(2, 16)
    assert collapse_watch(plane)["embedding/rank"] == pytest.approx(2, abs=0.1)
    collapsed = collapse_watch(sphere(1, 16).expand(50, 16))
    assert collapsed == {"embedding/std": pytest.approx(0, abs=1e-6), "embedding/rank": 1.0}


def test_embeddings_that_are_not_finite_are_reported_and_raise_nothing() -> None:
    watch = collapse_watch(torch.full((4, 3), math.nan))
    assert math.isnan(watch["embedding/std"]) and math.isnan(watch["embedding/rank"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's compiler, of its own parts
def test_a_compiled_task_takes_the_steps_of_the_plain_one() -> None:
    losses = {}
    for mode in ("off", "default"):
        trained = engine({"train.compile": mode, "schedule.learning_rate": 1e-3})
        reports = fit(trained, batches(trained.task.config, 0, 3))
        losses[mode] = [float(report.stepped.losses.total.detach()) for report in reports]
    assert losses["default"] == pytest.approx(losses["off"], rel=1e-2)


def faults_of_freed_memory(world: World, folder: Path) -> float:
    """Page faults over those of fresh memory, when it is freed and taken again, in a process of its own."""
    PlainEngine(config().build(), OptimizerConfig())
    pages = 64 * 2**20 // resource.getpagesize()
    torch.ones(16 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(16 * 2**20)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (3 * pages)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_memory_that_a_step_frees_is_kept_for_the_next(tmp_path: Path) -> None:
    (share,) = ranks.run(__file__, "faults_of_freed_memory", size=1, folder=tmp_path)
    assert share < 1 / 12
