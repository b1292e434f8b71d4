"""Backbones of timm as encoders: any length, every weight in use, a stated hop, and clear refusals."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from scaleaudio.encoders import Encoder, EncoderConfig

pytest.importorskip("timm")
CONVOLUTIONAL = ["test_resnet", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"]
ONE_SIZE = ["test_vit"]
LARGE = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("swin_tiny_patch4_window7_224", "mixer_s32_224", "levit_128s", "xcit_nano_12_p16_224")
]


def build(model: str, num_frames: int = 96, **keys: Any) -> Encoder:
    torch.manual_seed(0)
    tree = {"kind": "timm", "model": model} | keys
    return TypeAdapter(EncoderConfig).validate_python(tree).build(64, num_frames).eval()


def mels(num_frames: int = 96, num_clips: int = 2) -> Tensor:
    return torch.randn(num_clips, 64, num_frames, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", CONVOLUTIONAL + ONE_SIZE + LARGE)
def test_any_length_from_one_embedding_frame_on_is_embedded(model: str) -> None:
    encoder = build(model, position="both")
    with torch.no_grad():
        for num_frames in (encoder.frame_stride, 96, 230):
            frames_BSD = encoder.frames(mels(num_frames))
            assert frames_BSD.shape[::2] == (2, encoder.embedding_dim)
            least, most = num_frames // encoder.frame_stride, -(-num_frames // encoder.frame_stride)
            assert (least if model in CONVOLUTIONAL else most) <= frames_BSD.shape[1] <= most
            assert encoder(mels(num_frames)).shape == (2, encoder.embedding_dim)


@pytest.mark.parametrize("model", CONVOLUTIONAL + ONE_SIZE + LARGE)
def test_every_parameter_gets_a_gradient(model: str) -> None:
    encoder = build(model, position="both").train()
    frames_BSD = encoder.frames(mels(num_clips=4))
    (frames_BSD * torch.randn(frames_BSD.shape)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050", "test_convnext"])
def test_a_clip_of_one_column_is_what_timm_itself_makes_of_it(model: str) -> None:
    encoder = build(model)
    backbone: Any = encoder.backbone
    expected = backbone.forward_head(backbone.forward_features(mels(32)[:, None]), pre_logits=True)
    torch.testing.assert_close(encoder(mels(32)), expected)


def test_options_reach_the_model_and_the_hop_follows() -> None:
    plain, finer = build("test_resnet"), build("test_resnet", options={"output_stride": 8})
    assert (plain.frame_stride, finer.frame_stride) == (32, 8)
    assert finer.frames(mels(96)).shape[1] == 12


def test_a_patch_need_not_be_square_and_its_frames_are_the_hop() -> None:
    encoder = build("test_vit", options={"patch_size": [16, 4]})
    assert encoder.frame_stride == 4 and encoder.frames(mels(96)).shape[1] == 24
    # Each frame holds its own column of patches: with attention switched off, nothing else moves it.
    for block in encoder.backbone.blocks:  # type: ignore[union-attr]
        torch.nn.init.zeros_(block.attn.proj.weight)
    moved = mels(96)
    moved[:, :, 40:44] += 1
    changed = (encoder.frames(moved) - encoder.frames(mels(96))).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [10]


def test_a_crop_that_patches_do_not_divide_has_a_window_of_whole_patches() -> None:
    encoder = build("test_vit", num_frames=90)
    assert encoder.frames(mels(90)).shape[1] == 6
    assert encoder.frames(mels(97)).shape[1] == 7


def test_a_long_clip_of_a_vit_is_embedded_as_its_windows() -> None:
    encoder = build("test_vit")
    parts = [encoder.frames(part) for part in mels(200).split(96, dim=2)]
    torch.testing.assert_close(encoder.frames(mels(200)), torch.cat(parts, dim=1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "no_such_net"}, r"encoder\.model 'no_such_net': timm cannot make it \(Unknown model"),
        ({"model": "test_resnet", "options": {"wings": 2}}, "cannot make it .*wings"),
        ({"model": "crossvit_tiny_240"}, "choose another model"),
    ],
)
def test_what_cannot_be_made_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**keys)


def test_a_missing_timm_is_answered_with_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm is not installed; pip install 'scaleaudio\[timm\]'"):
        build("test_resnet")
