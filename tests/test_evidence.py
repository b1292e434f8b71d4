from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parent.parent / "experiments" / "evidence.py"


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def spec(tiny_tree: dict[str, Any], clips: Path) -> dict[str, Any]:
    base = {key: part for key, part in tiny_tree.items() if key not in ("name", "launch", "checkpoint")}
    return {
        "base": base | {"schedule": {"steps": 3, "warmup_steps": 1}},
        "tasks": [{"folder": clips.name, "label": "pitch"}],
        "arms": {
            "baseline": {"negatives": {"frequency_strength": 0, "time_strength": 0}},
            "field": {"negatives": {"kind": "field", "num_steps": 1}, "objective": {"negative_on": "both"}},
        },
    }


def test_every_cell_is_trained_scored_and_compared_with_the_baseline_of_its_seed(
    evidence: ModuleType, spec: dict[str, Any], shards: Path, clips: Path, tmp_path: Path
) -> None:
    for arm in spec["arms"]:
        for seed in (0, 1):
            evidence._cell(spec, arm, seed, str(shards), str(clips.parent), str(tmp_path))
    scores = evidence.read(tmp_path)
    assert {arm: set(seeds) for arm, seeds in scores.items()} == {"baseline": {0, 1}, "field": {0, 1}}
    text = evidence.markdown(scores)
    assert "| field | 2 |" in text and "minus baseline" in text


def test_arms_of_one_seed_share_first_weights_and_differ_in_their_own_keys_only(
    evidence: ModuleType, spec: dict[str, Any], shards: Path
) -> None:
    baseline, field = (evidence.cell_config(spec, arm, 5, str(shards)) for arm in spec["arms"])
    assert baseline.data == field.data and baseline.seed == field.seed == 5
    one, other = baseline.build_encoder().state_dict(), field.build_encoder().state_dict()
    assert all(one[name].equal(other[name]) for name in one)
    assert field.negatives.kind == "field" and not baseline.negatives.active


def test_the_interval_of_paired_differences_is_that_of_students_t(evidence: ModuleType) -> None:
    # scipy.stats.ttest_1samp([.1, .2, .4], 0).confidence_interval() -> (-0.1461, 0.6128)
    assert evidence._interval([0.1, 0.2, 0.4]) == "+0.233 (-0.146 to +0.613)"
