"""The task wrapped by DeepSpeed, at any ZeRO stage, behind the same protocol as the plain engine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed says on stdout that it found nothing else
import deepspeed
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)

from scaleaudio.averaging import Mean, message_bytes
from scaleaudio.schedule import ema_momentum, learning_rate
from scaleaudio.task import PretrainTask
from scaleaudio.train import MOMENTS, OptimizerConfig, Stepped, buffers, load_weights, placed, statistics
from scaleaudio.types import Batch

# Would be compiled at run time (half a minute) to save microseconds between workers of one machine.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

_MOST_ELEMENTS = 500_000_000  # of one message, as DeepSpeed has it


class DeepSpeedEngine:
    """Optimizer state (stage 1), gradients (2) and parameters (3) spread over the workers.

    `torch.distributed` has to be initialised. The task is wrapped at the first use, because DeepSpeed takes the
    weights over when it wraps: `load` has to put them in place before.
    """

    def __init__(
        self, task: PretrainTask, config: OptimizerConfig, *, zero_stage: int, device: torch.device | None = None
    ) -> None:
        """Moves the task to `device`; `zero_stage` is 0 to 3."""
        self.device = device or torch.device("cpu")
        self.task = placed(task, self.device)
        self.world = task.world
        self._config = config
        self._stage = zero_stage
        self._wrapped: Any = None

    @property
    def _engine(self) -> Any:
        if self._wrapped is None:
            self._wrapped, *_ = deepspeed.initialize(
                model=self.task,
                optimizer=self._config.build(self.task),
                config={
                    "train_micro_batch_size_per_gpu": 1,  # only its product with the workers is ever checked
                    "gradient_clipping": self._config.max_grad_norm,
                    "zero_optimization": {"stage": self._stage, **self._messages()},
                    "zero_allow_untested_optimizer": True,
                    "steps_per_print": 10**9,
                },
            )
        return self._wrapped

    def _messages(self) -> dict[str, Any]:
        """How gradients travel; DeepSpeed's own way holds 2 GB for them, however few they are."""
        num = sum(p.numel() for p in self.task.parameters() if p.requires_grad)
        if self.device.type == "cpu":  # where the backward pass would wait for each message
            return {"reduce_bucket_size": min(num, _MOST_ELEMENTS)}
        return {"overlap_comm": True, "reduce_bucket_size": min(message_bytes(4 * num) // 4, _MOST_ELEMENTS)}

    def step(self, batch: Batch) -> Stepped:
        """See Engine."""
        schedule = self.task.config.schedule
        stepped = self._optimise(batch, learning_rate(batch.step, schedule))
        self._update_target(ema_momentum(batch.step, schedule))
        return stepped

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine."""
        self._link_moments()
        for name, parameter in self._engine.module.named_parameters():
            yield f"parameter.{name}", self._whole(parameter)
            if parameter.requires_grad:
                yield from ((f"{moment}.{name}", self._moment(parameter, moment)) for moment in MOMENTS)
        yield from buffers(self.task)

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """See Engine."""
        assert self._wrapped is None, "weights have to be in place before DeepSpeed wraps the task"
        load_weights(self.task, tensors)
        if step == 0:
            return
        # The optimizer state exists only after a step; with learning rate 0 it moves no weight.
        self._optimise(self._blank_batch(), 0.0)
        self._link_moments()
        for name, parameter in self.task.named_parameters():
            if parameter.requires_grad:
                for moment in MOMENTS:
                    self._set_moment(parameter, moment, tensors[f"{moment}.{name}"].to(self.device))
        for state in self._torch_optimizer.state.values():
            state["step"] = torch.full_like(state["step"], float(step))
        for name, buffer in self.task.named_buffers():
            if f"buffer.{name}" in tensors:
                buffer.copy_(tensors[f"buffer.{name}"])

    def _optimise(self, batch: Batch, rate: float) -> Stepped:
        engine = self._engine
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        losses = engine(batch)
        running = Mean(statistics(self.task), self.world)
        engine.backward(losses.total)
        grads = [p.grad for p in self.task.parameters() if p.grad is not None] if self._stage == 0 else []
        own_norm = nn.utils.get_total_norm(grads)  # stage 0 clips, and keeps no norm
        engine.step()
        running.finish()
        grad_norm = own_norm if self._stage == 0 else torch.as_tensor(engine.get_global_grad_norm())
        return Stepped(losses, grad_norm.detach())

    def _update_target(self, momentum: float) -> None:
        if self.task.target is None:
            return
        online, target = self.task.target_pairs()
        if self._stage < 3:
            self.task.update_target(momentum)
        else:
            with deepspeed.zero.GatheredParameters([*online, *target], modifier_rank=0):
                self.task.update_target(momentum)

    def _link_moments(self) -> None:
        """Lets each parameter find its moments in the flat buffers of stages 1 and 2.

        DeepSpeed (0.19.8) does so after the step of the first parameter group, when the others have none yet.
        """
        if self._stage in (1, 2):
            zero = self._engine.optimizer
            for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
                lazy_init_hp_params_optimizer_state(group, flat, zero.optimizer.state)

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return inner

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        if self._stage == 3:
            if parameter.requires_grad:
                master: Tensor = safe_get_full_fp32_param(parameter)
                return master
            with deepspeed.zero.GatheredParameters([parameter]):
                return parameter.detach().clone()
        return parameter.detach()

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._stage == 0:
            held: Tensor = self._torch_optimizer.state[parameter][moment]
            return held
        whole: Tensor = safe_get_full_optimizer_state(parameter, moment)
        return whole

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self._stage == 0:
            self._torch_optimizer.state[parameter][moment].copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _blank_batch(self) -> Batch:
        """A batch of noise, two clips a worker."""
        config = self.task.config
        wave_BT = torch.randn(2, config.clip_samples, device=self.device)
        slots_B = torch.arange(2) + 2 * self.world.rank
        return Batch(wave_BT, ("", ""), slots_B, 0, 2 * self.world.size, 2)
