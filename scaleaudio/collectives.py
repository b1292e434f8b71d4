"""What workers tell each other beside a step: objects by way of worker 0, tensors by those that hold them.

With a thousand workers nothing may travel from all to all. A worker that fails alone leaves the others waiting: so what
fails is told as what succeeds is, and raised everywhere. Every function here, and every lookup in `Shared`, is a
collective: all workers call it, in the same order.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scaleaudio.types import World

Result = TypeVar("Result")

_ITEMS_AT_ONCE = 256  # a gather takes W times the memory of the longest list


def on_rank(action: Callable[[], Result], world: World, rank: int = 0) -> Result:
    """What `action()` gives on rank 0, or another, on every rank. What it raises there, every rank raises."""
    if world.size == 1:
        return action()
    told: list[Any] = [None, None]
    if world.rank == rank:
        try:
            told[0] = action()
        except Exception as error:
            told[1] = portable(error)
    dist.broadcast_object_list(told, rank)
    if told[1] is not None:
        raise told[1]
    result: Result = told[0]
    return result


def portable(error: Exception) -> Exception:
    """The error, or one with its words where it would not arrive: what cannot be read leaves the others waiting."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def gather_to_rank_0(value: Result, world: World) -> list[Result]:
    """Every rank's value in rank order on rank 0; nothing on the others."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size if world.rank == 0 else []
    dist.gather_object(value, values or None, 0)
    return values


def any_rank(claim: bool, world: World, device: torch.device) -> bool:
    """Whether `claim` holds on some rank; one number travels."""
    if world.size == 1:
        return claim
    some = torch.tensor(float(claim), device=device)
    dist.all_reduce(some, dist.ReduceOp.MAX)
    return bool(some)


def gather_items(items: list[Result], world: World, device: torch.device) -> list[Result]:
    """The items of all ranks on rank 0, some of each at a time; nothing on the others."""
    gathered: list[Result] = []
    start = 0
    while any_rank(start < len(items), world, device):
        for part in gather_to_rank_0(items[start : start + _ITEMS_AT_ONCE], world):
            gathered += part
        start += _ITEMS_AT_ONCE
    return gathered


class Held(NamedTuple):
    """What every rank knows of a tensor, and which of them holds it."""

    rank: int
    dtype: torch.dtype
    shape: torch.Size


class Shared(Mapping[str, Tensor]):
    """Tensors of which each rank holds some; a lookup brings one to all, on `device`.

    Names are asked for without a collective. What a lookup gives is the holder's own, and a copy on other ranks.
    """

    def __init__(self, own: Mapping[str, Tensor], world: World, device: torch.device | None = None) -> None:
        """This rank holds `own`, other ranks other names."""
        self._own, self._world, self._device = own, world, device or torch.device("cpu")
        held = gather_to_rank_0({name: Held(world.rank, t.dtype, t.shape) for name, t in own.items()}, world)
        self._places = on_rank(lambda: {name: place for places in held for name, place in places.items()}, world)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, once its holder has sent it."""
        rank, dtype, shape = self._places[name]
        if rank == self._world.rank:
            tensor = self._own[name].to(self._device)
        else:
            tensor = torch.empty(shape, dtype=dtype, device=self._device)
        if self._world.size > 1:  # as bytes, since no backend sends every dtype
            dist.broadcast(tensor.reshape(-1).view(torch.uint8), rank)
        return tensor

    def __contains__(self, name: object) -> bool:
        """Whether it is the name of a tensor; Mapping's own would look it up."""
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        """The names, in the same order on every rank."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many tensors."""
        return len(self._places)
