"""An export of any ZeRO stage's checkpoint embeds as the encoder did in the middle of training, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import AUDIO_NTT, BYOL, batches, config

from scaleaudio import bundle, checkpoint
from scaleaudio.export.folder import export
from scaleaudio.train import OptimizerConfig, fit
from scaleaudio.types import World

STAGES = (0, 1, 2, 3)
WAVE_BT = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))


def together(world: World, folder: Path) -> dict[str, Any]:
    """Two workers: two steps at each stage, a checkpoint, and what the encoder then gives; all ranks take part."""
    from scaleaudio.launch.engine import DeepSpeedEngine

    settings = config(AUDIO_NTT, BYOL)
    found = {}
    for stage in STAGES:
        engine = DeepSpeedEngine(settings.build(world), OptimizerConfig(), zero_stage=stage)
        for _ in fit(engine, batches(settings, 0, 2, world)):
            pass
        tree = json.loads(settings.model_dump_json())
        checkpoint.save(str(folder / str(stage)), engine, checkpoint.Meta(2, tree, {}))
        task = engine.task.eval()
        with torch.no_grad():
            found[str(stage)] = task.encoder(task.frontend(WAVE_BT))
    return found


@pytest.mark.slow
def test_any_stage_exports_what_it_embeds_in_training(tmp_path: Path) -> None:
    found = ranks.run(__file__, "together", size=2, folder=tmp_path)
    for stage in map(str, STAGES):
        exported = bundle.load(export(str(tmp_path / stage), tmp_path / f"encoder-{stage}"))
        for rank in found:
            assert torch.equal(exported(WAVE_BT), rank[stage])
        assert exported.step == 2
