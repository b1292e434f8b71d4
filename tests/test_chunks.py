"""A long signal in chunks gives what the whole signal gives."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaleaudio.chunks import Chunking, in_chunks


def sums(width: int, stride: int, calls: list[int]) -> torch.nn.Module:
    """Frame i is the sum over `width` places on either side of place i * stride; counts what it was called with."""

    class Sums(torch.nn.Module):
        def forward(self, signal_BT: Tensor) -> Tensor:
            calls.append(signal_BT.shape[-1])
            padded = torch.nn.functional.pad(signal_BT, (width, width))
            return padded.unfold(-1, 2 * width + 1, stride).sum(-1)

    return Sums()


@settings(max_examples=100, deadline=None)
@given(
    places=st.integers(1, 400),
    stride=st.integers(1, 7),
    frames=st.integers(1, 30),
    width=st.integers(0, 20),
)
def test_chunks_with_a_margin_as_wide_as_the_layer_looks_are_the_whole(
    places: int, stride: int, frames: int, width: int
) -> None:
    calls: list[int] = []
    layer = sums(width, stride, calls)
    signal_BT = torch.arange(1.0, 1 + 2 * places).view(2, places)  # whole numbers: sums are exact
    cut = Chunking(stride, frames, margin=-(-width // stride))
    made = in_chunks(layer, signal_BT, cut, dim=-1)
    assert max(calls) <= (frames + 2 * cut.margin) * stride
    assert torch.equal(made, layer(signal_BT))


def test_too_small_a_margin_shows_at_the_borders_alone() -> None:
    layer = sums(3, 1, [])
    signal_BT = torch.ones(1, 100)
    wrong = (in_chunks(layer, signal_BT, Chunking(1, 25, margin=2), dim=-1) != layer(signal_BT)).nonzero()[:, 1]
    assert wrong.tolist() == [24, 25, 49, 50, 74, 75]


def test_a_signal_of_one_chunk_goes_through_as_it_is() -> None:
    calls: list[int] = []
    in_chunks(sums(5, 2, calls), torch.ones(1, 60), Chunking(2, 30, margin=3), dim=-1)
    assert calls == [60]
