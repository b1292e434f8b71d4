"""What the probes say of a task's test clips, kept clip by clip: scores, intervals and comparisons follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from scaleaudio.evaluate.probe import Labels, Matrix, bootstrap_interval, linear_probes, nearest_neighbours, standardise
from scaleaudio.evaluate.several import (
    Truth,
    classes_of,
    linear_scores,
    mean_average_precision,
    nearest_scores,
    resampled_map,
    truth_of,
)
from scaleaudio.evaluate.split import Fold, Plan
from scaleaudio.types import keyed_seed

Probes = Literal["nearest", "fixed", "all"]
_RESAMPLES = 1000
_RESAMPLES_OF_MANY = 200
_MANY_CLIPS = 20_000


@dataclass(frozen=True)
class Named:
    """The class that a probe gave each test clip, and the true one."""

    given_N: Labels
    true_N: Labels
    setting: str

    def __len__(self) -> int:
        """How many test clips."""
        return len(self.true_N)

    @property
    def right_N(self) -> npt.NDArray[np.bool_]:
        """Which clips were given the right class."""
        right_N: npt.NDArray[np.bool_] = self.given_N == self.true_N
        return right_N

    @property
    def score(self) -> float:
        """Accuracy."""
        return float(self.right_N.mean())

    def interval(self, seed: int) -> tuple[float, float]:
        """The 95 % bootstrap interval over clips."""
        return bootstrap_interval(self.right_N, seed=seed)

    def resampled(self, count_RN: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The score of each resample of the clips."""
        scores: npt.NDArray[np.float64] = count_RN @ self.right_N.astype(np.float64) / len(self.right_N)
        return scores


@dataclass(frozen=True)
class Ranked:
    """How much a probe thinks that each test clip has each class, and whether it has."""

    score_NC: Matrix
    truth_NC: Truth
    setting: str

    def __len__(self) -> int:
        """How many test clips."""
        return len(self.truth_NC)

    @property
    def score(self) -> float:
        """The mAP over the classes that any test clip has."""
        return mean_average_precision(self.truth_NC, self.score_NC)

    def interval(self, seed: int) -> tuple[float, float]:
        """The 95 % bootstrap interval over clips."""
        return around(self.score, self.resampled(resamples(len(self), seed)))

    def resampled(self, count_RN: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The score of each resample of the clips."""
        return resampled_map(self.truth_NC, self.score_NC, count_RN)


Answer = Named | Ranked


def resamples(num_clips: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each clip occurs in each of R bootstrap resamples (R, N)."""
    num = _RESAMPLES if num_clips <= _MANY_CLIPS else _RESAMPLES_OF_MANY
    return np.random.default_rng(seed).multinomial(num_clips, np.full(num_clips, 1 / num_clips), num)


def around(score: float, value_R: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a score from those of resamples, moved by the mean's distance to it.

    Clips that occur twice in a resample lift average precision; accuracy has no such bias.
    """
    low, high = np.percentile(value_R, (2.5, 97.5)) + score - value_R.mean()
    return float(np.clip(low, 0, score)), float(np.clip(high, score, 1))


def answers(plan: Plan, z_ND: npt.NDArray[np.float32], seed: int, probes: Probes = "all") -> dict[str, Answer]:
    """By metric, what each probe says of the test clips of all folds; only probes that every fold allows.

    Args:
        plan: the folds.
        z_ND: embeddings, a row a row of the label table.
        seed: of the folds in which C is chosen.
        probes: "nearest" for kNN alone, "fixed" for the linear probe at C = 0.05 too, "all" for the chosen C as well.
    """
    several = bool(plan.task.separator)
    by_fold = list(_ranked(plan, z_ND, seed, probes) if several else _named(plan, z_ND, seed, probes))
    metrics = [metric for metric in by_fold[0] if all(metric in found for found in by_fold)]
    return {metric: _joined([found[metric] for found in by_fold]) for metric in metrics}


def seed_of(seed: int, plan: Plan, metric: str) -> int:
    """The seed of the resamples of one cell: the same for every model."""
    return keyed_seed(seed, plan.task.title, metric)


def _named(plan: Plan, z_ND: npt.NDArray[np.float32], seed: int, probes: Probes) -> Iterator[Mapping[str, Answer]]:
    for fold in plan.folds:
        train_ND, test_ND = standardise(z_ND[fold.train], z_ND[fold.test])
        label_N, group_N, true_N = plan.labels[fold.train], plan.groups[fold.train], plan.labels[fold.test]
        guesses = {"knn": nearest_neighbours(train_ND, label_N, test_ND)}
        if probes != "nearest":
            guesses |= linear_probes(train_ND, label_N, group_N, test_ND, seed=seed, choose=probes == "all")
        yield {metric: Named(guess.label, true_N, guess.setting) for metric, guess in guesses.items()}


def _ranked(plan: Plan, z_ND: npt.NDArray[np.float32], seed: int, probes: Probes) -> Iterator[Mapping[str, Answer]]:
    classes_N = classes_of(plan.labels, plan.task.separator)
    rows = plan.rows().tolist()
    truth_NC = truth_of(classes_N, sorted({name for row in rows for name in classes_N[row]}))
    for fold in plan.folds:
        train_ND, test_ND = standardise(z_ND[fold.train], z_ND[fold.test])
        found = {"knn": nearest_scores(train_ND, truth_NC[fold.train], test_ND)}
        if probes != "nearest":
            part = (train_ND, truth_NC[fold.train], plan.groups[fold.train], test_ND)
            found |= linear_scores(*part, seed=seed, choose=probes == "all")
        yield {m: Ranked(scores.score_NC, truth_NC[fold.test], scores.setting) for m, scores in found.items()}


def _joined(parts: list[Answer]) -> Answer:
    setting = ", ".join(dict.fromkeys(part.setting for part in parts))
    named = [part for part in parts if isinstance(part, Named)]
    if named:
        given_N, true_N = (np.concatenate([getattr(p, name) for p in named]) for name in ("given_N", "true_N"))
        return Named(given_N, true_N, setting)
    ranked = [part for part in parts if isinstance(part, Ranked)]
    score_NC, truth_NC = (np.concatenate([getattr(p, name) for p in ranked]) for name in ("score_NC", "truth_NC"))
    return Ranked(score_NC, truth_NC, setting)


def with_training_rows(plan: Plan, trains: list[npt.NDArray[np.int64]]) -> Plan:
    """The same plan with other training clips, a list for each fold."""
    folds = tuple(Fold(train, fold.test) for train, fold in zip(trains, plan.folds, strict=True))
    return replace(plan, folds=folds)
