"""The plan of a sweep: all trials are known, and all errors named, before the first starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleaudio.errors import InputError
from scaleaudio.sweep import Plan, Range, load_sweep
from scaleaudio.sweep.plan import BASELINE, is_baseline
from scaleaudio.sweep.space import FREQUENCY, TIME
from scaleaudio.views import dead_zone

CANDIDATES = "negatives.num_candidates"


@pytest.fixture
def plan(tiny_tree: dict[str, Any], tmp_path: Path) -> Any:
    """`plan({"sweep.num_trials": 3})`: a sweep over the tiny run with these keys."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))

    def load(changes: dict[str, Any] | None = None) -> Plan:
        return load_sweep(path, {"probe.tasks": ["clips:pitch"]} | (changes or {}))

    return load


def refusal(plan: Any, changes: dict[str, Any]) -> str:
    with pytest.raises(InputError) as refused:
        plan(changes)
    assert "\n" not in str(refused.value) and "trial 1:" not in str(refused.value)
    return str(refused.value)


def test_any_experiment_is_swept_over_both_strengths_k_and_alpha(plan: Any) -> None:
    made = plan()
    assert list(made.space) == [FREQUENCY, TIME, CANDIDATES, "objective.alpha"]
    for key, axis in ((FREQUENCY, "frequency"), (TIME, "time")):
        off, *strengths = made.space[key]
        assert off == 0 and min(strengths) > dead_zone(made.base.views, axis)
    assert made.num_trials == 16 and made.changes(0) == BASELINE


def test_the_same_number_is_the_same_trial_however_many_there_are(plan: Any) -> None:
    few, many = plan({"sweep.num_trials": 3}), plan({"sweep.num_trials": 300})
    assert [few.changes(number) for number in range(4)] == [many.changes(number) for number in range(4)]


def test_no_trial_but_the_first_is_the_baseline(plan: Any) -> None:
    space = {FREQUENCY: [0, 0.4], TIME: [0, 0.4], CANDIDATES: [1, 2]}
    for searcher, num in (("random", 50), ("grid", None)):
        made = plan({"sweep.space": space, "sweep.searcher": searcher, "sweep.num_trials": num})
        tried = [made.changes(number) for number in range(1, made.num_trials + 1)]
        assert not any(map(is_baseline, tried))
    assert len(tried) == 6 and len({tuple(changes.values()) for changes in tried}) == 6


def test_no_point_is_tried_twice_while_there_are_others(plan: Any) -> None:
    made = plan({"sweep.space": {FREQUENCY: [0.2, 0.4], CANDIDATES: [1, 2, 4]}, "sweep.num_trials": 8})
    tried = [tuple((made.changes(number) or {}).items()) for number in range(1, 9)]
    assert len(set(tried[:6])) == 6 and set(tried[6:]) <= set(tried[:6])


def test_strengths_at_0_with_another_learning_rate_are_no_baseline() -> None:
    assert is_baseline({**BASELINE, CANDIDATES: 4, "objective.alpha": 2.0})
    assert is_baseline({**BASELINE, "objective.embedding.negative_weight": 2.0, "objective.predict": {}})
    for key in ("schedule.learning_rate", "objective.embedding.temperature", "objective.predictor.hidden_dim"):
        assert not is_baseline({**BASELINE, key: 0.25})


def test_every_planned_trial_is_an_experiment_with_its_changes(plan: Any) -> None:
    made = plan({"sweep.space": {FREQUENCY: {"low": 0.1, "high": 0.4}, CANDIDATES: [1, 2]}})
    for number in range(1, 6):
        changes = made.changes(number)
        config = made.config(number, changes, seed=7)
        assert config.negatives.frequency_strength == changes[FREQUENCY]
        assert config.negatives.num_candidates == changes[CANDIDATES]
        assert (config.name, config.seed) == (f"tiny-000{number}", 7)
    assert made.config(0, made.changes(0), 0).negatives.active is False


def test_a_range_that_reaches_into_the_dead_zone_is_refused_before_any_trial(plan: Any) -> None:
    said = refusal(plan, {"sweep.space": {TIME: {"low": 0.01, "high": 0.4}}})
    assert "negatives.time_strength=0.01" in said and "inside the dead zone" in said and "above 0.0" in said


