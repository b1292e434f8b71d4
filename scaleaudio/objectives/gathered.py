"""The denominator of InfoNCE over the keys of all workers, in memory that does not grow with their number.

Every rank gives some rows of its keys at a time; their logits are folded into a running log-sum-exp and dropped. The
backward pass gathers the keys again and remakes the logits, so nothing of size (B, G) or (G, D) is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaleaudio.objectives.pairs import rows_of_all
from scaleaudio.types import World


def logsumexp_over_all(
    anchor_BD: Tensor, key_BD: Tensor, temperature: float, world: World, counts: list[int], num_keys: int
) -> Tensor:
    """Log sum over all ranks' keys k of exp(a . k / temperature) for each of this rank's anchors (B), with gradient.

    Args:
        anchor_BD: this rank's anchors, of length 1.
        key_BD: this rank's keys, of length 1.
        temperature: of the logits.
        world: which rank this is.
        counts: keys on each rank.
        num_keys: about how many keys of all ranks are looked at at once; at least one of each rank.
    """
    found: Tensor = _LogSumExp.apply(anchor_BD, key_BD, temperature, world, counts, num_keys)  # type: ignore[no-untyped-call]
    return found


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor_BD: Tensor, key_BD: Tensor, temperature: float, world: World, counts: list[int], num_keys: int
    ) -> Tensor:
        sum_B = anchor_BD.new_full((len(anchor_BD),), -math.inf)
        for rows in _rows(counts, num_keys):
            key_ND = _gathered(key_BD[rows], world, _counts(counts, rows))
            sum_B = torch.logaddexp(sum_B, (anchor_BD @ key_ND.T / temperature).logsumexp(dim=1))
        ctx.save_for_backward(anchor_BD, key_BD, sum_B)
        ctx.temperature, ctx.world, ctx.counts, ctx.num_keys = temperature, world, counts, num_keys
        return sum_B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchor_BD, key_BD, sum_B = ctx.saved_tensors
        grad_anchor_BD, grad_key_BD = torch.zeros_like(anchor_BD), torch.zeros_like(key_BD)
        for rows in _rows(ctx.counts, ctx.num_keys):
            counts = _counts(ctx.counts, rows)
            key_ND = _gathered(key_BD[rows], ctx.world, counts)
            share_BN = (anchor_BD @ key_ND.T / ctx.temperature - sum_B[:, None]).exp()
            share_BN = share_BN * (grads[0] / ctx.temperature)[:, None]
            grad_anchor_BD += share_BN @ key_ND
            grad_ND = share_BN.T @ anchor_BD
            if ctx.world.size > 1:
                dist.all_reduce(grad_ND)
            start = sum(counts[: ctx.world.rank])
            grad_key_BD[rows] = grad_ND[start : start + counts[ctx.world.rank]]
        return grad_anchor_BD, grad_key_BD, None, None, None, None


def _rows(counts: list[int], num_keys: int) -> Iterator[slice]:
    """The same rows of every rank, so that together they are about `num_keys`."""
    each = max(1, num_keys // len(counts))
    return (slice(start, start + each) for start in range(0, max(counts), each))


def _counts(counts: list[int], rows: slice) -> list[int]:
    return [max(0, min(count, rows.stop) - rows.start) for count in counts]


def _gathered(part_ND: Tensor, world: World, counts: list[int]) -> Tensor:
    return part_ND if world.size == 1 else rows_of_all(part_ND, counts)
