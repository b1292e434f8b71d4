"""Ray itself: join the cluster that RAY_ADDRESS names, or start one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line of a worker is printed twice
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
import ray

from scaleaudio.config import LaunchConfig
from scaleaudio.data import storage
from scaleaudio.errors import InputError


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
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # The dashboard stays on: without it Ray Train's cleaner of placement groups fails and repeats itself.
        settings |= {"num_cpus": _local_cpus(config), "include_dashboard": True}
    ray.init(**settings)
    try:
        yield
    finally:
        ray.shutdown()


def workers(config: LaunchConfig) -> tuple[int, bool]:
    """How many workers, and whether each gets a GPU: "auto" is one a GPU, or one where there is none."""
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if config.workers == "auto":
        return max(1, num_gpus), num_gpus > 0
    return config.workers, num_gpus > 0


def refuse_relative(urls: dict[str, str]) -> None:
    """In a job or on several nodes a relative path means another folder on each machine.

    Raises:
        InputError: naming the key and the path.
    """
    in_job = "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    num_nodes = sum(1 for node in ray.nodes() if node["Alive"])
    if not in_job and num_nodes < 2:
        return
    for key, url in urls.items():
        if storage.is_local(url) and not url.startswith(("/", "file:")):
            raise InputError(
                f"{key} {url!r}: a relative path means another folder on each machine of a cluster. Give a URL that "
                "every node reaches (s3://..., a shared /path)."
            )


def _local_cpus(config: LaunchConfig) -> int:
    wanted = (1 if config.workers == "auto" else config.workers) * config.cpus_per_worker
    return max(os.cpu_count() or 1, int(-(-wanted // 1)))
