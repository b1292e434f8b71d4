"""Every experiment in configs/ can be run: its own encoder, objective and negatives, on a few clips."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from scaleaudio.config import Config, load, read_tree
from scaleaudio.sweep import load_sweep
from scaleaudio.train import PlainEngine, fit

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def experiment(path: Path, changes: dict[str, Any]) -> Config:
    """The experiment of a file, that of a sweep too."""
    return load_sweep(path, changes).base if "sweep" in read_tree(path) else load(path, changes)


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 3


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest, shards: Path) -> Config:
    few_clips = {"data.url": str(shards), "data.global_batch": 8, "data.lanes": 2}
    return experiment(request.param, few_clips | {"frontend.mean": -8.0, "frontend.std": 4.0})


def test_it_takes_two_steps(config: Config) -> None:
    stream = config.build_stream()
    engine = PlainEngine(config.build(), config.optimizer)
    before = {name: tensor.clone() for name, tensor in engine.tensors() if name.startswith("parameter.")}
    reports = list(islice(fit(engine, stream.batches()), 2))
    stream.close()
    assert [report.step for report in reports] == [0, 1]
    assert all(math.isfinite(value) for report in reports for value in report.metrics().values())
    assert all(("similarity/negative" in report.metrics()) == config.negatives.active for report in reports)
    after = dict(engine.tensors())
    assert any(not before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_header_says_how_to_run_it_and_what_it_costs(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(word in line for line in header for word in ("scaleaudio pretrain", "scaleaudio sweep", "make demo"))
    assert any("Cost:" in line for line in header)
    assert experiment(path, {}).name == path.stem
