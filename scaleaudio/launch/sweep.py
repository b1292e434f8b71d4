"""A sweep from the driver's side: plan, go on where it was, run the trials over Tune, repeat the best, sum up.

All that a sweep needs in order to go on lies in the records of its trials: Tune's own state is not kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import yaml

from scaleaudio import initial
from scaleaudio.config import Config, LaunchConfig
from scaleaudio.data import storage
from scaleaudio.data.normalise import with_constants
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.launch import cluster as clusters
from scaleaudio.launch.following import following, in_thread
from scaleaudio.launch.ledger import Ledger, Stage, wanted_trials
from scaleaudio.launch.monitor import Event, Monitor
from scaleaudio.launch.pretrain import holding
from scaleaudio.launch.probe import check_tasks
from scaleaudio.launch.run_folder import FREE, clear, files
from scaleaudio.report.trials import TrialRecord, read_trials
from scaleaudio.sweep.plan import Plan
from scaleaudio.sweep.proposer import Proposer
from scaleaudio.sweep.results import SWEEP, read_sweep, write_results
from scaleaudio.sweep.space import Range
from scaleaudio.trees import differences

_FREE = (*FREE, "name", *(f"sweep.{key}" for key in ("num_trials", "repeats", "max_concurrent", "keep_runs")))
_TRIAL_BYTES = 512 << 20  # of a trial's own process, which waits for its workers; those ask for what they need
_STOP_SECONDS = 150.0  # for all trials to write their checkpoints


def sweep(
    plan: Plan,
    sweep_url: str,
    *,
    fresh: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    debug: bool = False,
) -> list[TrialRecord]:
    """Runs the trials that have not ended, then the repeats; gives all records.

    Args:
        plan: what is tried.
        sweep_url: a path or URL that all workers reach.
        fresh: delete what the sweep's folder holds and start anew.
        on_event: gets what trials tell ("trial" is their number), and "record" in an event of kind "trial" whenever
            one changes; at the end one of kind "ended", with the signal that asked for it as its "reason", if any.
        debug: show Ray's and the workers' logs.

    Raises:
        InputError: for data, a probe or a folder that do not fit, or when another driver runs this sweep.
        RunFailed: when every trial failed, or storage was away for longer than a run would wait for it.
    """
    given = {"the sweep's folder": sweep_url, **_urls(plan)}
    sweep_url = storage.absolute(sweep_url)
    located = _located(plan)
    clusters.check_engine(plan.base.launch)
    check_tasks(located.base.probe)
    _check_there(located)
    if plan.sweep.searcher == "optuna":
        Proposer(plan, [])  # says now where optuna is missing
    saved = _saved(sweep_url)
    with holding(sweep_url, on_event) as lease, ThreadPoolExecutor(1) as beside:
        # The front-end's constants are measured once for all trials, while Ray starts.
        measuring = beside.submit(_with_constants, located, None if fresh else saved)
        with clusters.cluster(_launch(plan), debug=debug):
            clusters.refuse_relative(given)
            located = measuring.result()
            if fresh:
                clear(sweep_url)
            elif saved is not None:
                _refuse_other(located, saved, sweep_url)
            storage.write_atomic(storage.join(sweep_url, SWEEP), located.dump().encode())
            ledger = _run(located, sweep_url, lease.url, on_event, debug)
        records = ledger.records()
        ledger.patiently(lambda: write_results(plan, sweep_url, records))
    if records and all(record.state == "failed" for record in records):
        raise RunFailed(f"every trial failed; trial {records[0].number}: {records[0].failure}")
    return records


def _urls(plan: Plan) -> dict[str, str]:
    data = plan.base.data.urls
    named = {f"data.sources.{name}" if name else "data.url": url for name, url in data.items()}
    named |= {"init_from": plan.base.init_from} if plan.base.init_from else {}
    named |= {f"probe.tasks {place}": task for place, task in enumerate(plan.base.probe.tasks)}
    return named | {f"sweep.space.{key} {place}": url for key, place, url in _places(plan)}


def _places(plan: Plan) -> Iterator[tuple[str, int, str]]:
    """The paths and URLs that trials differ in: key, place among its values, and value."""
    for key, values in plan.space.items():
        if _is_place(key) and not isinstance(values, Range):
            yield from ((key, place, value) for place, value in enumerate(values) if isinstance(value, str))


def _is_place(key: str) -> bool:
    return key in ("data.url", "init_from") or key.startswith("data.sources.")


def _check_there(plan: Plan) -> None:
    """Raises InputError for shards or weights that are not there, before anything is started for them."""
    _open(plan.base)
    for key, place, value in _places(plan):
        try:
            _open(plan.with_keys({key: value}).base)
        except InputError as error:
            raise InputError(f"sweep.space.{key} {place}: {error}") from error


def _open(config: Config) -> None:
    config.build_stream().close()
    if config.init_from is not None and ":" not in config.encoder.kind:
        initial.load_into(config.build_encoder(), config.init_from)


def _launch(plan: Plan) -> LaunchConfig:
    """How one trial is launched: "auto" would take the whole cluster for one, so it is one worker."""
    launch = plan.base.launch
    return launch.model_copy(update={"workers": 1}) if launch.workers == "auto" else launch


def _located(plan: Plan) -> Plan:
    """The plan with paths that mean the same on every machine and in every working directory."""
    data = plan.base.data.located(storage.absolute)
    keys: dict[str, Any] = {"probe.tasks": [storage.absolute(task) for task in plan.base.probe.tasks]}
    keys |= {f"data.{key}": path for key in ("url", "cache_dir") if (path := getattr(data, key)) is not None}
    keys |= {"data.sources": dict(data.sources)} if data.sources else {}
    keys |= {"init_from": storage.absolute(plan.base.init_from)} if plan.base.init_from else {}
    space = {
        key: tuple(storage.absolute(value) if isinstance(value, str) else value for value in values)
        if _is_place(key) and not isinstance(values, Range)
        else values
        for key, values in plan.space.items()
    }
    return replace(plan, space=space).with_keys(keys | {"launch.workers": _launch(plan).workers})


def _saved(sweep_url: str) -> dict[str, Any] | None:
    """What the folder says that it holds; None for a new one."""
    path = storage.join(sweep_url, SWEEP)
    if not storage.exists(path):
        if storage.exists(sweep_url) and (not storage.is_folder(sweep_url) or files(sweep_url)):
            raise InputError(f"{sweep_url}: holds files but no {SWEEP}, so it is no sweep's. Give another --out.")
        return None
    return read_sweep(path)


def _with_constants(plan: Plan, saved: dict[str, Any] | None) -> Plan:
    """The plan with the front-end's constants, unless trials differ in what those depend on."""
    varied = any(key.startswith(("frontend.", "data.", "clip_seconds")) for key in plan.space)
    if plan.base.frontend.mean is not None or varied:
        return plan
    if saved is not None:
        return plan.with_keys({f"frontend.{name}": saved["frontend"][name] for name in ("mean", "std")})
    stream = plan.base.build_stream()
    measured = with_constants(plan.base.frontend, stream)
    stream.close()
    return plan.with_keys({"frontend.mean": measured.mean, "frontend.std": measured.std})


