"""A trained encoder on disk gives the embeddings that it gave in training, to anyone with torch."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import AUDIO_NTT, BYOL, batch, config
from torch import Tensor

import scaleaudio
from scaleaudio import bundle, checkpoint
from scaleaudio.bundle import AudioEncoder
from scaleaudio.cli import main
from scaleaudio.errors import DamageWarning, InputError
from scaleaudio.train import OptimizerConfig, PlainEngine

KINDS = [{}, AUDIO_NTT | BYOL]


def trained(changes: dict[str, Any]) -> PlainEngine:
    """Two steps, so that running statistics are not those of fresh weights."""
    engine = PlainEngine(config(changes).build(), OptimizerConfig())
    for step in range(2):
        engine.step(batch(engine.task.config, step))
    return engine


def encoder_of(engine: PlainEngine) -> AudioEncoder:
    task = engine.task
    return AudioEncoder(task.config, task.frontend, task.encoder, step=2)


def noise(num_samples: int, num_clips: int = 2) -> Tensor:
    return 0.1 * torch.randn(num_clips, num_samples, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return bundle.untrained(config())


# On disk.


@pytest.mark.parametrize("changes", KINDS)
def test_a_bundle_a_checkpoint_and_a_run_embed_as_the_task_does_in_eval_mode(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    engine = trained(changes)
    tree = json.loads(engine.task.config.model_dump_json()) | {"name": "more than the encoder needs"}
    url = checkpoint.save(str(tmp_path / "run"), engine, checkpoint.Meta(2, tree, {}))
    wave_BT = noise(8000)
    task = engine.task.eval()
    with torch.no_grad():
        expected = task.encoder(task.frontend(wave_BT))
        for path in (bundle.save(encoder_of(engine), tmp_path / "bundle"), Path(url), tmp_path / "run"):
            loaded = scaleaudio.load(path)
            assert torch.equal(loaded(wave_BT), expected)
            assert loaded.step == 2 and not loaded.training and loaded.embedding_dim == expected.shape[1]


def test_a_run_whose_newest_checkpoint_is_torn_loads_the_one_before_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the library as a warning, on the command line as one line on stderr."""
    engine = trained({})
    tree = json.loads(engine.task.config.model_dump_json())
    for step in (2, 4):
        url = checkpoint.save(str(tmp_path / "run"), engine, checkpoint.Meta(step, tree, {}))
    part = next(Path(url).glob("part-*"))
    part.write_bytes(part.read_bytes()[:-10])
    told = r"step-00000004: torn checkpoint passed over .*; the one of step 2 is used instead"
    for load in (scaleaudio.load, bundle.load_projector):
        with pytest.warns(DamageWarning, match=told):
            load(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["scaleaudio", "export", str(tmp_path / "run"), str(tmp_path / "out")])
    with warnings.catch_warnings(action="default"), pytest.raises(SystemExit, match="0"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"scaleaudio: warning: .*{told}", line)
    assert scaleaudio.load(tmp_path / "out").step == 2


@pytest.mark.parametrize("changes", KINDS)
def test_the_projector_of_a_run_is_the_tasks_and_a_bundle_has_none(changes: dict[str, Any], tmp_path: Path) -> None:
    engine = trained(changes)
    tree = json.loads(engine.task.config.model_dump_json())
    checkpoint.save(str(tmp_path / "run"), engine, checkpoint.Meta(2, tree, {}))
    loaded = bundle.load_projector(tmp_path / "run")
    z_ND = torch.randn(4, engine.task.encoder.embedding_dim)
    assert loaded is not None and torch.equal(loaded(z_ND), engine.task.projector.eval()(z_ND))
    assert bundle.load_projector(bundle.save(encoder_of(engine), tmp_path / "bundle")) is None


def test_a_checkpoint_folder_of_another_name_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = trained({})
    tree = json.loads(engine.task.config.model_dump_json())
    Path(checkpoint.save(str(tmp_path), engine, checkpoint.Meta(2, tree, {}))).rename(tmp_path / "best")
    assert scaleaudio.load(tmp_path / "best").step == 2
    monkeypatch.chdir(tmp_path / "best")
    assert scaleaudio.load(".").step == 2


def test_the_measured_constants_travel_with_the_bundle(tmp_path: Path) -> None:
    measured = bundle.untrained(config({"frontend.mean": None, "frontend.std": None}))
    measured.frontend.mean.fill_(-5.0)
    loaded = bundle.load(bundle.save(measured, tmp_path))
    assert float(loaded.frontend.mean) == -5.0


