"""Bad clips are tolerated up to a fraction, and what goes beyond says why."""

from __future__ import annotations

import pytest

from scaleaudio.data.rejects import BadDataError, Tally
from scaleaudio.types import Reject


def bad(number: int, reason: str = "no audio: 0 frames") -> Reject:
    return Reject("a.tar", f"k{number}", reason)


def test_the_allowed_fraction_is_of_a_thousand_clips_at_least() -> None:
    tally = Tally(0.01, clips_per_epoch=5000)
    tally.add(10, [bad(number) for number in range(10)])
    with pytest.raises(BadDataError, match=r"11 of 20 clips are unusable, more than data.max_bad_fraction 0.01"):
        tally.add(10, [bad(10)])


def test_or_of_an_epoch_where_that_is_less() -> None:
    tally = Tally(0.01, clips_per_epoch=100)
    tally.add(10, [bad(0)])
    with pytest.raises(BadDataError, match="2 of 20"):
        tally.add(10, [bad(1)])


def test_a_long_run_is_judged_by_all_its_clips() -> None:
    tally = Tally(0.01, clips_per_epoch=5000)
    for step in range(300):
        tally.add(100, [bad(step)])
    with pytest.raises(BadDataError):
        tally.add(0, [bad(300)])


def test_fraction_zero_stops_at_the_first_bad_clip() -> None:
    tally = Tally(0.0, clips_per_epoch=5000)
    tally.add(10, [])
    with pytest.raises(BadDataError, match="1 of 20"):
        tally.add(10, [bad(1)])


def test_the_ten_commonest_reasons_are_named_with_an_example_and_numbers_do_not_set_them_apart() -> None:
    rejects = [bad(number, f"truncated after {number}.5 s of 10.00 s") for number in range(12)]
    rejects += [bad(number, f"reason {'abcdefghijklm'[number]}") for number in range(13)]
    with pytest.raises(BadDataError) as caught:
        Tally(0.0, clips_per_epoch=10).add(25, rejects)
    message = str(caught.value)
    assert "12 x truncated after 0.5 s of 10.00 s (as a.tar, clip k0)" in message
    assert message.count(" x ") == 10
    assert "\n" not in message
