"""Means over the workers, whose messages travel while something else is computed."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaleaudio.types import World

_MOST_MESSAGES, _LEAST_BYTES = 16, 1 << 20


def message_bytes(gradient_bytes: int) -> int:
    """How large a message of gradients is at least: a MiB, and no more than about 16 of them."""
    return max(_LEAST_BYTES, gradient_bytes // _MOST_MESSAGES)


class Mean:
    """Tensors on their way to their mean over the workers: the message leaves here, and `finish` waits for it."""

    def __init__(self, tensors: list[Tensor], world: World) -> None:
        """Begins; the tensors may be read meanwhile, and what is written into them is lost. A collective."""
        self._tensors = tensors if world.size > 1 else []
        self._size = world.size
        if self._tensors:
            self._flat = torch.cat([t.flatten() for t in tensors])
            self._work = dist.all_reduce(self._flat, async_op=True)

    def finish(self) -> None:
        """Puts the means in place."""
        if not self._tensors:
            return
        self._work.wait()
        self._flat /= self._size
        parts = torch.split(self._flat, [t.numel() for t in self._tensors])
        for tensor, part in zip(self._tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def average(tensors: list[Tensor], world: World) -> None:
    """Replaces each tensor by its mean over the workers, in one message. A collective."""
    Mean(tensors, world).finish()


class GradientMean:
    """The mean of the gradients over the workers, in messages that leave while the backward pass goes on.

    A message leaves once all gradients of its bucket are there and those before it have left, so that all ranks send in
    the same order. Buckets depend on the parameters alone: a run that is resumed adds in the same order as before. All
    ranks' losses have to depend on the same parameters.
    """

    def __init__(self, parameters: list[nn.Parameter], world: World) -> None:
        """Of trained parameters, in the order in which a forward pass uses them."""
        self._parameters, self._world = parameters, world
        self._buckets = _buckets(parameters) if world.size > 1 else []
        self._missing: list[int] = []
        self._sent: list[Mean] = []
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))  # type: ignore[no-untyped-call]

    def backward(self, loss: Tensor) -> None:
        """The backward pass. After it all parameters have the mean gradient; zeros where no loss depends on one."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent = []
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self._parameters:
            if parameter.grad is None:  # as DeepSpeed does, so that every trained parameter has its moments
                parameter.grad = torch.zeros_like(parameter)
        while len(self._sent) < len(self._buckets):
            self._send()
        for mean in self._sent:
            mean.finish()
        self._missing, self._sent = [], []

    def _arrived(self, number: int, parameter: Tensor) -> None:
        if not self._missing:  # a pass that is not ours
            return
        self._missing[number] -= 1
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        self._sent.append(Mean([p.grad for p in bucket if p.grad is not None], self._world))


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters from last to first, in parts of a message each."""
    least = message_bytes(sum(p.nbytes for p in parameters))
    found: list[list[nn.Parameter]] = [[]]
    for parameter in reversed(parameters):
        if sum(p.nbytes for p in found[-1]) >= least:
            found.append([])
        found[-1].append(parameter)
    return found
