"""The account of memory is that of the tensors that there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import AUDIO_NTT, BYOL, INDEPENDENT, batch, config

from scaleaudio.bench.memory import activation_bytes, held, memory, parameters
from scaleaudio.cli import bench
from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig
from scaleaudio.types import World


@pytest.mark.parametrize("changes", [{}, BYOL, {"objective.predict": {"hidden_dim": 8}}])
def test_parameters_are_counted_without_being_made(changes: dict[str, Any]) -> None:
    task = config(changes).build()
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    assert parameters(config(changes)) == (trained, sum(p.numel() for p in task.parameters()) - trained)


def test_each_stage_spreads_one_thing_more() -> None:
    found = held(1000, 100, 8)
    assert [(one.weights, one.gradients, one.moments) for one in found] == [
        (4400, 4000, 8000),
        (4400, 4000, 1000),
        (4400, 500, 1000),
        (550, 500, 1000),
    ]


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT])
def test_activations_are_those_that_autograd_keeps_of_a_real_batch(changes: dict[str, Any]) -> None:
    settings = config(changes)
    encoder = settings.build_encoder().train()
    kept: dict[int, torch.Tensor] = {}
    mel_NFS = torch.randn(6, settings.frontend.num_mels, settings.num_frames)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        made = encoder(mel_NFS)
    weights = {p.data_ptr() for p in encoder.parameters()}
    expected = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    assert made.requires_grad
    assert activation_bytes(settings, 3) == pytest.approx(expected, rel=0.02)


def test_a_billion_parameters_are_accounted_for_in_seconds() -> None:
    big = {"kind": "transformer", "width": 1536, "depth": 36, "heads": 24}
    found = memory(TaskConfig.model_validate({"encoder": big}), devices=(8,), clips=64)
    assert 1.0e9 < found["trained"] < 1.1e9
    assert found["activations_checkpointed"] < 0.2 * found["activations"]


def test_the_command_prints_the_account(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.bench_memory(tiny_file, None, devices="1,4", clips=8, as_json=True)
    assert list(json.loads(capsys.readouterr().out)["held"]) == ["1", "4"]
    bench.bench_memory(tiny_file, None, devices="1,4", clips=8, as_json=False)
    assert "ZeRO stage" in capsys.readouterr().out


def stages(world: World, folder: Path) -> dict[str, list[int]]:
    """What a worker holds after a step at each ZeRO stage: bytes of weights, and of Adam's moments."""
    from scaleaudio.launch.engine import DeepSpeedEngine

    found = {}
    settings = config(INDEPENDENT)
    for stage in range(4):
        engine = DeepSpeedEngine(settings.build(world), OptimizerConfig(), zero_stage=stage)
        engine.step(batch(settings, 0, world))
        moments = sum(
            state[name].nbytes for state in engine._torch_optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
        )
        weights = sum(p.ds_tensor.nbytes if stage == 3 else p.nbytes for p in engine.task.parameters())
        found[str(stage)] = [weights, moments]
    return found


@pytest.mark.slow
def test_two_workers_hold_what_the_account_says(tmp_path: Path) -> None:
    expected = held(*parameters(config(INDEPENDENT)), devices=2)
    for part in ranks.run(__file__, "stages", size=2, folder=tmp_path):
        for one in expected:
            assert part[str(one.stage)] == pytest.approx([one.weights, one.moments], rel=0.05), one.stage
