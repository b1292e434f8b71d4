"""The steps between two reports: how fast they were, and whether all went well."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from scaleaudio.collectives import any_rank, gather_to_rank_0, on_rank
from scaleaudio.train import Stepped, StepReport, check_finite
from scaleaudio.types import Losses, World


class NotFinite(NamedTuple):
    """A step that went wrong on a rank; of several ranks' the least one tells most.

    Attributes:
        by_others: whether the loss of this rank is finite, so that the fault came with others' gradients.
        step: which.
        text: what to say.
    """

    by_others: bool
    step: int
    text: str


@dataclass
class Interval:
    """The steps between two reports."""

    began: float = field(default_factory=time.perf_counter)
    steps: list[StepReport] = field(default_factory=list)

    def add(self, report: StepReport) -> None:
        """Keeps the scalars of a step."""
        losses, grad_norm = report.stepped
        scalars = Losses(losses.total.detach(), {}, losses.total.new_empty(0))  # embeddings of many steps are gigabytes
        self.steps.append(replace(report, stepped=Stepped(scalars, grad_norm)))

    def metrics(self, global_batch: int) -> dict[str, float]:
        """Throughput, and what a step took on average."""
        seconds = time.perf_counter() - self.began
        return {
            "clips_per_second": len(self.steps) * global_batch / seconds,
            "step_seconds": seconds / len(self.steps),
            "data_wait_seconds": sum(report.data_wait_seconds for report in self.steps) / len(self.steps),
        }

    def first_wrong(self, world: World, device: torch.device) -> NotFinite | None:
        """The first step on any rank that was not finite, the same on every rank. A collective."""
        found = self.failure()
        if not any_rank(found is not None, world, device):
            return None
        told = gather_to_rank_0(found, world)
        return on_rank(lambda: min(filter(None, told)), world)

    def failure(self) -> NotFinite | None:
        """The first step whose loss or gradient is not finite; waits for the device."""
        for report in self.steps:
            losses, grad_norm = report.stepped
            found = {"loss": float(losses.total), "grad_norm": float(grad_norm)}
            if text := check_finite(report, found):
                return NotFinite(math.isfinite(found["loss"]), report.step, text)
        return None
