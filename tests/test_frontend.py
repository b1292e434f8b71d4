"""The front-end is BYOL-A's, at any length."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import MelSpectrogram

from scaleaudio.frontend import FrontendConfig


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_defaults_are_byol_as_mel_as_log_power_normalised() -> None:
    reference = MelSpectrogram(
        sample_rate=16000, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, f_min=60, f_max=7800, power=2
    )
    wave_BT = noise(2, 15200)
    log_mel_BFS = (reference(wave_BT) + torch.finfo(torch.float32).eps).log()
    found_BFS = FrontendConfig(mean=-7.1, std=4.2).build()(wave_BT)
    assert found_BFS.shape == (2, 64, 96)  # the published crop
    torch.testing.assert_close(found_BFS, (log_mel_BFS + 7.1) / 4.2)


def test_it_is_a_windowed_fourier_transform_in_mel_bands() -> None:
    config = FrontendConfig(num_mels=32, n_fft=512, win_samples=400, hop_samples=200)
    wave_BT = noise(2, 3000)
    spectrum = torch.stft(wave_BT, 512, 200, 400, torch.hann_window(400), return_complex=True, pad_mode="reflect")
    bank_QF = melscale_fbanks(257, 60.0, 7800.0, 32, 16000)
    mel_BFS = torch.einsum("bqs,qf->bfs", spectrum.abs() ** 2, bank_QF)
    torch.testing.assert_close(config.build()(wave_BT), (mel_BFS + 2**-23).log(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_samples", [1, 10, 160, 512, 513, 1600, 15199, 15200])
def test_any_length_gives_as_many_frames_as_the_config_says(num_samples: int) -> None:
    config = FrontendConfig()
    mel_BFS = config.build()(noise(1, num_samples))
    assert mel_BFS.shape == (1, 64, config.num_frames(num_samples))
    assert mel_BFS.isfinite().all()


def test_slaney_bands_have_equal_area_and_lie_where_their_centres_are() -> None:
    bank_QF = FrontendConfig(mel_scale="slaney").build().mel.mel_scale.fb
    torch.testing.assert_close(
        bank_QF, melscale_fbanks(513, 60.0, 7800.0, 64, 16000, norm="slaney", mel_scale="slaney"), rtol=0, atol=0
    )
    assert FrontendConfig().build().mel.mel_scale.fb.max() > 40 * bank_QF.max()
    for scale in ("htk", "slaney"):
        config = FrontendConfig(mel_scale=scale, n_fft=8192, win_samples=8192, num_mels=20)
        peaks_hz = config.build().mel.mel_scale.fb.argmax(dim=0) * 16_000 / 8192
        torch.testing.assert_close(peaks_hz, torch.tensor(config.centres_hz), rtol=0, atol=2.0)


def test_silence_is_finite() -> None:
    assert FrontendConfig().build()(torch.zeros(1, 16000)).isfinite().all()


def test_only_the_measured_constants_are_stored_and_nothing_is_trained() -> None:
    frontend = FrontendConfig(mean=1.0, std=2.0).build()
    assert {name: float(value) for name, value in frontend.state_dict().items()} == {"mean": 1.0, "std": 2.0}
    assert not list(frontend.parameters())


def test_hop_seconds_is_the_time_between_frames() -> None:
    assert FrontendConfig(sample_rate_hz=8000, max_hz=4000, hop_samples=80).hop_seconds == 0.01


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_hz": 8001}, "expected 0 <= min_hz < max_hz <= 8000"),
        ({"min_hz": 7800}, "min_hz 7800 and max_hz 7800"),
        ({"win_samples": 2048}, r"win_samples 2048: expected at most n_fft \(1024\)"),
        ({"mean": -7.0}, "mean and std: give both"),
        ({"mean": 0.0, "std": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FrontendConfig.model_validate(keys)


def test_a_pure_tone_is_loudest_in_the_bin_whose_centre_it_is() -> None:
    config = FrontendConfig(num_mels=20)
    assert len(config.centres_hz) == 20
    for number in (3, 10, 19):
        tone_T = torch.sin(2 * torch.pi * config.centres_hz[number] * torch.arange(16_000) / 16_000)
        mel_FS = config.build()(tone_T[None])[0]
        assert int(mel_FS.mean(dim=1).argmax()) == number
