"""Tasks of a few thousand weights and made-up batches, for tests that take steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from scaleaudio.config import override
from scaleaudio.task import TaskConfig
from scaleaudio.types import Batch, World

torch.set_num_threads(1)  # tensors this small only wait for each other's threads

LANES, LANE_BATCH = 4, 4
GLOBAL_BATCH = LANES * LANE_BATCH

_BASE: dict[str, Any] = {
    "clip_seconds": 0.3,
    "frontend": {"num_mels": 16, "mean": -8.0, "std": 3.0},
    "schedule": {"steps": 20, "warmup_steps": 2, "learning_rate": 0.01},
    "encoder": {"kind": "resnet", "widths": [8, 16]},
    "objective": {"kind": "infonce", "projector": {"hidden_dim": 32, "output_dim": 16}},
}
_HEAD = {"hidden_dim": 32, "output_dim": 16}
BYOL = {"objective": {"kind": "byol", "projector": _HEAD, "predictor": _HEAD}}
AUDIO_NTT = {"encoder": {"kind": "audio_ntt", "embedding_dim": 32}}  # batch norm and dropout
NO_NEGATIVES = {"negatives": {"kind": "none"}}
# Nothing in these looks at the rest of the batch, so that the number of workers cannot show.
_LAYER_HEAD = _HEAD | {"norm": "layer"}
INDEPENDENT = {"encoder.norm": "group", "objective.projector": _LAYER_HEAD}
INDEPENDENT_BYOL = {
    "encoder.norm": "group",
    "objective": {"kind": "byol", "projector": _LAYER_HEAD, "predictor": _LAYER_HEAD},
}


def config(*changes: Mapping[str, Any]) -> TaskConfig:
    """A tiny ResNet with infonce, batch norm and negatives along both axes, changed by dotted keys."""
    tree = _BASE
    for change in changes:
        tree = override(tree, change)
    return TaskConfig.model_validate(tree)


def batch(config: TaskConfig, step: int = 0, world: World | None = None) -> Batch:
    """This rank's part of a batch of noise that depends on the step."""
    wave_GT = 0.1 * torch.randn(GLOBAL_BATCH, config.clip_samples, generator=torch.Generator().manual_seed(step))
    lanes = (world or World()).share(LANES)
    slot_B = torch.arange(lanes.start * LANE_BATCH, lanes.stop * LANE_BATCH)
    keys = tuple(f"clip-{slot}" for slot in slot_B.tolist())
    return Batch(wave_GT[slot_B], keys, slot_B, step, GLOBAL_BATCH, LANE_BATCH)


def batches(config: TaskConfig, start: int, stop: int, world: World | None = None) -> Iterator[Batch]:
    """The batches of steps `start` to `stop` - 1."""
    for step in range(start, stop):
        yield batch(config, step, world)
