"""Law: n steps are k steps, a checkpoint, and n - k steps: bitwise on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, BYOL, batches, config

from scaleaudio import checkpoint
from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig, PlainEngine, fit

N = 5
SCHEDULE = {"schedule": {"steps": N, "warmup_steps": 1, "ramp_steps": 3, "learning_rate": 0.01}}


def train(engine: PlainEngine, config: TaskConfig, start: int, stop: int) -> list[torch.Tensor]:
    return [report.stepped.losses.total.detach() for report in fit(engine, batches(config, start, stop))]


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT | BYOL], ids=["resnet-infonce", "audio-ntt-byol"])
def test_stopping_and_resuming_changes_no_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    """Batch norm, dropout, negatives and their ramp, EMA target and schedules are all on."""
    settings = config(changes, SCHEDULE)
    whole = PlainEngine(settings.build(), OptimizerConfig())
    losses = train(whole, settings, 0, N)

    for k in (1, 3):
        engine = PlainEngine(settings.build(), OptimizerConfig())
        assert torch.equal(torch.stack(train(engine, settings, 0, k)), torch.stack(losses[:k]))
        checkpoint.save(str(tmp_path), engine, checkpoint.Meta(k, {}, {}))

        torch.manual_seed(k)  # nothing may hang on what was drawn before
        found = checkpoint.newest(str(tmp_path))
        assert found is not None and found[0].step == k
        resumed = PlainEngine(settings.build(), OptimizerConfig())
        resumed.load(found[1], k)
        assert torch.equal(torch.stack(train(resumed, settings, k, N)), torch.stack(losses[k:]))
        expected, tensors = dict(whole.tensors()), dict(resumed.tensors())
        assert expected.keys() == tensors.keys()
        assert all(torch.equal(expected[name], tensors[name]) for name in expected)


def test_resuming_without_the_moments_would_not_be_the_same_run(tmp_path: Path) -> None:
    """Or the law above would hold for a checkpoint of weights alone."""
    settings = config(SCHEDULE)
    engine = PlainEngine(settings.build(), OptimizerConfig())
    train(engine, settings, 0, 2)
    tensors = {name: tensor.clone() for name, tensor in engine.tensors()}
    expected = train(engine, settings, 2, N)
    resumed = PlainEngine(settings.build(), OptimizerConfig())
    resumed.load(tensors, 0)
    assert not torch.equal(torch.stack(train(resumed, settings, 2, N)), torch.stack(expected))
