"""What each Ray Train worker runs: build, resume, step, report, checkpoint."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from scaleaudio import checkpoint
from scaleaudio.averaging import average
from scaleaudio.collectives import gather_items, on_rank
from scaleaudio.config import Config
from scaleaudio.data.fingerprint import check_fingerprint
from scaleaudio.data.patience import Patience
from scaleaudio.data.rejects import BadDataError
from scaleaudio.data.stream import Stream
from scaleaudio.launch.interval import Interval, NotFinite
from scaleaudio.launch.lease import check_held
from scaleaudio.launch.probe import check_tasks, is_due, probe
from scaleaudio.launch.reach import from_this_node
from scaleaudio.launch.stop import Back, Stop
from scaleaudio.launch.watchdog import Watchdog
from scaleaudio.objectives import gather
from scaleaudio.report.events import fault
from scaleaudio.report.runlog import RunLog, leave_rejects
from scaleaudio.train import Engine, PlainEngine, StepReport, fit
from scaleaudio.types import Batch, Reject, World

_COLLAPSED_STD, _COLLAPSED_RANK = 0.05, 2.0
_WATCHED_CLIPS = 1024


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's part of a run, from its newest checkpoint to its last step or until it is asked to stop.

    Args:
        settings: "config" (the resolved config as a tree), "run_url", "monitor" (its handle), "lease" (the URL of the
            driver's claim), "most_workers" (of the run), "skip" (steps to pass over), "fault" (that ended the workers
            before these, as `faults.Fault.settings` gives it with "found_at", or None), and in seconds since the epoch
            "began" (the driver's start) and "stop_at" (or None).
    """
    monitor, rank = settings["monitor"], ray.train.get_context().get_world_rank()
    who = {"host": socket.gethostname(), "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
    if ray.get(monitor.failure.remote()):
        return
    monitor.enter.remote(rank, who)
    watchdog = Watchdog(
        settings["config"]["launch"]["hang_seconds"],
        on_hang=lambda told: ray.get(monitor.hang.remote({"rank": rank, **who, **told}), timeout=5),
        on_beat=lambda step: monitor.beat.remote(step) if rank == 0 and step else None,
    )
    try:
        _train(settings, watchdog)
    except ValueError as error:  # wrong input or unusable data: another attempt would end in the same way
        ray.get(monitor.post.remote({"kind": "ended", "step": 0, "failure": str(error)}))
        raise
    finally:
        watchdog.close()


def _train(settings: dict[str, Any], watchdog: Watchdog) -> None:
    began = time.time()
    config = Config.model_validate(settings["config"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    _set_up_torch(config, device)
    patience = Patience(deadline_seconds=config.checkpoint.patience_seconds)
    with from_this_node(settings["run_url"], patience, first=context.get_local_rank() == 0):
        stream = config.build_stream(world)
        if world.rank == 0:
            check_tasks(config.probe)
    built = _within_memory(config, world, settings["most_workers"])
    if on_rank(lambda: checkpoint.newest_meta(settings["run_url"]) is not None, world):  # its weights come from there
        built = built.model_copy(update={"init_from": None})
    engine = _engine(built, world, device)
    watchdog.progress()
    run = _Run(config, settings, engine, stream, watchdog)
    try:
        start_step = run.resume()
        watchdog.progress(start_step)
        run.post(kind="started", step=start_step, workers=world.size, seconds=time.time() - settings["began"])
        run.back = Back(settings["fault"], start_step, began, time.time())
        failure = run.train(start_step)
        run.end(failure)
    finally:
        stream.close()
        run.close()


def _set_up_torch(config: Config, device: torch.device) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.launch.tf32
    if config.launch.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.launch.cpus_per_worker)))


def _within_memory(config: Config, world: World, most_workers: int) -> Config:
    """The config by which a worker encodes no more clips at once than when all workers are there."""
    if config.train.max_clips_per_worker is not None or world.size >= most_workers:
        return config
    most = max(World(0, most_workers).counts(config.data.lanes, config.data.lane_batch))
    return config.model_copy(update={"train": config.train.model_copy(update={"max_clips_per_worker": most})})


def _engine(config: Config, world: World, device: torch.device) -> Engine:
    task = config.build(world)
    if config.launch.engine == "plain":
        return PlainEngine(task, config.optimizer, device)
    from scaleaudio.launch.engine import DeepSpeedEngine

    return DeepSpeedEngine(task, config.optimizer, zero_stage=config.launch.zero_stage, device=device)


