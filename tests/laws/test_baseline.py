"""Law: an adversary of strength 0 is the plain baseline, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, BYOL, batches, config

from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig, PlainEngine, fit

NO_STRENGTH = {"frequency_strength": 0.0, "time_strength": 0.0}
ZERO = {
    "hardest_of_k": {"kind": "hardest_of_k", "artefact_positives": 0.5, "num_kept": 2, **NO_STRENGTH},
    "field": {"kind": "field", "control": "return", **NO_STRENGTH},
    "value": {"kind": "value", "epsilon": 0.0},
}
NONE = {"negatives": {"kind": "none"}}


def train(config: TaskConfig) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    engine = PlainEngine(config.build(), OptimizerConfig())
    losses = [report.stepped.losses.total.detach() for report in fit(engine, batches(config, 0, 3))]
    return losses, dict(engine.tensors())


@pytest.mark.parametrize("kind", ZERO)
@pytest.mark.parametrize("changes", [{}, AUDIO_NTT | BYOL], ids=["infonce", "byol"])
def test_zero_strength_leaves_the_baseline_bit_identical(changes: dict[str, Any], kind: str) -> None:
    changes = changes | {"objective.embedding": {}}
    acting = {"objective.negative_on": "both", "objective.predict": {}}
    plain_losses, plain = train(config(changes, NONE))
    zero_losses, zero = train(config(changes, acting, {"negatives": ZERO[kind]}))
    assert len(plain_losses) == 3 and torch.equal(torch.stack(plain_losses), torch.stack(zero_losses))
    assert plain.keys() == zero.keys()
    assert all(torch.equal(plain[name], zero[name]) for name in plain)


@pytest.mark.parametrize("on", [{"frequency_strength": 0.0}, {"kind": "field"}, {"kind": "value", "epsilon": 0.1}])
def test_a_strength_above_zero_does_not(on: dict[str, Any]) -> None:
    """Or the law above would say nothing."""
    assert train(config(NONE))[0] != train(config({"negatives": on}))[0]
