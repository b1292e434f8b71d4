"""The way from the command to the first step, measured on real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleaudio.cli import bench
from scaleaudio.config import validate
from scaleaudio.launch.start import one_step


def test_what_is_started_is_the_config_for_one_step(tiny: Any) -> None:
    found = validate(one_step(tiny({"probe.tasks": ["labelled"]}), 3), "one step")
    assert (found.schedule.steps, found.launch.workers, found.probe.tasks) == (1, 3, ())
    assert found.encoder == tiny().encoder and found.data.url is not None and found.data.url.startswith("/")


@pytest.mark.slow
def test_every_stage_of_a_start_comes_after_the_one_before(
    tiny_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    bench.bench_launch(tiny_file, None, workers="1", rounds=1, as_json=True)
    found = json.loads(capsys.readouterr().out)
    driver, workers, first = (
        found["reached"]["1"][stage][0] for stage in ("driver ready", "workers ready", "first step")
    )
    assert 0 < driver < workers < first
    assert found["compiled_files"] == 0
    assert 0 < found["alone"]["the imports alone"][0] < first
