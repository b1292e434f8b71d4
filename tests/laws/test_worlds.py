"""Laws: several workers' gradient is one worker's, and a checkpoint goes from any number of them to any other.

Under norms that do not look at the rest of the batch, and without dropout, as batch norm on CPUs is per worker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import INDEPENDENT, INDEPENDENT_BYOL, batch, batches, config
from torch import Tensor

from scaleaudio import checkpoint
from scaleaudio.averaging import average
from scaleaudio.train import OptimizerConfig, PlainEngine, fit
from scaleaudio.types import World

KINDS = {
    "infonce": INDEPENDENT,
    "in the embedding too": INDEPENDENT | {"objective.embedding": {}, "objective.negative_on": "both"},
    "byol": INDEPENDENT_BYOL,
}
N, K = 4, 2


def gradients(world: World, kind: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and gradients of the first batch, averaged over the workers."""
    task = config(KINDS[kind]).build(world)
    loss = task(batch(task.config, 0, world)).total
    loss.backward()
    grads = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    whole = loss.detach().clone()
    average([whole, *grads.values()], world)
    return whole, grads


def train(world: World, kind: str, run: Path, start: int, stop: int) -> list[Tensor]:
    """Mean losses of steps start to stop, resumed from the run's checkpoint and ending in another."""
    settings = config(KINDS[kind])
    engine = PlainEngine(settings.build(world), OptimizerConfig())
    if start > 0:
        found = checkpoint.newest(str(run), world)
        assert found is not None and found[0].step == start
        engine.load(found[1], start)
    losses = [r.stepped.losses.total.detach().clone() for r in fit(engine, batches(settings, start, stop, world))]
    average(losses, world)
    checkpoint.save(str(run), engine, checkpoint.Meta(stop, {}, {}))
    return losses


def several(world: World, folder: Path) -> dict[str, Any]:
    """What each of several workers finds: gradients, and a run that it begins."""
    found: dict[str, Any] = {kind: gradients(world, kind) for kind in KINDS}
    found |= {f"{kind} losses": train(world, kind, folder / kind, 0, K) for kind in KINDS}
    with_batch_norm = PlainEngine(config().build(world), OptimizerConfig())
    with_batch_norm.step(batch(with_batch_norm.task.config, 0, world))
    return found | {"batch norm": {name: tensor.clone() for name, tensor in with_batch_norm.tensors()}}


def assert_same_everywhere(models: list[dict[str, Tensor]]) -> None:
    """Every worker holds the same model, running statistics included."""
    running = {name: t for name, t in models[0].items() if name.endswith("running_mean")}
    assert running and all(t.abs().max() > 0 for t in running.values())
    for model in models[1:]:
        assert all(torch.equal(model[name], tensor) for name, tensor in models[0].items())


@pytest.mark.parametrize("size", [2, 3])  # 3 workers have uneven shares of 4 lanes
def test_workers_learn_what_one_worker_learns_and_hand_over_to_it(size: int, tmp_path: Path) -> None:
    found = ranks.run(__file__, "several", size=size, folder=tmp_path)
    assert_same_everywhere([part["batch norm"] for part in found])
    for kind in KINDS:
        loss, grads = gradients(World(), kind)
        for part in found:
            torch.testing.assert_close(part[kind][0], loss)
            for name, grad in grads.items():
                # by standardising, which amplifies rounding
                amplified = float(grad.abs().max()) if kind == "in the embedding too" else 0.0
                atol = max(1e-6, 1e-5 * amplified)
                torch.testing.assert_close(part[kind][1][name], grad, rtol=1e-4, atol=atol, msg=f"{kind} {name}")
        whole = train(World(), kind, tmp_path / f"{kind} alone", 0, N)
        torch.testing.assert_close(found[0][f"{kind} losses"], whole[:K], rtol=1e-4, atol=1e-4)
        resumed = train(World(), kind, tmp_path / kind, K, N)
        torch.testing.assert_close(resumed, whole[K:], rtol=1e-4, atol=1e-4)
