"""The stream of batches: endless, in an order that (seed, step) decides, resumed by one integer.

Threads read and decode ahead of the step that is asked for (libsndfile lets go of the interpreter; forked decoders
deadlock). A clip that cannot be used is replaced by one that every worker would choose, and reported with its batch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import count, pairwise
from typing import Any
from weakref import WeakSet

from pydantic import Field, field_validator, model_validator

from scaleaudio.data.addresses import check_no_credentials
from scaleaudio.data.ahead import Cropper, Crops, Feed, Lane, Pending, Source, threads
from scaleaudio.data.decode import ShortClips
from scaleaudio.data.fetch import Fetcher
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.mixture import PhaseConfig, make_mixture
from scaleaudio.data.order import ORDER_VERSION
from scaleaudio.data.patience import Patience
from scaleaudio.data.rejects import Tally
from scaleaudio.errors import InputError
from scaleaudio.types import Batch, Settings, World


class DataConfig(Settings):
    """Which clips are read, and how they are put into batches."""

    url: str | None = Field(
        None,
        description="folder of shards and their index.parquet: a path, or s3://, https://, gs://, abfs://, hdfs://",
    )
    sources: dict[str, str] = Field(
        default_factory=dict, description="several such folders by name, in place of url; new ones go to the end"
    )
    mixture: tuple[PhaseConfig, ...] = Field(
        (PhaseConfig(),), description="the sources' shares, from step 0 on and, where they change, from later steps on"
    )
    global_batch: int = Field(128, ge=1, description="crops of one step over all workers (G)")
    lanes: int = Field(8, ge=1, description="sequences that make up a batch (L): divides G, at least one a worker")
    chunk_samples: int = Field(32, ge=1, le=10**6, description="neighbouring samples that one ranged read brings")
    window_samples: int = Field(
        256,
        ge=1,
        le=10**9,
        description="samples of a lane that are shuffled among themselves, and held when not on a local disk",
    )
    crops_per_clip: int = Field(1, ge=1, description="crops of each clip that is read, in the same step; divides G / L")
    short_clips: ShortClips = Field(
        "pad", description="clips shorter than the crop: in silence at a random place (pad), or end to end (repeat)"
    )
    num_threads: int = Field(2, ge=1, description="decoding threads of a worker")
    num_read_threads: int = Field(4, ge=1, description="reading threads of a worker; they mostly wait for storage")
    read_ahead: int = Field(4, ge=0, le=1000, description="steps whose clips are decoded before they are asked for")
    fetch_ahead: int = Field(4, ge=0, le=1000, description="further steps whose windows are requested by then")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="the part of the clips that may be unusable")
    stall_seconds: float = Field(
        20, gt=0, le=1e6, description="a read from afar without an answer for so long is tried anew"
    )
    read_deadline_seconds: float = Field(120, gt=0, le=1e6, description="no read is tried again after so long")
    cache_dir: str | None = Field(None, description="local folder that keeps what was read from afar")
    cache_gb: float = Field(
        10, gt=0, le=1e9, description="at most so much is kept there, by all workers of the machine"
    )

    @field_validator("url", "sources")
    @classmethod
    def _hold_no_credentials(cls, urls: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for url in urls.values() if isinstance(urls, dict) else [urls] if urls is not None else []:
            check_no_credentials(url)
        return urls

    @model_validator(mode="after")
    def _lanes_divide(self) -> DataConfig:
        if self.global_batch % self.lanes:
            raise ValueError(
                f"lanes {self.lanes} does not divide global_batch {self.global_batch}: every lane gives equally many "
                "clips to a step; choose a divisor"
            )
        if self.lane_batch % self.crops_per_clip:
            raise ValueError(
                f"crops_per_clip {self.crops_per_clip} does not divide the {self.lane_batch} crops that a lane gives "
                "to a step (global_batch / lanes): the crops of a clip stay in one lane and step"
            )
        return self

    @model_validator(mode="after")
    def _sources_and_phases(self) -> DataConfig:
        if (self.url is None) == (not self.sources):
            raise ValueError("data: expected url (one folder of shards) or sources (several by name), and not both")
        steps = [phase.from_step for phase in self.mixture]
        if not steps or steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(f"mixture: expected from_step 0 first, then rising; got {steps}")
        named = {name for phase in self.mixture for name in phase.weights}
        if unknown := sorted(named - self.sources.keys()):
            raise ValueError(f"mixture: weighs {unknown}, which sources does not name; it names {[*self.sources]}")
        return self

    @property
    def lane_batch(self) -> int:
        """Crops that a lane gives to one step (G / L)."""
        return self.global_batch // self.lanes

    @property
    def urls(self) -> dict[str, str]:
        """Each source's folder by name; the only one's name is empty."""
        return self.sources or {"": str(self.url)}

    def located(self, place: Callable[[str], str]) -> DataConfig:
        """The same with `place` of each url, and of the cache's folder."""
        update: dict[str, Any] = {"sources": {name: place(url) for name, url in self.sources.items()}}
        update |= {key: place(path) for key in ("url", "cache_dir") if (path := getattr(self, key)) is not None}
        return self.model_copy(update=update)

    def build_fetcher(self, index: ShardIndex) -> Fetcher:
        """What reads the samples of `index`, as patiently as these settings say."""
        cache = None
        if self.cache_dir is not None:
            from scaleaudio.data.cache import Cache  # locks files, which not every system can

            cache = Cache(self.cache_dir, int(self.cache_gb * 1e9))
        patience = Patience(self.stall_seconds, self.read_deadline_seconds)
        num_sources = len(self.urls)
        return Fetcher(index, self.chunk_samples, patience=patience, cache=cache, num_sources=num_sources)


