"""Which keys of a run's config may change when it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaleaudio.launch import run_folder


def test_sources_and_mixture_may_change_since_the_fingerprint_judges_them(
    tiny: Any, shards: Path, tmp_path: Path
) -> None:
    began = tiny({"frontend.mean": 0.0, "frontend.std": 1.0})
    run_folder.begin(began, str(tmp_path), {})
    phases = [{"weights": {"a": 1}}, {"from_step": 5, "weights": {"a": 1, "b": 1}}]
    sources = {"a": str(shards), "b": str(shards)}
    mixed = tiny({"data.url": None, "data.sources": sources, "data.mixture": phases})
    assert run_folder.resume_config(mixed, str(tmp_path)).data == mixed.data
