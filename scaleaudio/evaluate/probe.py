"""What a simple classifier can read from frozen embeddings: nearest neighbours and logistic regression.

Every probe sees embeddings standardised by the mean and standard deviation of its own training clips.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

Matrix = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.str_]

MOST_NEIGHBOURS = 20
FIXED_C = 0.05
GRID_OF_C = (0.005, FIXED_C, 0.5, 5.0)


@dataclass(frozen=True)
class Guess:
    """The class that a probe gives each test clip, and what the probe was set to, e.g. "C=0.05"."""

    label: Labels
    setting: str


@contextmanager
def _one_shot_is_meant() -> Iterator[None]:
    """scikit-learn takes many classes of few clips for regression; a one-shot task has just that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        yield


def standardise(train_ND: Matrix, test_ND: Matrix) -> tuple[Matrix, Matrix]:
    """Both parts, shifted and scaled so that each dimension of `train_ND` has mean 0 and variance 1."""
    scaler = StandardScaler().fit(train_ND.astype(np.float64))
    return scaler.transform(train_ND), scaler.transform(test_ND)


@_one_shot_is_meant()
def nearest_neighbours(train_ND: Matrix, label_N: Labels, test_ND: Matrix) -> Guess:
    """Each test clip's class by a vote of its k nearest training clips, by cosine, weighted by 1 / distance.

    k is 20, but never more than the clips of the smallest class: a class that is right in every clip can then win.
    """
    k = min(MOST_NEIGHBOURS, _smallest_class(label_N))
    model = KNeighborsClassifier(k, metric="cosine", weights="distance", algorithm="brute")
    return Guess(model.fit(train_ND, label_N).predict(test_ND), f"k={k}")


@_one_shot_is_meant()
def linear_probes(
    train_ND: Matrix, label_N: Labels, group_N: Labels, test_ND: Matrix, *, seed: int, choose: bool = True
) -> dict[str, Guess]:
    """Logistic regression at C = 0.05 ("linear_c0.05") and, where it is and can be chosen, at the best C ("linear").

    The best C is the one with the highest accuracy in up to 3 folds of the training clips; the smallest of equals.
    Groups stay together there, unless that would leave a class out of a fold's training part. It needs two clips of
    every class.
    """
    fixed = _fit(train_ND, label_N, FIXED_C)
    guesses = {"linear_c0.05": Guess(fixed.predict(test_ND), f"C={FIXED_C:g}")}
    if choose and _smallest_class(label_N) >= 2:
        best = choose_c(train_ND, label_N, group_N, seed=seed)
        model = fixed if best == FIXED_C else _fit(train_ND, label_N, best)
        guesses["linear"] = Guess(model.predict(test_ND), f"C={best:g}")
    return guesses


def choose_c(train_ND: Matrix, label_N: Labels, group_N: Labels, *, seed: int) -> float:
    """The value of GRID_OF_C with the highest accuracy in folds of the training clips; the smallest of equals."""
    num_right = np.zeros(len(GRID_OF_C))
    for fit, held in _inner_folds(label_N, group_N, seed):
        model = LogisticRegression(warm_start=True, max_iter=10_000)
        for place, c in enumerate(GRID_OF_C):
            model.set_params(C=c).fit(train_ND[fit], label_N[fit])
            num_right[place] += np.sum(model.predict(train_ND[held]) == label_N[held])
    return GRID_OF_C[int(num_right.argmax())]


def bootstrap_interval(right_N: npt.NDArray[np.bool_], *, seed: int, resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of an accuracy over resamples of the test clips, from which were right.

    Drawing N clips with replacement and counting those that were right is one binomial draw, so no clip is drawn.
    """
    accuracies = np.random.default_rng(seed).binomial(len(right_N), right_N.mean(), resamples) / len(right_N)
    low, high = np.percentile(accuracies, (2.5, 97.5))
    return float(low), float(high)


def _fit(train_ND: Matrix, label_N: Labels, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=10_000).fit(train_ND, label_N)


def _inner_folds(label_N: Labels, group_N: Labels, seed: int) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    num_folds = min(3, _smallest_class(label_N))
    num_classes = len(set(label_N))
    if len(set(group_N)) >= num_folds:
        grouped = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        folds = list(grouped.split(label_N, label_N, group_N))
        if all(len(held) and len(set(label_N[fit])) == num_classes for fit, held in folds):
            return folds
    plain = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    return list(plain.split(label_N, label_N))


def _smallest_class(label_N: Labels) -> int:
    return int(np.unique(label_N, return_counts=True)[1].min())
