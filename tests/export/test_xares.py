"""X-ARES takes an exported folder's file as it is: by its published rules, and by the program itself."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, config

from scaleaudio import bundle
from scaleaudio.export import xares
from scaleaudio.export.folder import export


def exported(tmp_path: Path, changes: dict[str, Any], name: str = "encoder") -> Path:
    folder = bundle.save(bundle.untrained(config(changes)), tmp_path / f"first-{name}")
    return export(str(folder), tmp_path / name)


def class_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The one name of the module that ends in Encoder, found as X-ARES finds it."""
    monkeypatch.syspath_prepend(str(folder.parent))
    importlib.invalidate_caches()
    for name in (folder.name, f"{folder.name}.xares_encoder"):
        sys.modules.pop(name, None)
    module = importlib.import_module(f"{folder.name}.xares_encoder")
    (name,) = (name for name in dir(module) if name.endswith("Encoder"))
    return getattr(module, name)


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT, {"encoder": {"kind": "resnet", "widths": [8] * 5}}])
def test_the_rules_of_the_encoder_checker_hold(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = class_of(exported(tmp_path, changes), monkeypatch)()
    assert isinstance(encoder, torch.nn.Module) and type(encoder).__name__.endswith("Encoder")
    assert encoder.sampling_rate == 16_000 and not encoder.training
    embedded_BSD = encoder(torch.randn(2, 50_000))
    assert embedded_BSD.ndim == 3 and embedded_BSD.shape[0] == 2 and embedded_BSD.shape[2] == encoder.output_dim
    assert embedded_BSD.dtype == torch.float32
    frames_ms = embedded_BSD.shape[1] * encoder.hop_size_in_ms
    assert abs(frames_ms - 3125) <= encoder.hop_size_in_ms
    assert encoder(torch.randn(50_000)).shape == (1, *embedded_BSD.shape[1:])


def test_ten_minutes_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"encoder": {"kind": "resnet", "widths": [4]}, "frontend.hop_samples": 800}
    encoder = class_of(exported(tmp_path, changes), monkeypatch)()
    with torch.inference_mode():
        assert encoder(torch.zeros(1, 600 * 16_000)).shape[1] == 6001


def test_the_class_is_named_after_the_weights_because_results_are_filed_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, same, other = (
        class_of(exported(tmp_path, changes, name), monkeypatch).__name__
        for changes, name in (({}, "one"), ({}, "same"), ({"seed": 1}, "other"))
    )
    assert one.split("_")[1] == same.split("_")[1] != other.split("_")[1]


def test_any_name_of_a_run_makes_a_class_name() -> None:
    encoder = bundle.untrained(config())
    for name in ("3-runs", "", "a.b c", 'x"""y'):
        compile(xares.class_file(encoder, name), "xares_encoder.py", "exec")
