"""Clips that may have several classes: the same two probes, and mean average precision (mAP) in place of accuracy.

Average precision is that of scikit-learn (the mean of the precision at each clip of the class, in the order of the
scores; equal scores stand at one place), here for many resamples of the clips at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestNeighbors

from scaleaudio.evaluate.probe import FIXED_C, GRID_OF_C, MOST_NEIGHBOURS, Labels, Matrix

Truth = npt.NDArray[np.bool_]


class Scores(NamedTuple):
    """A number for each test clip and class, higher where the clip rather has it; and the probe's setting."""

    score_NC: Matrix
    setting: str


def classes_of(labels: Labels, separator: str) -> list[list[str]]:
    """The classes of each clip, each once."""
    cells = ([part.strip() for part in cell.split(separator)] for cell in labels.tolist())
    return [list(dict.fromkeys(part for part in parts if part)) for parts in cells]


def truth_of(classes_N: list[list[str]], classes: list[str]) -> Truth:
    """Which clip has which class, (N, C)."""
    place = {name: number for number, name in enumerate(classes)}
    truth_NC = np.zeros((len(classes_N), len(classes)), dtype=np.bool_)
    for row, names in enumerate(classes_N):
        truth_NC[row, [place[name] for name in names]] = True
    return truth_NC


def nearest_scores(train_ND: Matrix, truth_NC: Truth, test_ND: Matrix) -> Scores:
    """The share of each class among the 20 nearest training clips by cosine, weighted by 1 / distance."""
    k = min(MOST_NEIGHBOURS, len(train_ND))
    distance_NK, row_NK = NearestNeighbors(n_neighbors=k, metric="cosine").fit(train_ND).kneighbors(test_ND)
    weight_NK = 1 / np.maximum(distance_NK, 1e-6)
    votes_NC = np.einsum("nk,nkc->nc", weight_NK, truth_NC[row_NK].astype(np.float64))
    return Scores(votes_NC / weight_NK.sum(axis=1, keepdims=True), f"k={k}")


def linear_scores(
    train_ND: Matrix, truth_NC: Truth, group_N: Labels, test_ND: Matrix, *, seed: int, choose: bool = True
) -> dict[str, Scores]:
    """A logistic regression a class, at C = 0.05 and, where it is chosen, at the C of the best mAP in 3 inner folds."""
    found = {"linear_c0.05": Scores(_fitted(train_ND, truth_NC, test_ND, FIXED_C), f"C={FIXED_C:g}")}
    if choose and len(train_ND) >= 6:
        sums = np.zeros(len(GRID_OF_C))
        for fit, held in _inner_folds(group_N, seed):
            for place, c in enumerate(GRID_OF_C):
                score_NC = _fitted(train_ND[fit], truth_NC[fit], train_ND[held], c)
                sums[place] += mean_average_precision(truth_NC[held], score_NC)
        best = GRID_OF_C[int(sums.argmax())]
        found["linear"] = Scores(_fitted(train_ND, truth_NC, test_ND, best), f"C={best:g}")
    return found


def mean_average_precision(truth_NC: Truth, score_NC: Matrix) -> float:
    """The mean over the classes that any clip has."""
    return float(resampled_map(truth_NC, score_NC, np.ones((1, len(truth_NC))))[0])


def resampled_map(truth_NC: Truth, score_NC: Matrix, count_RN: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mAP of each of R resamples, in which clip n occurs count_RN[r, n] times, over the classes in it."""
    sums, numbers = np.zeros(len(count_RN)), np.zeros(len(count_RN))
    for column in np.flatnonzero(truth_NC.any(axis=0)).tolist():
        order = np.argsort(-score_NC[:, column], kind="stable")
        score_N, true_N = score_NC[order, column], truth_NC[order, column]
        last_N = np.searchsorted(-score_N, -score_N, side="right") - 1  # equal scores stand at one place
        ordered_RN = count_RN[:, order]
        all_RN, hits_RN = ordered_RN.cumsum(axis=1), (ordered_RN * true_N).cumsum(axis=1)
        at = last_N[true_N]
        precision_RP = hits_RN[:, at] / np.maximum(all_RN[:, at], 1)
        positives_R = hits_RN[:, -1]
        sums += (precision_RP * ordered_RN[:, true_N]).sum(axis=1) / np.maximum(positives_R, 1)
        numbers += positives_R > 0
    means: npt.NDArray[np.float64] = sums / np.maximum(numbers, 1)
    return means


def _fitted(train_ND: Matrix, truth_NC: Truth, test_ND: Matrix, c: float) -> Matrix:
    model = OneVsRestClassifier(LogisticRegression(C=c, max_iter=10_000))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        warnings.filterwarnings("ignore", message="Label not .* is present in all training examples")
        score_NC: Matrix = model.fit(train_ND, truth_NC.astype(np.int64)).decision_function(test_ND)
    return score_NC.reshape(len(test_ND), -1)


def _inner_folds(group_N: Labels, seed: int) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    if len(set(group_N)) >= 3:
        return iter(GroupKFold(3, shuffle=True, random_state=seed).split(group_N, groups=group_N))
    return iter(KFold(3, shuffle=True, random_state=seed).split(group_N))
