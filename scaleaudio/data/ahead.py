"""Clips are read and decoded ahead of their step, by threads that write straight into the batch.

Two pools: reading threads wait for storage, decoding threads wait for them, and nobody waits for a decoding thread but
the one who takes the batches. A task is a few clips of one step, so that any number of threads has work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scaleaudio.data.decode import ShortClips, decode_crop
from scaleaudio.data.fetch import Fetcher
from scaleaudio.data.order import Integers, Order
from scaleaudio.data.ranges import Member
from scaleaudio.data.rejects import BadDataError
from scaleaudio.errors import DecodeError
from scaleaudio.types import Batch, Reject, keyed_seed

MAX_REPLACEMENTS = 16
CLIPS_PER_TASK = 16


class Source(NamedTuple):
    """One of the stream's sources: the order in which it is read, and what reads it."""

    name: str
    order: Order
    fetcher: Fetcher

    def reject(self, number: int, reason: str) -> Reject:
        """Names a sample that cannot be used."""
        shard, key = self.fetcher.name(number)
        return Reject(f"{self.name}/{shard}" if self.name else shard, key, reason)


class Wanted(NamedTuple):
    """A sample that will be decoded, and the read that brings its bytes (by sample number)."""

    source: Source
    number: int
    read: Future[dict[int, Member]]


class Crops(NamedTuple):
    """What is taken of each clip: `per_clip` crops of `frames` at `sample_rate_hz`; what becomes of shorter clips."""

    sample_rate_hz: int
    frames: int
    per_clip: int
    short_clips: ShortClips


class Part(NamedTuple):
    """What a task gives back beside the waveforms that it wrote."""

    keys: list[str]
    rejects: list[Reject]


class Feed:
    """What one lane reads of one source: a window is requested when the first of its samples comes into view."""

    def __init__(self, source: Source, windows: Iterator[Integers], readers: ThreadPoolExecutor) -> None:
        """A feed of `windows` of sample numbers, one after the other."""
        self._source = source
        self._windows = windows
        self._readers = readers
        self._queue: deque[Wanted] = deque()

    def take(self) -> Wanted:
        """The next sample."""
        if not self._queue:
            self._request(next(self._windows))
        return self._queue.popleft()

    def _request(self, window: Integers) -> None:
        fetcher = self._source.fetcher
        reads: dict[int, Future[dict[int, Member]]] = {}
        for group in fetcher.groups(window):
            reads |= dict.fromkeys(group.tolist(), self._readers.submit(fetcher.read_ahead, group))
        self._queue.extend(Wanted(self._source, number, reads[number]) for number in window.tolist())


class Lane:
    """What one lane decodes next."""

    def __init__(self, picks: Iterator[int], feeds: Sequence[Feed]) -> None:
        """A lane whose slots are filled from the feeds that `picks` names, slot by slot."""
        self._picks = picks
        self._feeds = feeds
        self._queue: deque[Wanted] = deque()

    def take(self, num_clips: int, steps_ahead: int) -> list[Wanted]:
        """The lane's next clips, once those of `steps_ahead` further steps are requested too."""
        while len(self._queue) < num_clips * (1 + steps_ahead):
            self._queue.append(self._feeds[next(self._picks)].take())
        return [self._queue.popleft() for _ in range(num_clips)]


class Pending(NamedTuple):
    """A batch whose clips are being decoded into it."""

    wave_BT: torch.Tensor
    slot_B: torch.Tensor
    parts: list[Future[Part]]
    step: int
    global_batch: int
    lane_batch: int

    def finish(self) -> Batch:
        """The batch, once all its clips are there; raises what a thread raised."""
        parts = [part.result() for part in self.parts]
        return Batch(
            wave_BT=self.wave_BT,
            key_B=tuple(key for part in parts for key in part.keys),
            slot_B=self.slot_B,
            step=self.step,
            global_batch=self.global_batch,
            lane_batch=self.lane_batch,
            rejects=tuple(reject for part in parts for reject in part.rejects),
        )


