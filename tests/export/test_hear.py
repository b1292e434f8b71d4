"""HEAR 2021's published rules hold for the module, re-stated here from its API and its validator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import AUDIO_NTT, config

from scaleaudio import bundle
from scaleaudio.errors import InputError
from scaleaudio.export import hear

KINDS: list[dict[str, Any]] = [
    {},
    AUDIO_NTT,
    {"encoder": {"kind": "resnet", "widths": [8, 8, 8, 8, 8]}},  # a hop of 320 ms
    {"encoder.norm": "group"},
    {"frontend": {"num_mels": 16, "sample_rate_hz": 22_050, "hop_samples": 441, "mean": -8.0, "std": 3.0}},
    {"frontend": {"num_mels": 16, "sample_rate_hz": 32_000, "mean": -8.0, "std": 3.0}},
]


def model_of(tmp_path: Path, changes: dict[str, Any] | None = None) -> hear.HearModel:
    return hear.load_model(str(bundle.save(bundle.untrained(config(changes or {})), tmp_path / "encoder")))


@pytest.mark.parametrize("changes", KINDS)
def test_the_model_has_the_attributes_that_hear_reads(changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(tmp_path, changes)
    assert isinstance(model, torch.nn.Module) and not model.training
    assert model.sample_rate in (16_000, 22_050, 32_000, 44_100, 48_000)
    assert type(model.scene_embedding_size) is int and type(model.timestamp_embedding_size) is int
    assert model.scene_embedding_size > 0 and model.timestamp_embedding_size > 0


@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize(("num_clips", "seconds"), [(8, 3.74), (1, 0.96), (2, 0.01), (1, 0.3)])
def test_scene_embeddings_are_one_float32_vector_a_clip(
    num_clips: int, seconds: float, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(tmp_path, changes)
    audio = 2 * torch.rand(num_clips, int(seconds * model.sample_rate)) - 1
    embeddings = hear.get_scene_embeddings(audio, model)
    assert embeddings.dtype == torch.float32 and embeddings.shape == (num_clips, model.scene_embedding_size)


@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("seconds", [2.0, 0.96, 0.3, 0.1, 0.01, 4.00625])
def test_timestamps_are_regular_within_the_audio_and_no_more_than_50_ms_apart(
    seconds: float, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(tmp_path, changes)
    audio = 2 * torch.rand(3, int(seconds * model.sample_rate)) - 1
    embeddings, stamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == torch.float32 and embeddings.shape[2] == model.timestamp_embedding_size
    assert embeddings.shape[:2] == stamps.shape and embeddings.shape[0] == 3 and stamps.shape[1] > 0
    gaps = torch.diff(stamps)
    assert stamps.min() >= 0 and stamps.max() <= 1000 * audio.shape[1] / model.sample_rate
    if gaps.numel():
        assert (gaps - gaps.float().mean()).abs().max() < 1e-3
        assert gaps.max() <= 50 and stamps[:, 0].max() <= gaps.min()
        assert 1000 * seconds - stamps.max() < 2 * model.passes * gaps.max()  # the end is covered too


def test_frames_between_frames_are_those_of_the_clip_from_there_on(tmp_path: Path) -> None:
    model = model_of(tmp_path, AUDIO_NTT)
    audio = torch.randn(2, 16_000)
    embeddings, stamps = hear.get_timestamp_embeddings(audio, model)
    assert model.passes == 2
    whole = model.encoder.frames(audio)
    later = model.encoder.frames(audio[:, 4 * 160 :])
    torch.testing.assert_close(embeddings[:, 0::2], whole[:, : len(stamps[0, 0::2])])
    torch.testing.assert_close(embeddings[:, 1::2], later)
    assert stamps[0, :3].tolist() == [35.0, 75.0, 115.0]  # frames of 8 hops of 10 ms, the middle of which is at 3.5


def test_where_something_happens_is_where_the_timestamp_says(tmp_path: Path) -> None:
    for changes in (KINDS[0], AUDIO_NTT, KINDS[2]):
        model = model_of(tmp_path, changes)
        silence, click = torch.zeros(1, 32_000), torch.zeros(1, 32_000)
        click[0, 16_000] = 1.0
        before, stamps = hear.get_timestamp_embeddings(silence, model)
        after, _ = hear.get_timestamp_embeddings(click, model)
        moved = (after - before).abs().sum(dim=2)[0]
        centre = (moved * stamps[0]).sum() / moved.sum()
        assert abs(float(centre) - 1000) < 20


def test_ten_minutes_have_regular_timestamps_too(tmp_path: Path) -> None:
    model = model_of(tmp_path, {"encoder": {"kind": "resnet", "widths": [8]}, "frontend.hop_samples": 3200})
    stamps = hear.get_timestamp_embeddings(torch.rand(1, 600 * 16_000), model)[1]
    gaps = torch.diff(stamps)
    assert (gaps - gaps.mean()).abs().max() < 1e-3 and stamps.max() <= 600_000


@pytest.mark.parametrize("num_samples", [0, 1, 2])
def test_hardly_any_audio_has_a_timestamp_and_none_is_refused(num_samples: int, tmp_path: Path) -> None:
    model = model_of(tmp_path)
    if num_samples == 0:
        with pytest.raises(ValueError, match="at least one sample"):
            hear.get_timestamp_embeddings(torch.zeros(2, 0), model)
    else:
        assert hear.get_timestamp_embeddings(torch.zeros(2, num_samples), model)[1].shape == (2, 1)


def test_without_a_path_the_environment_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no encoder named: .* set SCALEAUDIO_MODEL"):
        hear.load_model()
    monkeypatch.setenv("SCALEAUDIO_MODEL", str(bundle.save(bundle.untrained(config()), tmp_path)))
    assert hear.load_model().scene_embedding_size == 16


def test_a_rate_that_hear_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an encoder at 8000 Hz: HEAR knows 16000, 22050"):
        model_of(tmp_path, {"frontend": {"sample_rate_hz": 8000, "max_hz": 4000, "num_mels": 16}})
