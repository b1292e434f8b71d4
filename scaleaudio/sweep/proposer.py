"""Optuna behind two questions: what to try next, and how that came out. Nothing here knows Ray.

A study lives in memory; when a sweep goes on, it hears of the trials that have ended again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from scaleaudio.errors import InputError
from scaleaudio.report.trials import TrialRecord
from scaleaudio.sweep.plan import Plan, is_baseline
from scaleaudio.sweep.space import Changes, Range
from scaleaudio.types import keyed_seed

if TYPE_CHECKING:
    import optuna

_TRIES = 20


class Proposer:
    """Proposes trials by a tree-structured Parzen estimator (TPE) over the scores so far."""

    def __init__(self, plan: Plan, known: Iterable[TrialRecord]) -> None:
        """Hears of the known trials; those that have not ended count as being tried.

        Raises:
            InputError: without optuna.
        """
        try:
            import optuna
        except ImportError as error:
            raise InputError(
                "sweep.searcher optuna: not installed. Install scaleaudio[optuna], or set sweep.searcher to random."
            ) from error
        known = [record for record in known if record.kind == "search"]
        self.num_known = max((record.number for record in known), default=0)
        self._plan = plan
        self._optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # A seed of its own for each attempt, or one that goes on would propose again what was proposed.
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=min(10, max(2, plan.num_trials // 4)),
            seed=keyed_seed(plan.sweep.seed, "optuna", self.num_known) % 2**32,
            constant_liar=True,  # trials that run now are not proposed twice
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {key: _distribution(optuna, values) for key, values in plan.space.items()}
        self._asked: dict[int, optuna.trial.Trial] = {}
        for record in known:
            self._study.enqueue_trial(self._params(record.changes))
            self._asked[record.number] = self._study.ask(self._distributions)
            if record.ended:
                self.hear(record, failed=record.state == "failed")

    def propose(self, number: int) -> TrialRecord:
        """The next trial, which will have this number."""
        for _ in range(_TRIES):
            asked = self._study.ask(self._distributions)
            changes = self._changes(asked.params)
            if not is_baseline(changes):
                break
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        self._asked[number] = asked
        plan = self._plan
        return TrialRecord(number, "search", changes, plan.base.seed, steps=plan.base.schedule.steps)

    def hear(self, record: TrialRecord, *, failed: bool) -> None:
        """How a trial came out; one that was stopped early counts by the step that it came to."""
        asked = self._asked.pop(record.number, None)
        if asked is None:
            return
        states = self._optuna.trial.TrialState
        if failed or record.score is None:
            self._study.tell(asked, state=states.FAIL)
        elif record.step >= record.steps:
            self._study.tell(asked, record.score)
        else:
            for step, score in record.scores:
                asked.report(score, step)
            self._study.tell(asked, state=states.PRUNED)

    def _params(self, changes: Changes) -> dict[str, Any]:
        """Optuna's names for values: a listed one goes by its place, since it may be a list itself."""
        return {
            key: changes[key] if isinstance(values, Range) else values.index(changes[key])
            for key, values in self._plan.space.items()
        }

    def _changes(self, params: dict[str, Any]) -> Changes:
        return {
            key: values.clip(params[key]) if isinstance(values, Range) else values[params[key]]
            for key, values in self._plan.space.items()
        }


def _distribution(optuna: Any, values: Any) -> Any:
    if not isinstance(values, Range):
        return optuna.distributions.CategoricalDistribution(range(len(values)))
    if values.integer:
        return optuna.distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
