"""Every family in a whole task: beside negatives, on disk, and under DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import NO_NEGATIVES, batch, batches, config

import scaleaudio
from scaleaudio import bundle
from scaleaudio.task import TaskConfig
from scaleaudio.train import Engine, OptimizerConfig, PlainEngine, fit
from scaleaudio.types import World

pytest.importorskip("timm")
FAMILIES: dict[str, dict[str, Any]] = {
    "transformer": {"encoder": {"kind": "transformer", "width": 16, "depth": 2, "heads": 2, "patch_mels": 8}},
    "timm, batch norm": {"encoder": {"kind": "timm", "model": "test_resnet", "position": "both"}},
    "timm, one size": {"encoder": {"kind": "timm", "model": "test_vit", "position": "frequency"}},
}
CALM = {"seed": 3, "schedule.learning_rate": 1e-3}


@pytest.mark.parametrize("batch_norm", ["views", "split", "eval"])
@pytest.mark.parametrize("family", FAMILIES)
def test_negatives_beside_a_batch_change_neither_its_outputs_nor_the_buffers(family: str, batch_norm: str) -> None:
    plain = config(FAMILIES[family], NO_NEGATIVES).build()
    beside = config(FAMILIES[family], {"negatives.batch_norm": batch_norm}).build()
    for step in range(2):
        assert torch.equal(
            plain(batch(plain.config, step)).embedding_BD, beside(batch(beside.config, step)).embedding_BD
        )
    expected, found = dict(plain.encoder.named_buffers()), dict(beside.encoder.named_buffers())
    for name, buffer in expected.items():
        torch.testing.assert_close(found[name], buffer, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("batch_norm", ["views", "split", "eval", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_trained_beside_negatives(family: str, batch_norm: str) -> None:
    task = config(FAMILIES[family], {"negatives.batch_norm": batch_norm}).build()
    task(batch(task.config)).total.backward()
    assert [name for name, p in task.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("family", ["transformer", "timm, one size"])
def test_activations_made_again_give_the_same_gradients(family: str) -> None:
    found = []
    for again in (False, True):
        task = config(FAMILIES[family], {"train.checkpoint_activations": again}).build()
        task(batch(task.config)).total.backward()
        found.append({name: p.grad for name, p in task.named_parameters()})
    torch.testing.assert_close(found[0], found[1])


def test_a_backbone_whose_batch_norm_would_count_twice_is_told_what_to_do_instead() -> None:
    with pytest.raises(ValueError, match=r"'test_resnet' would move .* twice.*max_clips_per_worker"):
        config(FAMILIES["timm, batch norm"], {"train.checkpoint_activations": True}).build()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_embeds_any_length_as_the_task_does(family: str, tmp_path: Path) -> None:
    task = config(FAMILIES[family]).build()
    task(batch(task.config))  # moves running statistics, where there are any
    task.eval()
    loaded = scaleaudio.load(bundle.save(bundle.AudioEncoder(task.config, task.frontend, task.encoder, 1), tmp_path))
    with torch.no_grad():
        for num_samples in (200, 6400, 30_000):
            wave_BT = 0.1 * torch.randn(2, num_samples, generator=torch.Generator().manual_seed(0))
            assert torch.isfinite(loaded(wave_BT)).all()
            if num_samples > 200:
                assert torch.equal(loaded(wave_BT), task.encoder(task.frontend(wave_BT)))
    assert loaded.hop_seconds == pytest.approx(0.01 * task.encoder.frame_stride)


def losses(engine: Engine, settings: TaskConfig) -> list[float]:
    return [
        float(report.stepped.losses.total.detach()) for report in fit(engine, batches(settings, 0, 3, engine.world))
    ]


def with_deepspeed(world: World, folder: Path) -> dict[str, list[float]]:
    from scaleaudio.launch.engine import DeepSpeedEngine

    found = {}
    for family in FAMILIES:
        settings = config(FAMILIES[family], CALM)
        for stage in (1, 3):
            engine = DeepSpeedEngine(settings.build(world), OptimizerConfig(), zero_stage=stage)
            found[f"{family}/{stage}"] = losses(engine, settings)
    return found


def test_deepspeed_takes_the_steps_of_the_plain_engine(tmp_path: Path) -> None:
    (found,) = ranks.run(__file__, "with_deepspeed", size=1, folder=tmp_path)
    for name, values in found.items():
        settings = config(FAMILIES[name.split("/")[0]], CALM)
        expected = losses(PlainEngine(settings.build(), OptimizerConfig()), settings)
        torch.testing.assert_close(torch.tensor(values), torch.tensor(expected), rtol=1e-3, atol=1e-3)