class _Run:
    def __init__(
        self, config: Config, settings: dict[str, Any], engine: Engine, stream: Stream, watchdog: Watchdog
    ) -> None:
        self.step = 0
        self.back: Back | None = None
        self._watchdog = watchdog
        self._config = config
        self._url: str = settings["run_url"]
        self._tree: dict[str, Any] = settings["config"]
        self._monitor = settings["monitor"]
        self._stop = Stop(settings["monitor"], settings["stop_at"], engine, config.launch.report_every_steps)
        self._lease: str = settings["lease"]
        self._skip: frozenset[int] = frozenset(settings["skip"])
        self._engine = engine
        self._stream = stream
        self._log: RunLog | None = None
        self._collapsed = False
        self._rejects: list[tuple[int, Reject]] = []

    def resume(self) -> int:
        found = checkpoint.newest(self._url, self._engine.world, self._engine.device)
        if found is not None:
            meta, tensors, _ = found
            # By rank 0: for a fingerprint the whole index is read.
            on_rank(
                lambda: check_fingerprint(meta.fingerprint, self._stream.fingerprint(), meta.step), self._engine.world
            )
            self._engine.load(tensors, meta.step)
            self.step = meta.step
        if self._engine.world.rank == 0:
            self._log = RunLog(
                self._url, self.step, self._config.loggers, self._tree, self._config.checkpoint.patience_seconds
            )
        for line in found[2] if found is not None else []:
            self.post(**fault("torn_checkpoint", self.step, f"{line}; step {self.step} is used instead"))
        for line in self._log.warnings if self._log else []:
            self.post(kind="warning", text=line)
        return self.step

    def train(self, start_step: int) -> str | None:
        """Trains to the end; gives the reason where the run had to stop for good."""
        try:
            return self._train(start_step)
        except BadDataError as error:
            unsaved = self._rejects + [(self.step, reject) for reject in error.rejects]
            leave_rejects(self._url, self._engine.world.rank, unsaved)
            raise

    def _train(self, start_step: int) -> str | None:
        config, interval = self._config, Interval()
        report: StepReport | None = None
        for report in fit(self._engine, self._batches(start_step)):
            self.step = report.step + 1
            self._stepped()
            self._rejects += [(report.step, reject) for reject in report.rejects]
            interval.add(report)
            last = self.step == config.schedule.steps
            reporting = last or self.step % config.launch.report_every_steps == 0
            saving = last or self.step % config.checkpoint.every_steps == 0
            probing = is_due(config.probe, self.step, saving=saving, last=last)
            due = reporting or saving or probing
            stopping = self._stop.wanted(self.step, always=due) and not last
            if not due and not stopping:
                continue
            # Before anything is written: a checkpoint must not hold what is not finite.
            if wrong := interval.first_wrong(self._engine.world, self._engine.device):
                return self._gone_wrong(wrong)
            if reporting:
                self._report(report, interval)
                interval = Interval()
            score = self._probe() if probing else None
            if saving or stopping:
                self._save(score)
            if stopping:
                return None
        self._stop.reason = None
        return self._without_the_last(report, interval) if self.step < config.schedule.steps else None

    def _without_the_last(self, report: StepReport | None, interval: Interval) -> str | None:
        """Ends a run whose last steps were passed over as one whose last was taken: checked, told, scored, saved."""
        if wrong := interval.first_wrong(self._engine.world, self._engine.device):
            return self._gone_wrong(wrong)
        if report is not None and interval.steps:
            self._report(report, interval)
        self.step = self._config.schedule.steps
        self._stepped()
        self._save(self._probe() if is_due(self._config.probe, self.step, saving=True, last=True) else None)
        return None

    def _report(self, report: StepReport, interval: Interval) -> None:
        """Logs and tells the newest step's metrics. A collective."""
        metrics = report.metrics(self._watched(report)) | interval.metrics(self._config.data.global_batch)
        metrics = self._mean(metrics)
        self._stop.pace(metrics["step_seconds"])
        self._publish(report.step, metrics)

    def _batches(self, start_step: int) -> Iterator[Batch]:
        return (batch for batch in self._stream.batches(start_step) if batch.step not in self._skip)

    def _gone_wrong(self, wrong: NotFinite) -> str | None:
        """Ends the attempt by the rule of `launch.not_finite`; gives the failure where that ends the run."""
        if self._config.launch.not_finite == "skip":
            self._stop.skip(wrong.step, wrong.text)
            return None
        self.post(**fault("not_finite", wrong.step, wrong.text))
        return wrong.text

    def _stepped(self) -> None:
        self._watchdog.progress(self.step)
        if self.back is not None:
            if (event := self.back.event(self._engine.world.size)) is not None:
                self.post(**event)
            self.back = None

    def end(self, failure: str | None) -> None:
        """Tells the driver how it ended; the run folder too, unless others go on at once."""
        stop = self._stop
        event = {"kind": "ended", "step": self.step, "failure": failure, "reason": stop.reason}
        if stop.goes_on:
            if self._log is not None:
                ray.get(self._monitor.post.remote(event | {"what": stop.what, "skip_step": stop.skip_step}))
        else:
            self.post(**event)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            for line in self._log.new_warnings():
                ray.get(self._monitor.post.remote({"kind": "warning", "text": line}))

    def post(self, **event: Any) -> None:
        """Tells the driver, and for good the run folder."""
        if self._log is not None:
            self._log.event(event)
            ray.get(self._monitor.post.remote(event))

    def _mean(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics' mean over the workers. A collective."""
        values = torch.tensor([*metrics.values()], device=self._engine.device)
        average([values], self._engine.world)
        return dict(zip(metrics, values.tolist(), strict=True))

    def _watched(self, report: StepReport) -> torch.Tensor:
        """Up to about a thousand of the global batch's embeddings, the same on every rank. A collective."""
        world, data = self._engine.world, self._stream.config
        stride = -(-data.global_batch // _WATCHED_CLIPS)
        counts = [-(-count // stride) for count in world.counts(data.lanes, data.lane_batch)]
        return gather(report.stepped.losses.embedding_BD[::stride], world, counts)

    def _publish(self, step: int, metrics: dict[str, float]) -> None:
        if self._log is None:
            return
        self._log.write(step, metrics)
        for line in self._log.new_warnings():
            self.post(kind="warning", text=line)
        self._monitor.post.remote({"kind": "metrics", "step": step + 1, **metrics})
        collapsed = metrics["embedding/std"] < _COLLAPSED_STD or metrics["embedding/rank"] < _COLLAPSED_RANK
        if collapsed and not self._collapsed:
            self.post(
                kind="warning",
                text=f"step {step}: the embeddings have collapsed (std {metrics['embedding/std']:.3f}, effective rank "
                f"{metrics['embedding/rank']:.1f}). Lower schedule.learning_rate or strengthen the views.",
            )
        self._collapsed = collapsed

    def _save(self, score: float | None = None) -> None:
        began = time.perf_counter()
        rejects = gather_items(self._rejects, self._engine.world, self._engine.device)
        self._rejects = []
        # Rank 0 alone writes what a checkpoint says of itself, and alone reads the whole index for it.
        fingerprint = self._stream.fingerprint() if self._engine.world.rank == 0 else {}
        meta = checkpoint.Meta(self.step, self._tree, fingerprint, score=score)
        if self._log is not None:  # before the checkpoint: it must not know of steps that the log has lost
            self._log.add_rejects(sorted(rejects, key=lambda pair: pair[0]))
            self._log.flush()
        self._check_lease()
        self._watchdog.progress()
        url = checkpoint.save(self._url, self._engine, meta, self._config.checkpoint.patience_seconds)
        self._watchdog.progress()
        if self._log is not None:
            with suppress(OSError):  # what is too many now is too many at the next one
                checkpoint.prune(self._url, self._config.checkpoint.keep_last, self._config.checkpoint.keep_best)
        self.post(kind="checkpoint", step=self.step, url=url, seconds=time.perf_counter() - began)

    def _check_lease(self) -> None:
        """Raises InputError on every rank where another driver has the run now. A collective."""
        with suppress(OSError):  # storage that does not answer takes nothing away
            on_rank(lambda: check_held(self._lease), self._engine.world)

    def _probe(self) -> float | None:
        """The score on the labelled folders, by rank 0. A collective: the weights may lie spread over the ranks."""
        began = time.perf_counter()
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self._engine.tensors():
            if self._log is not None and name.startswith(("parameter.", "buffer.")):
                tensors[name] = tensor.cpu()
        if self._log is None:
            return None
        scores = probe(self._config.probe, self._tree, tensors, self.step, self._engine.device)
        self._log.write(self.step - 1, scores)
        self._watchdog.progress()
        self.post(kind="probe", step=self.step, score=scores["probe/score"], seconds=time.perf_counter() - began)
        return scores["probe/score"]