def test_a_bundle_says_what_it_is_of(encoder: AudioEncoder, tmp_path: Path) -> None:
    about = json.loads((bundle.save(encoder, tmp_path) / "config.json").read_text())
    assert (about["format_version"], about["scaleaudio_version"], about["step"]) == (1, scaleaudio.__version__, 0)
    assert about["task"]["encoder"]["widths"] == [8, 16]


# What it embeds.


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT])
@pytest.mark.parametrize("num_samples", [1, 160, 400, 4799, 16000, 80001])
def test_clips_of_any_length_are_embedded_and_pooled_from_their_frames(
    num_samples: int, changes: dict[str, Any]
) -> None:
    encoder = bundle.untrained(config(changes))
    frames_BSD, embedding_BD = encoder.frames(noise(num_samples)), encoder(noise(num_samples))
    assert embedding_BD.shape == (2, encoder.embedding_dim) and embedding_BD.isfinite().all()
    assert torch.equal(encoder.encoder.pool(frames_BSD), embedding_BD)
    assert frames_BSD.shape[2] == encoder.embedding_dim
    seconds = frames_BSD.shape[1] * encoder.hop_seconds
    assert seconds == pytest.approx(max(num_samples, 513) / encoder.sample_rate_hz, abs=1.001 * encoder.hop_seconds)


def test_the_hop_is_the_front_ends_times_the_encoders() -> None:
    assert bundle.untrained(config()).hop_seconds == pytest.approx(0.01 * 4)
    assert bundle.untrained(config(AUDIO_NTT)).hop_seconds == pytest.approx(0.01 * 8)


def test_a_clip_embeds_the_same_alone_and_among_others(encoder: AudioEncoder) -> None:
    wave_BT = noise(8000, 5)
    torch.testing.assert_close(encoder(wave_BT)[3:4], encoder(wave_BT[3:4]))


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(16000), r"shape \[16000\]: expected \(clips, samples\).*give one clip as wave\[None\]"),
        (torch.zeros(1, 2, 16000), r"shape \[1, 2, 16000\]"),
        (torch.zeros(1, 0), r"shape \[1, 0\]: .* at least one sample"),
        (torch.zeros(0, 100), r"shape \[0, 100\]"),
        (torch.tensor([[0.0, float("nan")]]), "NaN or Inf"),
        (torch.tensor([[0.0, float("inf")]]), "NaN or Inf"),
        (torch.tensor([[0.0, -1e20]]), r"that reach 1e\+20: expected samples in \[-1, 1\]"),
        (torch.zeros(1, 16000, dtype=torch.int16), "int16: expected floating point"),
        (torch.zeros(1, 1).expand(1, 601 * 16000), "601 s: expected at most 600 s"),
    ],
)
def test_what_is_no_batch_of_waveforms_is_refused(wave: Tensor, message: str, encoder: AudioEncoder) -> None:
    for embed in (encoder, encoder.frames):
        with pytest.raises(ValueError, match=message):
            embed(wave)


def test_a_backbone_that_began_with_weights_from_elsewhere_loads_without_them(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    began = tmp_path / "began.safetensors"
    save_file(timm.create_model("test_resnet", in_chans=1, num_classes=0).state_dict(), began)
    tree = {"kind": "timm", "model": "test_resnet", "options": {"checkpoint_path": str(began)}}
    encoder = bundle.untrained(config({"encoder": tree}))
    folder = bundle.save(encoder, tmp_path / "encoder")
    began.unlink()
    assert torch.equal(bundle.load(folder)(noise(8000)), encoder(noise(8000)))


# What cannot be loaded.


def break_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing or damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 100), "model.safetensors: missing or damaged"),
        (lambda f: break_config(f, "{"), "config.json: not what `scaleaudio export` writes"),
        (lambda f: break_config(f, '{"model_type": "bert"}'), "config.json: not what `scaleaudio export` writes"),
        (
            lambda f: break_config(f, '{"format_version": "1", "task": {}, "step": 0}'),
            "not what .* .version '1'",
        ),
        (lambda f: break_config(f, '{"format_version": 2, "task": {}, "step": 0}'), "format_version 2, .* reads 1"),
        (lambda f: (f / "config.json").unlink(), "got a folder with none of them"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(
    damage: Any, message: str, encoder: AudioEncoder, tmp_path: Path
) -> None:
    damage(bundle.save(encoder, tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        bundle.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_path_to_nothing_and_a_run_without_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an exported folder .*, a run folder .* got nothing there"):
        bundle.load(tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no checkpoint in it yet"):
        bundle.load(tmp_path)
