"""When unusable clips stop a run, and what the run then says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from scaleaudio.types import Reject

_NUM_REASONS = 10
_FEWEST_CLIPS = 1000


class BadDataError(ValueError):
    """More of the data is unusable than data.max_bad_fraction allows; `rejects` are those that no batch could name."""

    def __init__(self, message: str, rejects: tuple[Reject, ...]) -> None:
        """Stops for the reason in `message`."""
        super().__init__(message)
        self.rejects = rejects


class Tally:
    """Counts the clips of one worker and those that had to be replaced."""

    def __init__(self, max_bad_fraction: float, clips_per_epoch: int) -> None:
        """Nothing counted yet.

        Args:
            max_bad_fraction: the part of the clips, from 0 to 1, that may be bad.
            clips_per_epoch: of this worker.
        """
        self._max_bad_fraction = max_bad_fraction
        # A few bad clips among the first are no rate yet: the fraction is of 1000 clips or of an epoch, at least.
        self._fewest = min(_FEWEST_CLIPS, clips_per_epoch)
        self._num_clips = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, Reject] = {}

    def add(self, num_clips: int, rejects: Iterable[Reject]) -> None:
        """Counts `num_clips`, of which `rejects` were bad.

        Raises:
            BadDataError: with the commonest reasons, as soon as the bad ones are more than the allowed fraction of all
                clips so far, or of the first 1000 (of an epoch, where that is less).
        """
        self._num_clips += num_clips
        rejects = tuple(rejects)
        for reject in rejects:
            kind = re.sub(r"\d+", "#", reject.reason)
            self._counts[kind] += 1
            self._examples.setdefault(kind, reject)
        num_bad = self._counts.total()
        if num_bad > self._max_bad_fraction * max(self._num_clips, self._fewest):
            raise BadDataError(
                f"{num_bad} of {self._num_clips} clips are unusable, more than data.max_bad_fraction "
                f"{self._max_bad_fraction:g} allows: {self._reasons()}. Repair the shards "
                "(scaleaudio shards verify URL) or raise data.max_bad_fraction.",
                rejects,
            )

    def _reasons(self) -> str:
        lines = []
        for kind, count in self._counts.most_common(_NUM_REASONS):
            example = self._examples[kind]
            lines.append(f"{count} x {example.reason} (as {example.shard}, clip {example.key})")
        return "; ".join(lines)
