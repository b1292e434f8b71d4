"""Curves over few clips a class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scaleaudio.evaluate.fewshot import _draw, few_shot
from scaleaudio.evaluate.split import Fold, Plan
from scaleaudio.evaluate.tasks import Task


def plan_and_clips(spread: float = 0.6, separator: str = "") -> tuple[Plan, np.ndarray]:
    """40 training and 40 test clips of each of three classes around corners."""
    rng = np.random.default_rng(0)
    labels = np.tile(["a", "b", "c"], 80)
    z_ND = np.eye(8)[np.arange(240) % 3] + spread * rng.normal(size=(240, 8))
    plan = Plan(
        task=Task(folder="clips", separator=separator),
        labels=labels,
        groups=np.full(240, ""),
        folds=(Fold(np.arange(120), np.arange(120, 240)),),
        protocol="",
        num_unlabelled=0,
        num_unused=0,
    )
    return plan, z_ND.astype(np.float32)


def test_more_clips_a_class_score_higher_and_the_draws_spread_less() -> None:
    plan, z_ND = plan_and_clips()
    found = {(p.metric, p.shots): p for p in few_shot("m", plan, z_ND, (1, 16), seed=0)}
    assert list(found) == [("knn", 1), ("linear_c0.05", 1), ("knn", 16), ("linear_c0.05", 16)]
    for metric in ("knn", "linear_c0.05"):
        one, many = found[metric, 1], found[metric, 16]
        assert one.score + 0.1 < many.score and one.high - one.low > many.high - many.low
        assert one.low < one.score < one.high and one.num_draws == 10


def test_a_draw_has_so_many_clips_of_each_class_and_holds_the_smaller_draw() -> None:
    plan, _ = plan_and_clips()
    one, four = (_draw(plan, 0, num, seed=3)[0] for num in (1, 4))
    assert np.unique(plan.labels[four], return_counts=True)[1].tolist() == [4, 4, 4]
    assert len(one) == 3 and set(one) < set(four) <= set(plan.folds[0].train)
    assert set(four) != set(_draw(plan, 0, 4, seed=4)[0])


def test_classes_with_fewer_clips_give_all_that_they_have_and_are_counted() -> None:
    plan, z_ND = plan_and_clips()
    few = replace(plan, folds=(Fold(np.arange(12), np.arange(120, 240)),))
    rows, num_short = _draw(few, 0, 16, seed=0)
    assert rows.tolist() == list(range(12)) and num_short == 3
    assert all(point.num_short == 3 for point in few_shot("m", few, z_ND, (16,), seed=0))


def test_every_model_has_the_same_draws() -> None:
    plan, z_ND = plan_and_clips()
    assert [replace(p, model="") for p in few_shot("m", plan, z_ND, (4,), seed=0)] == [
        replace(p, model="") for p in few_shot("other", plan, z_ND, (4,), seed=0)
    ]


def test_clips_of_several_classes_are_drawn_for_each_of_them() -> None:
    plan, z_ND = plan_and_clips(separator=";")
    plan = replace(plan, labels=np.where(np.arange(240) % 4 == 0, "a;b;c", plan.labels))
    (knn, linear) = few_shot("m", plan, z_ND, (8,), seed=0)
    assert knn.metric == "knn" and linear.score == pytest.approx(0.8, abs=0.2)
