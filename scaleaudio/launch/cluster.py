"""Ray itself: join the cluster that RAY_ADDRESS names, or start one on this machine."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line of a worker is printed twice
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
import ray
from ray.exceptions import RaySystemError

from scaleaudio.config import LaunchConfig
from scaleaudio.data import storage
from scaleaudio.errors import InputError

_KNOCK_SECONDS, _KNOCKS_AT_ONCE = 3.0, 64
# What a Ray that lives for one run on one machine can do without: each saves processes or seconds at the start.
_LOCAL = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_enable_worker_prestart": "0",  # Ray Train's workers need an environment of their own and cannot use these
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # this machine is not taken away node by node
}


@contextmanager
def cluster(config: LaunchConfig, *, debug: bool = False) -> Iterator[None]:
    """A connected Ray; one that was started here ends here.

    Without RAY_ADDRESS it never joins another cluster on this machine, as plain `ray.init()` would.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    settings = {"address": address, "log_to_driver": debug, "logging_level": logging.INFO if debug else logging.ERROR}
    if address == "local":
        for name, value in _LOCAL.items():
            os.environ.setdefault(name, value)
        # The dashboard stays on: without it Ray Train's cleaner of placement groups fails and repeats itself.
        settings |= {"num_cpus": _local_cpus(config), "include_dashboard": True}
    ray.init(**settings)
    try:
        yield
    finally:
        ray.shutdown()


def workers(config: LaunchConfig, num_lanes: int) -> tuple[int, bool]:
    """How many workers, and whether each gets a GPU: "auto" is one a GPU, or one where there is none.

    Raises:
        InputError: when there are more workers than lanes, or when a Ray of this machine alone will never have
            what they need: they would wait for ever.
    """
    there = ray.cluster_resources()
    num_gpus = int(there.get("GPU", 0))
    use_gpu = num_gpus > 0
    num_workers = max(1, num_gpus) if config.workers == "auto" else config.workers
    if num_workers > num_lanes:
        raise InputError(
            f"data.lanes {num_lanes}: {num_workers} workers need at least {num_workers} lanes. Raise data.lanes (it "
            "must divide data.global_batch) or lower launch.workers."
        )
    if os.environ.get("RAY_ADDRESS", "local") == "local":  # other clusters may grow
        for name, each in per_worker(config, use_gpu).items():
            if num_workers * each > there.get(name, 0):
                raise InputError(
                    f"launch.workers {num_workers}: they need {num_workers * each:g} {name}, Ray has "
                    f"{there.get(name, 0):g} here. Lower launch.workers, or set RAY_ADDRESS to a cluster that has them."
                )
    return num_workers, use_gpu


def slots(config: LaunchConfig, num_workers: int, use_gpu: bool) -> int:
    """How many runs of `num_workers` workers each the cluster has room for as it is now, at least one."""
    return max(1, _fitting(per_worker(config, use_gpu), _alive()) // num_workers)


class Machines:
    """What the machines have that answer, each knocked at once: what it costs to find 1,000 of them is paid once."""

    def __init__(self, per_worker: dict[str, float]) -> None:
        """Counts in workers of the resources `per_worker`."""
        self._per_worker = per_worker
        self._answers: dict[str, bool] = {}

    def capacity(self) -> int:
        """For how many workers there would be room if nobody else were there; a machine that is to go has none.

        From outside of the cluster (ray://) no machine may be in reach: then all count that Ray believes in.
        """
        leaving: dict[str, int] = {}
        with suppress(RaySystemError, AttributeError):  # outside; or a Ray that tells nobody but itself
            leaving = ray._private.state.state.get_draining_nodes()
        nodes = [node for node in _alive() if node["NodeID"] not in leaving]
        new = [node for node in nodes if node["NodeID"] not in self._answers]
        with ThreadPoolExecutor(_KNOCKS_AT_ONCE) as pool:
            for node, answer in zip(new, pool.map(answers, new), strict=True):
                self._answers[node["NodeID"]] = answer
        return _fitting(self._per_worker, [node for node in nodes if self._answers[node["NodeID"]]] or nodes)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _fitting(per_worker: dict[str, float], nodes: list[dict[str, Any]]) -> int:
    each = [[node["Resources"].get(name, 0) / need for name, need in per_worker.items()] for node in nodes]
    return sum(int(min(shares) + 1e-6) for shares in each)  # 33 / 1.1 is less than 30


def answers(node: dict[str, Any]) -> bool:
    """Whether a machine's raylet takes connections: Ray itself needs half a minute to see that it is gone."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _KNOCK_SECONDS).close()
    except OSError:
        return False
    return True


def check_engine(config: LaunchConfig) -> None:
    """Raises InputError where the engine that the config asks for is not installed."""
    if config.engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "launch.engine deepspeed: not installed (it comes for Linux on x86-64 only). Set launch.engine=plain: it "
            "trains the same."
        )


def per_worker(config: LaunchConfig, use_gpu: bool) -> dict[str, float]:
    """The resources that one worker takes."""
    return {"CPU": config.cpus_per_worker} | ({"GPU": 1} if use_gpu else {})


def this_node() -> dict[str, Any]:
    """The label that keeps an actor on the driver's machine, which lives as long as the run."""
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def refuse_relative(urls: dict[str, str]) -> None:
    """Raises InputError for a path that means another folder on each machine, naming its key."""
    for key, url in relative(urls).items():
        raise InputError(
            f"{key} {url!r}: a relative path means another folder on each machine of a cluster. Give a URL that "
            "every node reaches (s3://..., a shared /path)."
        )


def relative(urls: dict[str, str]) -> dict[str, str]:
    """Those that are relative paths, where each machine understands such in its own way: in a job, on several nodes."""
    found = {key: url for key, url in urls.items() if storage.is_local(url) and not url.startswith(("/", "file:"))}
    in_job = "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return found if found and (in_job or sum(1 for node in ray.nodes() if node["Alive"]) > 1) else {}


def _local_cpus(config: LaunchConfig) -> int:
    wanted = (1 if config.workers == "auto" else config.workers) * config.cpus_per_worker
    return max(os.cpu_count() or 1, int(-(-wanted // 1)))
