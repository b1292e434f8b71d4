"""Clips of several classes: average precision, resamples of it, and the probes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from scaleaudio.evaluate.answers import Ranked, resamples
from scaleaudio.evaluate.several import (
    classes_of,
    linear_scores,
    mean_average_precision,
    nearest_scores,
    resampled_map,
    truth_of,
)


def scored(num_clips: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and scores of four classes, the last of which no clip has, with equal scores among them."""
    rng = np.random.default_rng(seed)
    truth_NC = rng.random((num_clips, 4)) < 0.3
    truth_NC[:, 3] = False
    return truth_NC, np.round(truth_NC + rng.normal(0, 0.7, truth_NC.shape), 1)


def test_map_is_scikit_learns_over_the_classes_that_occur() -> None:
    truth_NC, score_NC = scored()
    expected = np.mean([average_precision_score(truth_NC[:, c], score_NC[:, c]) for c in range(3)])
    assert mean_average_precision(truth_NC, score_NC) == pytest.approx(expected, abs=1e-12)


def test_a_resample_scores_as_its_clips_written_out_would() -> None:
    truth_NC, score_NC = scored()
    count_RN = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), 5)
    for counts, found in zip(count_RN, resampled_map(truth_NC, score_NC, count_RN), strict=True):
        rows = np.repeat(np.arange(60), counts)
        assert found == pytest.approx(mean_average_precision(truth_NC[rows], score_NC[rows]), abs=1e-12)


def test_the_interval_lies_around_the_score_though_resamples_score_higher() -> None:
    truth_NC, score_NC = scored(40)
    answer = Ranked(score_NC, truth_NC, "")
    value_R = answer.resampled(resamples(40, 0))
    low, high = answer.interval(0)
    assert value_R.mean() > answer.score and low < answer.score < high
    assert high - low == pytest.approx(np.subtract(*np.percentile(value_R, (97.5, 2.5))), abs=1e-9)


def test_an_order_by_chance_scores_the_share_of_the_class() -> None:
    rng = np.random.default_rng(0)
    truth_NC = rng.random((20_000, 1)) < 0.2
    assert mean_average_precision(truth_NC, rng.random((20_000, 1))) == pytest.approx(0.2, abs=0.02)


def test_a_cell_holds_classes_in_any_order_and_each_counts_once() -> None:
    classes_N = classes_of(np.array(["b; a", "a", " a;a; "]), ";")
    assert classes_N == [["b", "a"], ["a"], ["a"]]
    assert truth_of(classes_N, ["a", "b"]).tolist() == [[True, True], [True, False], [True, False]]


def test_both_probes_find_classes_that_overlap() -> None:
    rng = np.random.default_rng(0)
    truth_NC = rng.random((240, 3)) < 0.4
    z_ND = np.column_stack([truth_NC, rng.normal(0, 0.3, (240, 3))]) + rng.normal(0, 0.2, (240, 6))
    train, test = slice(160), slice(160, 240)
    found = {"knn": nearest_scores(z_ND[train], truth_NC[train], z_ND[test])}
    found |= linear_scores(z_ND[train], truth_NC[train], np.full(160, ""), z_ND[test], seed=0)
    assert list(found) == ["knn", "linear_c0.05", "linear"]
    assert all(mean_average_precision(truth_NC[test], scores.score_NC) > 0.9 for scores in found.values())
    blind = linear_scores(z_ND[train][::-1], truth_NC[train], np.full(160, ""), z_ND[test], seed=0)
    assert mean_average_precision(truth_NC[test], blind["linear_c0.05"].score_NC) < 0.75


def test_a_class_that_all_or_none_of_the_training_clips_have_is_no_error() -> None:
    truth_NC = np.array([[True, False, n % 2 == 0] for n in range(12)])
    found = linear_scores(
        np.random.default_rng(0).normal(size=(12, 3)), truth_NC, np.full(12, ""), np.zeros((4, 3)), seed=0
    )
    assert all(np.isfinite(scores.score_NC).all() and scores.score_NC.shape == (4, 3) for scores in found.values())
