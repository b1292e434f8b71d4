"""The statistics by which BatchNorm normalises negatives: their own, the running ones, or those of the views.

BatchNorm shows an encoder which batch a clip is in, and that is not what negatives are to be told by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms_of(*modules: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm in the modules, in order."""
    return [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """The modules in evaluation mode, BatchNorm by its running statistics; then all parts are as they were."""
    were = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in were:
            part.training = training


@contextmanager
def own_statistics(*norms: _BatchNorm) -> Iterator[None]:
    """The batch at hand is normalised by its own statistics and leaves no trace in the running ones."""
    were = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracks in zip(norms, were, strict=True):
            norm.track_running_stats = tracks


class ViewsStatistics:
    """Notes by what one batch was normalised, and normalises another batch by the same.

    BatchNorm does not say what it computed, but it moves its running statistics by it: those that begin at 0 are, after
    c passes with momentum m, the batch's times 1 - (1 - m)^c. So nothing is computed twice. With chunks of a batch
    (`train.max_clips_per_worker`) they are the chunks' mean, the last weighing most. A frozen norm, in evaluation
    mode, is left to its running statistics.
    """

    def __init__(self, norms: Sequence[_BatchNorm], *, in_place: bool = False) -> None:
        """Statistics of these norms.

        Args:
            norms: each with running statistics and a momentum.
            in_place: keep them in the same memory always, as CUDA graphs need it; then each forward pass has to have
                its backward pass before the next.

        Raises:
            ValueError: for a norm that keeps no moving statistics.
        """
        if any(not norm.momentum or norm.running_mean is None for norm in norms):
            raise ValueError(
                "negatives.batch_norm views: the encoder has a BatchNorm without running statistics, or whose momentum "
                "moves none. Give it a momentum between 0 and 1, or set negatives.batch_norm to shared"
            )
        self._norms = norms
        self._in_place = in_place
        self._moving: dict[_BatchNorm, _Statistics] = {}
        self._noted: dict[_BatchNorm, _Statistics] = {}
        self._num_values: dict[torch.Size, dict[nn.Module, int]] = {}

    @contextmanager
    def noting(self, shape: torch.Size) -> Iterator[None]:
        """What a batch of this shape is normalised by in here is noted, and moves the running statistics as ever."""
        norms = [norm for norm in self._norms if norm.training]
        running = {norm: _statistics(norm) for norm in norms}
        passes = {norm: _passes(norm).clone() for norm in norms}
        for norm in norms:
            self._keep(self._moving, norm, _Statistics(*(torch.zeros_like(each) for each in running[norm])))
        _put({norm: self._moving[norm] for norm in norms})
        try:
            with self._counting(shape):
                yield
        finally:
            _put(running)
            with torch.no_grad():
                for norm in norms:
                    self._take(norm, _passes(norm) - passes[norm], self._num_values.get(shape, {}).get(norm))

    @contextmanager
    def normalising(self) -> Iterator[None]:
        """Batches in here are normalised by what was noted, as constants, and leave no trace."""
        running = {norm: _statistics(norm) for norm in self._noted}
        with evaluating(*self._norms):
            _put(self._noted)
            try:
                yield
            finally:
                _put(running)

    def _take(self, norm: _BatchNorm, passes: Tensor, num_values: int | None) -> None:
        """Moves the running statistics as far as `passes` moved those that began at 0, and notes the batch's."""
        assert norm.momentum is not None
        kept = (1 - norm.momentum) ** passes
        for running, moved in zip(_statistics(norm), self._moving[norm], strict=True):
            running.mul_(kept).add_(moved)
        if num_values is not None:
            mean, variance = (moved / (1 - kept) for moved in self._moving[norm])
            self._keep(
                self._noted, norm, _Statistics(mean, variance * (1 - 1 / num_values))
            )  # running ones are unbiased

    def _keep(self, kept: dict[_BatchNorm, _Statistics], norm: _BatchNorm, new: _Statistics) -> None:
        if not self._in_place or norm not in kept:
            kept[norm] = new
            return
        for old, value in zip(kept[norm], new, strict=True):
            old.copy_(value)

    @contextmanager
    def _counting(self, shape: torch.Size) -> Iterator[None]:
        """Counts the values behind each statistic, the first time that a batch has this shape."""
        if shape in self._num_values:
            yield
            return
        found: dict[nn.Module, int] = {}

        def count(norm: nn.Module, args: tuple[Any, ...]) -> None:
            found[norm] = args[0].numel() // args[0].shape[1]

        # eager, as a compiled module does not look for new hooks
        with torch.compiler.set_stance("force_eager"), ExitStack() as hooks:
            for norm in self._norms:
                hooks.callback(norm.register_forward_pre_hook(count).remove)
            yield
        self._num_values[shape] = found


class _Statistics(NamedTuple):
    mean: Tensor
    variance: Tensor


def _statistics(norm: _BatchNorm) -> _Statistics:
    assert norm.running_mean is not None and norm.running_var is not None
    return _Statistics(norm.running_mean, norm.running_var)


def _passes(norm: _BatchNorm) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked


def _put(statistics: Mapping[_BatchNorm, _Statistics]) -> None:
    for norm, (mean, variance) in statistics.items():
        norm.running_mean, norm.running_var = mean, variance
