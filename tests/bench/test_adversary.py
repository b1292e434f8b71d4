"""The bench times what it names, and its arms differ from the config in the adversary alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import config

from scaleaudio.bench.adversary import BASELINE, arms, measure
from scaleaudio.cli import bench
from scaleaudio.data.stream import DataConfig
from scaleaudio.train import OptimizerConfig

DATA = DataConfig(url="nowhere", global_batch=16, lanes=4)


def test_arms_differ_from_the_config_in_the_adversary_and_where_it_acts() -> None:
    settings = config()
    for name, arm in arms(settings).items():
        tree, own = arm.model_dump(), settings.model_dump()
        changed = {key for key in own if tree[key] != own[key]}
        assert changed <= {"negatives", "objective"}, name
        assert {k for k in own["objective"] if tree["objective"][k] != own["objective"][k]} <= {
            "negative_on",
            "negative_gradient",
        }
    assert not arms(settings)[BASELINE].negatives.active
    both = arms(config({"objective.embedding": {}, "objective.negative_on": "both"}))
    assert both["hardest of 4, in the projection alone"].objective.negative_on == "projector"


def test_more_candidates_cost_more_and_the_baseline_costs_one() -> None:
    chosen = {n: a for n, a in arms(config()).items() if n in (BASELINE, "hardest of 1", "hardest of 8", "value")}
    costs = measure(chosen, DATA, OptimizerConfig(), rounds=5, device=torch.device("cpu"))
    ratios = {cost.arm: cost.ratio for cost in costs}
    assert ratios[BASELINE] == 1.0
    assert ratios["hardest of 1"] > 1.1
    assert ratios["hardest of 8"] > ratios["hardest of 1"] + 0.2
    assert all(cost.low <= cost.ratio <= cost.high and cost.clips_per_second > 0 for cost in costs)


def test_the_command_prints_every_arm(
    tiny_tree: dict[str, Any], tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.bench_adversary(tiny_file, None, rounds=1, only="of 4", threads=1, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [cost["arm"] for cost in found][:2] == [BASELINE, "hardest of 4"]
    assert all(cost["step_ms"] > 0 for cost in found)
    bench.bench_adversary(tiny_file, None, rounds=1, only="value", threads=1, as_json=False)
    assert "processor time" in capsys.readouterr().out
