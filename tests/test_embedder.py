"""Any length is embedded, in chunks where it is long, and what is no waveform is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tiny import AUDIO_NTT, config
from torch import Tensor

from scaleaudio import embedder
from scaleaudio.embedder import AudioEncoder, untrained

LOCAL: list[dict[str, Any]] = [
    {},
    {"encoder": {"kind": "resnet", "widths": [8, 12, 16], "blocks_per_stage": 2, "position": "frequency"}},
    AUDIO_NTT,
    {"encoder": {"kind": "audio_ntt_v2", "embedding_dim": 300}},
    {"encoder": {"kind": "cnn", "widths": [8, 12, 16]}},
    {"encoder": {"kind": "transformer", "width": 16, "heads": 2, "depth": 1, "patch_mels": 8}},
    {"frontend.hop_samples": 333},
]
GLOBAL: list[dict[str, Any]] = [{"encoder.norm": "group"}, {"encoder.position": "time"}]


def noise(num_samples: int, num_clips: int = 2) -> Tensor:
    return 0.1 * torch.randn(num_clips, num_samples, generator=torch.Generator().manual_seed(0))


def varied(changes: dict[str, Any]) -> AudioEncoder:
    """An encoder with running statistics, so that silence is not its fixed point."""
    made = untrained(config(changes)).train()
    with torch.no_grad():
        made(noise(16_000, 4))
    return made.eval()


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "CHUNK_SECONDS", 1.0)


# Chunks.


@pytest.mark.parametrize("changes", LOCAL)
@pytest.mark.parametrize("num_samples", [80_000, 80_001, 95_999])
def test_frames_and_embedding_in_chunks_are_those_of_the_whole_clip(
    num_samples: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, wave_BT = varied(changes), noise(num_samples)
    whole_BSD, whole_BD = encoder.frames(wave_BT), encoder(wave_BT)
    monkeypatch.setattr(embedder, "CHUNK_SECONDS", 1.0)
    torch.testing.assert_close(encoder.frames(wave_BT), whole_BSD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(wave_BT), whole_BD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [changes for changes in LOCAL if "transformer" not in str(changes)])
def test_an_embedding_frame_depends_on_no_more_than_its_encoder_says(changes: dict[str, Any]) -> None:
    encoder = varied(changes).encoder
    assert encoder.context_frames is not None
    mel_BFS = torch.randn(1, 16, 256, requires_grad=True)
    place = encoder.frames(mel_BFS).shape[1] // 2
    encoder.frames(mel_BFS)[:, place].square().sum().backward()
    touched = mel_BFS.grad.abs().sum(dim=(0, 1)).nonzero()[:, 0]  # type: ignore[union-attr]
    own = place * encoder.frame_stride
    assert touched.min() >= own - encoder.context_frames
    assert touched.max() <= own + encoder.frame_stride - 1 + encoder.context_frames
    middle = own + encoder.frame_centre
    assert abs((touched.min() + touched.max()) / 2 - middle) < 1


@pytest.mark.parametrize("changes", GLOBAL)
def test_an_encoder_that_sees_the_whole_clip_takes_each_chunk_as_a_clip(
    changes: dict[str, Any], short_chunks: None
) -> None:
    encoder, wave_BT = varied(changes), noise(64_000)
    assert encoder.encoder.context_frames is None
    frames_BSD = encoder.frames(wave_BT)
    mel_BFS = encoder.frontend(wave_BT)
    size = -(-mel_BFS.shape[2] // 5)  # 4.01 s in chunks of at most a second
    size += -size % encoder.encoder.frame_stride
    parts = [encoder.encoder.frames(mel_BFS[..., at : at + size]) for at in range(0, mel_BFS.shape[2], size)]
    torch.testing.assert_close(frames_BSD, torch.cat(parts, dim=1), atol=1e-5, rtol=1e-5)


def test_many_clips_embed_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, wave_BT = varied({}), noise(16_000, 7)
    whole_BD = encoder(wave_BT)
    monkeypatch.setattr(embedder, "AT_ONCE_SECONDS", 2.5)
    torch.testing.assert_close(encoder(wave_BT), whole_BD)
    torch.testing.assert_close(encoder.frames(wave_BT)[6:], encoder.frames(wave_BT[6:]))


@pytest.mark.slow
def test_five_minutes_take_little_more_memory_than_half_a_minute() -> None:
    code = (
        "import resource, torch\n"
        "torch.set_num_threads(1)\n"
        "from scaleaudio.embedder import untrained\n"
        "from scaleaudio.task import TaskConfig\n"
        "encoder = untrained(TaskConfig.model_validate({'encoder': {'kind': 'audio_ntt_v2', 'embedding_dim': 3072}}))\n"
        "def peak(seconds):\n"
        "    with torch.inference_mode():\n"
        "        assert encoder(torch.randn(1, seconds * 16000)).isfinite().all()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(peak(30), peak(300))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    half_minute_mb, five_minutes_mb = (float(word) for word in ran.stdout.split())
    # The waveform and its frames (19 and 92 MB), once more while they are put together; a whole feature map has 490.
    assert five_minutes_mb - half_minute_mb < 300


# What is refused.


def test_another_rate_is_refused_where_it_is_said() -> None:
    encoder = untrained(config())
    torch.testing.assert_close(encoder(noise(8000), sample_rate_hz=16_000), encoder(noise(8000)))
    for embed in (encoder, encoder.frames):
        with pytest.raises(ValueError, match=r"waveforms at 44100 Hz: expected 16000 Hz\. Resample them"):
            embed(noise(8000), sample_rate_hz=44_100)


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"waveforms as ndarray: expected a torch tensor"):
        untrained(config())(np.zeros((1, 16_000), np.float32))
