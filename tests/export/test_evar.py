"""Weights go to BYOL-A's layout and come from it, and mean the same there; the reference is written from the papers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import AUDIO_NTT, config
from torch import Tensor, nn

from scaleaudio import bundle
from scaleaudio.embedder import AudioEncoder, untrained
from scaleaudio.errors import InputError
from scaleaudio.export import evar
from scaleaudio.frontend import FrontendConfig
from scaleaudio.task import TaskConfig

SIZES = [("audio_ntt", 512), ("audio_ntt", 1024), ("audio_ntt_v2", 3072)]


class Published(nn.Module):
    """AudioNTT as arXiv 2103.06695 (v1) and arXiv 2204.07402 (v2) lay it out, behind a front-end in NumPy."""

    def __init__(self, kind: str, dim: int, mean: float, std: float) -> None:
        super().__init__()
        blocks = 3 if kind == "audio_ntt" else 2
        layers: list[nn.Module] = []
        for block in range(blocks):
            conv = nn.Conv2d(64 if block else 1, 64, 3, stride=1, padding=1)
            layers += [conv, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2, stride=2)]
        self.features = nn.Sequential(*layers)
        width = 64 * 64 // 2**blocks
        self.stacks = kind == "audio_ntt_v2"
        hidden, out = (2048, dim - width) if self.stacks else (dim, dim)
        linears = [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, out), nn.ReLU()]
        self.fc = nn.Sequential(*linears)
        self.mean, self.std = mean, std

    def forward(self, wave: Tensor) -> Tensor:
        x = self.features(torch.stack([self.log_mel(clip.numpy()) for clip in wave])[:, None])
        batch, channels, mels, time = x.shape
        x = x.permute(0, 3, 2, 1).reshape(batch, time, mels * channels)
        y = self.fc(x)
        y = torch.cat([x, y], dim=-1) if self.stacks else y
        return y.max(dim=1).values + y.mean(dim=1)

    def log_mel(self, clip: np.ndarray[Any, Any]) -> Tensor:
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
        padded = np.pad(clip.astype(np.float64), 512, mode="reflect")
        starts = range(0, len(clip) + 1, 160)
        power = np.stack([np.abs(np.fft.rfft(window * padded[at : at + 1024])) ** 2 for at in starts])
        log_mel = np.log(power @ slaney_bank() + np.finfo(np.float32).eps)
        return torch.from_numpy(((log_mel - self.mean) / self.std).T).float()


def slaney_bank() -> np.ndarray[Any, Any]:
    """64 triangles of equal area from 60 to 7,800 Hz: linear up to 1 kHz, then 27 to the 2.68 octaves up to 6.4 kHz."""

    def to_mel(hz: float) -> float:
        return hz / (200 / 3) if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    mels = np.linspace(to_mel(60), to_mel(7800), 66)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.fft.rfftfreq(1024, 1 / 16_000)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def published(kind: str, dim: int) -> Published:
    """Weights with running statistics of their own, so that a name mixed up would show."""
    torch.manual_seed(0)
    made = Published(kind, dim, mean=-6.0, std=4.5).train()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return made.eval()


def clips(num_samples: int = 16_000) -> Tensor:
    time_T = torch.arange(num_samples) / 16_000
    tone_T = 0.3 * torch.sin(2 * torch.pi * (300 + 900 * time_T) * time_T)
    return torch.stack([tone_T, 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(0))])


def assert_the_same(found_BD: Tensor, expected_BD: Tensor) -> None:
    """Up to 1e-5 of the embedding's length: the reference computes its spectrogram in double precision."""
    assert ((found_BD - expected_BD).norm(dim=1) / expected_BD.norm(dim=1)).max() < 1e-5


FRONTEND = FrontendConfig(mel_scale="slaney", mean=-6.0, std=4.5)


@pytest.mark.parametrize(("kind", "dim"), SIZES)
def test_published_weights_embed_here_as_they_do_there(kind: str, dim: int, tmp_path: Path) -> None:
    theirs = published(kind, dim)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = evar.from_audio_ntt(str(tmp_path / "weights.pth"), FRONTEND)
    assert (ours.config.encoder.kind, ours.embedding_dim, ours.config.frontend.num_mels) == (kind, dim, 64)
    with torch.no_grad():
        assert_the_same(ours(clips()), theirs(clips()))


