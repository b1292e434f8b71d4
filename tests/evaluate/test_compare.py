"""Two models on the same clips."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from scaleaudio.evaluate.answers import Named, Ranked
from scaleaudio.evaluate.compare import compare
from scaleaudio.evaluate.split import Fold, Plan
from scaleaudio.evaluate.tasks import Task

NUM = 400
PLAN = Plan(
    task=Task(folder="clips"),
    labels=np.full(NUM, "a"),
    groups=np.full(NUM, ""),
    folds=(Fold(np.arange(2), np.arange(NUM)),),
    protocol="",
    num_unlabelled=0,
    num_unused=0,
)


def named(right_N: np.ndarray) -> Named:
    return Named(np.where(right_N, "a", "b"), np.full(len(right_N), "a"), "k=1")


def test_the_later_model_minus_the_earlier_with_mcnemars_p() -> None:
    one, two = np.arange(NUM) < 300, (np.arange(NUM) < 280) | (np.arange(NUM) >= 390)
    (found,) = compare(PLAN, {"old": {"knn": named(two)}, "new": {"knn": named(one)}}, seed=0)
    assert (found.model, found.other) == ("new", "old")
    assert found.difference == pytest.approx(10 / NUM)
    assert (found.only_model, found.only_other) == (20, 10)
    assert found.p == pytest.approx(binomtest(20, 30).pvalue)
    assert found.low <= 0 < found.difference < found.high and found.test == "McNemar, exact"


def test_the_interval_of_the_difference_is_that_of_paired_resamples() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.random(NUM) < 0.8, rng.random(NUM) < 0.6
    (found,) = compare(PLAN, {"old": {"knn": named(two)}, "new": {"knn": named(one)}}, seed=0)
    drawn = [(one[rows].mean() - two[rows].mean()) for rows in rng.integers(NUM, size=(4000, NUM))]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))), abs=0.008)
    assert found.p < 0.001


def test_a_model_beside_itself_differs_in_nothing() -> None:
    right_N = np.random.default_rng(0).random(NUM) < 0.5
    (found,) = compare(PLAN, {"one": {"knn": named(right_N)}, "two": {"knn": named(right_N)}}, seed=0)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_equal_models_seldom_seem_to_differ() -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(200):
        one, two = (named(rng.random(NUM) < 0.7) for _ in range(2))
        found += compare(PLAN, {"one": {"knn": one}, "two": {"knn": two}}, seed)
    assert sum(comparison.p < 0.05 for comparison in found) <= 16  # 10 expected
    assert sum(not comparison.low <= 0 <= comparison.high for comparison in found) <= 20


def test_map_is_compared_by_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    truth_NC = rng.random((NUM, 3)) < 0.3
    good, bad = (Ranked(truth_NC + rng.normal(0, spread, (NUM, 3)), truth_NC, "") for spread in (0.5, 1.0))
    again = Ranked(bad.score_NC, truth_NC, "")
    found = {
        (c.model, c.other): c
        for c in compare(PLAN, {n: {"knn": a} for n, a in zip("abc", (bad, good, again), strict=True)}, 0)
    }
    assert found["b", "a"].p < 0.02 and 0 < found["b", "a"].low < found["b", "a"].difference
    assert found["c", "a"].p == 1.0 and found["c", "a"].only_model is None


def test_every_pair_is_compared_by_every_probe_that_both_have() -> None:
    right_N = np.ones(NUM, dtype=bool)
    answers = {"knn": named(right_N), "linear": named(right_N)}
    found = list(compare(PLAN, {"a": answers, "b": answers, "c": {"knn": named(right_N)}}, 0))
    assert [(c.model, c.other, c.metric) for c in found] == [
        ("b", "a", "knn"),
        ("b", "a", "linear"),
        ("c", "a", "knn"),
        ("c", "b", "knn"),
    ]
