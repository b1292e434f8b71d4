"""Law: however few clips are encoded at once, the loss and its gradient are those of the whole batch.

Under norms that do not look at the rest of the batch, and without dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import AUDIO_NTT, GLOBAL_BATCH, INDEPENDENT, INDEPENDENT_BYOL, batch, config
from torch import Tensor

from scaleaudio.encoders import Encoder
from scaleaudio.task import PretrainTask
from scaleaudio.train import Engine, OptimizerConfig, PlainEngine
from scaleaudio.types import World

KINDS: dict[str, Mapping[str, Any]] = {
    "infonce": INDEPENDENT,
    "in the embedding too": INDEPENDENT | {"objective.embedding": {}, "objective.negative_on": "both"},
    "byol": INDEPENDENT_BYOL,
    "field": INDEPENDENT | {"negatives": {"kind": "field", "num_steps": 1}},
}


def chunks(max_clips: int | None) -> dict[str, Any]:
    return {"train.max_clips_per_worker": max_clips}


def gradients(task: PretrainTask) -> tuple[Tensor, dict[str, Tensor]]:
    loss = task(batch(task.config)).total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("max_clips", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_have_the_loss_and_gradient_of_the_whole_batch(kind: str, max_clips: int) -> None:
    loss, expected = gradients(config(KINDS[kind]).build())
    found_loss, found = gradients(config(KINDS[kind], chunks(max_clips)).build())
    torch.testing.assert_close(found_loss, loss)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        amplified = float(grad.abs().max()) if kind == "in the embedding too" else 0.0  # by standardising
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=max(1e-6, 1e-5 * amplified), msg=name)


def test_accumulating_instead_would_be_another_gradient() -> None:
    """What the chunks are for: halves of a batch, each with its own loss, do not add up to it."""
    whole, _ = gradients(config(INDEPENDENT).build())
    task = config(INDEPENDENT).build()
    first = batch(task.config)
    half = type(first)(first.wave_BT[:8], first.key_B[:8], first.slot_B[:8], 0, 8, first.lane_batch)
    assert abs(float(task(half).total.detach() - whole)) > 0.1


def test_a_batch_that_fits_is_untouched_bit_for_bit() -> None:
    loss, expected = gradients(config().build())
    found_loss, found = gradients(config(chunks(GLOBAL_BATCH)).build())
    assert torch.equal(loss, found_loss)
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())


@pytest.mark.parametrize(
    "changes", [{}, AUDIO_NTT, {"negatives.batch_norm": "eval"}, {"negatives.batch_norm": "split"}]
)
def test_making_a_chunk_again_repeats_its_dropout_and_leaves_running_statistics_alone(changes: dict[str, Any]) -> None:
    """Batch norm sees each chunk once: the statistics after a step are those of the forward passes alone."""
    task, other = (config(changes, chunks(4)).build() for _ in range(2))
    task(batch(task.config))
    before = {name: value.clone() for name, value in task.named_buffers()}
    _, grads = gradients(other)
    for name, value in other.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
    _, again = gradients(config(changes, chunks(4)).build())
    assert all(torch.equal(grads[name], again[name]) for name in grads)
    assert all(m.track_running_stats for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d))


def under_deepspeed(world: World, folder: Path) -> dict[str, list[float]]:
    """The losses of three steps: by the plain engine on the whole batch, and in chunks at two ZeRO stages."""
    from scaleaudio.launch.engine import DeepSpeedEngine

    def losses(engine: Engine) -> list[float]:
        settings = engine.task.config
        return [float(engine.step(batch(settings, step, world)).losses.total.detach()) for step in range(3)]

    whole, parts = (config(INDEPENDENT, chunks(n), {"schedule.learning_rate": 1e-3}) for n in (None, 2))
    found = {"whole": losses(PlainEngine(whole.build(world), OptimizerConfig()))}
    for stage in (1, 3):
        engine = DeepSpeedEngine(parts.build(world), OptimizerConfig(), zero_stage=stage)
        found[f"chunks, stage {stage}"] = losses(engine)
    return found


@pytest.mark.slow  # two processes with DeepSpeed
def test_chunks_work_when_parameters_lie_spread_over_the_workers(tmp_path: Path) -> None:
    for part in ranks.run(__file__, "under_deepspeed", size=2, folder=tmp_path):
        for key, losses in part.items():
            assert losses == pytest.approx(part["whole"], rel=1e-4), key


# by blocks


class Held:
    """Counts the bytes that autograd keeps."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        self.num_bytes += tensor.nbytes
        return tensor


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT])
def test_checkpointed_activations_give_the_same_gradient_bit_for_bit_and_keep_less(changes: dict[str, Any]) -> None:
    found = {}
    for checkpointed in (False, True):
        task = config(changes, {"train.checkpoint_activations": checkpointed}).build()
        held = Held()
        with torch.autograd.graph.saved_tensors_hooks(held, lambda tensor: tensor):
            loss = task(batch(task.config)).total
        loss.backward()
        found[checkpointed] = {name: p.grad for name, p in task.named_parameters()}, held.num_bytes
    assert all(torch.equal(grad, found[True][0][name]) for name, grad in found[False][0].items())
    assert found[True][1] < 0.7 * found[False][1]


def test_an_encoder_without_blocks_says_that_it_cannot_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"train\.checkpoint_activations: Encoder knows no blocks"):
        Encoder().checkpoint_activations()
