"""One pre-training run from the driver's side: check, resolve, start the workers, show progress, end in good order."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from scaleaudio import __version__, checkpoint
from scaleaudio.config import Config, differences, dump, validate
from scaleaudio.data import storage
from scaleaudio.data.normalise import with_constants
from scaleaudio.data.stream import Stream
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.frontend import FrontendConfig
from scaleaudio.launch import cluster as clusters
from scaleaudio.launch.monitor import Event, Monitor
from scaleaudio.launch.worker import train_worker

CONFIG = "config.yaml"

# How the run is carried out, not what it learns: may differ when a run goes on.
_FREE = ("launch.", "checkpoint.", "data.url", "data.num_", "data.read_ahead", "data.fetch_ahead", "data.max_bad")


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
    debug: bool = False,
) -> Outcome:
    """Trains `config` in the run folder `run_url`, going on where its newest checkpoint is.

    Args:
        config: the experiment.
        run_url: a path or URL that all workers reach.
        fresh: delete what the run folder holds and start anew.
        max_hours: write a checkpoint and stop after that time.
        on_event: gets what the workers tell: kinds started, metrics, checkpoint, warning.
        debug: show Ray's and the workers' logs.

    Raises:
        InputError: for data, strengths or a run folder that do not fit.
        RunFailed: when training stopped for good; the newest checkpoint stays.
    """
    began = time.time()
    stream = config.build_stream()
    if fresh and storage.exists(run_url):
        _refuse_foreign(run_url)
        storage.delete_tree(run_url)
    with clusters.cluster(config.launch, debug=debug):
        clusters.refuse_relative({"data.url": config.data.url, "the run folder": run_url})
        run_url = _absolute(run_url)
        config = config.model_copy(update={"data": config.data.model_copy(update={"url": _absolute(config.data.url)})})
        config = _resolved(config, run_url, stream)
        done = checkpoint.list_checkpoints(run_url)
        if done and checkpoint.step_of(done[-1]) >= config.schedule.steps:
            return Outcome(run_url, checkpoint.step_of(done[-1]), finished=True)
        storage.write_atomic(storage.join(run_url, CONFIG), dump(config).encode())
        storage.write_atomic(storage.join(run_url, "environment.json"), json.dumps(_environment(), indent=1).encode())
        stop_at = None if max_hours is None else began + 3600 * max_hours
        ended = _run_workers(config, {"run_url": run_url, "began": began, "stop_at": stop_at}, on_event)
    if ended["failure"]:
        raise RunFailed(ended["failure"])
    return Outcome(run_url, ended["step"], finished=ended["step"] >= config.schedule.steps)


def _resolved(config: Config, run_url: str, stream: Stream) -> Config:
    """The config with the front-end's constants filled in: the run's own, or else measured from the shards."""
    path = storage.join(run_url, CONFIG)
    if not storage.exists(path):
        return _with_frontend(config, with_constants(config.frontend, stream))
    saved = validate(yaml.safe_load(storage.read_bytes(path)), path)
    if config.frontend.mean is None:
        measured = {"mean": saved.frontend.mean, "std": saved.frontend.std}
        config = _with_frontend(config, config.frontend.model_copy(update=measured))
    changed = differences(saved.model_dump(mode="json"), config.model_dump(mode="json"))
    changed = [line for line in changed if not line.startswith(_FREE)]
    if changed:
        raise InputError(
            f"{run_url}: holds a run of another config (key: there, now): {'; '.join(changed)}. Set them back, "
            "choose another --name, or delete it with --fresh."
        )
    return config


def _with_frontend(config: Config, frontend: FrontendConfig) -> Config:
    return config.model_copy(update={"frontend": frontend})


def _run_workers(config: Config, settings: dict[str, Any], on_event: Callable[[Event], None]) -> Event:
    """Trains on the cluster that is connected; gives the event that rank 0 ended with."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    num_workers, use_gpu = clusters.workers(config.launch)
    if num_workers > config.data.lanes:
        raise InputError(f"data.lanes {config.data.lanes}: {num_workers} workers need at least as many lanes")
    monitor = ray.remote(num_cpus=0)(Monitor).remote()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={**settings, "config": config.model_dump(mode="json"), "monitor": monitor},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=_resources(config, use_gpu)
        ),
        # Ray's own bookkeeping lies beside ours; a name of its own keeps it from resuming by itself.
        run_config=RunConfig(
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=storage.join(settings["run_url"], "ray"),
            failure_config=FailureConfig(max_failures=config.launch.max_failures, controller_failure_limit=1),
        ),
    )  # fmt: skip
    ended: Event = {}

    def keep_last(event: Event) -> None:
        if event["kind"] == "ended":
            ended.update(event)
        on_event(event)

    with _following(monitor, keep_last):
        try:
            _in_thread(trainer.fit)
        except TrainingFailedError as error:
            raise RunFailed(_reason(error)) from error
    return ended


def _resources(config: Config, use_gpu: bool) -> dict[str, float]:
    return {"CPU": config.launch.cpus_per_worker} | ({"GPU": 1} if use_gpu else {})


@contextmanager
def _following(monitor: Any, on_event: Callable[[Event], None]) -> Iterator[None]:
    """Passes the workers' events on while the block runs; SIGINT and SIGTERM ask the run to stop in good order."""
    import ray

    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.3):
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


def _in_thread(function: Callable[[], Any]) -> Any:
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
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure
        return f"worker {rank}: {type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause) else ''}"
    return str(error).strip().splitlines()[-1]


def _absolute(url: str) -> str:
    return storage.open_url(url)[1] if storage.is_local(url) else url


def _refuse_foreign(run_url: str) -> None:
    if not storage.exists(storage.join(run_url, CONFIG)) and storage.list_files(run_url):
        raise InputError(f"{run_url}: --fresh would delete a folder that is no run (no {CONFIG} in it). Give another.")


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
        "resources": {name: amount for name, amount in ray.cluster_resources().items() if ":" not in name},
    }
