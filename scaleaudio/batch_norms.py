"""The statistics by which BatchNorm normalises negatives: their own, the running ones, or those of the views.

BatchNorm shows an encoder which batch a clip is in, and that is not what negatives are to be told by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms_of(*modules: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm in the modules, in order."""
    return [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """The modules in evaluation mode, BatchNorm by its running statistics; afterwards each is as it was."""
    were = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, were, strict=True):
            module.train(training)


@contextmanager
def own_statistics(*norms: _BatchNorm) -> Iterator[None]:
    """The batch at hand is normalised by its own statistics and leaves no trace in the running ones."""
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class ViewsStatistics:
    """Notes by what one batch was normalised, and normalises another batch by the same.

    BatchNorm does not say what it computed, but it moves its running statistics by it, in c passes with momentum m
    from r to r': the batch's are r + (r' - r) / (1 - (1 - m)^c). So nothing is computed twice. With chunks of a batch
    (`train.max_clips_per_worker`) they are the chunks' mean, the last weighing most.
    """

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        """Raises ValueError for a norm that keeps no moving statistics."""
        if any(norm.momentum is None or norm.running_mean is None for norm in norms):
            raise ValueError(
                "negatives.batch_norm views: the encoder has a BatchNorm without running statistics or with momentum "
                "None. Give it a momentum, or set negatives.batch_norm to shared"
            )
        self._norms = norms
        self._noted: list[tuple[Tensor, Tensor]] = []
        self._num_values: dict[torch.Size, list[int]] = {}

    @contextmanager
    def noting(self, shape: torch.Size) -> Iterator[None]:
        """What a batch of this shape is normalised by in here is noted."""
        old = [_state(norm) for norm in self._norms]
        with self._counting(shape):
            yield
        with torch.no_grad():
            found = [self._batch(*each) for each in zip(self._norms, old, self._num_values[shape], strict=True)]
            if not self._noted:
                self._noted = found
            for kept, new in zip(self._noted, found, strict=True):
                torch._foreach_copy_(kept, new)  # in the same place: a CUDA graph reads it there

    @contextmanager
    def normalising(self) -> Iterator[None]:
        """Batches in here are normalised by what was noted, as constants, and leave no trace."""
        running = [(norm.running_mean, norm.running_var) for norm in self._norms]
        with evaluating(*self._norms):
            self._put(self._noted)
            try:
                yield
            finally:
                self._put(running)

    def _put(self, statistics: Sequence[tuple[Tensor | None, Tensor | None]]) -> None:
        for norm, (mean, variance) in zip(self._norms, statistics, strict=True):
            norm.running_mean, norm.running_var = mean, variance

    @contextmanager
    def _counting(self, shape: torch.Size) -> Iterator[None]:
        """Counts the values behind each statistic, the first time that a batch has this shape."""
        if shape in self._num_values:
            yield
            return
        found: dict[nn.Module, int] = {}

        def count(norm: nn.Module, args: tuple[Any, ...]) -> None:
            found[norm] = args[0].numel() // args[0].shape[1]

        with ExitStack() as hooks:
            for norm in self._norms:
                hooks.callback(norm.register_forward_pre_hook(count).remove)
            yield
        self._num_values[shape] = [found[norm] for norm in self._norms]

    @staticmethod
    def _batch(norm: _BatchNorm, old: tuple[Tensor, Tensor, Tensor], num_values: int) -> tuple[Tensor, Tensor]:
        """Mean and variance that the batch was normalised by."""
        (mean, variance, passes), momentum = _now(norm), norm.momentum
        assert momentum is not None
        factor = 1 / (1 - (1 - momentum) ** (passes - old[2]))
        biased = torch.lerp(old[1], variance, factor) * (1 - 1 / num_values)  # the running one is not
        return torch.lerp(old[0], mean, factor), biased.clamp_(min=0)


def _now(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance, passes = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and variance is not None and passes is not None
    return mean, variance, passes


def _state(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance, passes = _now(norm)
    return mean.clone(), variance.clone(), passes.clone()
