"""The words everything else is written in, and the one axis legend.

Tensors end in their axes:

    B clips on this rank   G clips in the global batch   T samples of a waveform
    F mel bins             S spectrogram frames          D embedding width
    K candidates           L lanes of the stream
    M clips that get negatives, P negatives of each
    C channels             N rows of several batches put together, or a plain count
    R rows of a table of displacement maps, Q its families

so `wave_BT` is a batch of waveforms and `mel_BFS` a batch of spectrograms.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

# No audio has greater samples, not even at a 32-bit integer's scale; the power of far greater ones is beyond float32.
LOUDEST = 2.0**32


class Settings(BaseModel):
    """Base of every config: frozen; an unknown key is an error, as is a number that is none (.nan) or endless (.inf).

    A traceback does not show what was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


@dataclass(frozen=True)
class World:
    """Which of how many workers this is."""

    rank: int = 0
    size: int = 1

    def share(self, num_lanes: int) -> range:
        """The consecutive lanes that this rank serves; the shares differ by one where it does not divide.

        Raises:
            ValueError: when there are more workers than lanes.
        """
        if self.size > num_lanes:
            raise ValueError(
                f"data.lanes {num_lanes}: {self.size} workers need at least {self.size} lanes. "
                "Raise data.lanes (it must divide data.global_batch) or start fewer workers."
            )
        return range(self.rank * num_lanes // self.size, (self.rank + 1) * num_lanes // self.size)

    def counts(self, num_lanes: int, lane_batch: int) -> list[int]:
        """How many clips each rank has in a step."""
        return [len(World(rank, self.size).share(num_lanes)) * lane_batch for rank in range(self.size)]


@dataclass(frozen=True)
class Reject:
    """One input that could not be used, and why."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """This rank's part of the global batch of one step.

    Attributes:
        wave_BT: mono waveforms in [-1, 1], float32; or int16, as parts of 32,768.
        key_B: the sample keys.
        slot_B: which rows of the global batch these are (int64, on the CPU); whole lanes, in order.
        step: the step that this batch belongs to.
        global_batch: clips in the whole batch, over all ranks (G).
        lane_batch: clips a lane gives to one step (G / L).
        rejects: samples that had to be replaced while this batch was read.
    """

    wave_BT: Tensor
    key_B: tuple[str, ...]
    slot_B: Tensor
    step: int
    global_batch: int
    lane_batch: int
    rejects: tuple[Reject, ...] = ()

    @property
    def num_lanes(self) -> int:
        """Lanes of the whole stream (L)."""
        return self.global_batch // self.lane_batch

    def to(self, device: torch.device) -> Batch:
        """The same batch with its waveforms on `device`; the slots stay on the CPU."""
        wave_BT = self.wave_BT.to(device, non_blocking=True)
        return Batch(wave_BT, self.key_B, self.slot_B, self.step, self.global_batch, self.lane_batch, self.rejects)


class Views(NamedTuple):
    """Two views of each clip, as normalised log-mel spectrograms."""

    anchor_BFS: Tensor
    positive_BFS: Tensor


class Losses(NamedTuple):
    """What one step optimises, and what it watches.

    Attributes:
        total: scalar, with gradient.
        parts: detached scalars by name.
        embedding_BD: the anchors' embeddings, detached, for the collapse watch.
    """

    total: Tensor
    parts: dict[str, Tensor]
    embedding_BD: Tensor


class Draws:
    """The random numbers of one step, drawn lane by lane for the lanes of this rank alone.

    Each lane has a generator of its own for each name, so that a draw depends on (seed, step, name, lane): not on the
    number of workers, nor on what else is switched on; and a rank draws no more than it uses, however many there are.
    """

    def __init__(self, seed: int, batch: Batch, device: torch.device) -> None:
        """Draws for the clips of `batch`; results land on `device`."""
        self._key = (seed, batch.step)
        self._lane_batch = batch.lane_batch
        self._lanes: list[int] = (batch.slot_B[:: batch.lane_batch] // batch.lane_batch).tolist()
        self._row_M: Tensor | None = None
        self._device = device

    def of(self, row_M: Tensor) -> Draws:
        """The same random numbers for some of the clips alone; `row_M` is on the CPU."""
        some = copy.copy(self)
        some._row_M = row_M if self._row_M is None else self._row_M[row_M]
        return some

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), of shape (B, *shape)."""
        generators = (torch.Generator().manual_seed(keyed_seed(*self._key, name, lane)) for lane in self._lanes)
        drawn = torch.cat([torch.rand((self._lane_batch, *shape), generator=generator) for generator in generators])
        return (drawn if self._row_M is None else drawn[self._row_M]).to(self._device, non_blocking=True)


def keyed_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all `parts` and on nothing else."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
