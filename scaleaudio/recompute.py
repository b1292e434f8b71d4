"""Activations that are made again in the backward pass instead of kept: time for memory.

By chunks of clips this is gradient caching (arXiv 2101.06983): embeddings are made chunk by chunk, the loss looks at
all of them, and the backward pass makes each chunk's activations anew. So a contrastive loss keeps its whole batch,
which plain accumulation would split. By layers it is activation checkpointing (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from scaleaudio.batch_norms import norms_of
from scaleaudio.types import Settings

_MODE = ("training", "track_running_stats", "running_mean", "running_var", "momentum", "num_batches_tracked")


class TrainConfig(Settings):
    """How a step is computed. What it computes stays the same, but for batch norm, which looks at a chunk at a time."""

    max_clips_per_worker: Annotated[
        int | None,
        Field(
            ge=1,
            description="clips of which a worker holds activations at once; with more of them it takes chunks, each "
            "of them encoded twice, and the loss still sees the whole batch (batch norm a chunk at a time). null: all",
        ),
    ] = None
    compile: Annotated[
        Literal["off", "default", "reduce-overhead"],
        Field(
            description="torch.compile of encoder and projector: takes a minute and a C++ compiler at the start; "
            "reduce-overhead also replays CUDA graphs"
        ),
    ] = "off"
    checkpoint_activations: Annotated[
        bool, Field(description="keep what goes into each block of the encoder, and make the rest again: less memory")
    ] = False


def in_chunks(module: nn.Module, mel_NFS: Tensor, max_rows: int | None) -> Tensor:
    """`module` of all rows; where there are more than `max_rows`, of so many at a time, and again for its gradient.

    Batch norm takes the statistics of each chunk, and each chunk moves the running ones once.
    """
    if max_rows is None or len(mel_NFS) <= max_rows:
        whole: Tensor = module(mel_NFS)
        return whole
    chunks = torch.tensor_split(mel_NFS, -(-len(mel_NFS) // max_rows))
    function = recomputed(module) if torch.is_grad_enabled() else module
    return torch.cat([function(chunk) for chunk in chunks])


def recomputed(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module as a function that keeps its input and none of its activations."""
    norms = norms_of(module)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _as_they_were(norms, [_mode(norm) for norm in norms])

    def function(input_N: Tensor) -> Tensor:
        # Shapes are not compared: under ZeRO-3 a parameter that is spread over the workers has none meanwhile.
        output_N: Tensor = checkpoint(
            module, input_N, use_reentrant=False, context_fn=contexts, determinism_check="none"
        )
        return output_N

    return function


@contextmanager
def _as_they_were(norms: list[_BatchNorm], modes: list[dict[str, Any]]) -> Iterator[None]:
    """Batch norms in the modes of the first pass; the running statistics have seen this batch and stay as they are."""
    now = [_mode(norm) for norm in norms]
    for norm, mode in zip(norms, modes, strict=True):
        _put(norm, mode | {"momentum": 0.0, "num_batches_tracked": None})
    try:
        yield
    finally:
        for norm, before in zip(norms, now, strict=True):
            _put(norm, before)


def _mode(norm: _BatchNorm) -> dict[str, Any]:
    """All that decides how a batch norm normalises, and what it leaves behind."""
    return {name: getattr(norm, name) for name in _MODE}


def _put(norm: _BatchNorm, mode: dict[str, Any]) -> None:
    for name, value in mode.items():
        setattr(norm, name, value)