class Stream:
    """The batches of one worker."""

    def __init__(
        self,
        config: DataConfig,
        index: ShardIndex | Sequence[ShardIndex],
        *,
        seed: int,
        sample_rate_hz: int,
        crop_frames: int,
        world: World | None = None,
    ) -> None:
        """A stream over `index`; nothing is read yet.

        Args:
            config: of the data.
            index: of the shards at config.url, or of each of config.sources.
            seed: decides the order and the crops.
            sample_rate_hz: of the waveforms that the batches hold.
            crop_frames: samples of the random crops that are taken from each clip (T).
            world: which worker this is; by default the only one.

        Raises:
            InputError: when there are too few clips for a batch, or more workers than lanes.
        """
        indexes = [index] if isinstance(index, ShardIndex) else index
        self._indexes = dict(zip(config.urls, indexes, strict=True))
        self.mixture = make_mixture(
            {name: index.num_samples for name, index in self._indexes.items()},
            config.mixture,
            step_clips=config.global_batch // config.crops_per_clip,
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
        self.seed = seed
        self.sample_rate_hz = sample_rate_hz
        self.crop_frames = crop_frames
        # Weak: who drops an iteration ends it, threads and all.
        self._open: WeakSet[Generator[Batch]] = WeakSet()

    @property
    def steps_per_epoch(self) -> int:
        """Steps that read as many clips as all sources have; of one source each once, up to `remainder`."""
        return self.mixture.num_clips // self.mixture.step_clips

    @property
    def remainder(self) -> int:
        """Clips that an epoch of one source leaves out (others in each), fewer than one step's."""
        return self.mixture.num_clips % self.mixture.step_clips

    def narrowed(self, num_clips: int) -> Stream:
        """The first lanes alone, as many as give a step `num_clips` crops (or all); no more is read ahead."""
        few = copy.copy(self)
        few.lanes = range(min(self.config.lanes, -(-num_clips // self.config.lane_batch)))
        ahead = -(-num_clips // (len(few.lanes) * self.config.lane_batch)) - 1
        limits = {name: min(getattr(self.config, name), ahead) for name in ("read_ahead", "fetch_ahead")}
        few.config = self.config.model_copy(update=limits)
        few._open = WeakSet()
        return few

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

    def fingerprint(self) -> dict[str, Any]:
        """All that decides what a step holds; a checkpoint keeps it and `check_fingerprint` compares it.

        The sources' names decide nothing: they are there to be told.
        """
        config, indexes = self.config, list(self._indexes.values())
        return {
            "sources": list(self._indexes),
            "mixture": [
                [
                    phase.from_step,
                    [[at, indexes[at].fingerprint, weight] for at, weight in enumerate(phase.weights) if weight],
                ]
                for phase in self.mixture.phases
            ],
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "global_batch": config.global_batch,
            "lanes": config.lanes,
            "crop_frames": self.crop_frames,
            "crops_per_clip": config.crops_per_clip,
            "short_clips": config.short_clips,
            "chunk_samples": config.chunk_samples,
            "window_samples": config.window_samples,
            "sample_rate_hz": self.sample_rate_hz,
        }

    def close(self) -> None:
        """Ends every iteration over this stream, and its threads."""
        for batches in list(self._open):
            batches.close()

    def _batches(self, start_step: int) -> Generator[Batch]:
        config, mixture = self.config, self.mixture
        sources = [
            Source(name, order, config.build_fetcher(index))
            for (name, index), order in zip(self._indexes.items(), mixture.orders, strict=True)
        ]
        fetchers = [source.fetcher for source in sources]
        num_clips = len(self.lanes) * mixture.lane_clips
        tally = Tally(config.max_bad_fraction, clips_per_epoch=num_clips * self.steps_per_epoch)
        crops = Crops(self.sample_rate_hz, self.crop_frames, config.crops_per_clip, config.short_clips)
        cropper = Cropper(self.seed, config.global_batch, config.lane_batch, crops)
        with threads(config.num_read_threads, config.num_threads, *fetchers) as (readers, decoders):
            lanes = []
            for lane in self.lanes:
                taken = zip(sources, mixture.taken(lane, start_step), strict=True)
                feeds = [Feed(source, source.order.windows(lane, number), readers) for source, number in taken]
                lanes.append(Lane(mixture.picks(lane, start_step), feeds))

            def begin(step: int) -> Pending:
                wanted = [clip for lane in lanes for clip in lane.take(mixture.lane_clips, config.fetch_ahead)]
                return cropper.begin(step, self.lanes, wanted, decoders)

            ahead = deque(begin(step) for step in range(start_step, start_step + config.read_ahead))
            for step in count(start_step + config.read_ahead):
                ahead.append(begin(step))
                batch = ahead.popleft().finish()
                tally.add(num_clips, batch.rejects)
                yield batch
