"""The loop is a generator, and an engine is what takes a step.

No callbacks and no Ray: a Ray worker, a test and a notebook are each a `for report in fit(engine, batches)`.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from scaleaudio.averaging import GradientMean, Mean
from scaleaudio.schedule import ema_momentum, learning_rate
from scaleaudio.task import PretrainTask
from scaleaudio.types import Batch, Losses, Reject, Settings, World

MOMENTS = ("exp_avg", "exp_avg_sq")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class OptimizerConfig(Settings):
    """AdamW; biases and norms are not decayed."""

    weight_decay: Annotated[float, Field(ge=0, description="of matrices and kernels")] = 0.01
    beta1: Annotated[float, Field(ge=0, lt=1, description="decay of the mean of the gradients")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="decay of the mean of their squares")] = 0.999
    max_grad_norm: Annotated[float, Field(gt=0, description="longer gradients are shortened to this")] = 5.0

    def build(self, task: nn.Module) -> torch.optim.AdamW:
        """The optimizer over the trained parameters of `task`."""
        trained = [p for p in task.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # fused: one pass over memory, and the number of the step stays on the device
        return torch.optim.AdamW(groups, lr=0.0, betas=(self.beta1, self.beta2), fused=True)


class Stepped(NamedTuple):
    """What a step gives back; everything stays on the device."""

    losses: Losses
    grad_norm: Tensor


class Engine(Protocol):
    """Whatever can train the task: plain torch here, DeepSpeed in the launch room."""

    task: PretrainTask
    world: World
    device: torch.device

    def step(self, batch: Batch) -> Stepped:
        """Forward, backward, clip, optimise, move the EMA target."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters, moments and buffers by name, whole and in float32, the same on every rank.

        A collective: every rank has to exhaust it.
        """

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Takes over what `tensors()` gave after `step` steps, from any engine, ZeRO stage and number of workers.

        Every rank looks the same names up in the same order, since a lookup may be a collective.

        Raises:
            ValueError: when names or shapes differ from this task's.
        """


@dataclass(frozen=True)
class StepReport:
    """One finished step. Tensors are read from the device only by `metrics()`."""

    step: int
    stepped: Stepped
    learning_rate: float
    data_wait_seconds: float
    step_seconds: float
    key_B: tuple[str, ...]
    rejects: tuple[Reject, ...]

    def metrics(self, embedding_GD: Tensor | None = None) -> dict[str, float]:
        """The scalars of the step, with the collapse watch; waits for the device.

        Args:
            embedding_GD: the embeddings to watch, where there are more than this rank's.
        """
        losses, grad_norm = self.stepped
        read = {name: float(value) for name, value in losses.parts.items()} | {"grad_norm": float(grad_norm)}
        timing = {"learning_rate": self.learning_rate, "data_wait_seconds": self.data_wait_seconds}
        return (
            read
            | collapse_watch(losses.embedding_BD if embedding_GD is None else embedding_GD)
            | timing
            | {"step_seconds": self.step_seconds}
        )


def check_finite(report: StepReport, metrics: dict[str, float]) -> str | None:
    """What is wrong where a metric is not finite, naming the step and clips; None where all is well."""
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not broken:
        return None
    return (
        f"step {report.step}: {', '.join(broken)} not finite. The clips on this rank were {', '.join(report.key_B[:8])}"
        f"{' ...' if len(report.key_B) > 8 else ''}. Lower schedule.learning_rate or optimizer.max_grad_norm; the last "
        "checkpoint is from before."
    )


def collapse_watch(embedding_BD: Tensor) -> dict[str, float]:
    """How much of the embedding space is in use; a loss does not show it.

    `embedding/std` is the mean standard deviation of the dimensions of unit-length embeddings, times sqrt(D): 1 when
    they fill the sphere, 0 when all are the same. `embedding/rank` is the effective rank (Roy and Vetterli 2007): the
    exponential of the entropy of the singular values.
    """
    if not bool(torch.isfinite(embedding_BD).all()):
        return {"embedding/std": math.nan, "embedding/rank": math.nan}
    unit_BD = nn.functional.normalize(embedding_BD, dim=-1)
    centred_BD = unit_BD - unit_BD.mean(dim=0)
    std = float(centred_BD.square().mean(dim=0).sqrt().mean()) * unit_BD.shape[1] ** 0.5
    values = torch.linalg.svdvals(centred_BD)
    share = values / values.sum().clamp(min=1e-12)
    rank = float(torch.exp(-(share * (share + 1e-12).log()).sum())) if std > 1e-6 else 1.0
    return {"embedding/std": std, "embedding/rank": rank}


