"""Probes fitted on a few clips of each class: how much a model saves of labelling.

Draws are nested (the 4 clips of a draw hold its 1) and the same for every model, so that curves compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from scaleaudio.evaluate.answers import Answer, answers, around, resamples, seed_of, with_training_rows
from scaleaudio.evaluate.several import classes_of
from scaleaudio.evaluate.split import Plan
from scaleaudio.findings import FewShot
from scaleaudio.types import keyed_seed

SHOTS = (1, 4, 16)
NUM_DRAWS = 10


def few_shot(
    model: str, plan: Plan, z_ND: npt.NDArray[np.float32], shots: Sequence[int], seed: int, num_draws: int = NUM_DRAWS
) -> Iterator[FewShot]:
    """Both probes (the linear one at C = 0.05), for each number of clips a class; test clips are the plan's."""
    for num in shots:
        by_metric: dict[str, list[Answer]] = {}
        num_short = 0
        for draw in range(num_draws):
            drawn = [_draw(plan, fold, num, keyed_seed(seed, plan.task.title, fold, draw)) for fold in _folds(plan)]
            num_short = max(short for _, short in drawn)
            part = with_training_rows(plan, [rows for rows, _ in drawn])
            for metric, answer in answers(part, z_ND, seed, "fixed").items():
                by_metric.setdefault(metric, []).append(answer)
        for metric, found in by_metric.items():
            mean = float(np.mean([answer.score for answer in found]))
            low, high = around(mean, _resampled(found, seed_of(seed, plan, f"{metric}/{num} shots")))
            yield FewShot(model, plan.task.title, metric, num, num_draws, mean, low, high, num_short)


def _folds(plan: Plan) -> range:
    return range(len(plan.folds))


def _draw(plan: Plan, fold: int, num: int, seed: int) -> tuple[npt.NDArray[np.int64], int]:
    """Up to `num` training clips of each class of a fold, and how many classes have fewer."""
    rows = np.random.default_rng(seed).permutation(plan.folds[fold].train)
    separator = plan.task.separator
    labels = plan.labels[rows]
    classes_N = classes_of(labels, separator) if separator else [[label] for label in labels.tolist()]
    taken: dict[str, list[int]] = {}
    for row, names in zip(rows.tolist(), classes_N, strict=True):
        for name in names:
            of_class = taken.setdefault(name, [])
            if len(of_class) < num:
                of_class.append(row)
    chosen = np.unique(np.array([row for of_class in taken.values() for row in of_class], dtype=np.int64))
    return chosen, sum(len(of_class) < num for of_class in taken.values())


def _resampled(found: Sequence[Answer], seed: int) -> npt.NDArray[np.float64]:
    """The mean over draws, in resamples of the draws and of the test clips together."""
    count_RN = resamples(len(found[0]), seed)
    value_RJ = np.stack([answer.resampled(count_RN) for answer in found], axis=1)
    num = len(found)
    share_RJ = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), len(count_RN)) / num
    means: npt.NDArray[np.float64] = (share_RJ * value_RJ).sum(axis=1)
    return means
