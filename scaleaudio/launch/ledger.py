"""Which trials a sweep still wants, and the record of each, written down whenever it changes.

Storage that is away is waited for as long as a run would wait for it. Tune stands still meanwhile, which is as it
should be: it starts no trials that would fail for the same reason, and those that run wait for their checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from scaleaudio.data import storage
from scaleaudio.data.patience import Patience, may_pass
from scaleaudio.errors import InputError, RunFailed
from scaleaudio.launch.lease import check_held
from scaleaudio.launch.monitor import Event
from scaleaudio.report.trials import TrialRecord, ranking, write_trial
from scaleaudio.sweep.plan import BASELINE, Plan

Stage = Literal["search", "repeat"]
_REPEATS = 10_000  # the repeat of trial 7 with the second further seed has number 20007


def wanted_trials(plan: Plan, records: Sequence[TrialRecord], stage: Stage) -> list[TrialRecord]:
    """The trials of a stage that have not ended, in order; those that optuna will think of are not among them."""
    known = {record.number: record for record in records}
    wanted = _searched(plan, known) if stage == "search" else _repeated(plan, records)
    current = [known.get(record.number, record) for record in wanted]
    return [record for record in current if not record.ended]


def _searched(plan: Plan, known: dict[int, TrialRecord]) -> list[TrialRecord]:
    found = [] if plan.sweep.scheduler == "pbt" else [_baseline(plan)]  # a population changes; a baseline must not
    for number in range(1, plan.num_trials + 1):
        changes = plan.changes(number)
        if number in known:
            found.append(known[number])
        elif changes is not None:
            found.append(_trial(plan, number, changes))
    return found


def _repeated(plan: Plan, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    found, best = [_baseline(plan)], ranking(records)
    for place in range(1, plan.sweep.repeats + 1) if best else ():
        for of, changes in ((0, BASELINE), (best[0].number, best[0].changes)):
            trial = _trial(plan, place * _REPEATS + of, changes)
            found.append(replace(trial, kind="repeat", seed=plan.base.seed + place, repeat_of=of))
    return found


def _baseline(plan: Plan) -> TrialRecord:
    return replace(_trial(plan, 0, BASELINE), kind="baseline")


def _trial(plan: Plan, number: int, changes: dict[str, Any]) -> TrialRecord:
    return TrialRecord(number, "search", dict(changes), plan.base.seed, steps=plan.base.schedule.steps)


class Ledger:
    """The records of a sweep's trials; whatever changes is written down at once."""

    def __init__(
        self,
        plan: Plan,
        sweep_url: str,
        records: Sequence[TrialRecord],
        on_event: Callable[[Event], None],
        lease_url: str | None = None,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begins with the records that there are.

        It writes nothing once the driver's claim at `lease_url` is gone, and waits for no storage once `stop_asked`.
        """
        self._plan = plan
        self._url = sweep_url
        self._lease_url = lease_url
        self._stop_asked = stop_asked
        self._records = {record.number: record for record in records}
        self._before = {record.number: record.seconds for record in records}
        self._on_event = on_event
        self._interrupted: set[int] = set()
        self._pruned: set[str] = set()

    def records(self) -> list[TrialRecord]:
        """All of them, by number."""
        return [self._records[number] for number in sorted(self._records)]

    @property
    def num_running(self) -> int:
        """How many trials run now."""
        running = [record for record in self.records() if record.state == "running"]
        return sum(record.number not in self._interrupted for record in running)

    def add(self, record: TrialRecord) -> None:
        """Takes a trial in that will be run."""
        self._records.setdefault(record.number, record)

    def on_change(self, number: int, what: Event) -> None:
        """Takes in what Tune tells of a trial (`tuning.Watch`).

        Raises:
            RunFailed: when storage was away for too long, or another driver has taken the sweep over.
        """
        record = self._records[number]
        if what["kind"] == "recovers":
            self._on_event({"kind": "warning", "trial": number, "text": f"{what['failure']}; it is tried again"})
            self._before[number] = record.seconds
        elif what["kind"] == "begins":
            self._interrupted.discard(number)
            record = replace(record, state="running")
        elif what["kind"] == "result":
            record = self._with_result(record, what)
        elif what["kind"] == "complete" and record.state == "running" and number not in self._interrupted:
            record = replace(record, state="stopped")
        elif what["kind"] == "error":
            record = replace(record, state="failed", failure=what["failure"])
        if record == self._records[number]:
            return
        self._records[number] = record
        self.patiently(lambda: self._write(record))
        self._on_event({"kind": "trial", "record": record})
        if record.ended:
            self.prune(but=number)

    def _with_result(self, record: TrialRecord, what: Event) -> TrialRecord:
        if "score" in what:
            record = record.scored(what["step"], what["score"])
        came_from = [(step, trial) for step, trial in what["came_from"]]
        record = replace(
            record,
            run=what["run"],
            changes=what["changes"],
            came_from=[*record.came_from, *(pair for pair in came_from if pair not in record.came_from)],
            seconds=self._before.get(record.number, 0.0) + what["time_total_s"],
        )
        if what.get("state") == "interrupted":
            self._interrupted.add(record.number)
        elif "state" in what:
            record = replace(record, state=what["state"], failure=what.get("failure"))
        return record

    def _write(self, record: TrialRecord) -> None:
        if self._lease_url is not None:
            check_held(self._lease_url)
        write_trial(self._url, record)

    def patiently(self, action: Callable[[], None]) -> None:
        """Does it, and while storage is away tries again, for as long as a run does over all its faults in a row.

        Raises:
            RunFailed: when it was away for longer.
        """
        launch, checkpoint = self._plan.base.launch, self._plan.base.checkpoint
        seconds = (1 + launch.max_failures) * checkpoint.patience_seconds
        told = False

        def on_failure(error: Exception) -> None:
            nonlocal told
            if self._stop_asked():
                raise error
            if may_pass(error) and not told:
                told = True
                text = f"storage does not answer, and is tried again for {seconds / 60:.3g} minutes"
                self._on_event({"kind": "warning", "text": f"{text} ({_line(error)})"})

        try:
            # No try is given up before it fails by itself: what it wrote late would replace what is newer by then.
            Patience(seconds, seconds, on_failure).read(action, remote=True)
        except OSError as error:
            raise RunFailed(f"{self._url}: cannot be written ({_line(error)}); the same command goes on") from error
        except InputError as error:
            raise RunFailed(str(error)) from error
        if told:
            self._on_event({"kind": "warning", "text": "storage answers again"})

    def prune(self, but: int | None = None) -> None:
        """Deletes the checkpoints of trials that have ended and are not among the best; their logs stay.

        What cannot be deleted now is deleted after the next trial.

        `but` is a trial whose workers may still be writing.
        """
        whole = [record.number for record in ranking(self.records())]
        keep = {but, 0, *whole[: self._plan.sweep.keep_runs]}
        for record in self.records():
            gone = record.ended and record.kind == "search" and record.number not in keep
            if gone and record.run and record.run not in self._pruned:
                with suppress(OSError):
                    storage.delete_tree(storage.join(self._url, "runs", record.run, "checkpoints"))
                    self._pruned.add(record.run)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
