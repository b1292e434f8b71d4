"""Encoders: published sizes and layouts, any length, and where a pattern is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from scaleaudio.encoders import Encoder, EncoderConfig
from scaleaudio.encoders.base import norm_2d


def build(num_mels: int = 64, num_frames: int = 96, **keys: Any) -> Encoder:
    torch.manual_seed(0)
    return TypeAdapter(EncoderConfig).validate_python(keys).build(num_mels, num_frames).eval()


def mels(num_clips: int = 2, num_mels: int = 64, num_frames: int = 96) -> Tensor:
    return torch.randn(num_clips, num_mels, num_frames, generator=torch.Generator().manual_seed(0))


# AudioNTT as published (arXiv 2103.06695, arXiv 2204.07402).


@pytest.mark.parametrize(
    ("kind", "embedding_dim", "num_parameters"),
    [
        ("audio_ntt", 512, 600_192),
        ("audio_ntt", 1024, 1_649_792),
        ("audio_ntt", 2048, 5_321_856),
        ("audio_ntt_v2", 3072, 6_333_376),
    ],
)
def test_audio_ntt_has_the_published_number_of_parameters(kind: str, embedding_dim: int, num_parameters: int) -> None:
    encoder = build(kind=kind, embedding_dim=embedding_dim)
    assert sum(p.numel() for p in encoder.parameters()) == num_parameters
    assert encoder.embedding_dim == embedding_dim


@pytest.mark.parametrize(
    ("kind", "blocks", "width", "hidden", "out"),
    [("audio_ntt", (0, 4, 8), 512, 512, 512), ("audio_ntt_v2", (0, 4), 1024, 2048, 2048)],
)
def test_audio_ntt_state_dicts_have_the_published_layout(
    kind: str, blocks: tuple[int, ...], width: int, hidden: int, out: int
) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for block in blocks:
        expected[f"features.{block}.weight"] = (64, 1 if block == 0 else 64, 3, 3)
        expected[f"features.{block}.bias"] = (64,)
        norm = ("weight", "bias", "running_mean", "running_var")
        expected |= {f"features.{block + 1}.{name}": (64,) for name in norm}
        expected[f"features.{block + 1}.num_batches_tracked"] = ()
    expected |= {"fc.0.weight": (hidden, width), "fc.0.bias": (hidden,)}
    expected |= {"fc.3.weight": (out, hidden), "fc.3.bias": (out,)}
    encoder = build(kind=kind, embedding_dim=512 if kind == "audio_ntt" else 3072)
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == expected


def published(encoder: Encoder, mel_BFS: Tensor) -> Tensor:
    """The published forward pass, on the same weights."""
    assert isinstance(encoder.features, nn.Sequential) and isinstance(encoder.fc, nn.Sequential)
    x = encoder.features(mel_BFS[:, None])
    x = x.permute(0, 3, 2, 1)
    num_clips, num_frames, height, channels = x.shape
    x = x.reshape(num_clips, num_frames, channels * height)
    y = encoder.fc(x)
    return torch.cat([x, y], dim=-1) if encoder.embedding_dim == 3072 else y


@pytest.mark.parametrize(("kind", "embedding_dim", "stride"), [("audio_ntt", 512, 8), ("audio_ntt_v2", 3072, 4)])
def test_audio_ntt_computes_as_published(kind: str, embedding_dim: int, stride: int) -> None:
    encoder = build(kind=kind, embedding_dim=embedding_dim)
    frames_BSD = encoder.frames(mels())
    assert frames_BSD.shape == (2, 96 // stride, embedding_dim) and encoder.frame_stride == stride
    torch.testing.assert_close(frames_BSD, published(encoder, mels()))
    torch.testing.assert_close(encoder(mels()), frames_BSD.max(dim=1).values + frames_BSD.mean(dim=1))


def test_dropout_is_between_the_linear_layers_and_only_in_training() -> None:
    encoder = build(kind="audio_ntt", dropout=0.5)
    assert torch.equal(encoder(mels()), encoder(mels()))
    encoder.train()
    assert not torch.equal(encoder(mels()), encoder(mels()))
    assert build(kind="audio_ntt").fc[2].p == 0.3  # type: ignore[index, union-attr]


# Any encoder.

ALL: list[dict[str, Any]] = [
    {"kind": "audio_ntt", "embedding_dim": 48},
    {"kind": "audio_ntt_v2", "embedding_dim": 1100},
    {"kind": "resnet", "widths": (8, 12, 16)},
    {"kind": "resnet", "widths": (8, 16), "blocks_per_stage": 2, "norm": "group"},
    {"kind": "cnn", "widths": (8, 12, 16)},
    {"kind": "transformer", "width": 24, "depth": 2, "heads": 2},
]


@pytest.mark.parametrize("position", ["none", "both"])
@pytest.mark.parametrize("keys", ALL)
def test_any_length_from_one_embedding_frame_on_is_embedded(keys: dict[str, Any], position: str) -> None:
    encoder = build(**keys, position=position)
    for num_frames in (encoder.frame_stride, 33, 96, 401):
        frames_BSD = encoder.frames(mels(num_frames=num_frames))
        assert frames_BSD.shape[0] == 2 and frames_BSD.shape[2] == encoder.embedding_dim
        assert num_frames // encoder.frame_stride <= frames_BSD.shape[1] <= -(-num_frames // encoder.frame_stride)
        assert encoder(mels(num_frames=num_frames)).shape == (2, encoder.embedding_dim)


@pytest.mark.parametrize("keys", ALL)
def test_every_parameter_gets_a_gradient(keys: dict[str, Any]) -> None:
    encoder = build(**keys, position="both").train()
    encoder(mels(num_frames=80)).square().sum().backward()  # another length than it was made for
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


def test_a_clip_embedding_of_the_resnet_is_the_mean_over_time() -> None:
    encoder = build(**ALL[2])
    torch.testing.assert_close(encoder(mels()), encoder.frames(mels()).mean(dim=1))
    assert encoder.frames(mels(num_frames=97)).shape[1] == 13  # the last frame is not dropped


def test_the_resnet_takes_any_number_of_mel_bins() -> None:
    assert build(num_mels=23, **ALL[2])(mels(num_mels=23)).shape == (2, 16)


def test_more_blocks_a_stage_are_more_layers_and_the_first_of_each_halves() -> None:
    one, two = (build(kind="resnet", widths=(8, 16), blocks_per_stage=n) for n in (1, 2))
    assert len(list(two.modules())) > len(list(one.modules()))
    assert one.frames(mels()).shape == two.frames(mels()).shape == (2, 24, 16)


def test_group_norm_embeds_a_clip_the_same_whatever_is_beside_it() -> None:
    encoder = build(**ALL[3]).train()
    torch.testing.assert_close(encoder(mels(4))[:2], encoder(mels(4)[:2]), atol=1e-6, rtol=1e-5)
    batch_norm = build(**ALL[2]).train()
    assert (batch_norm(mels(4))[:2] - batch_norm(mels(4)[:2])).abs().max() > 1e-3


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 6), (7, 7), (11, 1), (64, 8)])
def test_group_norm_has_up_to_eight_groups_that_divide(channels: int, groups: int) -> None:
    norm = norm_2d("group", channels)
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups


# Position vectors.


@pytest.mark.parametrize("keys", ALL)
def test_position_none_adds_no_keys_and_both_adds_two(keys: dict[str, Any]) -> None:
    plain, both = (build(**keys, position=position).state_dict().keys() for position in ("none", "both"))
    assert both - plain == {"position.frequency", "position.time"}
    assert not plain - both


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_a_position_vector_lets_the_resnet_see_where_a_pattern_is(axis: str) -> None:
    """Without one, a pattern far from the borders embeds the same wherever it is (as far as strides allow)."""
    dim = 1 if axis == "frequency" else 2
    here = torch.zeros(1, 64, 96)
    here[:, 24:28, 40:44] = 5.0
    there = here.roll(8, dims=dim)
    plain, sees = (build(kind="resnet", widths=(8, 16), position=position) for position in ("none", axis))
    with torch.no_grad():
        getattr(sees.position, axis).normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    blind, seen = ((encoder(here) - encoder(there)).abs().max() for encoder in (plain, sees))
    assert blind < 1e-5
    assert seen > 100 * blind + 1e-4


# The registry.


@pytest.fixture
def own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_encoders.py").write_text(
        "from scaleaudio.encoders import Encoder\n"
        "class Mean(Encoder):\n"
        "    def __init__(self, num_mels, num_frames, scale=1.0):\n"
        "        super().__init__()\n"
        "        self.embedding_dim, self.frame_stride, self.scale = num_mels, 1, scale\n"
        "    def frames(self, mel_BFS):\n"
        "        return self.scale * mel_BFS.mT\n"
        "class NoEncoder:\n"
        "    def __init__(self, num_mels, num_frames):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_anyones_own_encoder_is_named_by_package_and_class() -> None:
    encoder = build(kind="their_encoders:Mean", options={"scale": 2.0})
    torch.testing.assert_close(encoder(mels()), 2 * mels().mean(dim=2))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_package:Mean", "cannot be imported"),
        ("their_encoders:Missing", "cannot be imported"),
        ("their_encoders:NoEncoder", "expected a subclass of scaleaudio.encoders.Encoder"),
    ],
)
def test_an_own_encoder_that_cannot_be_used_is_named(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"encoder\.kind '{kind}': {message}"):
        build(kind=kind)


def test_what_is_no_encoder_is_not_even_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_calls.py").write_text("def Encoder(path, **sizes):\n    open(path, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="expected a subclass of scaleaudio"):
        build(kind="their_calls:Encoder", options={"path": str(tmp_path / "called")})
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "nope"}, "'audio_ntt', 'audio_ntt_v2', 'cnn', 'resnet', 'timm', 'transformer', 'own'"),
        ({"kind": "resnet", "widths": ()}, "at least 1 item"),
        ({"kind": "resnet", "embedding_dim": 3}, "Extra inputs are not permitted"),
    ],
)
def test_an_encoder_that_is_none_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**keys)


def test_v2_refuses_an_embedding_that_its_features_fill() -> None:
    with pytest.raises(ValueError, match="embedding_dim 1024: audio_ntt_v2 on 64 mels keeps 1024 features"):
        build(kind="audio_ntt_v2", embedding_dim=1024)


def test_mel_bins_that_the_pooling_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"frontend\.num_mels 60: audio_ntt needs a multiple of 8"):
        build(num_mels=60, kind="audio_ntt")


def test_blocks_that_would_halve_a_spectrogram_to_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder\.widths: 4 blocks halve 64 mels x 15 frames to nothing"):
        build(num_frames=15, kind="cnn", widths=(8, 8, 8, 8))


def test_features_that_fill_the_embedding_are_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder\.embedding_dim 1100: audio_ntt_v2 on 128 mels keeps 2048 features"):
        build(num_mels=128, kind="audio_ntt_v2", embedding_dim=1100)
