"""Law: an adversary of strength 0 is the plain baseline, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, BYOL, batches, config

from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig, PlainEngine, fit

ZERO = {"negatives": {"kind": "hardest_of_k", "frequency_strength": 0.0, "time_strength": 0.0}}
NONE = {"negatives": {"kind": "none"}}


def train(config: TaskConfig) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    engine = PlainEngine(config.build(), OptimizerConfig())
    losses = [report.stepped.losses.total.detach() for report in fit(engine, batches(config, 0, 3))]
    return losses, dict(engine.tensors())


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT | BYOL], ids=["infonce", "byol"])
def test_zero_strength_leaves_the_baseline_bit_identical(changes: dict[str, Any]) -> None:
    plain_losses, plain = train(config(changes, NONE))
    zero_losses, zero = train(config(changes, ZERO))
    assert len(plain_losses) == 3 and torch.equal(torch.stack(plain_losses), torch.stack(zero_losses))
    assert plain.keys() == zero.keys()
    assert all(torch.equal(plain[name], zero[name]) for name in plain)


def test_a_strength_above_zero_does_not() -> None:
    """Or the law above would say nothing."""
    assert train(config(NONE))[0] != train(config({"negatives.frequency_strength": 0.0}))[0]
