"""What tests of whole runs share: a tiny corpus in real shards, and the smallest run over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from scaleaudio.config import Config, override, validate
from scaleaudio.data.build import BuildConfig, build

RATE_HZ = 16_000
NUM_CLIPS = 48


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 noisy tones of 0.6 s, low ones and high ones in turn, with a labels.csv."""
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    time_T = np.arange(round(0.6 * RATE_HZ)) / RATE_HZ
    rows = ["filename,pitch,split"]
    for number in range(NUM_CLIPS):
        pitch, name = ("low", "high")[number % 2], f"clip{number:02d}.flac"
        tone_T = 0.3 * np.sin(2 * np.pi * (300 if pitch == "low" else 3000) * (1 + number / 200) * time_T)
        soundfile.write(folder / name, tone_T + 0.05 * random.standard_normal(len(time_T)), RATE_HZ)
        rows.append(f"{name},{pitch},{'test' if number >= 32 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def shards(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips in two tars with their index."""
    folder = tmp_path_factory.mktemp("shards")
    assert build(str(clips), str(folder), BuildConfig(num_workers=0, min_shards=2)).samples == NUM_CLIPS
    return folder


@pytest.fixture(scope="session")
def tiny_tree(shards: Path) -> dict[str, Any]:
    """A run of 60 steps of some milliseconds; its norms do not look at the rest of the batch, so W cannot show."""
    return {
        "name": "tiny",
        "clip_seconds": 0.4,
        "data": {"url": str(shards), "global_batch": 8, "lanes": 4, "chunk_samples": 4, "window_samples": 16},
        "frontend": {"num_mels": 16, "hop_samples": 320},
        "encoder": {"kind": "resnet", "widths": [8, 16], "norm": "group"},
        "objective": {"kind": "infonce", "projector": {"hidden_dim": 32, "output_dim": 16, "norm": "layer"}},
        "negatives": {"kind": "hardest_of_k", "frequency_strength": 0.4, "time_strength": 0.4, "num_candidates": 1},
        # Small steps: with larger ones the last bit of a weight can decide a tie, and with it all that follows.
        "schedule": {"steps": 60, "warmup_steps": 4, "learning_rate": 1e-4},
        "checkpoint": {"every_steps": 5},
        "launch": {"workers": 2, "report_every_steps": 2},
    }


@pytest.fixture
def tiny_file(tiny_tree: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny run as a config file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_tree: dict[str, Any]) -> Any:
    """`tiny({"schedule.steps": 5})`: the tiny run with other keys."""

    def changed(changes: dict[str, Any] | None = None) -> Config:
        return validate(override(tiny_tree, changes or {}), "tiny")

    return changed
