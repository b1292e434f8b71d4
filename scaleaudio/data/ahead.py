"""Clips are read and decoded ahead of their step, by threads that write straight into the batch.

Two pools: reading threads wait for storage, decoding threads wait for them, and nobody waits for a decoding thread but
the one who takes the batches. A task is a few clips of one step, so that any number of threads has work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scaleaudio.data.decode import decode_crop
from scaleaudio.data.fetch import Fetcher, Member
from scaleaudio.data.order import Integers, Order
from scaleaudio.data.rejects import BadDataError
from scaleaudio.errors import DecodeError
from scaleaudio.types import Batch, Reject, keyed_seed

MAX_REPLACEMENTS = 16
CLIPS_PER_TASK = 16


class Wanted(NamedTuple):
    """A sample that will be decoded, and the read that brings its bytes (by sample number)."""

    number: int
    read: Future[dict[int, Member]]


class Part(NamedTuple):
    """What a task gives back beside the waveforms that it wrote."""

    keys: list[str]
    rejects: list[Reject]


class Lane:
    """What one lane decodes next; its windows are requested before they are needed."""

    def __init__(self, windows: Iterator[Integers], fetcher: Fetcher, readers: ThreadPoolExecutor) -> None:
        """A lane that reads `windows` of sample numbers, one after the other."""
        self._windows = windows
        self._fetcher = fetcher
        self._readers = readers
        self._queue: deque[Wanted] = deque()

    def take(self, num_clips: int, steps_ahead: int) -> list[Wanted]:
        """The lane's next clips, once those of `steps_ahead` further steps are requested too."""
        while len(self._queue) < num_clips * (1 + steps_ahead):
            self._request(next(self._windows))
        return [self._queue.popleft() for _ in range(num_clips)]

    def _request(self, window: Integers) -> None:
        reads: dict[int, Future[dict[int, Member]]] = {}
        for group in self._fetcher.groups(window):
            reads |= dict.fromkeys(group.tolist(), self._readers.submit(self._fetcher.read_ahead, group))
        self._queue.extend(Wanted(number, reads[number]) for number in window.tolist())


class Pending(NamedTuple):
    """A batch whose clips are being decoded into it."""

    wave_BT: torch.Tensor
    slot_B: torch.Tensor
    parts: list[Future[Part]]
    step: int
    order: Order

    def finish(self) -> Batch:
        """The batch, once all its clips are there; raises what a thread raised."""
        parts = [part.result() for part in self.parts]
        return Batch(
            wave_BT=self.wave_BT,
            key_B=tuple(key for part in parts for key in part.keys),
            slot_B=self.slot_B,
            step=self.step,
            global_batch=self.order.global_batch,
            lane_batch=self.order.lane_batch,
            rejects=tuple(reject for part in parts for reject in part.rejects),
        )


class Cropper:
    """Decodes the crops of a step; replaces the clips that cannot be used."""

    def __init__(self, fetcher: Fetcher, order: Order, sample_rate_hz: int, crop_frames: int) -> None:
        """Crops of `crop_frames` at `sample_rate_hz`, of members that `fetcher` reads."""
        self._fetcher = fetcher
        self._order = order
        self._sample_rate_hz = sample_rate_hz
        self._crop_frames = crop_frames

    def begin(self, step: int, slots: Integers, wanted: list[Wanted], decoders: ThreadPoolExecutor) -> Pending:
        """Has `wanted` decoded into the rows of a new batch; `slots` are their rows in the global batch of `step`."""
        positions = crop_positions(self._order.seed, step, self._order.global_batch)[slots]
        # Pinned, the copy to the device overlaps the step before; without a device there is nothing to pin for.
        shape = (len(wanted), self._crop_frames)
        wave_BT = torch.empty(shape, dtype=torch.float32, pin_memory=torch.cuda.is_available())
        rows = wave_BT.numpy()
        tasks = [slice(start, start + CLIPS_PER_TASK) for start in range(0, len(wanted), CLIPS_PER_TASK)]
        parts = [decoders.submit(self._decode, step, wanted[task], positions[task], rows[task]) for task in tasks]
        return Pending(wave_BT, torch.from_numpy(slots), parts, step, self._order)

    def _decode(
        self, step: int, wanted: list[Wanted], positions: NDArray[np.float64], rows: NDArray[np.float32]
    ) -> Part:
        part = Part([], [])
        for clip, position, row in zip(wanted, positions.tolist(), rows, strict=True):
            try:
                # Popped, so that its bytes are free once it is decoded.
                member = clip.read.result().pop(clip.number, None) or self._fetcher.find(clip.number)
                self._fill(row, member, position)
                part.keys.append(member.key)
            except DecodeError as error:
                part.rejects.append(Reject(*self._fetcher.name(clip.number), str(error)))
                part.keys.append(self._replace(row, clip.number, position, step, part.rejects[-1]))
        return part

    def _replace(self, row: NDArray[np.float32], number: int, position: float, step: int, reject: Reject) -> str:
        """The key of the sample that fills `row` in place of `number`."""
        for other in islice(self._order.replacements(step, number), MAX_REPLACEMENTS):
            try:
                member = self._fetcher.find(other)
                self._fill(row, member, position)
            except DecodeError:
                continue  # counted and named when its own turn comes
            return member.key
        raise BadDataError(
            f"{reject.shard}, clip {reject.key}: {reject.reason}; and none of {MAX_REPLACEMENTS} other clips could be "
            "used in its place. Check the data: scaleaudio shards verify URL"
        )

    def _fill(self, row: NDArray[np.float32], member: Member, position: float) -> None:
        row[:] = decode_crop(
            self._fetcher.load(member),
            sample_rate_hz=self._sample_rate_hz,
            crop_frames=self._crop_frames,
            position=position,
            frames=member.frames,
        )


def crop_positions(seed: int, step: int, global_batch: int) -> NDArray[np.float64]:
    """Where each clip of the global batch of `step` is cropped, in [0, 1); the same however many workers there are."""
    # Raw words: numpy promises their stream for ever, but not that of its distributions.
    words = np.random.Philox(key=keyed_seed(seed, "crop", step)).random_raw(global_batch)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextmanager
def threads(
    num_read_threads: int, num_threads: int, fetcher: Fetcher
) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """The threads that read (for `fetcher`) and those that decode; none is left afterwards."""
    readers = ThreadPoolExecutor(num_read_threads, thread_name_prefix="scaleaudio-read")
    decoders = ThreadPoolExecutor(num_threads, thread_name_prefix="scaleaudio-decode")
    try:
        yield readers, decoders
    finally:
        fetcher.stop()
        # First what has not begun, of both: a decoder may be waiting for a read.
        for pool in (readers, decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (readers, decoders):
            pool.shutdown(wait=True)