@pytest.mark.parametrize(("kind", "dim"), SIZES)
def test_our_weights_embed_there_as_they_do_here(kind: str, dim: int, tmp_path: Path) -> None:
    tree = {"frontend": FRONTEND, "encoder": {"kind": kind, "embedding_dim": dim}}
    ours = untrained(TaskConfig.model_validate(tree)).train()
    with torch.no_grad():
        ours(clips())  # running statistics of its own
    folder = bundle.save(ours.eval(), tmp_path)
    theirs = Published(kind, dim, mean=-6.0, std=4.5).eval()
    theirs.load_state_dict(evar.audio_ntt_state_dict(bundle.load(folder)), strict=True)
    with torch.no_grad():
        assert_the_same(theirs(clips()), ours(clips()))


@pytest.mark.parametrize(("kind", "dim"), SIZES)
def test_the_state_dict_has_exactly_the_published_names_and_plain_tensors(kind: str, dim: int) -> None:
    tree = {"encoder": {"kind": kind, "embedding_dim": dim}}
    state = evar.audio_ntt_state_dict(untrained(TaskConfig.model_validate(tree)))
    expected = Published(kind, dim, 0, 1).state_dict()
    assert list(state) == list(expected)
    assert all(state[name].shape == tensor.shape for name, tensor in expected.items())
    assert all(type(tensor) is Tensor and tensor.device.type == "cpu" for tensor in state.values())


@pytest.mark.parametrize(("kind", "dim", "num_mels"), [("audio_ntt", 64, 80), ("audio_ntt_v2", 800, 40)])
def test_weights_on_any_number_of_mels_come_back_from_the_layout(
    kind: str, dim: int, num_mels: int, tmp_path: Path
) -> None:
    tree = {"frontend": {"num_mels": num_mels}, "encoder": {"kind": kind, "embedding_dim": dim}}
    ours = untrained(TaskConfig.model_validate(tree))
    torch.save(evar.audio_ntt_state_dict(ours), tmp_path / "weights.pth")
    back = evar.from_audio_ntt(str(tmp_path / "weights.pth"))
    assert back.config.frontend.num_mels == num_mels
    assert torch.equal(back(clips()), ours(clips()))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"body.{name}": tensor for name, tensor in state.items()}},
    ],
)
def test_wrapped_and_prefixed_weights_are_found(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(wrap(published("audio_ntt", 512).state_dict()), tmp_path / "weights.pth")
    assert evar.from_audio_ntt(str(tmp_path / "weights.pth")).embedding_dim == 512


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("fc.3.bias"), r"BYOL-A's layout, came one with fc.3.bias .missing."),
        (lambda state: state.update({"head.weight": torch.zeros(2)}), r"head.weight .not in the layout."),
        (lambda state: state.update({"fc.0.weight": torch.zeros(7)}), r"a multiple of 64 columns, came \[7\]"),
        (lambda state: state.update({"fc.0.weight": torch.zeros(512, 100)}), r"a multiple of 64 columns"),
        (lambda state: state.clear(), "cannot be read as a state dict of tensors"),
        (lambda state: state.update({"epoch": 3}), "cannot be read as a state dict of tensors .it holds features.0"),
    ],
)
def test_what_is_not_in_the_layout_is_refused(damage: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    state = dict(published("audio_ntt", 512).state_dict())
    damage(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=message):
        evar.from_audio_ntt(str(tmp_path / "weights.pth"))


def test_an_encoder_that_the_layout_has_no_names_for_is_refused() -> None:
    for changes in ({}, {"encoder": {"kind": "audio_ntt", "embedding_dim": 32, "position": "time"}}):
        with pytest.raises(InputError, match="BYOL-A's layout is for audio_ntt"):
            evar.audio_ntt_state_dict(untrained(config(changes)))


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[str, AudioEncoder]:
    made = untrained(config(AUDIO_NTT))
    return str(bundle.save(made, tmp_path / "encoder")), made


def test_the_class_embeds_as_evar_calls_it(encoder: tuple[str, AudioEncoder]) -> None:
    folder, made = encoder
    model = evar.AR_ScaleAudio({"weight_file": folder, "sample_rate": 16_000}).to("cpu")
    model.precompute(torch.device("cpu"), [(clips(), torch.zeros(2))])
    assert not model.training
    torch.testing.assert_close(model(clips()), made(clips()))
    frames_BDS = model.encode_frames(clips())
    torch.testing.assert_close(frames_BDS, made.frames(clips()).transpose(1, 2))
    torch.testing.assert_close(nn.DataParallel(model)(clips()), made(clips()))


def test_the_class_refuses_another_rate(encoder: tuple[str, AudioEncoder]) -> None:
    with pytest.raises(InputError, match="sample_rate 48000: the encoder's is 16000"):
        evar.AR_ScaleAudio({"weight_file": encoder[0], "sample_rate": 48_000})
