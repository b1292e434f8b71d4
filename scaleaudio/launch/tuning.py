"""What Ray Tune is told in order to run trials: who proposes them, who stops them, who writes down what they did."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from scaleaudio.report.trials import TrialRecord
from scaleaudio.sweep.plan import Plan
from scaleaudio.sweep.proposer import Proposer
from scaleaudio.sweep.space import perturb
from scaleaudio.types import keyed_seed


def scheduler_of(plan: Plan, ended: list[TrialRecord]) -> TrialScheduler:
    """The scheduler that the plan names, told of the trials that have ended before."""
    if plan.sweep.scheduler == "asha":
        asha = SparingASHA(
            time_attr="step",
            metric="score",
            mode="max",
            max_t=plan.base.schedule.steps + 1,  # a whole trial ends by itself, with its last checkpoint
            grace_period=plan.grace_steps,
            reduction_factor=plan.sweep.reduction_factor,
        )
        for record in ended:
            asha.remember(record)
        return asha
    if plan.sweep.scheduler == "pbt":
        return PopulationOfTrials(plan)
    return FIFOScheduler()


class SparingASHA(ASHAScheduler):  # type: ignore[misc]
    """ASHA that never stops the baseline, and lets a trial that is at its last step end by itself."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on after this score."""
        if "score" not in result:
            return str(TrialScheduler.CONTINUE)
        decision = super().on_trial_result(tune_controller, trial, result)
        spared = trial.config["trial"]["kind"] != "search" or result["step"] >= self._max_t - 1
        return str(TrialScheduler.CONTINUE if spared else decision)

    def remember(self, record: TrialRecord) -> None:
        """Takes the scores of a trial that has ended into its rungs."""
        stands_for = SimpleNamespace(trial_id=f"ended-{record.number}", config={"trial": {"kind": record.kind}})
        self.on_trial_add(None, stands_for)
        for step, score in record.scores:
            self.on_trial_result(None, stands_for, {"step": step, "score": score})


class PopulationOfTrials(PopulationBasedTraining):  # type: ignore[misc]
    """PBT whose trials keep their number and seed, and stay in the space, when they go on from another."""

    def __init__(self, plan: Plan) -> None:
        """Compares the trials every `grace_steps`."""
        warnings.filterwarnings("ignore", "Consider boosting PBT", UserWarning)  # by actors that trials share
        super().__init__(
            time_attr="step",
            metric="score",
            mode="max",
            perturbation_interval=plan.grace_steps,
            custom_explore_fn=lambda config: config,
            log_config=False,
        )
        self._plan = plan
        self._num_explored = 0

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self._num_explored += 1
        seed = keyed_seed(self._plan.sweep.seed, "explore", self._num_explored)
        changes = perturb(self._plan.space, trial_to_clone.config["trial"]["changes"], seed)
        return {**trial.config, "trial": {**trial.config["trial"], "changes": changes, "run": ""}}, {}


class Proposals(Searcher):  # type: ignore[misc]
    """Trials that are waiting, then those that a proposer thinks of once it has heard of the others."""

    def __init__(self, waiting: list[TrialRecord], proposer: Proposer, num_trials: int) -> None:
        """Proposes until there are trials up to number `num_trials`."""
        super().__init__(metric="score", mode="max")
        self._waiting = list(waiting)
        self._proposer = proposer
        self._num_trials = num_trials
        self._next = proposer.num_known + 1
        self._records: dict[str, TrialRecord] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial."""
        if self._waiting:
            record = self._waiting.pop(0)
        elif self._next > self._num_trials:
            return str(Searcher.FINISHED)
        else:
            record = self._proposer.propose(self._next)
            self._next += 1
        self._records[trial_id] = record
        return {"trial": as_config(record)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keeps the score."""
        if "score" in result:
            self._records[trial_id] = self._records[trial_id].scored(result["step"], result["score"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the proposer how the trial came out."""
        if trial_id in self._records:
            self._proposer.hear(self._records[trial_id], failed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what a sweep needs to go on is in the records of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, likewise: Tune pickles whatever it is given."""
        return {}


def as_config(record: TrialRecord) -> dict[str, Any]:
    """What a trial is told of itself."""
    return {
        "number": record.number, "kind": record.kind, "changes": dict(record.changes), "seed": record.seed,
        "run": record.run,
    }  # fmt: skip


class Watch(Callback):  # type: ignore[misc]
    """Hands on what happens to trials, as `on_change(number, what)`, by the number in the sweep."""

    def __init__(self, on_change: Callable[[int, dict[str, Any]], None]) -> None:
        """Calls `on_change` in the driver's own thread."""
        self._on_change = on_change

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles whatever it is given, for a restoration that is not used here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It has a process of its own now."""
        told = trial.config["trial"]
        self._on_change(told["number"], {"kind": "begins", "told": told})

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """It was scored, or has ended by itself."""
        self._on_change(trial.config["trial"]["number"], {"kind": "result", **result})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It has ended, by itself or by the scheduler."""
        self._on_change(trial.config["trial"]["number"], {"kind": "complete"})

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process was lost, and it is tried again."""
        self._on_change(trial.config["trial"]["number"], {"kind": "recovers", "failure": _failure(trial)})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process was lost more often than it may."""
        self._on_change(trial.config["trial"]["number"], {"kind": "error", "failure": _failure(trial)})


def _failure(trial: Any) -> str:
    lines = [line.strip() for line in str(trial.get_pickled_error() or "").splitlines() if line.strip()]
    return lines[-1] if lines else "its process was lost"


class StopWhen(Stopper):  # type: ignore[misc]
    """Ends all trials when asked."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        """Asks `is_over` again and again."""
        self._is_over = is_over

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for `Watch`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped for its result; that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Whether Tune ends."""
        return self._is_over()
