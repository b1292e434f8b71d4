"""The parts of a step are those of the run, and each is compared with the step without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scaleaudio.bench import step
from scaleaudio.bench.turns import Timing
from scaleaudio.cli import bench
from scaleaudio.config import load
from scaleaudio.train import OptimizerConfig

WAYS = [step.FLOOR, step.OPTIMIZER, step.FRONTEND, step.WHOLE, step.NEGATIVES]


def test_ratios_are_of_the_way_that_each_adds_to() -> None:
    timings = {way: [Timing(2.0 * at, float(at), 0.5 * at)] * 3 for at, way in enumerate(WAYS, 1)}
    over = {way: WAYS[max(0, at - 1)] for at, way in enumerate(WAYS)}
    found = step.costs(timings, over)
    assert [cost.of_floor.median for cost in found] == [1, 2, 3, 4, 5]
    assert [cost.of_over.median for cost in found] == [1, 2, 3 / 2, 4 / 3, 5 / 4]
    assert [cost.data_wait.median for cost in found] == [0.25] * 5


def test_all_ways_but_the_floor_train(tiny_file: Path) -> None:
    config = load(tiny_file)
    for name, way in step.ways(config, config.data, OptimizerConfig(), torch.device("cpu")).items():
        timing = way.turn(0)
        assert timing.cpu > 0 and timing.wait == 0, name


@pytest.mark.parametrize("objective", ["infonce", "byol"])
def test_the_floor_of_each_objective_has_its_loss(objective: str, tiny: Any) -> None:
    heads = {"hidden_dim": 16, "output_dim": 8}
    chosen = {"kind": objective, "projector": heads} | ({"predictor": heads} if objective == "byol" else {})
    config = tiny({"objective": chosen})
    step.ways(config, config.data, OptimizerConfig(), torch.device("cpu"))[step.FLOOR].turn(0)


def test_the_command_prints_every_way(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.bench_step(tiny_file, None, rounds=1, threads=1, ray=False, data=False, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [way["way"] for way in found["ways"]] == WAYS
    assert found["machine"]["threads"] == 1 and found["batch"] == 8
    bench.bench_step(tiny_file, None, rounds=1, threads=1, ray=False, data=False, as_json=False)
    assert "compared with" in capsys.readouterr().out


@pytest.mark.slow
def test_ray_deepspeed_and_real_data_have_their_turns(tiny_file: Path) -> None:
    command = [sys.executable, "-m", "scaleaudio", "bench", "step", str(tiny_file), "--rounds", "1", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = {way["way"]: way for way in json.loads(ran.stdout[ran.stdout.index("{") :])["ways"]}
    for name in ("DeepSpeed", "Ray, plain engine", "Ray and DeepSpeed", step.DATA):
        assert found[name]["over"] == step.WHOLE and found[name]["cpu_ms"] > 0
