"""`shards build --ray`: the units of a build spread over the cluster; its shards are those of one machine's build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from scaleaudio.config import LaunchConfig
from scaleaudio.data import storage
from scaleaudio.data.build import BuildConfig, BuildSummary
from scaleaudio.data.build import build as build_here
from scaleaudio.data.units import Unit, build_apart
from scaleaudio.errors import RunFailed
from scaleaudio.launch import cluster as clusters
from scaleaudio.launch.spread import DIED, spread


def build(
    src: str,
    out: str,
    config: BuildConfig | None = None,
    *,
    progress: bool = False,
    fresh: bool = False,
    debug: bool = False,
) -> BuildSummary:
    """`data.build.build`, with a Ray task a unit; `src` and `out` have to be reached from every node.

    Raises:
        InputError: as there; a relative path in a job or on several nodes.
        RunFailed: the machines of a unit died, one after the other.
        OSError: `out` cannot be written.
    """
    with clusters.cluster(LaunchConfig(), debug=debug):
        clusters.refuse_relative({"SRC": src, "OUT": out})
        where = storage.absolute(src), storage.absolute(out)
        return build_here(*where, config, progress=progress, fresh=fresh, elsewhere=_over_ray)


def _over_ray(pending: list[Unit], on_done: Callable[[Unit], None]) -> None:
    queue = iter(pending)

    def submit(unit: Unit) -> Any:
        # A decoder's crash ends a process below the task; the task itself dies only with its machine.
        return ray.remote(build_apart).options(num_cpus=1, max_retries=3).remote(unit)

    for unit, result in spread(submit, lambda: next(queue, None)):
        if result is DIED:
            raise RunFailed(f"unit {unit.number} of the build: every machine that built it died. Run the command again")
        on_done(unit)
