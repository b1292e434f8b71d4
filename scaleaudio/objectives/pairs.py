"""What an objective compares, and how keys are gathered from all workers."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from scaleaudio.types import World

Gradient = Literal["both", "anchor", "negative"]


class Against(NamedTuple):
    """The adversarial negatives of some of the clips.

    Attributes:
        z_MPD: P negatives of each of M clips.
        valid_MP: which of them count.
        clip_M: the rows of the batch that they belong to.
    """

    z_MPD: Tensor
    valid_MP: Tensor
    clip_M: Tensor

    def similarity(self, anchor_BD: Tensor, gradient: Gradient) -> Tensor:
        """Cosine similarity (M, P) of each negative to its own anchor, with gradient to the sides that are named."""
        anchor_MD, z_MPD = anchor_BD[self.clip_M], self.z_MPD
        if gradient == "negative":
            anchor_MD = anchor_MD.detach()
        if gradient == "anchor":
            z_MPD = z_MPD.detach()
        return torch.einsum("md,mpd->mp", F.normalize(anchor_MD, dim=-1), F.normalize(z_MPD, dim=-1))


class Pairs(NamedTuple):
    """Vectors to compare: projections, or the embeddings that are kept.

    Attributes:
        anchor_BD, positive_BD: of the two views.
        against: of the displaced anchors; None without an adversary.
        target_anchor_BD, target_positive_BD: by the EMA target, without gradient; None where the objective has none.
    """

    anchor_BD: Tensor
    positive_BD: Tensor
    against: Against | None = None
    target_anchor_BD: Tensor | None = None
    target_positive_BD: Tensor | None = None

    def float(self) -> Pairs:
        """The same in float32, which losses are computed in whatever the encoder's precision."""
        return Pairs(
            self.anchor_BD.float(),
            self.positive_BD.float(),
            None if self.against is None else self.against._replace(z_MPD=self.against.z_MPD.float()),
            None if self.target_anchor_BD is None else self.target_anchor_BD.float(),
            None if self.target_positive_BD is None else self.target_positive_BD.float(),
        )

    @torch.no_grad()
    def similarities(self, name: str = "") -> dict[str, Tensor]:
        """Of the anchor to positive, negative and other clips, for the log; `name` says of which vectors."""
        parts = {
            f"similarity/{name}positive": F.cosine_similarity(self.anchor_BD, self.positive_BD).mean(),
            f"similarity/{name}others": F.cosine_similarity(self.anchor_BD, self.positive_BD.roll(1, 0)).mean(),
        }
        if self.against is not None:
            parts[f"similarity/{name}negative"] = self.against.similarity(self.anchor_BD, "both").mean()
            parts["negatives/valid"] = self.against.valid_MP.float().mean()
        return parts


def gather(keys_BD: Tensor, world: World, counts: list[int]) -> Tensor:
    """The keys of all ranks in rank order (G, D), with gradient to each.

    Ranks may hold different numbers: gloo needs equal ones, so they are padded on the way and cut after it.
    """
    if world.size == 1:
        return keys_BD
    gathered: Tensor = _Gather.apply(keys_BD, world.rank, counts)  # type: ignore[no-untyped-call]
    return gathered


def rows_of_all(part_BD: Tensor, counts: list[int]) -> Tensor:
    """The rows of every rank in order (G), of which this one has `part_BD`; in one message and few operations.

    Ranks may hold different numbers: a gather needs equal ones, so they are padded on the way and cut after it.
    """
    most = max(counts)
    padded_ND = F.pad(part_BD.contiguous(), (0, 0, 0, most - len(part_BD)))
    all_ND = padded_ND.new_empty((len(counts) * most, part_BD.shape[1]))
    dist.all_gather_into_tensor(all_ND, padded_ND)
    if min(counts) == most:
        return all_ND
    held = torch.arange(most) < torch.tensor(counts)[:, None]
    row_G = held.flatten().nonzero().squeeze(1).to(part_BD.device, non_blocking=True)
    return all_ND.index_select(0, row_G)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys_BD: Tensor, rank: int, counts: list[int]) -> Tensor:
        ctx.rank, ctx.counts = rank, counts
        return rows_of_all(keys_BD, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad_GD = grads[0].clone(memory_format=torch.contiguous_format)  # others may hold it, and all_reduce writes
        dist.all_reduce(grad_GD)
        start = sum(ctx.counts[: ctx.rank])
        return grad_GD[start : start + ctx.counts[ctx.rank]], None, None
