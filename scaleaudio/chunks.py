"""A layer over a long signal, a chunk at a time, so that memory does not grow with the length.

Each chunk is computed with a margin of its neighbours, which is then cut off. Where the margin covers what a frame
depends on, the frames are those of the whole signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Chunking(NamedTuple):
    """How a signal is cut, in frames of what the layer gives.

    Attributes:
        stride: places of the signal to one frame.
        frames: frames in a chunk, at most.
        margin: frames on either side that a chunk is computed with and gives away.
    """

    stride: int
    frames: int
    margin: int


def in_chunks(layer: Callable[[Tensor], Tensor], signal: Tensor, cut: Chunking, *, dim: int) -> Tensor:
    """What `layer` gives for the whole signal, up to rounding where the margin is wide enough.

    Args:
        layer: maps places of the last axis to frames, one for each `cut.stride` of them.
        signal: time is the last axis; one chunk or less goes through the layer as it is.
        cut: how it is cut; all chunks are about equally long.
        dim: the axis of the frames in what the layer gives.
    """
    if signal.shape[-1] <= cut.stride * cut.frames:
        return layer(signal)
    return torch.cat(list(_chunks(layer, signal, cut, dim)), dim=dim)


def _chunks(layer: Callable[[Tensor], Tensor], signal: Tensor, cut: Chunking, dim: int) -> Iterator[Tensor]:
    places = signal.shape[-1]
    num_frames = -(-places // cut.stride)
    num_chunks = -(-num_frames // cut.frames)
    size = -(-num_frames // num_chunks)
    for first in range(0, num_frames, size):
        is_last = first + size >= num_frames
        begin = max(0, first - cut.margin)
        end = places if is_last else (first + size + cut.margin) * cut.stride
        made = layer(signal[..., begin * cut.stride : end])
        cut_off = first - begin
        yield made.narrow(dim, cut_off, made.shape[dim] - cut_off if is_last else size)
