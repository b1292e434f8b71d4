"""The curve of similarity against displacement, on encoders whose answer is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from scaleaudio.encoders.audio_ntt import AudioNTTConfig
from scaleaudio.errors import InputError
from scaleaudio.evaluate import OnMels, measure_sensitivity
from scaleaudio.frontend import FrontendConfig
from scaleaudio.scores import Curve, Sensitivity

torch.set_num_threads(1)  # tensors this small only wait for each other's threads
MELS = FrontendConfig(num_mels=16, hop_samples=320, mean=-7.0, std=4.0)


class Circular(nn.Module):
    """Circular convolutions and global pooling: no position can be seen (arXiv 2101.12322)."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.path = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride, padding=1, padding_mode="circular"),
            nn.ReLU(),
        )

    def forward(self, mel_BFS: Tensor) -> Tensor:
        """(B, 16)."""
        z_BD: Tensor = self.path(mel_BFS.unsqueeze(1)).mean(dim=(2, 3))
        return z_BD


class Spectrum(nn.Module):
    """The mean over time."""

    def forward(self, mel_BFS: Tensor) -> Tensor:
        """(B, 16)."""
        return mel_BFS.mean(dim=2)


def curve(result: Sensitivity, axis: str, motion: str, stage: int = 0) -> Curve:
    return next(c for c in result.stages[stage].curves if (c.axis, c.motion) == (axis, motion))


def means(of: Curve) -> list[float]:
    return [point.similarity.mean for point in of.points]


def at(of: Curve, strength: float) -> float:
    return min(of.points, key=lambda point: abs(point.strength - strength)).similarity.mean


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of white noise of one second: no order in time, nothing in frequency but their own grain."""
    folder = tmp_path_factory.mktemp("noises")
    random = np.random.default_rng(0)
    for number in range(6):
        soundfile.write(folder / f"{number}.flac", 0.1 * random.standard_normal(16_000), 16_000)
    return folder


@pytest.fixture(scope="module")
def pooled(clips: Path) -> Sensitivity:
    """Of an encoder that cannot see position, on tones in noise."""
    return measured(Circular(), clips)


def measured(encoder: nn.Module, corpus: Path, dim: int = 16, **options: object) -> Sensitivity:
    model = OnMels(encoder, embedding_dim=dim, frontend=MELS, frame_stride=2)
    return measure_sensitivity(model, str(corpus), name="m", num_clips=12, **options)  # type: ignore[arg-type]


def test_every_curve_starts_at_exactly_1_and_reaches_half_the_axis(pooled: Sensitivity) -> None:
    assert (pooled.num_mels, pooled.num_frames, pooled.num_clips) == (16, 48, 12)
    for each in pooled.stages[0].curves:
        start = each.points[0]
        assert start.strength == 0 and start.similarity.mean == 1.0 and start.similarity.low > 1 - 1e-12
        strengths = [point.strength for point in each.points]
        assert strengths == sorted(strengths)
        assert strengths[-1] == pytest.approx(0.3 if each.motion == "smooth field" else 0.5, abs=0.08)


def test_what_cannot_see_position_is_flat_under_shifts_that_wrap(pooled: Sensitivity) -> None:
    for axis in ("frequency", "time"):
        assert min(means(curve(pooled, axis, "shift, wrap"))) > 1 - 1e-9
        assert min(means(curve(pooled, axis, "shift, floor"))) < 1 - 1e-4


def test_strides_leak_the_phase_so_that_one_place_is_more_visible_than_a_stride(clips: Path) -> None:
    points = curve(measured(Circular(stride=2), clips), "frequency", "shift, wrap").points
    odd = [point.similarity.mean for point in points if point.places in (1, 3)]
    even = [point.similarity.mean for point in points if point.places in (2, 4)]
    assert min(even) > 1 - 1e-9 and max(odd) < 1 - 1e-6


def test_flattened_frequency_is_seen_and_pooled_time_is_not(noises: Path) -> None:
    torch.manual_seed(0)
    encoder = AudioNTTConfig(embedding_dim=32).build(16, 48)
    result = measured(encoder, noises, dim=32)
    frequency = at(curve(result, "frequency", "permutation"), 0.3)
    time = at(curve(result, "time", "permutation"), 0.3)
    assert 1 - frequency > 3 * (1 - time) > 0


def test_moving_back_costs_what_was_lost_at_the_border_and_nothing_else(pooled: Sensitivity) -> None:
    for each in pooled.stages[0].curves:
        for point in each.points[1:]:
            if each.motion == "shift, floor":
                assert point.returned and point.similarity.mean < 1 and point.returned.mean < 1
            elif each.motion == "smooth field":
                assert (point.returned is None) == (point.strength > 0.2)
                assert point.returned is None or point.returned.mean < 1
            else:
                assert point.returned and point.returned.mean == 1.0


def test_the_levels_are_two_views_and_other_clips(clips: Path) -> None:
    stage = measured(Spectrum(), clips).stages[0]
    assert stage.positive.low <= stage.positive.mean <= stage.positive.high < 1
    assert stage.others.high < stage.positive.low
    assert stage.blindness(stage.others) == 0
    assert stage.blindness(stage.curves[0].points[0].similarity) == pytest.approx(1)


def test_the_projector_has_curves_of_its_own(clips: Path) -> None:
    one_way = nn.Linear(16, 1)  # whatever is projected to one positive number is the same
    nn.init.constant_(one_way.weight, 0.0)
    nn.init.constant_(one_way.bias, 1.0)
    result = measured(Circular(), clips, projector=one_way)
    assert [stage.stage for stage in result.stages] == ["embedding", "projector"]
    assert min(means(curve(result, "time", "shift, floor", stage=1))) == 1.0
    assert min(means(curve(result, "time", "shift, floor", stage=0))) < 1.0


def test_distances_are_told_in_semitones_and_milliseconds(pooled: Sensitivity) -> None:
    semitones, milliseconds = (
        {point.places: point.amount for point in curve(pooled, axis, "shift, wrap").points}
        for axis in ("frequency", "time")
    )
    centres = np.array(MELS.centres_hz)
    assert semitones[4] == pytest.approx(np.median(12 * np.log2(centres[4:] / centres[:-4])))
    assert milliseconds[6] == pytest.approx(6 * 20, rel=0.02)


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(pooled: Sensitivity, clips: Path) -> None:
    assert measured(Circular(), clips) == pooled
    assert measured(Circular(), clips, seed=1).stages != pooled.stages


def test_unusable_files_are_named_and_silence_is_left_out(clips: Path, tmp_path: Path) -> None:
    for number in range(3):
        shutil.copy(clips / f"clip0{number}.flac", tmp_path)
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    (tmp_path / "torn.flac").write_bytes((clips / "clip00.flac").read_bytes()[:200])
    result = measured(Circular(), tmp_path)
    assert (result.num_clips, result.num_still) == (3, 1)
    assert [reject.key for reject in result.rejects] == ["torn.flac"]


def test_a_single_clip_and_a_model_without_a_spectrogram_are_refused(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.flac").write_bytes((clips / "clip00.flac").read_bytes()[:200])
    with pytest.raises(InputError, match=r"no usable clip; 1 files refused, such as torn.flac \(.+\)"):
        measured(Circular(), tmp_path)
    shutil.copy(clips / "clip00.flac", tmp_path)
    with pytest.raises(InputError, match="1 clips in which anything happens; a curve needs at least two"):
        measured(Circular(), tmp_path)
    bare = Circular()
    bare.sample_rate_hz = 16_000  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"without the attribute frontend. Wrap an encoder of spectrograms as"):
        measure_sensitivity(bare, str(clips), name="m")
