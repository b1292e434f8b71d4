"""Heads and the two objectives, each with adversarial negatives.

`infonce` (arXiv 1807.03748, symmetric as in arXiv 2002.05709) takes the negatives into its denominator; `byol` (arXiv
2006.07733) has no denominator and gets a bounded hinge instead: a bare "-cos" would explode. s is cosine similarity,
a the anchors, p the positives, n each anchor's own adversarial negative.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scaleaudio.types import Settings, World


class Pairs(NamedTuple):
    """What an objective compares: projections, all (B, D).

    Attributes:
        anchor_BD, positive_BD: of the two views.
        negative_BD: of the displaced anchors; None without an adversary.
        valid_B: which negatives count.
        target_anchor_BD, target_positive_BD: by the EMA target, without gradient; None where the objective has none.
    """

    anchor_BD: Tensor
    positive_BD: Tensor
    negative_BD: Tensor | None
    valid_B: Tensor | None
    target_anchor_BD: Tensor | None
    target_positive_BD: Tensor | None

    def float(self) -> Pairs:
        """The same in float32, which losses are computed in whatever the encoder's precision."""
        return Pairs(
            self.anchor_BD.float(),
            self.positive_BD.float(),
            None if self.negative_BD is None else self.negative_BD.float(),
            self.valid_B,
            None if self.target_anchor_BD is None else self.target_anchor_BD.float(),
            None if self.target_positive_BD is None else self.target_positive_BD.float(),
        )


class HeadConfig(Settings):
    """A perceptron with one hidden layer."""

    hidden_dim: Annotated[int, Field(ge=1)] = 512
    output_dim: Annotated[int, Field(ge=1)] = 128
    norm: Literal["batch", "layer"] = "batch"

    def build(self, input_dim: int, output_dim: int | None = None) -> nn.Sequential:
        """The head; `output_dim` overrides the config's."""
        norm = nn.BatchNorm1d(self.hidden_dim) if self.norm == "batch" else nn.LayerNorm(self.hidden_dim)
        return nn.Sequential(
            nn.Linear(input_dim, self.hidden_dim),
            norm,
            nn.ReLU(),
            nn.Linear(self.hidden_dim, output_dim or self.output_dim),
        )


class InfoNCEConfig(Settings):
    """-log exp(s(a,p)/t) / [sum over all clips' p of exp(s(a,.)/t) + weight * exp(alpha s(a,n)/t)], and a <-> p."""

    kind: Literal["infonce"] = "infonce"
    temperature: Annotated[float, Field(gt=0)] = 0.15
    alpha: Annotated[float, Field(ge=0)] = 1.0
    negative_weight: Annotated[float, Field(gt=0)] = 8.0
    projector: HeadConfig = HeadConfig()
    needs_target: ClassVar[bool] = False

    def build(self) -> InfoNCE:
        """The objective module."""
        return InfoNCE(self)


class BYOLConfig(Settings):
    """2 - 2 s(q(a), sg z'(p)), and a <-> p, plus weight * relu(s(a,n) - sg s(a,p) + margin)."""

    kind: Literal["byol"] = "byol"
    margin: Annotated[float, Field(ge=0)] = 0.2
    negative_weight: Annotated[float, Field(gt=0)] = 1.0
    projector: HeadConfig = HeadConfig(hidden_dim=4096, output_dim=256)
    predictor: HeadConfig = HeadConfig(hidden_dim=4096, output_dim=256)
    needs_target: ClassVar[bool] = True

    def build(self) -> BYOL:
        """The objective module."""
        return BYOL(self)


ObjectiveConfig = Annotated[InfoNCEConfig | BYOLConfig, Field(discriminator="kind")]


