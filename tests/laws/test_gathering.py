"""Law: however many keys are looked at at once, and by however many workers, InfoNCE and its gradient are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scaleaudio.objectives import Against, InfoNCE, InfoNCEConfig, Pairs
from scaleaudio.types import World

LANES, LANE_BATCH, D = 7, 3, 6
G = LANES * LANE_BATCH


def gradients(world: World, chunk_keys: int) -> tuple[Tensor, list[Tensor]]:
    """The loss of this rank's share, and its gradient to all anchors, positives and negatives of the global batch."""
    draws = torch.Generator().manual_seed(0)
    a, p, n = (torch.randn(G, D, generator=draws, dtype=torch.float64).requires_grad_() for _ in range(3))
    counts = world.counts(LANES, LANE_BATCH)
    own = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
    valid_M1 = (torch.arange(G) % 3 > 0)[own, None]
    against = Against(n[own][:, None], valid_M1, torch.arange(counts[world.rank]))
    loss = InfoNCE(InfoNCEConfig(chunk_keys=chunk_keys))(Pairs(a[own], p[own], against), world, counts)
    loss.backward()
    return loss.detach(), [t.grad if t.grad is not None else torch.zeros_like(t) for t in (a, p, n)]


def shared(world: World, folder: Path) -> dict[str, Any]:
    return {str(chunk_keys): gradients(world, chunk_keys) for chunk_keys in (1, 8, 1000)}


@pytest.mark.parametrize("chunk_keys", [1, 2, 5, G - 1])
def test_chunks_of_keys_change_neither_loss_nor_gradient(chunk_keys: int) -> None:
    loss, grads = gradients(World(), 1000)
    found_loss, found = gradients(World(), chunk_keys)
    torch.testing.assert_close(found_loss, loss)
    torch.testing.assert_close(found, grads)


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3])  # neither has equal shares of 7 lanes
def test_several_workers_in_chunks_have_the_gradient_of_one_worker(size: int, tmp_path: Path) -> None:
    loss, grads = gradients(World(), 1000)
    parts = ranks.run(__file__, "shared", size=size, folder=tmp_path)
    for chunk_keys in parts[0]:
        torch.testing.assert_close(sum(part[chunk_keys][0] for part in parts) / size, loss)
        for which, grad in enumerate(grads):  # each rank holds that of its own clips
            torch.testing.assert_close(sum(part[chunk_keys][1][which] for part in parts) / size, grad)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor held which an operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
        return made


def largest(num: int, chunk_keys: int) -> int:
    a, p = (torch.randn(num, D).requires_grad_() for _ in range(2))
    with Largest() as found:
        InfoNCE(InfoNCEConfig(chunk_keys=chunk_keys))(Pairs(a, p), World(), [num]).backward()
    return found.numel


def test_no_tensor_grows_with_the_square_of_the_batch() -> None:
    assert largest(512, 1000) == 512 * 512
    assert largest(512, 16) == 512 * 16