def _refuse_other(plan: Plan, saved: dict[str, Any], sweep_url: str) -> None:
    changed = differences(saved, yaml.safe_load(plan.dump()))
    changed = [line for line in changed if not line.startswith(_FREE)]
    if changed:
        raise InputError(
            f"{sweep_url}: holds another sweep (key: there, now): {'; '.join(changed)}. Set them back, choose another "
            "--name, or delete it with --fresh."
        )


def _run(plan: Plan, sweep_url: str, lease_url: str, on_event: Callable[[Event], None], debug: bool) -> Ledger:
    """Both stages on the cluster that is connected."""
    import ray

    launch = plan.base.launch
    num_workers, use_gpu = clusters.workers(launch, plan.base.data.lanes)
    slots = plan.sweep.max_concurrent or clusters.slots(launch, num_workers, use_gpu)
    if plan.sweep.scheduler == "pbt" and plan.num_trials > slots:
        raise InputError(
            f"sweep.scheduler pbt: its {plan.num_trials} trials run at the same time, and there is room for {slots} of "
            f"{num_workers} worker(s) each. Lower sweep.num_trials or launch.workers."
        )
    mailbox = ray.remote(Monitor).options(num_cpus=0, label_selector=clusters.this_node()).remote()
    stages: tuple[Stage, ...] = ("search", "repeat")
    known = read_trials(sweep_url)
    with following(mailbox, on_event) as ears:
        ledger = Ledger(plan, sweep_url, known, on_event, lease_url, lambda: ears.stop_reason is not None)
        for stage in stages:
            if not ray.get(mailbox.stop_requested.remote()):
                _Stage(plan, sweep_url, ledger, mailbox, stage).run(slots, debug)
    on_event({"kind": "ended", "reason": ray.get(mailbox.stop_requested.remote())})
    ledger.prune()
    return ledger


