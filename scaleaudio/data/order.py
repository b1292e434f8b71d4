"""Which sample is read at which step by whom: a pure function of (seed, step), in memory that does not grow.

All samples of all shards are numbered end to end and cut into chunks of consecutive numbers. An epoch permutes the
chunks, lays them end to end, cuts that sequence into L equal lanes, and permutes within windows of each lane. Every
step takes the next G / L samples of every lane; a worker serves whole lanes, so what a step holds does not depend on
how many workers there are, and one integer resumes it.

The permutations are keyed: a generalised Feistel network on a grid, with cycle walking (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains"). Any position is computed directly, nothing is shuffled in memory. Only one
chunk is short, so once it is known where it landed, a position of the sequence is a division away from its sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from scaleaudio.errors import InputError
from scaleaudio.types import keyed_seed

Integers = NDArray[np.int64]
_Words = NDArray[np.uint64]
_Network = Callable[[_Words, _Words, _Words, _Words], _Words]

# Changed with anything below that changes the order: it is part of a checkpoint's fingerprint.
ORDER_VERSION = 1
_NUM_ROUNDS = 4
_NUM_NEIGHBOURS = 3


@dataclass(frozen=True)
class Order:
    """The order in which `num_samples` samples are read, epoch after epoch, without end.

    Attributes:
        num_samples: samples in all shards (N).
        global_batch: clips of one step over all workers (G).
        lanes: parallel sequences (L), a divisor of G; a worker serves one or more.
        chunk_samples: consecutive samples that stay together, so that one ranged read brings them.
        window_samples: consecutive samples of a lane that are shuffled among themselves; what a lane holds in memory.
        seed: of the run.

    Raises:
        InputError: when there are too few samples for one batch, or the lanes do not divide the batch.
    """

    num_samples: int
    global_batch: int
    lanes: int
    chunk_samples: int = 32
    window_samples: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers that make no order."""
        for name in ("global_batch", "lanes", "chunk_samples", "window_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name}: expected 1 or more, got {getattr(self, name)}.")
        if self.global_batch % self.lanes:
            raise InputError(
                f"data.lanes {self.lanes} does not divide data.global_batch {self.global_batch}. "
                "Every lane gives equally many clips to a step: choose a divisor."
            )
        if self.num_samples < self.global_batch:
            raise InputError(
                f"too few clips for one batch: the index holds {self.num_samples}, data.global_batch is "
                f"{self.global_batch}. Lower data.global_batch or add clips."
            )

    @property
    def lane_batch(self) -> int:
        """Clips a lane gives to one step (G / L)."""
        return self.global_batch // self.lanes

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.num_samples // self.global_batch

    @property
    def remainder(self) -> int:
        """Samples that an epoch leaves out (fewer than one global batch; others in each epoch)."""
        return self.num_samples % self.global_batch

    @property
    def lane_samples(self) -> int:
        """Samples of one lane in one epoch."""
        return self.steps_per_epoch * self.lane_batch

    def samples(self, step: int, lanes: range) -> Integers:
        """The sample numbers that `lanes` read at `step`, in slot order; shape (len(lanes) * lane_batch,)."""
        epoch, row = divmod(step, self.steps_per_epoch)
        place = row * self.lane_batch + np.arange(self.lane_batch)
        return self._numbers(epoch, np.repeat(np.asarray(lanes), self.lane_batch), np.tile(place, len(lanes)))

    def sample(self, lane: int, taken: int) -> int:
        """The sample number that `lane` reads once it has read `taken`."""
        epoch, place = divmod(taken, self.lane_samples)
        return int(self._numbers(epoch, np.asarray([lane]), np.asarray([place]))[0])

    def windows(self, lane: int, taken: int) -> Iterator[Integers]:
        """What `lane` reads once it has read `taken` samples, window by window and epoch after epoch, without end.

        The first piece is what is left of the window in which the next sample lies.
        """
        start_epoch, place = divmod(taken, self.lane_samples)
        for epoch in count(start_epoch):
            while place < self.lane_samples:
                end = int(self._window(np.asarray([lane]), np.asarray([place]))[2][0])
                yield self._numbers(epoch, np.full(end - place, lane), np.arange(place, end))
                place = end
            place = 0

    def replacements(self, step: int, number: int) -> Iterator[int]:
        """The samples to try, in turn, where `number` cannot be used at `step`: the same for every worker.

        The next few of its chunk come first, since their shard's table is at hand; then draws from all samples.
        """
        first = number - number % self.chunk_samples
        size = min(self.chunk_samples, self.num_samples - first)
        for ahead in range(1, min(_NUM_NEIGHBOURS, size - 1) + 1):
            yield first + (number - first + ahead) % size
        for attempt in count():
            yield keyed_seed(self.seed, "replacement", step, number, attempt) % self.num_samples

    def _numbers(self, epoch: int, lane: Integers, place: Integers) -> Integers:
        """The sample numbers at `place` (0 to lane_samples - 1) of each `lane`."""
        window, start, end = self._window(lane, place)
        key = mix(mix(_key(self.seed, "window", epoch) + _words(lane)) + _words(window))
        shuffled = start + permute(place - start, end - start, key)
        return self._chunked(epoch, lane * self.lane_samples + shuffled)

    def _window(self, lane: Integers, place: Integers) -> tuple[Integers, Integers, Integers]:
        """The window in which each place lies: its number, and its first place and end within the lane.

        Lanes change windows in turn, not all at the same step: reading stays even.
        """
        shift = lane * self.window_samples // self.lanes
        window = (place + shift) // self.window_samples
        start = np.maximum(window * self.window_samples - shift, 0)
        end = np.minimum((window + 1) * self.window_samples - shift, self.lane_samples)
        return window, start, end

    def _chunked(self, epoch: int, position: Integers) -> Integers:
        """The sample numbers at `position` of the epoch's chunks laid end to end."""
        num_chunks = -(-self.num_samples // self.chunk_samples)
        key = _key(self.seed, "chunks", epoch)
        missing = num_chunks * self.chunk_samples - self.num_samples
        short_at = int(unpermute(np.asarray([num_chunks - 1]), num_chunks, key)[0])
        # As if the short chunk were whole: what lies behind it moves by what it lacks.
        whole = position + missing * (position >= (short_at + 1) * self.chunk_samples - missing)
        chunk = permute(whole // self.chunk_samples, num_chunks, key)
        number: Integers = chunk * self.chunk_samples + whole % self.chunk_samples
        return number


def permute(index: Integers, size: Integers | int, key: _Words) -> Integers:
    """Each index moved by a keyed permutation of range(size), element by element.

    Args:
        index: from 0 to size - 1, at least one-dimensional.
        size: of the permuted range, one for all or one for each.
        key: chooses the permutation, one for all or one for each (shape (1,) or that of index).
    """
    return _walk(index, size, key, _forward)


def unpermute(index: Integers, size: Integers | int, key: _Words) -> Integers:
    """The inverse of `permute` under the same size and key."""
    return _walk(index, size, key, _backward)


def mix(word: _Words) -> _Words:
    """64 bits that all depend on all 64 bits of `word`: the finaliser of SplitMix64 (Steele et al. 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def _walk(index: Integers, size: Integers | int, key: _Words, network: _Network) -> Integers:
    """`network`, applied again to whatever falls outside range(size): still a permutation of that range."""
    place, sizes, keys = np.broadcast_arrays(_words(index), _words(np.atleast_1d(size)), key)
    # A grid barely larger than the range, so that few elements walk.
    rows = np.sqrt(sizes).astype(np.uint64) + np.uint64(1)
    columns = (sizes + rows - np.uint64(1)) // rows
    place = network(place, rows, columns, keys)
    while (outside := place >= sizes).any():
        place[outside] = network(place[outside], rows[outside], columns[outside], keys[outside])
    return place.astype(np.int64)


def _forward(place: _Words, rows: _Words, columns: _Words, key: _Words) -> _Words:
    left, right = place // columns, place % columns
    for turn in range(_NUM_ROUNDS):
        left = (left + _turn(right, key, 2 * turn) % rows) % rows
        right = (right + _turn(left, key, 2 * turn + 1) % columns) % columns
    return left * columns + right


def _backward(place: _Words, rows: _Words, columns: _Words, key: _Words) -> _Words:
    left, right = place // columns, place % columns
    for turn in reversed(range(_NUM_ROUNDS)):
        right = (right + columns - _turn(left, key, 2 * turn + 1) % columns) % columns
        left = (left + rows - _turn(right, key, 2 * turn) % rows) % rows
    return left * columns + right


def _turn(half: _Words, key: _Words, turn: int) -> _Words:
    return mix(half ^ mix(key + np.uint64(turn)))


def _key(*parts: int | str) -> _Words:
    # One-dimensional: numpy warns when a scalar wraps around, and an array wraps as meant.
    return np.asarray([keyed_seed(*parts)], dtype=np.uint64)


def _words(numbers: Integers) -> _Words:
    return np.asarray(numbers).astype(np.uint64)