class Cropper:
    """Decodes the crops of a step; replaces the clips that cannot be used."""

    def __init__(self, seed: int, global_batch: int, lane_batch: int, crops: Crops) -> None:
        """Takes `crops` of each clip, so that a step has `global_batch` of them and a lane `lane_batch`."""
        self._seed = seed
        self._global_batch = global_batch
        self._lane_batch = lane_batch
        self._crops = crops

    def begin(self, step: int, lanes: range, wanted: list[Wanted], decoders: ThreadPoolExecutor) -> Pending:
        """Has `wanted` decoded into a new batch: what `lanes` give to `step`, lane after lane, clip after clip."""
        crops = self._crops
        slots = np.arange(lanes.start * self._lane_batch, lanes.stop * self._lane_batch, dtype=np.int64)
        positions_N = crop_positions(self._seed, step, int(slots[0]), len(slots))
        positions_NK = positions_N.reshape(len(wanted), crops.per_clip)
        # Pinned, the copy to the device overlaps the step before; without a device there is nothing to pin for.
        shape = (len(slots), crops.frames)
        wave_BT = torch.empty(shape, dtype=torch.float32, pin_memory=torch.cuda.is_available())
        rows_NKT = wave_BT.numpy().reshape(len(wanted), crops.per_clip, crops.frames)
        tasks = [slice(start, start + CLIPS_PER_TASK) for start in range(0, len(wanted), CLIPS_PER_TASK)]
        parts = [
            decoders.submit(self._decode, step, wanted[task], positions_NK[task], rows_NKT[task]) for task in tasks
        ]
        return Pending(wave_BT, torch.from_numpy(slots), parts, step, self._global_batch, self._lane_batch)

    def _decode(
        self, step: int, wanted: list[Wanted], positions_NK: NDArray[np.float64], rows_NKT: NDArray[np.float32]
    ) -> Part:
        part = Part([], [])
        for clip, positions_K, rows_KT in zip(wanted, positions_NK.tolist(), rows_NKT, strict=True):
            source, number = clip.source, clip.number
            try:
                # Popped, so that its bytes are free once it is decoded.
                member = clip.read.result().pop(number, None) or source.fetcher.find(number)
                self._fill(rows_KT, source, member, positions_K)
                key = member.key
            except DecodeError as error:
                part.rejects.append(source.reject(number, str(error)))
                key = self._replace(rows_KT, source, number, positions_K, step, part.rejects[-1])
            part.keys.extend([key] * len(rows_KT))
        return part

    def _replace(
        self,
        rows_KT: NDArray[np.float32],
        source: Source,
        number: int,
        positions_K: list[float],
        step: int,
        reject: Reject,
    ) -> str:
        """The key of the sample that fills the rows in place of `number`."""
        for other in islice(source.order.replacements(step, number), MAX_REPLACEMENTS):
            try:
                member = source.fetcher.find(other)
                self._fill(rows_KT, source, member, positions_K)
            except DecodeError:
                continue  # counted and named when its own turn comes
            return member.key
        raise BadDataError(
            f"{reject.shard}, clip {reject.key}: {reject.reason}; and none of {MAX_REPLACEMENTS} other clips could be "
            "used in its place. Check the data: scaleaudio shards verify URL",
            (reject,),
        )

    def _fill(self, rows_KT: NDArray[np.float32], source: Source, member: Member, positions_K: list[float]) -> None:
        data = source.fetcher.load(member)
        for row_T, position in zip(rows_KT, positions_K, strict=True):
            row_T[:] = decode_crop(
                data,
                sample_rate_hz=self._crops.sample_rate_hz,
                crop_frames=self._crops.frames,
                position=position,
                frames=member.frames,
                short_clips=self._crops.short_clips,
            )


def crop_positions(seed: int, step: int, first_slot: int, num_slots: int) -> NDArray[np.float64]:
    """Where those clips of the global batch of `step` are cropped, in [0, 1); alike for any number of workers."""
    # Raw words: numpy promises their stream for ever, but not that of its distributions. They come in fours.
    words = np.random.Philox(key=keyed_seed(seed, "crop", step)).advance(first_slot // 4)
    skipped = first_slot % 4
    words_N = words.random_raw(skipped + num_slots)[skipped:]
    return (words_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextmanager
def threads(
    num_read_threads: int, num_threads: int, *fetchers: Fetcher
) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """The threads that read (for `fetchers`) and those that decode; none is left afterwards."""
    readers = ThreadPoolExecutor(num_read_threads, thread_name_prefix="scaleaudio-read")
    decoders = ThreadPoolExecutor(num_threads, thread_name_prefix="scaleaudio-decode")
    with ExitStack() as stack:  # last in, first out, whatever any of them raises
        stack.callback(_shut_down, readers, decoders)
        for fetcher in fetchers:
            stack.callback(fetcher.stop)
        yield readers, decoders


def _shut_down(*pools: ThreadPoolExecutor) -> None:
    # First what has not begun, of all: a decoder may be waiting for a read.
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)
    for pool in pools:
        pool.shutdown(wait=True)
