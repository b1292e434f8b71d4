"""A step never asks the device for a value: the host runs ahead of it and reads results at reports only.

On a GPU torch itself tells; on a CPU every operation is refused that would have to wait on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, BYOL, NO_NEGATIVES, batch, config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scaleaudio.bench.device import waits_for_device
from scaleaudio.task import TaskConfig
from scaleaudio.train import OptimizerConfig, PlainEngine

HARDEST = {"negatives": {"kind": "hardest_of_k", "num_candidates": 3, "strength_levels": 2}}
KINDS: dict[str, Mapping[str, Any]] = {
    "infonce": {},
    "baseline": NO_NEGATIVES,
    "audio_ntt": AUDIO_NTT,
    "byol": BYOL,
    "some clips, scored in strides": {
        "negatives": HARDEST["negatives"] | {"fraction": 0.5, "score_stride": 2, "artefact_positives": 0.5}
    },
    "smooth field": {
        "negatives": HARDEST["negatives"] | {"families": ["frequency_shift", "smooth_field", "time_shift"]}
    },
    "field": {"negatives": {"kind": "field", "num_steps": 1}},
    "value": {"negatives": {"kind": "value"}},
    "in the embedding too": {"objective.negative_on": "both", "objective.embedding": {}},
    "predicted": {"objective.predict": {"hidden_dim": 8}},
    "bfloat16": {"precision": "bfloat16"},
    "in chunks": {"train.max_clips_per_worker": 3, "train.checkpoint_activations": True, "objective.chunk_keys": 5},
}
# What has to know a value on the host, or a size that values decide.
WAITING = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique_dim", "_unique2", "bincount",
    "unique_consecutive", "repeat_interleave",
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Fails on an operation that would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITING, f"a step uses {name}"
        if name in ("index", "index_put", "index_put_"):
            masks = [t for t in args[1] if isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)]
            assert not masks, "a step indexes by a mask, whose true places have to be counted"
        return func(*args, **(kwargs or {}))


def engine_of(settings: TaskConfig, device: str = "cpu") -> PlainEngine:
    return PlainEngine(settings.build().train(), OptimizerConfig(), torch.device(device))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_asks_for_no_value(kind: str) -> None:
    engine = engine_of(config(KINDS[kind]))
    engine.step(batch(engine.task.config, 0))  # tables of displacements are made once
    with NoWaiting():
        engine.step(batch(engine.task.config, 1))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: float(x.max()),
        lambda x: x.repeat_interleave(torch.ones(len(x), dtype=torch.long)),
    ],
)
def test_what_waits_would_be_found(waits: Any) -> None:
    with pytest.raises(AssertionError, match="a step"), NoWaiting():
        waits(torch.ones(3))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_waits_for_a_gpu(kind: str) -> None:
    engine = engine_of(config(KINDS[kind]), "cuda")
    own = batch(engine.task.config, 1)
    assert waits_for_device(engine, own) is None
