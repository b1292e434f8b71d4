"""One run as a row of attempts: each a group of workers of one size, with what went wrong told in between.

A fault ends an attempt, and the next goes on from the newest checkpoint with the workers for which there is room: all
of them, or fewer (`launch.min_workers`) where a machine is gone. When room comes back the attempt is asked for a
checkpoint and the next has more workers again, so that growing costs no step. Faults count against
`launch.max_failures` only in a row: a checkpoint between them sets the count to nothing, since a run of weeks meets
more of them than any number.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from scaleaudio.config import Config
from scaleaudio.data import storage
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.launch import cluster as clusters
from scaleaudio.launch.faults import Fault, diagnose
from scaleaudio.launch.following import Ears, following, in_thread
from scaleaudio.launch.lease import Claim
from scaleaudio.launch.monitor import GO_ON, RESIZE, Event, Monitor
from scaleaudio.launch.places import Grower, await_places
from scaleaudio.launch.worker import train_worker
from scaleaudio.report.events import append_events
from scaleaudio.report.runlog import newest_step

_TELL_SECONDS = 60.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 120.0


def run_attempts(
    config: Config,
    placement: tuple[int, bool],
    settings: dict[str, Any],
    on_event: Callable[[Event], None],
    stop_asked: Callable[[], bool],
) -> Event:
    """Trains on the cluster that is connected, through faults; gives the event that the workers ended with.

    Args:
        config: resolved.
        placement: how many workers at most, and whether each gets a GPU.
        settings: what workers get beside the config (`train_worker`).
        on_event: gets what happens.
        stop_asked: once it says so, a checkpoint is written and the run ends.

    Raises:
        RunFailed: when it stopped for good.
    """
    monitor = ray.remote(Monitor).options(num_cpus=0, label_selector=clusters.this_node()).remote()
    run = _Attempts(config, placement, settings | {"monitor": monitor}, on_event)
    with following(monitor, run.on_event, stop_asked) as ears:
        return run.to_the_end(ears)


class _Attempts:
    def __init__(
        self, config: Config, placement: tuple[int, bool], settings: dict[str, Any], on_event: Callable[[Event], None]
    ) -> None:
        self._config = config
        self._most, self._use_gpu = placement
        self._fewest = min(config.launch.min_workers or self._most, self._most)
        self._per_worker = clusters.per_worker(config.launch, self._use_gpu)
        self._settings = settings
        self._monitor = settings["monitor"]
        self._show = on_event
        self._ended: Event = {}
        self._num_failed = 0
        self._told_at = time.monotonic()
        self._unwritten: list[Event] = []
        self._number, self._step = 0, 0
        self._running = False
        self._skip: set[int] = set()

    def on_event(self, event: Event) -> None:
        if event["kind"] == "ended":
            self._ended = event
        elif event["kind"] == "checkpoint":
            self._num_failed = 0
        self._running = self._running or event["kind"] == "started"
        if event["kind"] in ("started", "metrics", "checkpoint"):
            self._step = event["step"]
        self._show(event)

    def to_the_end(self, ears: Ears) -> Event:
        fault = self._driver_lost(self._settings.pop("driver_lost"))
        num_before = 0
        while True:
            num_workers = 0 if ears.stop_reason else self._await_places(ears)
            if num_workers == 0:
                return self._end(None, ears.stop_reason)
            if num_before not in (0, num_workers):
                self._tell_resized(fault, num_before, num_workers)
            num_before = num_workers
            error = self._attempt(num_workers, fault, ears)
            if error is None and self._ended.get("reason") not in GO_ON:
                self._write()
                return self._ended
            fault = self._struck(error, ears)

    def _driver_lost(self, claim: Claim | None) -> Fault | None:
        if claim is None:
            return None
        step, began = newest_step(self._settings["run_url"]), float(self._settings["began"])
        fault = Fault("driver", f"the driver before this one was lost ({claim})", step, claim.seen_at, began)
        self._unwritten.append(fault.event())
        self._show(fault.event())
        return fault

    def _await_places(self, ears: Ears) -> int:
        launch = self._config.launch

        def on_wait(ready: int) -> bool:
            if ready < self._fewest and time.monotonic() - self._told_at > _TELL_SECONDS:
                self._told_at = time.monotonic()
                text = f"waiting for workers: room for {ready}, needed are {self._fewest} ({self._per_worker} each)"
                self._show({"kind": "warning", "text": text})
            return ears.stop_reason is None

        num_workers = await_places(
            self._per_worker,
            self._fewest,
            self._most,
            ran_before=self._number > 0,
            wait_seconds=60 * launch.wait_minutes,
            on_wait=on_wait,
        )
        if num_workers == 0 and ears.stop_reason is None:
            raise RunFailed(
                f"no room for {self._fewest} worker(s) of {self._per_worker} in {launch.wait_minutes:g} minutes. The "
                "newest checkpoint stays; the same command goes on. launch.min_workers says with how few."
            )
        return num_workers

    def _attempt(self, num_workers: int, fault: Fault | None, ears: Ears) -> Exception | None:
        """Trains until the workers end; what the trainer raised, where it did."""
        self._write()
        self._number += 1
        self._ended, self._running = {}, False
        ray.get(self._monitor.begin.remote(fault.step if fault else 0))
        self._show({"kind": "phase", "text": f"starting {num_workers} worker(s)"})
        told = None if fault is None else fault.settings() | {"found_at": time.time()}
        grower = Grower(self._monitor, self._per_worker, self._most - num_workers, self._config.launch.resize_seconds)
        try:
            trainer = self._trainer(num_workers, {**self._settings, "fault": told, "skip": sorted(self._skip)})
            # Not while the workers start: the one place that is left would go to those that are missing.
            in_thread(trainer.fit, lambda: grower.look() if self._running else None)
        except (TrainingFailedError, OSError) as error:
            ears.drain()
            if failure := ray.get(self._monitor.failure.remote()):
                self._end(failure)
                raise RunFailed(failure) from error
            return error
        finally:
            grower.close()
        ears.drain()
        if self._ended.get("failure"):
            raise RunFailed(self._ended["failure"])
        if not self._ended:
            raise RunFailed("the workers ended without a word; --debug shows their logs")
        return None

    def _trainer(self, num_workers: int, settings: dict[str, Any]) -> TorchTrainer:
        launch = self._config.launch
        # Of a worker that is frozen as a whole; the controller reads it.
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(launch.hang_seconds)
        # Ray's own bookkeeping lies beside ours; a name of its own keeps it from resuming by itself.
        filesystem, ray_path = storage.open_url(storage.join(settings["run_url"], "ray"))
        return TorchTrainer(
            train_worker,
            train_loop_config={**settings, "config": self._config.model_dump(mode="json"), "most_workers": self._most},
            scaling_config=ScalingConfig(
                num_workers=num_workers, use_gpu=self._use_gpu, resources_per_worker=self._per_worker
            ),
            run_config=RunConfig(
                name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{self._number}",
                storage_path=ray_path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )  # fmt: skip

    def _struck(self, error: Exception | None, ears: Ears) -> Fault | None:
        """What ended the attempt, None where it only changes its size; waits before a try that is likely in vain.

        A stop that is asked for ends the waiting.

        Raises:
            RunFailed: after too many faults in a row.
        """
        if error is None and self._ended["reason"] == RESIZE:
            return None
        attempt = ray.get(self._monitor.attempt.remote())
        if error is None:
            step, now = self._ended["step"], time.time()
            fault = Fault(self._ended["reason"], self._ended["what"], step, now, now)
            if fault.name == "not_finite":
                self._skip.add(self._ended["skip_step"])
                self._num_failed += 1
        else:
            fault = diagnose(error, attempt, self._step)
            self._num_failed += 1
        self._unwritten.append(fault.event())
        self._show(fault.event())
        self._write()
        if self._num_failed > self._config.launch.max_failures or fault.name == "disk_full":
            in_a_row = f" ({self._num_failed} faults in a row)" if self._num_failed > 1 else ""
            self._end(f"{fault.what}{in_a_row}")
            raise RunFailed(f"{fault.what}{in_a_row}") from error
        if self._num_failed > 1:
            pause = _PAUSE_SECONDS * 4 ** (self._num_failed - 2)
            ears.wait(min(pause, _LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.5))
        return fault

    def _end(self, failure: str | None, reason: str | None = None) -> Event:
        """Writes down how the run ended where no worker is there to do so."""
        event = {"kind": "ended", "step": self._step, "failure": failure, "reason": reason}
        self._unwritten.append(event)
        self._write()
        return event

    def _tell_resized(self, fault: Fault | None, before: int, now: int) -> None:
        step = self._ended["step"] if fault is None else fault.step
        what = f"{now} worker(s) instead of {before}"
        event = {"time": time.time(), "kind": "resized", "step": step}
        event |= {"workers_before": before, "workers": now, "what": what}
        self._unwritten.append(event)
        self._show(event)

    def _write(self) -> None:
        """Into the run folder what no worker is there to write; kept where it cannot be reached at the moment."""
        with suppress(OSError, InputError):
            append_events(self._settings["run_url"], self._unwritten)
            self._unwritten = []
