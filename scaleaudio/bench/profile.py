"""Where a step's time goes: the operations that take most of it, and a picture of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

_STEPS = 3
_SHOWN = 16


class Share(NamedTuple):
    """One operation's part of a step: of the device's time, or of the processor's where there is no GPU."""

    name: str
    ms: float
    calls: float


def profiled(step: Callable[[], object], device: torch.device) -> list[Share]:
    """The operations of `step` that take longest, and the rest as one, after a step to warm up."""
    on_gpu = device.type == "cuda"
    step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities, acc_events=True) as seen:
        for _ in range(_STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    shares = [
        Share(
            event.key,
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3 / _STEPS,
            event.count / _STEPS,
        )
        for event in seen.key_averages()
    ]
    shares = sorted((share for share in shares if share.ms > 0), key=lambda share: -share.ms)
    rest = shares[_SHOWN:]
    return shares[:_SHOWN] + ([Share("the rest", sum(s.ms for s in rest), sum(s.calls for s in rest))] if rest else [])


def draw(shares: list[Share], path: str) -> None:
    """The shares as bars, in a file; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.3 * len(shares) + 1), layout="constrained")
    names = [share.name if len(share.name) < 60 else share.name[:57] + "..." for share in reversed(shares)]
    bars = axes.barh(names, [share.ms for share in reversed(shares)])
    axes.bar_label(
        bars, [f"{share.ms:.1f} ms, {share.calls:.0f} x" for share in reversed(shares)], padding=3, fontsize=7
    )
    axes.set_xlabel("milliseconds a step")
    axes.margins(x=0.2)
    axes.tick_params(labelsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
