"""One pre-training run from the driver's side: check, resolve, start the workers, show progress, end in good order."""

from __future__ import annotations

import os
import platform
import signal
import threading
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
from scaleaudio.errors import RunFailed
from scaleaudio.launch import cluster as clusters
from scaleaudio.launch import run_folder
from scaleaudio.launch.monitor import Event, Monitor
from scaleaudio.launch.probe import check_tasks
from scaleaudio.launch.provenance import provenance
from scaleaudio.launch.worker import train_worker
from scaleaudio.report.loggers import check_installed


@dataclass(frozen=True)
class Outcome:
    """Where a run stands when `pretrain` returns."""

    run_url: str
    step: int
    finished: bool


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
        on_event: gets what the workers tell: kinds started, metrics, probe, checkpoint, warning, ended.
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
    with ThreadPoolExecutor(1) as beside:  # the front-end's constants are measured while Ray starts
        measuring = beside.submit(with_constants, config.frontend, stream)
        with clusters.cluster(config.launch, debug=debug):
            clusters.refuse_relative(given)
            placement = clusters.workers(config.launch, config.data.lanes)
            config = config.model_copy(update={"frontend": measuring.result()})
            if fresh:
                storage.delete_tree(run_url)
            run_folder.begin(config, run_url, _environment())
            stop_at = None if max_hours is None else began + 3600 * max_hours
            ended = _run_workers(
                config, placement, {"run_url": run_url, "began": began, "stop_at": stop_at}, on_event, stop_asked
            )
    if ended["failure"]:
        raise RunFailed(ended["failure"])
    return Outcome(run_url, ended["step"], finished=ended["step"] >= config.schedule.steps)


def _run_workers(
    config: Config,
    placement: tuple[int, bool],
    settings: dict[str, Any],
    on_event: Callable[[Event], None],
    stop_asked: Callable[[], bool],
) -> Event:
    """Trains on the cluster that is connected; gives the event that the workers ended with."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    num_workers, use_gpu = placement
    monitor = ray.remote(Monitor).options(num_cpus=0, label_selector=clusters.this_node()).remote()
    # Ray's own bookkeeping lies beside ours; a name of its own keeps it from resuming by itself.
    filesystem, ray_path = storage.open_url(storage.join(settings["run_url"], "ray"))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={**settings, "config": config.model_dump(mode="json"), "monitor": monitor},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=clusters.per_worker(config.launch, use_gpu)
        ),
        run_config=RunConfig(
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=ray_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.launch.max_failures, controller_failure_limit=1),
        ),
    )  # fmt: skip
    ended: Event = {}

    def keep_last(event: Event) -> None:
        if event["kind"] == "ended":
            ended.update(event)
        on_event(event)

    with following(monitor, keep_last, stop_asked):
        try:
            in_thread(trainer.fit)
        except TrainingFailedError as error:
            raise RunFailed(ended.get("failure") or _reason(error)) from error
    if not ended:
        raise RunFailed("the workers ended without a word; --debug shows their logs")
    return ended


@contextmanager
def following(monitor: Any, on_event: Callable[[Event], None], stop_asked: Callable[[], bool]) -> Iterator[None]:
    """Passes the workers' events on while the block runs; SIGINT and SIGTERM ask the run to stop in good order."""
    import ray

    over = threading.Event()

    def follow() -> None:
        asked = False
        while not over.wait(0.3):
            if not asked and (asked := stop_asked()):
                monitor.request_stop.remote()
            for event in ray.get(monitor.collect.remote()):
                on_event(event)

    def stop(signum: int, frame: Any) -> None:
        on_event({"kind": "warning", "text": "stopping: a checkpoint is written first; press again to stop at once"})
        monitor.request_stop.remote()
        signal.signal(signum, previous[signal.Signals(signum)])

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    main = threading.current_thread() is threading.main_thread()
    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        over.set()
        follower.join()
        for event in ray.get(monitor.collect.remote()):
            on_event(event)


def in_thread(function: Callable[[], Any]) -> Any:
    """The function's result; run in a thread, so that signals reach us and not Ray's own handler, which aborts."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def _reason(error: Exception) -> str:
    """The first worker's own error in one line."""
    failures: dict[int, Any] = getattr(error, "worker_failures", None) or {}
    causes = {rank: getattr(failure, "_base_exc", None) or failure for rank, failure in failures.items()}
    # What the others say is that a worker left their collective: a RuntimeError of torch.distributed.
    for rank, cause in sorted(causes.items(), key=lambda item: (isinstance(item[1], RuntimeError), item[0])):
        return f"worker {rank}: {type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause) else ''}"
    return str(error).strip().splitlines()[-1]


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
