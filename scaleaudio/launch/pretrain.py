"""One pre-training run from the driver's side: check, resolve, start the workers, show progress, end in good order."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scaleaudio import __version__, checkpoint, initial
from scaleaudio.config import Config
from scaleaudio.data import storage
from scaleaudio.data.fingerprint import check_fingerprint
from scaleaudio.data.normalise import with_constants
from scaleaudio.launch import cluster as clusters
from scaleaudio.launch import run_folder
from scaleaudio.launch.attempts import run_attempts
from scaleaudio.launch.lease import Claim, Lease
from scaleaudio.launch.monitor import Event
from scaleaudio.launch.probe import check_tasks
from scaleaudio.launch.provenance import provenance
from scaleaudio.report.loggers import check_installed


@dataclass(frozen=True)
class Outcome:
    """Where a run stands when `pretrain` returns; `stopped_by` names the signal, or is "hours" or "asked"."""

    run_url: str
    step: int
    finished: bool
    stopped_by: str | None = None


def pretrain(
    config: Config,
    run_url: str,
    *,
    fresh: bool = False,
    max_hours: float | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    stop_asked: Callable[[], bool] = lambda: False,
    debug: bool = False,
) -> Outcome:
    """Trains `config` in the run folder `run_url`, going on where its newest checkpoint is.

    Args:
        config: the experiment.
        run_url: a path or URL that all workers reach.
        fresh: delete what the run folder holds and start anew.
        max_hours: write a checkpoint and stop after that time.
        on_event: gets what happens: the kinds of `report.events`, metrics, and each phase before the first step. What
            it raises ends the run in good order, and is raised here.
        stop_asked: once it says so, a checkpoint is written and the run stops, as after a first Ctrl-C.
        debug: show Ray's and the workers' logs.

    Raises:
        InputError: for data, strengths or a run folder that do not fit.
        RunFailed: when training stopped for good; the newest checkpoint stays.
    """
    began = time.time()
    given = {"the run folder": run_url}
    given |= {f"data.sources.{name}" if name else "data.url": url for name, url in config.data.urls.items()}
    given |= {f"probe.tasks {place}": task for place, task in enumerate(config.probe.tasks)}
    run_url = storage.absolute(run_url)
    data = config.data.located(storage.absolute)
    clusters.check_engine(config.launch)
    check_installed(config.loggers)
    stream = config.build_stream()
    probe = config.probe.model_copy(update={"tasks": tuple(map(storage.absolute, config.probe.tasks))})
    check_tasks(probe)
    config = config.model_copy(update={"data": data, "probe": probe})
    if config.init_from is not None:
        given["init_from"] = config.init_from
        config = config.model_copy(update={"init_from": storage.absolute(config.init_from)})
    done = None
    if fresh:
        run_folder.refuse_foreign(run_url, "what --fresh may delete")
    else:
        config = run_folder.resume_config(config, run_url)
        done = checkpoint.newest_meta(run_url)
        if done is not None:
            check_fingerprint(done.fingerprint, stream.fingerprint(), done.step)
            whole = checkpoint.newest(run_url) if done.step >= config.schedule.steps else None
            if whole is not None and whole[0].step >= config.schedule.steps:  # a torn last one is made again
                return Outcome(run_url, done.step, finished=True)
    if done is None and config.init_from is not None and ":" not in config.encoder.kind:
        initial.load_into(config.build_encoder(), config.init_from)  # so that what does not fit is told at once
    with holding(run_url, on_event) as lease, ThreadPoolExecutor(1) as beside:
        measuring = beside.submit(with_constants, config.frontend, stream)  # while Ray starts
        on_event({"kind": "phase", "text": "connecting to Ray"})
        with clusters.cluster(config.launch, debug=debug):
            clusters.refuse_relative(given)
            placement = clusters.workers(config.launch, config.data.lanes)
            config = config.model_copy(update={"frontend": measuring.result()})
            if fresh:
                run_folder.clear(run_url)
            run_folder.begin(config, run_url, _environment())
            settings = {"run_url": run_url, "began": began, "lease": lease.url, "driver_lost": lease.after}
            settings["stop_at"] = None if max_hours is None else began + 3600 * max_hours
            ended = run_attempts(config, placement, settings, on_event, stop_asked)
    return Outcome(
        run_url, ended["step"], finished=ended["step"] >= config.schedule.steps, stopped_by=ended.get("reason")
    )


@contextmanager
def holding(run_url: str, on_event: Callable[[Event], None]) -> Iterator[Lease]:
    """The lease of the run folder while the block runs.

    Raises:
        InputError: when another driver trains this run.
    """

    def tell(other: Claim) -> None:
        text = f"{run_url}: a driver holds this run ({other}); waiting until it shows whether it lives"
        on_event({"kind": "warning", "text": text})

    lease = Lease(run_url)
    lease.take(tell)
    try:
        yield lease
    finally:
        lease.release()


def _environment() -> dict[str, Any]:
    import ray
    import torch

    return {
        "scaleaudio": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "platform": platform.platform(),
        "nodes": sum(1 for node in ray.nodes() if node["Alive"]),
        **provenance(),
        "resources": {name: amount for name, amount in ray.cluster_resources().items() if ":" not in name},
    }
