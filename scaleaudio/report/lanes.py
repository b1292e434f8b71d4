"""Which worker reads what before and after their number changes: the stream's own plan, drawn.

A row is a lane, a column a step, and the numbers in a cell are the samples that the lane gives to that step. Colours
say whose lane it is: they change with the number of workers, the numbers do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from scaleaudio.data.mixture import Mixture
from scaleaudio.errors import InputError
from scaleaudio.types import World

_MAX_LANES = 32
_MAX_NUMBERS = 3


def draw_lanes(
    mixture: Mixture,
    names: Sequence[str],
    path: Path,
    *,
    workers: Sequence[int] = (4, 3),
    start_step: int = 0,
    steps_each: int = 4,
) -> None:
    """Writes a PNG of the first lanes over consecutive steps.

    Args:
        mixture: the plan of the stream.
        names: of its sources.
        path: the picture.
        workers: how many there are, one number after the other.
        start_step: the first step that is drawn.
        steps_each: steps before their number changes.

    Raises:
        InputError: when there are more workers than lanes.
    """
    if max(workers) > mixture.lanes:
        raise InputError(f"data.lanes {mixture.lanes}: {max(workers)} workers need a lane each. Ask for fewer.")
    num_lanes, num_steps = min(mixture.lanes, _MAX_LANES), steps_each * len(workers)
    figure, axes = plt.subplots(figsize=(1.1 + 1.3 * num_steps, 1.7 + 0.42 * num_lanes), layout="constrained")
    colours = plt.get_cmap("tab10").colors
    for column in range(num_steps):
        size, step = workers[column // steps_each], start_step + column
        for rank in range(size):
            for lane in World(rank, size).share(mixture.lanes):
                if lane < num_lanes:
                    face = (*colours[rank % 10], 0.35)
                    axes.add_patch(Rectangle((column, lane), 1, 1, facecolor=face, edgecolor="white"))
                    text = _numbers(mixture.samples(step, range(lane, lane + 1)), names)
                    axes.text(column + 0.5, lane + 0.5, text, ha="center", va="center", fontsize=7)
    for part, size in enumerate(workers):
        label = f"{size} workers" if size > 1 else "1 worker"
        axes.text((part + 0.5) * steps_each, -0.25, label, ha="center", fontsize=10)
        if part:
            axes.plot([part * steps_each] * 2, [-0.6, num_lanes], color="black", linewidth=2)
    axes.set(xlim=(0, num_steps), ylim=(num_lanes, -0.7))
    axes.set_xticks([column + 0.5 for column in range(num_steps)], [f"{start_step + c}" for c in range(num_steps)])
    axes.set_yticks([lane + 0.5 for lane in range(num_lanes)], [f"lane {lane}" for lane in range(num_lanes)])
    axes.set_xlabel("step")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, facecolor=(*colours[rank % 10], 0.35)) for rank in range(max(workers))]
    ranks = [f"rank {rank}" for rank in range(max(workers))]
    figure.legend(handles, ranks, loc="outside lower center", ncols=min(len(ranks), 10), frameon=False, fontsize=8)
    left_out = f" (the first {num_lanes} of {mixture.lanes} lanes)" if num_lanes < mixture.lanes else ""
    figure.suptitle(f"samples that each lane gives to each step, coloured by who reads them{left_out}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _numbers(samples: list[tuple[int, int]], names: Sequence[str]) -> str:
    """The first few, in the form of "17 4 b:250 …" where there are several sources."""
    shown = [f"{names[source]}:{number}" if len(names) > 1 else f"{number}" for source, number in samples]
    return " ".join(shown[:_MAX_NUMBERS]) + (" …" if len(shown) > _MAX_NUMBERS else "")