def test_a_listed_value_that_a_trial_would_refuse_is_named(plan: Any) -> None:
    said = refusal(plan, {"sweep.space": {FREQUENCY: [0.2, 1.0]}})
    assert "negatives.frequency_strength=1.0" in said and "cannot move patterns that far" in said
    said = refusal(plan, {"sweep.space": {"data.lanes": [4, 3]}})
    assert "data.lanes=3" in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"probe.tasks": []}, "never by the loss"),
        ({"sweep.space": {"negatives.time_strenght": [0.2]}}, "'negatives.time_strength'"),
        ({"sweep.space": {"schedle.steps": [9]}}, "tiny.yaml: sweep.space.schedle.steps: unknown key 'schedle'"),
        ({"sweep.space": {TIME: {"low": 0.1, "high": math.nan}}}, f"sweep.space.{TIME}.high nan"),
        ({"sweep.space": {TIME: {"low": 0.1, "high": math.inf}}}, f"sweep.space.{TIME}.high inf"),
        (
            {"sweep.space": {CANDIDATES: {"low": 0.5, "high": 4, "log": True, "integer": True}}},
            f"{CANDIDATES}.low 0.5: a range of integers begins and ends at whole numbers, a logarithmic one at 1",
        ),
        ({"sweep.space": {CANDIDATES: {"low": 1, "high": 2.5, "integer": True}}}, f"sweep.space.{CANDIDATES}.high 2.5"),
        ({"sweep.searchr": "grid"}, "'sweep.searcher'"),
        ({"sweep.space": {TIME: 0.3}}, f"sweep.space.{TIME} 0.3: expected a list of values, or a range"),
        ({"sweep.space": {TIME: []}}, "expected a list of values"),
        (
            {"sweep.space": {"objective.embedding.weight": [0.5, 1.0]}},
            "baseline would not; set objective.embedding to {}",
        ),
        ({"sweep.space": {TIME: {"low": 0.4, "high": 0.1}}}, f"sweep.space.{TIME}.low 0.4, high 0.1"),
        ({"sweep.space": {TIME: {"low": 0.1, "hihg": 0.2}}}, f"sweep.space.{TIME}"),
        ({"sweep.space": [TIME]}, "sweep.space"),
        ({"sweep.space": {}}, "no point of it differs from the baseline"),
        ({"sweep.space": {FREQUENCY: [0], TIME: [0]}}, "no point of it differs from the baseline"),
        ({"sweep.space": {"seed": [1, 2]}}, "sweep.space.seed"),
        ({"sweep.space": {"probe.metric": ["knn"]}}, "sweep.space.probe.metric"),
        ({"sweep.space": {TIME: {"low": 0.1, "high": 0.3}}, "sweep.searcher": "grid"}, "`levels`"),
        ({"sweep.searcher": "grid", "sweep.num_trials": 5}, "sweep.num_trials 5: the grid has"),
        ({"sweep.scheduler": "pbt", "sweep.searcher": "optuna"}, "random or grid"),
        ({"negatives": {"kind": "none"}, "sweep.space": {"seed": [1]}}, "negatives.kind none"),
        ({"probe.every_steps": 60}, "probe.every_steps to 7"),
        ({"sweep.grace_steps": 61}, "sweep.grace_steps 61"),
        ({"negatives.frequency_strength": 0.001}, "inside the dead zone"),
    ],
)
def test_what_cannot_be_swept_is_named(plan: Any, changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(plan, changes)


def test_a_scheduler_compares_trials_from_the_first_probe_or_an_eighth_of_the_steps_on(plan: Any) -> None:
    assert plan().grace_steps == 7  # of 60, probed with every checkpoint, at 5
    assert plan({"probe.every_steps": 20}).grace_steps == 20
    assert plan({"sweep.grace_steps": 10}).grace_steps == 10


def test_what_is_dumped_is_the_same_sweep_again(plan: Any, tmp_path: Path) -> None:
    made = plan({"sweep.space": {FREQUENCY: {"low": 0.1, "high": 0.4}, TIME: [0, 0.3]}, "sweep.num_trials": 2})
    (tmp_path / "again.yaml").write_text(made.dump())
    again = load_sweep(tmp_path / "again.yaml")
    assert again.space == made.space and again.base == made.base
    assert [again.changes(number) for number in range(3)] == [made.changes(number) for number in range(3)]
    assert isinstance(again.space[FREQUENCY], Range)


def test_a_grid_whose_numbers_would_run_into_those_of_repeats_is_refused(plan: Any) -> None:
    levels = {"low": 0.1, "high": 0.4, "levels": 100}
    space = {FREQUENCY: levels, TIME: levels, "objective.alpha": [0.5, 1.0]}
    said = refusal(plan, {"sweep.space": space, "sweep.searcher": "grid"})
    assert "20000 points" in said and "9999 at most" in said
