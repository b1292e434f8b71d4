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


def test_a_long_clean_past_does_not_hide_what_goes_bad_now() -> None:
    tally = Tally(0.01, clips_per_epoch=10**7)
    tally.add(1000, [bad(number, "an older reason") for number in range(5)])
    tally.add(10_000_000, [])
    tally.add(200, [bad(number) for number in range(200)])
    with pytest.raises(BadDataError, match=r"201 of the last 10000 clips .*over twice .*: 201 x no audio") as caught:
        tally.add(1, [bad(200)])
    assert "an older reason" not in str(caught.value)


def test_what_is_steadily_within_the_allowed_fraction_goes_on() -> None:
    tally = Tally(0.01, clips_per_epoch=10**7)
    tally.add(100_000, [])
    for step in range(200):  # in bursts, as of one bad chunk
        tally.add(10_000, [bad(step, f"{number}") for number in range(99)])


@pytest.mark.parametrize(
    "reason",
    [
        "cannot be read: s3://bucket/in/{name}.tar: no answer in 20 s",
        "cannot be read: {name}.tar: no answer",
        "cannot be read: AWS Error of key 'in/{name}.tar' in \"b\" (Request ID: 7a62-{name}4)",
        "cannot be read: /a folder/{name}.tar: it isn't there",
    ],
)
def test_names_do_not_set_reasons_apart(reason: str) -> None:
    rejects = [Reject(f"music/{name}.tar", f"k{name}", reason.format(name=name)) for name in "abcdefghijklm"]
    with pytest.raises(BadDataError) as caught:
        Tally(0.0, clips_per_epoch=10).add(13, rejects)
    assert str(caught.value).count(" x ") == 1 and "13 x cannot be read" in str(caught.value)
