"""The least time that a step can take on a device: its operations and bytes, counted, over rates that are measured.

Whatever the kernels, the multiplications of the convolutions and matrices have to be done, and what goes in and out of
them has to cross the memory's bus; all else could be done on the way. So

    floor = sum over those of max(operations / rate, bytes / bandwidth)  +  bytes of the optimizer / bandwidth

and the traffic of a step that runs every operation by itself stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

FLOAT32, TF32, BFLOAT16 = "float32", "TF32", "bfloat16"
_ADAM_PASSES = 7  # weight, gradient and two moments read; weight and two moments written


class Rates(NamedTuple):
    """What a device reaches, measured: bytes a second of a copy, operations a second of a square matrix product."""

    bandwidth: float
    operations: float


class Work(NamedTuple):
    """What a step does.

    Attributes:
        operations: multiplications and additions of convolutions and matrix products.
        matrix_bytes: in and out of those.
        all_bytes: in and out of every operation.
        num_operations: how many operations are started.
    """

    operations: float
    matrix_bytes: float
    all_bytes: float
    num_operations: int


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the work of everything that runs inside, and its floor at given rates."""

    def __init__(self, rates: Rates) -> None:
        """Nothing yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._rates = rates
        self.work = Work(0, 0, 0, 0)
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and adds what it did."""
        made = func(*args, **(kwargs or {}))
        if func.is_view:
            return made
        tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
        num_bytes = sum(t.numel() * t.element_size() for t in tensors)
        count = flop_registry.get(func._overloadpacket)
        done = float(count(*args, **(kwargs or {}), out_val=made)) if count is not None else 0.0
        work = self.work
        if done:
            self.seconds += max(done / self._rates.operations, num_bytes / self._rates.bandwidth)
        self.work = Work(
            work.operations + done,
            work.matrix_bytes + num_bytes * (done > 0),
            work.all_bytes + num_bytes,
            work.num_operations + 1,
        )
        return made


def optimizer_bytes(num_trained: int, num_target: int) -> int:
    """What AdamW and an EMA target have to read and write in a step."""
    return 4 * (_ADAM_PASSES * num_trained + 3 * num_target)


def rates_by_precision(device: torch.device) -> dict[str, Rates]:
    """Of float32, TF32 and bfloat16; none less than the one before, as fewer bits' work can be done with more."""
    found: dict[str, Rates] = {}
    least = 0.0
    for name, dtype in ((FLOAT32, torch.float32), (TF32, torch.float32), (BFLOAT16, torch.bfloat16)):
        with tf32_allowed(name != FLOAT32):
            measured = measure_rates(device, dtype)
        least = max(least, measured.operations)
        found[name] = measured._replace(operations=least)
    return found


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round the factors of float32 products to TF32, while the block runs."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The rates of the device in `dtype`: the best of some tries, or of those that a second has room for."""
    on_gpu = device.type == "cuda"
    one = torch.empty((1 << 28) if on_gpu else (1 << 25), device=device)
    other = torch.ones_like(one)
    side = 8192 if on_gpu else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    copied = 2 * one.numel() * one.element_size() / _best(lambda: one.copy_(other), device)
    return Rates(copied, 2 * side**3 / _best(lambda: a @ b, device))


def _best(work: Callable[[], object], device: torch.device, tries: int = 8) -> float:
    seconds: list[float] = []
    while len(seconds) < tries and sum(seconds) < 1:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
