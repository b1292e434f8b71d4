"""When unusable clips stop a run, and what the run then says."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable

from scaleaudio.types import Reject

_NUM_REASONS = 10
_FEWEST_CLIPS = 1000
# A rate of late is taken where the allowed fraction is so many clips: of ten, chance or one bad chunk makes twenty.
_RECENT_BAD = 100
# What tells two rejects of one kind apart: quoted names, paths and addresses, and words with a digit.
_PARTICULAR = re.compile(r"""(?<!\w)(["']).*?\1|\S*[/\d]\S*""")


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
        self._window = max(_FEWEST_CLIPS, round(_RECENT_BAD / max_bad_fraction)) if max_bad_fraction else 0
        self._recent: deque[tuple[int, str]] = deque()  # the bad clips among the last `_window`: when, and of what kind
        self._examples: dict[str, Reject] = {}

    def add(self, num_clips: int, rejects: Iterable[Reject]) -> None:
        """Counts `num_clips`, of which `rejects` were bad.

        Raises:
            BadDataError: with the commonest reasons, as soon as the bad ones are more than the allowed fraction of all
                clips so far, or of the first 1000 (of an epoch, where that is less); or more than twice that fraction
                of the latest clips, so many that the fraction is 100 of them: a long clean past hides nothing.
        """
        self._num_clips += num_clips
        rejects = tuple(rejects)
        for reject in rejects:
            kind = kind_of(reject)
            self._counts[kind] += 1
            self._recent.append((self._num_clips, kind))
            self._examples.setdefault(kind, reject)
        while self._recent and self._recent[0][0] <= self._num_clips - self._window:
            self._recent.popleft()
        num_bad, num_recent = self._counts.total(), len(self._recent)
        if num_bad > self._max_bad_fraction * max(self._num_clips, self._fewest):
            raise self._error(f"{num_bad} of {self._num_clips} clips are", "more than", self._counts, rejects)
        if num_recent > 2 * self._max_bad_fraction * self._window:
            kinds = Counter(kind for _, kind in self._recent)
            raise self._error(f"{num_recent} of the last {self._window} clips are", "over twice what", kinds, rejects)

    def _error(self, what: str, more: str, kinds: Counter[str], rejects: tuple[Reject, ...]) -> BadDataError:
        return BadDataError(
            f"{what} unusable, {more} data.max_bad_fraction {self._max_bad_fraction:g} allows: "
            f"{self._reasons(kinds)}. Repair the shards (scaleaudio shards verify URL) or raise data.max_bad_fraction.",
            rejects,
        )

    def _reasons(self, kinds: Counter[str]) -> str:
        lines = []
        for kind, count in kinds.most_common(_NUM_REASONS):
            example = self._examples[kind]
            lines.append(f"{count} x {example.reason} (as {example.shard}, clip {example.key})")
        return "; ".join(lines)


def kind_of(reject: Reject) -> str:
    """The reason, without what belongs to that clip or shard alone."""
    return _PARTICULAR.sub("#", reject.reason.replace(reject.shard.rpartition("/")[2], "#"))
