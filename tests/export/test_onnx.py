"""One graph from waveform to embedding, the same as torch for any batch and length, and refused where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from tiny import AUDIO_NTT, config
from torch import Tensor

from scaleaudio.embedder import AudioEncoder, untrained
from scaleaudio.errors import RunFailed
from scaleaudio.export import onnx
from scaleaudio.frontend import FrontendConfig

SHAPES = [(1, 24_001), (5, 16_000), (2, 61_234)]  # others than those that the exporter itself tries
MORE: list[dict[str, Any]] = [
    {"encoder": {"kind": "audio_ntt_v2", "embedding_dim": 300}},
    {"encoder.norm": "group", "encoder.position": "both"},
    {"frontend": {"num_mels": 16, "n_fft": 512, "win_samples": 400, "mel_scale": "slaney", "mean": -8.0, "std": 3.0}},
]


def trained(changes: dict[str, Any]) -> AudioEncoder:
    """With running statistics of its own."""
    made = untrained(config(changes)).train()
    with torch.no_grad():
        made(torch.randn(4, 16_000))
    return made.eval().requires_grad_(False)


def assert_same(found_BD: Tensor, expected_BD: Tensor) -> None:
    assert ((found_BD - expected_BD).norm(dim=-1) / expected_BD.norm(dim=-1)).max() < onnx.TOLERANCE


def check_onnx(encoder: AudioEncoder, path: Path) -> None:
    assert onnx.write_onnx(encoder, path) < onnx.TOLERANCE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for num_clips, num_samples in [*SHAPES, (1, onnx.min_samples(encoder))]:
        wave_BT = 0.1 * torch.randn(num_clips, num_samples)
        embedding_BD, frames_BSD = map(
            torch.from_numpy, session.run(["embedding", "frames"], {"wave": wave_BT.numpy()})
        )
        assert_same(embedding_BD, encoder(wave_BT))
        assert_same(frames_BSD, encoder.frames(wave_BT))


@pytest.mark.parametrize("changes", [{}, AUDIO_NTT])
def test_onnx_embeds_any_batch_and_length_as_torch_does(changes: dict[str, Any], tmp_path: Path) -> None:
    check_onnx(trained(changes), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # one file, weights and all


@pytest.mark.slow
@pytest.mark.parametrize("changes", MORE)
def test_onnx_does_so_for_the_other_encoders_and_front_ends(changes: dict[str, Any], tmp_path: Path) -> None:
    check_onnx(trained(changes), tmp_path / "model.onnx")


@pytest.mark.parametrize("changes", [{}, *(pytest.param(more, marks=pytest.mark.slow) for more in [AUDIO_NTT, *MORE])])
@pytest.mark.filterwarnings("ignore::UserWarning:torch.export")
def test_a_program_embeds_any_batch_and_length_as_torch_does(changes: dict[str, Any], tmp_path: Path) -> None:
    encoder = trained(changes)
    assert onnx.write_program(encoder, tmp_path / "model.pt2") < onnx.TOLERANCE
    run = torch.export.load(tmp_path / "model.pt2").module()
    for shape in SHAPES:
        wave_BT = 0.1 * torch.randn(*shape)
        embedding_BD, frames_BSD = run(wave_BT)
        assert_same(embedding_BD, encoder(wave_BT))
        assert_same(frames_BSD, encoder.frames(wave_BT))


@pytest.mark.parametrize("keys", [{}, {"n_fft": 800, "win_samples": 401, "mel_scale": "slaney"}, {"hop_samples": 333}])
def test_the_front_end_as_a_convolution_is_the_front_end(keys: dict[str, Any]) -> None:
    settings = FrontendConfig(mean=-7.0, std=4.0, **keys)
    frontend = settings.build()
    found_BFS = onnx.ConvFrontend(settings, frontend)(0.1 * torch.randn(2, 16_000, generator=torch.manual_seed(0)))
    expected_BFS = frontend(0.1 * torch.randn(2, 16_000, generator=torch.manual_seed(0)))
    torch.testing.assert_close(found_BFS, expected_BFS, atol=1e-4, rtol=1e-4)


def test_a_difference_beyond_the_tolerance_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(path: Path) -> Any:
        return lambda wave_BT: encoder(wave_BT) * 1.001

    encoder = trained({})
    with pytest.raises(RunFailed, match=r"model.onnx: differs from torch by 1.0e-03 of the embedding, over 1e-04"):
        onnx._write_checked(encoder, tmp_path / "model.onnx", lambda path: path.write_bytes(b"x"), wrong)
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_is_a_difference(tmp_path: Path) -> None:
    encoder, runs = trained({}), iter([1.0, float("nan"), 1.0])
    with pytest.raises(RunFailed, match=r"differs from torch by nan"):
        onnx._write_checked(
            encoder,
            tmp_path / "model.onnx",
            lambda path: path.write_bytes(b"x"),
            lambda path: lambda wave_BT: encoder(wave_BT) * next(runs),
        )


def test_an_encoder_that_is_no_single_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    encoder = trained({})
    encoder.encoder.pool = lambda frames_BSD: frames_BSD[:, int(frames_BSD.sum()) :].mean(dim=1)  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match=r"model.pt2: encoder.kind resnet cannot be written so") as caught:
        onnx.write_program(encoder, tmp_path / "model.pt2")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