@dataclass
class _Stage:
    """The trials of one stage, given to Tune together."""

    plan: Plan
    sweep_url: str
    ledger: Ledger
    mailbox: Any
    stage: Stage
    stop_at: float | None = None

    def run(self, slots: int, debug: bool) -> None:
        """Runs what has not ended; returns when nothing runs any more."""
        plan, records = self.plan, self.ledger.records()
        waiting = wanted_trials(plan, records, self.stage)
        proposer = Proposer(plan, records) if self.stage == "search" and plan.sweep.searcher == "optuna" else None
        if not waiting and (proposer is None or proposer.num_known >= plan.num_trials):
            return
        for record in waiting:
            self.ledger.add(record)
        os.environ |= {
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a run that failed has no score
            "RAY_AIR_NEW_OUTPUT": "0",  # the new one is not silent when it is told to be
            "TUNE_PRINT_ALL_TRIAL_ERRORS": str(int(debug)),
        }
        in_thread(self._tuner(waiting, proposer, slots, debug).fit)
        with suppress(OSError):  # Tune's own, of no further use
            storage.delete_tree(storage.join(self.sweep_url, "ray"))

    def _tuner(self, waiting: list[TrialRecord], proposer: Proposer | None, slots: int, debug: bool) -> Any:
        from ray import tune

        from scaleaudio.launch.trial import TrialRun, TrialSettings
        from scaleaudio.launch.tuning import Proposals, StopWhen, Watch, as_config, scheduler_of

        plan, searching = self.plan, self.stage == "search"
        ended = [record for record in self.ledger.records() if record.ended and record.kind == "search"]
        settings = TrialSettings(self.sweep_url, plan.tree, self.mailbox, debug)
        filesystem, ray_path = storage.open_url(storage.join(self.sweep_url, "ray"))
        # Memory alone: any part of a CPU would be one too many where the workers of one trial need them all.
        trainable = tune.with_resources(tune.with_parameters(TrialRun, settings=settings), {"memory": _TRIAL_BYTES})
        return tune.Tuner(
            trainable,
            param_space=None if proposer else {"trial": tune.grid_search([as_config(record) for record in waiting])},
            tune_config=tune.TuneConfig(
                scheduler=scheduler_of(plan, ended) if searching else None,
                search_alg=Proposals(waiting, proposer, plan.num_trials) if proposer else None,
                num_samples=-1 if proposer else 1,
                max_concurrent_trials=slots,
                reuse_actors=False,
                trial_dirname_creator=lambda trial: f"{trial.config['trial']['number']:04d}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
                storage_path=ray_path,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=plan.base.launch.max_failures),
                callbacks=[Watch(self._on_change)],
                stop=StopWhen(self._is_over),
                verbose=0,
            ),
        )

    def _on_change(self, number: int, what: Event) -> None:
        if what["kind"] == "begins":
            self.ledger.add(_record_of(what.pop("told"), self.plan))
        self.ledger.on_change(number, what)

    def _is_over(self) -> bool:
        """Whether Tune is to end, although trials are left: somebody asked, and they have had the time to stop."""
        import ray

        if not ray.get(self.mailbox.stop_requested.remote()):
            return False
        self.stop_at = self.stop_at or time.monotonic() + _STOP_SECONDS
        return self.ledger.num_running == 0 or time.monotonic() > self.stop_at


def _record_of(told: dict[str, Any], plan: Plan) -> TrialRecord:
    number, kind, changes, seed = (told[name] for name in ("number", "kind", "changes", "seed"))
    return TrialRecord(number, kind, changes, seed, steps=plan.base.schedule.steps)