def fit(engine: Engine, batches: Iterable[Batch]) -> Iterator[StepReport]:
    """Steps through `batches` until the schedule's last step, one report a step."""
    schedule = engine.task.config.schedule
    engine.task.train()
    asked = time.perf_counter()
    for batch in batches:
        if batch.step >= schedule.steps:
            return
        came = time.perf_counter()
        stepped = engine.step(batch.to(engine.device))
        done = time.perf_counter()
        yield StepReport(
            step=batch.step,
            stepped=stepped,
            learning_rate=learning_rate(batch.step, schedule),
            data_wait_seconds=came - asked,
            step_seconds=done - asked,
            key_B=batch.key_B,
            rejects=batch.rejects,
        )
        if batch.step + 1 >= schedule.steps:
            return
        asked = time.perf_counter()


class PlainEngine:
    """The task stepped in plain torch; several workers average their gradients."""

    def __init__(self, task: PretrainTask, config: OptimizerConfig, device: torch.device | None = None) -> None:
        """Moves the task to `device` and builds its optimizer."""
        self.device = device or torch.device("cpu")
        self.task = placed(task, self.device)
        self.world = task.world
        self._max_grad_norm = config.max_grad_norm
        self._optimizer = config.build(task)
        self._trained = [p for p in task.parameters() if p.requires_grad]
        self._gradients = GradientMean(self._trained, task.world)

    def step(self, batch: Batch) -> Stepped:
        """See Engine."""
        losses: Losses = self.task(batch)
        grad_norm = self.learn(losses.total, batch.step)
        return Stepped(losses, grad_norm)

    def learn(self, loss: Tensor, step: int) -> Tensor:
        """All of a step that comes after its loss; gives the norm of the gradient."""
        schedule = self.task.config.schedule
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule)
        self._optimizer.zero_grad(set_to_none=True)
        running = Mean(statistics(self.task), self.world)
        self._gradients.backward(loss)
        grad_norm = nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm)
        self._optimizer.step()
        running.finish()
        self.task.update_target(ema_momentum(step, schedule))
        return grad_norm.detach()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine."""
        for name, parameter in self.task.named_parameters():
            yield f"parameter.{name}", parameter.detach()
            state = self._optimizer.state.get(parameter, {})
            yield from ((f"{moment}.{name}", state[moment]) for moment in MOMENTS if moment in state)
        yield from buffers(self.task)

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """See Engine."""
        load_weights(self.task, tensors)
        for name, parameter in self.task.named_parameters():
            if step > 0 and parameter.requires_grad:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(step), device=self.device),
                    **{moment: tensors[f"{moment}.{name}"].to(self.device, copy=True) for moment in MOMENTS},
                }


def placed(task: PretrainTask, device: torch.device) -> PretrainTask:
    """The task on its device, compiled where its config says so."""
    if device.type == "cpu":
        _keep_freed_memory()
    task.to(device)
    mode = task.config.train.compile
    if mode != "off":
        for module in (task.encoder, task.projector):
            module.compile(mode=None if mode == "default" else mode)
    return task


def _keep_freed_memory() -> None:
    """Has glibc keep what a step frees for the next one, up to a GiB.

    Otherwise large tensors go back to the system at once and come again page by page, which took an eighth of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for threshold in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(threshold, 1 << 30)


def statistics(task: nn.Module) -> list[Tensor]:
    """The running statistics of the batch norms, which are averaged so that every rank has the same model."""
    return [b for name, b in task.named_buffers() if name.endswith(("running_mean", "running_var"))]


def buffers(task: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The persistent buffers as checkpoints name them."""
    parameters = {name for name, _ in task.named_parameters()}
    for name, value in task.state_dict().items():
        if name not in parameters:
            yield f"buffer.{name}", value.detach()


@torch.no_grad()
def load_weights(task: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies parameters and buffers of a checkpoint into an unwrapped task.

    Raises:
        ValueError: when names or shapes differ.
    """
    own = {f"parameter.{name}": p for name, p in task.named_parameters()} | dict(buffers(task))
    given = {name for name in tensors if name.startswith(("parameter.", "buffer."))}
    if own.keys() != given:
        raise ValueError(
            f"checkpoint: {len(own.keys() - given)} tensors missing, {len(given - own.keys())} not known, such as "
            f"{sorted(own.keys() ^ given)[0]}. Is it of a run with another encoder or objective?"
        )
    for name, tensor in own.items():
        found = tensors[name]
        if found.shape != tensor.shape:
            raise ValueError(f"checkpoint: {name} is {list(found.shape)}, expected {list(tensor.shape)}")
        tensor.copy_(found)