class InfoNCE(nn.Module):
    """Each anchor against the positives of the whole global batch and its own negative."""

    def __init__(self, config: InfoNCEConfig) -> None:
        """Holds no parameters."""
        super().__init__()
        self.config = config

    def forward(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's anchors, scaled so that the mean over ranks is the loss of the global batch.

        Args:
            pairs: projections of this rank's clips.
            world: which rank this is.
            counts: clips on each rank.
        """
        a_BD, p_BD = F.normalize(pairs.anchor_BD, dim=-1), F.normalize(pairs.positive_BD, dim=-1)
        n_BD = None if pairs.negative_BD is None else F.normalize(pairs.negative_BD, dim=-1)
        one = self._one_way(a_BD, p_BD, n_BD, pairs.valid_B, world, counts)
        other = self._one_way(p_BD, a_BD, n_BD, pairs.valid_B, world, counts)
        return 0.5 * (one + other).sum() * world.size / sum(counts)

    def _one_way(
        self, a_BD: Tensor, p_BD: Tensor, n_BD: Tensor | None, valid_B: Tensor | None, world: World, counts: list[int]
    ) -> Tensor:
        config = self.config
        keys_GD = gather(p_BD, world, counts)
        logits_BG = a_BD @ keys_GD.T / config.temperature
        own_B = torch.arange(len(a_BD), device=a_BD.device) + sum(counts[: world.rank])
        positive_B = logits_BG.gather(1, own_B[:, None]).squeeze(1)
        total_B = logits_BG.logsumexp(dim=1)
        if n_BD is not None and valid_B is not None:
            negative_B = (
                math.log(config.negative_weight) + config.alpha * (a_BD * n_BD).sum(dim=-1) / config.temperature
            )
            total_B = torch.where(valid_B, torch.logaddexp(total_B, negative_B), total_B)
        return total_B - positive_B


class BYOL(nn.Module):
    """Each view predicts the EMA target's projection of the other; negatives are pushed below the positives."""

    def __init__(self, config: BYOLConfig) -> None:
        """Builds the predictor."""
        super().__init__()
        self.config = config
        width = config.projector.output_dim
        self.predictor = config.predictor.build(width, width)

    def forward(self, pairs: Pairs, world: World, counts: list[int]) -> Tensor:
        """Mean over this rank's clips, scaled so that the mean over ranks is the loss of the global batch."""
        assert pairs.target_anchor_BD is not None and pairs.target_positive_BD is not None
        predicted_ND = self.predictor(torch.cat([pairs.anchor_BD, pairs.positive_BD]))
        target_ND = torch.cat([pairs.target_positive_BD, pairs.target_anchor_BD]).detach()
        loss_B = (2 - 2 * F.cosine_similarity(predicted_ND, target_ND)).view(2, -1).sum(dim=0)
        if pairs.negative_BD is not None and pairs.valid_B is not None:
            positive_B = F.cosine_similarity(pairs.anchor_BD, pairs.positive_BD).detach()
            negative_B = F.cosine_similarity(pairs.anchor_BD, pairs.negative_BD)
            hinge_B = F.relu(negative_B - positive_B + self.config.margin)
            loss_B = loss_B + self.config.negative_weight * hinge_B * pairs.valid_B
        total: Tensor = loss_B.sum() * world.size / sum(counts)
        return total


def gather(keys_BD: Tensor, world: World, counts: list[int]) -> Tensor:
    """The keys of all ranks in rank order (G, D), with gradient to each.

    Ranks may hold different numbers: gloo needs equal ones, so they are padded on the way and cut after it.
    """
    if world.size == 1:
        return keys_BD
    gathered: Tensor = _Gather.apply(keys_BD, world.rank, counts)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys_BD: Tensor, rank: int, counts: list[int]) -> Tensor:
        ctx.rank, ctx.counts = rank, counts
        padded_ND = F.pad(keys_BD.contiguous(), (0, 0, 0, max(counts) - len(keys_BD)))
        parts = [torch.empty_like(padded_ND) for _ in counts]
        dist.all_gather(parts, padded_ND)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad_GD = grads[0].clone(memory_format=torch.contiguous_format)  # others may hold it, and all_reduce writes
        dist.all_reduce(grad_GD)
        start = sum(ctx.counts[: ctx.rank])
        return grad_GD[start : start + ctx.counts[ctx.rank]], None, None
