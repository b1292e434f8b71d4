"""Runs of the program in a process of its own, watched by what they leave in their run folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scaleaudio.config import Config, override, validate
from scaleaudio.report.runlog import read_events, read_metrics
from scaleaudio.train import PlainEngine, fit

# A tenth of a second a step on one core, so that there is time for faults; and small steps: at a learning rate of 3e-4
# rounding alone (the same run encoded in chunks) made losses differ by 0.5 % after 70 steps.
SLOW_STEPS = {
    "data.global_batch": 16,
    "encoder.widths": [8, 24],
    "frontend": {"num_mels": 32, "hop_samples": 160, "mean": -8.0, "std": 4.0},
    "schedule": {"steps": 5000, "warmup_steps": 4, "learning_rate": 3e-5},
    "checkpoint": {"every_steps": 10, "keep_last": 3},
    "launch": {"workers": 2, "report_every_steps": 1, "resize_seconds": 1},
}


class Program:
    """`scaleaudio pretrain` of a config, in a run folder beside it."""

    def __init__(self, tree: dict[str, Any], folder: Path, **environment: str) -> None:
        self.tree = override(tree, SLOW_STEPS)
        self.url = str(folder / "run")
        (folder / "config.yaml").write_text(yaml.safe_dump(self.tree))
        self._log = folder / "log.txt"
        self._words = [sys.executable, "-m", "scaleaudio", "pretrain", str(folder / "config.yaml"), "--out", self.url]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._words, stdout=log, stderr=subprocess.STDOUT, env=self._environment, cwd=self._log.parent
            )
        return self.process

    def wait_for(self, kind: str, count: int = 1, seconds: float = 600, **fields: Any) -> dict[str, Any]:
        """The `count`-th event of this kind with these fields, once it is there."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [e for e in self.of_kind(kind) if all(e.get(name) == value for name, value in fields.items())]
            if len(found) >= count:
                return found[count - 1]
            assert self.process is not None and self.process.poll() is None, f"ended early:\n{self.said()}"
            time.sleep(0.2)
        raise AssertionError(f"no {kind} {fields} in {seconds} s:\n{self.said()}")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.url) if event["kind"] == kind]

    def said(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def losses(self) -> dict[int, float]:
        """By step, as logged; every step once."""
        records = read_metrics(self.url)
        assert [record["step"] for record in records] == list(range(len(records)))
        return {record["step"]: record["loss"] for record in records}


def undisturbed_losses(config: Config, num_steps: int, tap: Callable[[Any], None] = lambda report: None) -> list[float]:
    """The losses of a run by one plain engine without Ray."""
    stream = config.build_stream()
    engine = PlainEngine(config.build(), config.optimizer)
    values: list[float] = []
    for report in fit(engine, stream.batches()):
        values.append(report.metrics()["loss"])
        tap(report)
        if len(values) == num_steps:
            break
    stream.close()
    return values


def config_of(program: Program) -> Config:
    return validate(program.tree, "test")
