"""The stream of batches: endless, in an order that (seed, step) decides, resumed by one integer.

Threads read and decode ahead of the step that is asked for (libsndfile lets go of the interpreter; forked decoders
deadlock). A clip that cannot be used is replaced by one that every worker would choose, and reported with its batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from itertools import count
from weakref import WeakSet

from pydantic import Field, field_validator, model_validator

from scaleaudio.data.ahead import Cropper, Lane, Pending, threads
from scaleaudio.data.fetch import Fetcher
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.order import ORDER_VERSION, Order
from scaleaudio.data.patience import Patience
from scaleaudio.data.rejects import Tally
from scaleaudio.data.storage import check_no_credentials
from scaleaudio.errors import InputError
from scaleaudio.types import Batch, Settings, World


class DataConfig(Settings):
    """Which clips are read, and how they are put into batches."""

    url: str = Field(description="folder of shards and their index.parquet: a path, or s3://, gs://, abfs://, hdfs://")
    global_batch: int = Field(128, ge=1, description="clips of one step over all workers (G)")
    lanes: int = Field(8, ge=1, description="sequences that make up a batch (L): divides G, at least one a worker")
    chunk_samples: int = Field(32, ge=1, description="neighbouring samples that one ranged read brings")
    window_samples: int = Field(
        256, ge=1, description="samples of a lane that are shuffled among themselves, and held when not on a local disk"
    )
    num_threads: int = Field(2, ge=1, description="decoding threads of a worker")
    num_read_threads: int = Field(4, ge=1, description="reading threads of a worker; they mostly wait for storage")
    read_ahead: int = Field(4, ge=0, description="steps whose clips are decoded before they are asked for")
    fetch_ahead: int = Field(4, ge=0, description="further steps whose windows are requested by then")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="the part of the clips that may be unusable")
    stall_seconds: float = Field(20, gt=0, description="a read from afar without an answer for so long is tried anew")
    read_deadline_seconds: float = Field(120, gt=0, description="no read is tried again after so long")
    cache_dir: str | None = Field(None, description="local folder that keeps what was read from afar")
    cache_gb: float = Field(10, gt=0, description="at most so much is kept there, by all workers of the machine")

    @field_validator("url")
    @classmethod
    def _holds_no_credentials(cls, url: str) -> str:
        return check_no_credentials(url)

    @model_validator(mode="after")
    def _lanes_divide(self) -> DataConfig:
        if self.global_batch % self.lanes:
            raise ValueError(
                f"lanes {self.lanes} does not divide global_batch {self.global_batch}: every lane gives equally many "
                "clips to a step; choose a divisor"
            )
        return self

    def build_fetcher(self, index: ShardIndex) -> Fetcher:
        """What reads the samples of `index`, as patiently as these settings say."""
        cache = None
        if self.cache_dir is not None:
            from scaleaudio.data.cache import Cache  # locks files, which not every system can

            cache = Cache(self.cache_dir, int(self.cache_gb * 1e9))
        patience = Patience(self.stall_seconds, self.read_deadline_seconds)
        return Fetcher(index, self.chunk_samples, patience=patience, cache=cache)


class Stream:
    """The batches of one worker."""

    def __init__(
        self,
        config: DataConfig,
        index: ShardIndex,
        *,
        seed: int,
        sample_rate_hz: int,
        crop_frames: int,
        world: World | None = None,
    ) -> None:
        """A stream over `index`; nothing is read yet.

        Args:
            config: of the data.
            index: of the shards at config.url.
            seed: decides the order and the crops.
            sample_rate_hz: of the waveforms that the batches hold.
            crop_frames: samples of the random crop that is taken from each clip (T).
            world: which worker this is; by default the only one.

        Raises:
            InputError: when there are too few clips for a batch, or more workers than lanes.
        """
        self.order = Order(
            num_samples=index.num_samples,
            global_batch=config.global_batch,
            lanes=config.lanes,
            chunk_samples=config.chunk_samples,
            window_samples=config.window_samples,
            seed=seed,
        )
        try:
            self.lanes = (world or World()).share(config.lanes)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.config = config
        self.sample_rate_hz = sample_rate_hz
        self.crop_frames = crop_frames
        self._index = index
        # Weak: who drops an iteration ends it, threads and all.
        self._open: WeakSet[Generator[Batch]] = WeakSet()

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every sample was read once, up to `remainder`."""
        return self.order.steps_per_epoch

    @property
    def remainder(self) -> int:
        """Samples that an epoch leaves out (others in each), fewer than one global batch."""
        return self.order.remainder

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """This worker's part of the batches of step `start_step`, `start_step` + 1, and so on without end.

        Raises:
            BadDataError: from the iteration, when more than config.max_bad_fraction of the clips are unusable.
        """
        if start_step < 0:
            raise ValueError(f"start_step: expected 0 or more, got {start_step}")
        batches = self._batches(start_step)
        self._open.add(batches)
        return batches

    def fingerprint(self) -> dict[str, str | int | float]:
        """All that decides what a step holds; a checkpoint keeps it and `check_fingerprint` compares it."""
        return {
            "index": self._index.fingerprint,
            "order_version": ORDER_VERSION,
            "seed": self.order.seed,
            "global_batch": self.config.global_batch,
            "lanes": self.config.lanes,
            "crop_frames": self.crop_frames,
            "chunk_samples": self.config.chunk_samples,
            "window_samples": self.config.window_samples,
            "sample_rate_hz": self.sample_rate_hz,
        }

    def close(self) -> None:
        """Ends every iteration over this stream, and its threads."""
        for batches in list(self._open):
            batches.close()

    def _batches(self, start_step: int) -> Generator[Batch]:
        config, order = self.config, self.order
        fetcher = config.build_fetcher(self._index)
        num_clips = len(self.lanes) * order.lane_batch
        tally = Tally(config.max_bad_fraction, clips_per_epoch=num_clips * order.steps_per_epoch)
        cropper = Cropper(fetcher, order, self.sample_rate_hz, self.crop_frames)
        with threads(config.num_read_threads, config.num_threads, fetcher) as (readers, decoders):
            lanes = [Lane(order.windows(lane, start_step), fetcher, readers) for lane in self.lanes]

            def begin(step: int) -> Pending:
                wanted = [clip for lane in lanes for clip in lane.take(order.lane_batch, config.fetch_ahead)]
                return cropper.begin(step, order.slots(self.lanes), wanted, decoders)

            ahead = deque(begin(step) for step in range(start_step, start_step + config.read_ahead))
            for step in count(start_step + config.read_ahead):
                ahead.append(begin(step))
                batch = ahead.popleft().finish()
                tally.add(num_clips, batch.rejects)
                yield batch


def check_fingerprint(saved: Mapping[str, object], current: Mapping[str, object]) -> None:
    """Refuses to go on with another stream than the one that a checkpoint was made with.

    Raises:
        InputError: naming each key that differs, with both values.
    """
    keys = [key for key in {**current, **saved} if saved.get(key) != current.get(key)]
    if keys:
        changes = "; ".join(f"{key} was {saved.get(key)} and is now {current.get(key)}" for key in keys)
        raise InputError(
            f"the checkpoint counts its steps in another stream: {changes}. Set them back, or start anew with --fresh."
        )
