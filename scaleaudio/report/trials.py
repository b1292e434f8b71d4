"""What the trials of a sweep leave behind: one small JSON each, and what they say together.

SWEEP/trials/0007.json   what it changes, its scores by step, how it ended
SWEEP/runs/0007/         its run folder, a model like any other
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from scipy.stats import t as students_t

from scaleaudio.data import storage
from scaleaudio.errors import InputError

Kind = Literal["baseline", "search", "repeat"]
State = Literal["waiting", "running", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial as far as it has come.

    Attributes:
        number: its place in the sweep; the baseline is 0.
        kind: "repeat" is the best trial, or the baseline, with another seed.
        changes: config keys and their values.
        seed: the experiment's seed in this trial.
        state: "stopped" is by the scheduler, before the last step.
        scores: the held-out score by step, oldest first.
        steps: how many steps the whole trial has.
        repeat_of: the trial that a repeat repeats.
        run: its run folder, relative to the sweep's.
        seconds: how long it has taken, over all attempts.
        failure: why it failed.
        came_from: under pbt, the trials that it went on from, as [step, trial].
    """

    number: int
    kind: Kind
    changes: dict[str, Any]
    seed: int
    state: State = "waiting"
    scores: list[tuple[int, float]] = field(default_factory=list)
    steps: int = 0
    repeat_of: int | None = None
    run: str = ""
    seconds: float = 0.0
    failure: str | None = None
    came_from: list[tuple[int, int]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How far it was scored."""
        return self.scores[-1][0] if self.scores else 0

    @property
    def score(self) -> float | None:
        """Its newest score."""
        return self.scores[-1][1] if self.scores else None

    @property
    def ended(self) -> bool:
        """Whether it needs no further attempt."""
        return self.state in ("stopped", "finished", "failed")

    def scored(self, step: int, score: float) -> TrialRecord:
        """With one more score; what was scored at that step or later before belongs to an attempt that was lost."""
        earlier = [pair for pair in self.scores if pair[0] < step]
        return replace(self, scores=[*earlier, (step, score)])


def write_trial(sweep_url: str, record: TrialRecord) -> None:
    """Writes the record down, replaced in one go."""
    data = json.dumps(asdict(record), indent=1).encode()
    storage.write_atomic(storage.join(sweep_url, "trials", f"{record.number:04d}.json"), data)


def read_trials(sweep_url: str) -> list[TrialRecord]:
    """The records of a sweep, by number.

    Raises:
        InputError: for a record that is damaged, naming it.
    """
    urls = storage.list_files(storage.join(sweep_url, "trials"), ".json")
    with ThreadPoolExecutor(16) as pool:  # a thousand small objects, each a round trip away
        return sorted(pool.map(_read, urls), key=lambda record: record.number)


def _read(url: str) -> TrialRecord:
    try:
        tree = json.loads(storage.read_bytes(url))
        tree["scores"] = [(int(step), float(score)) for step, score in tree["scores"]]
        tree["came_from"] = [(int(step), int(trial)) for step, trial in tree["came_from"]]
        if tree["state"] not in get_args(State) or tree["kind"] not in get_args(Kind):
            raise ValueError(f"state {tree['state']!r}, kind {tree['kind']!r}")
        if not isinstance(tree["number"], int) or not isinstance(tree["changes"], dict):
            raise ValueError(f"number {tree['number']!r}, changes {tree['changes']!r}")
        return TrialRecord(**tree)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url}: not the record of a trial ({error}). Delete it to run the trial anew.") from error


def baseline(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The plain baseline, once it has a score."""
    return next((trial for trial in trials if trial.kind == "baseline" and trial.scores), None)


def ranking(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that were searched and came to their last step, the best first; of equals the first."""
    whole = [trial for trial in trials if trial.kind == "search" and trial.state == "finished" and trial.scores]
    return sorted(whole, key=lambda trial: (-(trial.score or 0.0), trial.number))


@dataclass(frozen=True)
class Gain:
    """What the best trial gains over the baseline on seeds that did not choose it.

    Attributes:
        by_seed: the difference of the two scores by seed.
        mean: their mean.
        low: lower end of its 95 % interval (Student's t over seeds); None under two seeds.
        high: its upper end.
    """

    by_seed: dict[int, float]
    mean: float
    low: float | None
    high: float | None


def gain(trials: Sequence[TrialRecord]) -> Gain | None:
    """The paired gain over the repeats of the best trial; None before there is a pair.

    The seed of the search is left out: there the best of many was chosen, so it gains by chance alone.
    """
    best = ranking(trials)
    repeats = [trial for trial in trials if trial.kind == "repeat" and trial.state == "finished" and trial.scores]
    if not best or not repeats:
        return None
    of = {
        number: {trial.seed: trial.score or 0.0 for trial in repeats if trial.repeat_of == number}
        for number in (0, best[0].number)
    }
    seeds = sorted(of[0].keys() & of[best[0].number].keys())
    if not seeds:
        return None
    by_seed = {seed: of[best[0].number][seed] - of[0][seed] for seed in seeds}
    mean = sum(by_seed.values()) / len(seeds)
    if len(seeds) < 2:
        return Gain(by_seed, mean, None, None)
    variance = sum((difference - mean) ** 2 for difference in by_seed.values()) / (len(seeds) - 1)
    half = float(students_t.ppf(0.975, len(seeds) - 1)) * math.sqrt(variance / len(seeds))
    return Gain(by_seed, mean, mean - half, mean + half)


def verdict(trials: Sequence[TrialRecord]) -> str:
    """Whether the best trial's gain over the baseline exceeds the noise between seeds, in a line."""
    best, base, found = ranking(trials), baseline(trials), gain(trials)
    if not best:
        return "No trial has come to its last step, so there is no winner."
    if found is None:
        seen = f" ({(best[0].score or 0) - (base.score or 0):+.3f} on the seed that chose it)" if base else ""
        return (
            f"Trial {best[0].number} scored highest{seen}; without repeats nobody knows whether that is more than the "
            "noise between seeds."
        )
    seeds = f"{len(found.by_seed)} fresh seed{'s' if len(found.by_seed) > 1 else ''}"
    if found.low is None or found.high is None:
        return (
            f"Gain over the baseline: {found.mean:+.3f} on {seeds}; one pair says nothing of the noise between seeds."
        )
    interval = f"{found.mean:+.3f} (95 % over {seeds}: {found.low:+.3f} to {found.high:+.3f})"
    if found.low > 0:
        return f"Gain over the baseline: {interval}. It exceeds the noise between seeds."
    if found.high < 0:
        return f"Gain over the baseline: {interval}. It is a loss, and exceeds the noise between seeds."
    return f"Gain over the baseline: {interval}. It does not exceed the noise between seeds."
