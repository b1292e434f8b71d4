from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parent.parent / "experiments"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    return load("evidence")


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    return load("compare")


@pytest.fixture
def spec(tiny_tree: dict[str, Any], clips: Path) -> dict[str, Any]:
    base = {key: part for key, part in tiny_tree.items() if key not in ("name", "launch", "checkpoint")}
    return {
        "base": base | {"schedule": {"steps": 3, "warmup_steps": 1}},
        "tasks": [{"folder": clips.name, "label": "pitch"}],
        "arms": {
            "baseline": {"negatives": {"frequency_strength": 0, "time_strength": 0}},
            "field": {
                "negatives": {"kind": "field", "num_steps": 1},
                "objective": {"negative_on": "both", "embedding": {}},
            },
        },
    }


def test_every_cell_is_trained_scored_and_compared_with_the_baseline_of_its_seed(
    evidence: ModuleType, compare: ModuleType, spec: dict[str, Any], shards: Path, clips: Path, tmp_path: Path
) -> None:
    for arm in spec["arms"]:
        for seed in (0, 1):
            evidence._cell(spec, arm, seed, str(shards), str(clips.parent), str(tmp_path))
    scores = compare.read(tmp_path)
    assert {arm: set(seeds) for arm, seeds in scores.items()} == {"baseline": {0, 1}, "field": {0, 1}}
    text = compare.markdown(scores)
    assert "| field | 2 |" in text and "minus baseline" in text
    compare.curves(tmp_path, str(clips), "baseline,field", num_clips=4)
    assert {arm: len(found) for arm, found in compare.read_curves(tmp_path).items()} == {"baseline": 2, "field": 2}
    compare.picture(tmp_path, tmp_path / "evidence.png", arms=None)
    assert (tmp_path / "evidence.png").read_bytes().startswith(b"\x89PNG")


def test_arms_of_one_seed_share_first_weights_and_differ_in_their_own_keys_only(
    evidence: ModuleType, spec: dict[str, Any], shards: Path
) -> None:
    baseline, field = (evidence.cell_config(spec, arm, 5, str(shards)) for arm in spec["arms"])
    assert baseline.data == field.data and baseline.seed == field.seed == 5
    one, other = baseline.build_encoder().state_dict(), field.build_encoder().state_dict()
    assert all(one[name].equal(other[name]) for name in one)
    assert field.negatives.kind == "field" and not baseline.negatives.active


def test_the_interval_of_paired_differences_is_that_of_students_t(compare: ModuleType) -> None:
    # scipy.stats.ttest_1samp([.1, .2, .4], 0).confidence_interval() -> (-0.1461, 0.6128)
    assert compare._interval([0.1, 0.2, 0.4]) == "+0.233 (-0.146 to +0.613)"


def test_an_arm_is_compared_with_the_baseline_of_the_same_seed_alone(compare: ModuleType) -> None:
    def cell(fsdd: float, esc10: float) -> dict[str, float]:
        return {"fsdd/linear_c0.05": fsdd, "esc10/linear_c0.05": esc10}

    scores = {"baseline": {0: cell(0.5, 0.8), 1: cell(0.7, 0.9)}, "arm": {1: cell(0.75, 0.9), 2: cell(0.1, 0.1)}}
    assert compare.differences(scores, "arm") == [pytest.approx({"fsdd": 0.05, "esc10": 0.0})]
    assert "| arm | 1 | +0.050 | +0.000 | +0.050 |" in compare.markdown(scores)


def test_keys_on_the_command_line_change_the_base_and_not_what_an_arm_says(
    evidence: ModuleType, spec: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    changed = evidence.read_spec(file, ["schedule.steps=7", "negatives.frequency_strength=0.3"])
    baseline, field = (evidence.cell_config(changed, arm, 0, "shards") for arm in spec["arms"])
    assert (baseline.schedule.steps, field.schedule.steps) == (7, 7)
    assert baseline.negatives.frequency_strength == 0 and field.negatives.kind == "field"
