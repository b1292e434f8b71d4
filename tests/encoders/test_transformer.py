"""The transformer over patches: where it sees positions, and how it takes long clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from scaleaudio.encoders.transformer import Transformer, TransformerConfig


def build(**keys: Any) -> Transformer:
    torch.manual_seed(0)
    small = {"width": 24, "depth": 2, "heads": 2} | keys
    return TransformerConfig.model_validate(small).build(64, 96).eval()


def mels(num_frames: int, num_clips: int = 2) -> Tensor:
    return torch.randn(num_clips, 64, num_frames, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("axis", "step"), [("frequency", 16), ("time", 4)])
def test_without_positions_a_rearrangement_of_patches_embeds_the_same_and_with_them_it_does_not(
    axis: str, step: int
) -> None:
    dim = 1 if axis == "frequency" else 2
    here, there = mels(96), mels(96).roll(step, dims=dim)
    blind, sees = build(position="none"), build(position=axis)
    torch.testing.assert_close(blind(here), blind(there), atol=1e-5, rtol=1e-5)
    assert (sees(here) - sees(there)).abs().max() > 1e-3


def test_a_long_clip_is_embedded_as_its_windows_one_after_the_other() -> None:
    encoder, whole = build(), mels(96 * 2 + 30)
    parts = [encoder.frames(part) for part in whole.split(96, dim=2)]
    assert torch.equal(encoder.frames(whole), torch.cat(parts, dim=1))
    assert encoder.frames(whole).shape == (2, 24 + 24 + 8, 24)


def test_a_frame_is_placed_where_it_is_in_a_short_clip_as_in_a_whole_window() -> None:
    """With attention switched off, what is left of a frame depends on its own patches and place alone."""
    encoder = build()
    for block in encoder.blocks:
        torch.nn.init.zeros_(block.out.weight)  # type: ignore[arg-type, union-attr]
        torch.nn.init.zeros_(block.out.bias)  # type: ignore[arg-type, union-attr]
    torch.testing.assert_close(encoder.frames(mels(96)[:, :, :40]), encoder.frames(mels(96))[:, :10])


def test_it_has_a_stated_hop_and_drops_no_frame() -> None:
    encoder = build(patch_frames=5)
    assert encoder.frame_stride == 5
    assert [encoder.frames(mels(n)).shape[1] for n in (5, 96, 97, 101)] == [1, 20, 20, 21]


def test_eval_mode_with_and_without_gradient_gives_the_same_bits() -> None:
    encoder = build()
    with torch.no_grad():
        scored = encoder(mels(96))
    assert torch.equal(scored, encoder(mels(96)))


def test_dropout_acts_in_training_alone() -> None:
    encoder = build(dropout=0.5)
    assert torch.equal(encoder(mels(96)), encoder(mels(96)))
    assert not torch.equal(encoder.train()(mels(96)), encoder(mels(96)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"heads": 5}, r"width 24: expected a multiple of heads \(5\)"),
        ({"patch_mels": 24}, r"frontend\.num_mels 64: encoder\.patch_mels 24 does not divide it"),
        ({"depth": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ValidationError), match=message):
        build(**keys)
