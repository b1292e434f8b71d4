"""Files to embeddings."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from scaleaudio.evaluate import embeddings
from scaleaudio.evaluate.baseline import MelStatistics
from scaleaudio.evaluate.embeddings import embed_files


class Length(nn.Module):
    """Embeds a clip as (number of samples, sum, size of its batch)."""

    def __init__(self, sample_rate_hz: int = 16000) -> None:
        """Takes waveforms at that rate."""
        super().__init__()
        self.sample_rate_hz = sample_rate_hz
        self.embedding_dim = 3

    def forward(self, wave_BT: Tensor) -> Tensor:
        """(B, 3)."""
        size = torch.full((len(wave_BT),), float(len(wave_BT)))
        return torch.stack([size * 0 + wave_BT.shape[1], wave_BT.sum(dim=1), size], dim=1)


def write(path: Path, num_frames: int, *, rate: int = 16000, channels: int = 1) -> Path:
    noise = np.random.default_rng(num_frames).uniform(-0.1, 0.1, (num_frames, channels))
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return path


def test_clips_of_equal_length_share_a_batch_and_keep_their_places(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{place}.wav", n) for place, n in enumerate([900, 500, 900, 700, 500, 900])]
    made = embed_files({"m": Length()}, files).by_model["m"]
    assert made[:, 0].tolist() == [900, 500, 900, 700, 500, 900]
    assert made[:, 2].tolist() == [3, 2, 3, 1, 2, 3]
    sums = [soundfile.read(file)[0].sum() for file in files]
    assert np.allclose(made[:, 1], sums, atol=1e-3)


def test_every_model_gets_mono_at_its_own_rate(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.wav", 8000, rate=8000, channels=2), write(tmp_path / "b.flac", 44100, rate=44100)]
    made = embed_files({"low": Length(8000), "high": Length(16000)}, files).by_model
    assert made["low"][:, 0].tolist() == [8000, 8000]
    assert made["high"][:, 0].tolist() == [16000, 16000]


def test_a_short_clip_gets_silence_up_to_the_least_length_and_a_long_one_none(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.wav", 500), write(tmp_path / "b.wav", 20000)]
    plain = embed_files({"m": Length()}, files).by_model["m"]
    padded = embed_files({"m": Length()}, files, min_seconds=0.5).by_model["m"]
    assert padded[:, 0].tolist() == [8000, 20000]
    assert np.allclose(padded[:, 1], plain[:, 1], atol=1e-4)


def test_unusable_files_are_named_with_the_reason_and_the_others_embedded(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "folder.wav").mkdir()
    files = [tmp_path / "none.wav", write(tmp_path / "good.wav", 500), tmp_path / "text.wav", tmp_path / "folder.wav"]
    embedded = embed_files({"m": Length()}, files)
    assert sorted(embedded.rejects) == [0, 2, 3]
    assert embedded.rejects[0].key == "none.wav" and embedded.rejects[0].reason == "No such file or directory"
    assert embedded.rejects[0].shard == str(tmp_path)
    assert np.isfinite(embedded.by_model["m"][1]).all() and np.isnan(embedded.by_model["m"][[0, 2, 3]]).all()


def test_audio_too_loud_to_be_any_is_named_and_what_has_whole_numbers_scale_is_embedded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 16000)
    files = [tmp_path / "loud.wav", tmp_path / "whole.wav"]
    for file, peak in zip(files, (1e20, 2.0**31), strict=True):
        soundfile.write(file, peak * noise, 16000, subtype="FLOAT")
    embedded = embed_files({"mel": MelStatistics()}, files)
    assert [reject.key for reject in embedded.rejects.values()] == ["loud.wav"]
    assert "samples reach 1e+20" in embedded.rejects[0].reason
    assert np.isfinite(embedded.by_model["mel"][1]).all()


def test_bounded_stretches_and_batches_give_the_same_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / f"{place}.wav", 4000 + 160 * (place % 3)) for place in range(9)]
    model = MelStatistics()
    whole = embed_files({"m": model}, files).by_model["m"]
    monkeypatch.setattr(embeddings, "STRETCH_SECONDS", 1.0)
    monkeypatch.setattr(embeddings, "BATCH_SECONDS", 0.1)
    assert np.allclose(embed_files({"m": model}, files).by_model["m"], whole, atol=1e-4)


def test_a_model_that_gives_the_wrong_shape_or_nan_is_named(tmp_path: Path) -> None:
    class Wide(Length):
        def forward(self, wave_BT: Tensor) -> Tensor:
            return wave_BT.new_zeros(len(wave_BT), 4)

    class Broken(Length):
        def forward(self, wave_BT: Tensor) -> Tensor:
            return wave_BT.new_full((len(wave_BT), 3), torch.nan)

    files = [write(tmp_path / "a.wav", 500)]
    with pytest.raises(ValueError, match=r"model wide: expected embeddings of shape \(1, 3\), came \(1, 4\)"):
        embed_files({"wide": Wide()}, files)
    with pytest.raises(ValueError, match="model broken: embeddings with NaN or Inf"):
        embed_files({"broken": Broken()}, files)
    with pytest.raises(ValueError, match="Linear cannot be evaluated: it needs the attribute embedding_dim"):
        embed_files({"other": nn.Linear(2, 2)}, files)


def test_mel_statistics_do_not_see_order_but_do_see_frequency() -> None:
    time_T = torch.arange(16000) / 16000
    low_T, high_T = (torch.sin(2 * torch.pi * hz * time_T[:8000]) for hz in (440.0, 3000.0))
    up_T, down_T = torch.cat([low_T, high_T]), torch.cat([high_T, low_T])
    z_BD = MelStatistics()(torch.stack([up_T, down_T, torch.cat([low_T, low_T])]))
    assert z_BD.shape == (3, 128)
    # Only the frames at the seam and the ends tell up from down.
    assert (z_BD[0] - z_BD[1]).abs().mean() < 0.1 * (z_BD[0] - z_BD[2]).abs().mean()


@pytest.mark.parametrize("num_samples", [1, 100, 1000])
def test_mel_statistics_of_a_very_short_clip_are_finite(num_samples: int) -> None:
    assert torch.isfinite(MelStatistics()(torch.ones(2, num_samples))).all()


def test_a_pipe_among_the_files_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    embedded = embed_files({"mel": MelStatistics()}, [tmp_path / "pipe.wav"])
    assert [reject.reason for reject in embedded.rejects.values()] == ["not a file"]
