"""One trial of a sweep, as a Tune trainable: a run like any other in a thread, whose probe scores are its results.

When the scheduler stops it, the run is asked to stop in good order, so that its workers are free when it is gone.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import ray
from ray import tune

from scaleaudio import checkpoint
from scaleaudio.config import Config, dump, validate
from scaleaudio.data import storage
from scaleaudio.data.patience import Patience, may_pass
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.launch import run_folder
from scaleaudio.launch.monitor import Event
from scaleaudio.launch.pretrain import pretrain
from scaleaudio.report.runlog import read_metrics
from scaleaudio.sweep.plan import trial_tree

_STOP_SECONDS = 120.0  # for the last steps and a checkpoint; then the trial's processes are ended as they are
_TELL_EVERY_SECONDS = 1.0
_POINTER = "origin.json"
Result = TypeVar("Result")


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a sweep share.

    Attributes:
        sweep_url: the sweep's folder, which all nodes reach.
        tree: the experiment that trials change.
        mailbox: the handle of the sweep's `Monitor`.
        debug: show the workers' logs.
    """

    sweep_url: str
    tree: dict[str, Any]
    mailbox: Any
    debug: bool = False


def run_url(sweep_url: str, name: str) -> str:
    """The run folder of a trial."""
    return storage.join(sweep_url, "runs", name)


class TrialRun(tune.Trainable):  # type: ignore[misc]
    """A trial; `config["trial"]` holds its number, changes and seed, and the run that it goes on with, if any."""

    def setup(self, config: dict[str, Any], settings: TrialSettings) -> None:
        """Takes the settings; the run starts with the first `step`."""
        self._trial: dict[str, Any] = config["trial"]
        self._settings = settings
        self._results: SimpleQueue[dict[str, Any] | Exception] = SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._origin: dict[str, Any] | None = None
        self._came_from: list[list[int]] = []
        self._name: str = self._trial["run"] or f"{self._trial['number']:04d}"
        self._last: dict[str, Any] = {"step": 0}
        self._told = 0.0

    def step(self) -> dict[str, Any]:
        """The next score, or how the run ended."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, daemon=True)
            self._thread.start()
        while True:
            try:
                result = self._results.get(timeout=1.0)
            except Empty:
                if ray.get(self._settings.mailbox.stop_requested.remote()):
                    self._stop.set()
                continue
            if isinstance(result, Exception):
                raise result
            self._last |= result
            return self._last | {
                "run": self._name, "changes": self._trial["changes"], "came_from": self._came_from,
            }  # fmt: skip

    def cleanup(self) -> None:
        """Ends the run in good order, so that its workers are free."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Says where the weights are that this trial, after a pause, or another may go on from; they stay there."""
        mine = {"run": self._name, "number": self._trial["number"]}
        Path(checkpoint_dir, _POINTER).write_text(json.dumps(mine))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Goes on with the trial's own run, which the scheduler had paused, or from another's weights in a new one."""
        pointer = json.loads(Path(checkpoint_dir, _POINTER).read_text())
        if pointer["number"] == self._trial["number"]:
            self._name = pointer["run"]
        else:
            self._origin = pointer

    def _train(self) -> None:
        try:
            self._results.put({**self._run(), "done": True})
        except Exception as error:
            self._results.put(error)

    def _run(self) -> dict[str, Any]:
        trial = self._trial
        if ray.get(self._settings.mailbox.stop_requested.remote()):
            return {"state": "interrupted"}
        try:
            tree = trial_tree(self._settings.tree, trial["changes"], number=trial["number"], seed=trial["seed"])
            config = validate(tree, f"trial {trial['number']}")
            # All or none: fewer workers would grow into the places of other trials.
            config = config.model_copy(update={"launch": config.launch.model_copy(update={"min_workers": None})})
            if self._origin is not None:
                self._patiently(config, lambda: self._adopt(config))
            url = run_url(self._settings.sweep_url, self._name)
            self._patiently(config, lambda: self._tell_again(url))
            outcome = self._patiently(
                config,
                lambda: pretrain(
                    config, url, on_event=self._on_event, stop_asked=self._stop.is_set, debug=self._settings.debug
                ),
            )
        except (InputError, RunFailed) as error:  # another attempt would end in the same way
            return {"state": "failed", "failure": " ".join(str(error).split())}
        return {"state": "finished" if outcome.finished else "interrupted"}

    def _patiently(self, config: Config, action: Callable[[], Result]) -> Result:
        """What `action` gives, tried again while storage is away: Tune would try again at once, and soon no more.

        The run has patience of its own from its first attempt on; this is for what comes before.
        """
        told: list[Exception] = []

        def on_failure(error: Exception) -> None:
            if self._stop.is_set():
                raise error
            if not told and may_pass(error):
                self._on_event({"kind": "warning", "text": f"storage does not answer, and is tried again: {error}"})
            told.append(error)

        patience = Patience(threading.TIMEOUT_MAX, config.checkpoint.patience_seconds, on_failure)
        return patience.read(action, remote=True)

    def _adopt(self, config: Config) -> None:
        """Begins a run folder of its own with the newest checkpoint of the run that it goes on from."""
        assert self._origin is not None
        others = run_url(self._settings.sweep_url, self._origin["run"])
        first = self._name.partition("-")[0]
        taken = 1
        while storage.exists(run_url(self._settings.sweep_url, self._name)):
            taken += 1
            self._name = f"{first}-{taken}"
        url = run_url(self._settings.sweep_url, self._name)
        storage.write_atomic(storage.join(url, run_folder.CONFIG), dump(config).encode())
        step = checkpoint.copy_newest(others, url)
        self._came_from = [[step, self._origin["number"]]]

    def _tell_again(self, url: str) -> None:
        """Gives the scores up to the step that the run goes on from: a new scheduler has not heard them."""
        done = checkpoint.newest_meta(url)
        step = done.step if done is not None else 0
        scored = [record for record in read_metrics(url) if "probe/score" in record and record["step"] < step]
        for record in scored:
            self._results.put({"step": record["step"] + 1, "score": record["probe/score"]})

    def _on_event(self, event: Event) -> None:
        if event["kind"] == "probe":
            self._results.put({"step": event["step"], "score": event["score"]})
        now = time.monotonic()
        if event["kind"] in ("started", "warning") or now - self._told > _TELL_EVERY_SECONDS:
            self._told = now
            self._settings.mailbox.post.remote({**event, "trial": self._trial["number"]})
