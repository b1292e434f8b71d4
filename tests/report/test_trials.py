"""The records of a sweep's trials, and what they say together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scaleaudio.errors import InputError
from scaleaudio.report.trials import TrialRecord, gain, ranking, read_trials, verdict, write_trial

FREQUENCY = "negatives.frequency_strength"


def whole(number: int, score: float, *, seed: int = 0, repeat_of: int | None = None) -> TrialRecord:
    kind = "repeat" if repeat_of is not None else "search" if number else "baseline"
    return TrialRecord(
        number, kind, {FREQUENCY: 0.1 * number}, seed, "finished", [(40, score)], 40, repeat_of, f"{number:04d}"
    )


def repeats(baseline: list[float], best: list[float]) -> list[TrialRecord]:
    """A sweep whose trial 2 is best, with these scores on further seeds."""
    again = [whole(10_000 * seed, score, seed=seed, repeat_of=0) for seed, score in enumerate(baseline, 1)]
    again += [whole(10_000 * seed + 2, score, seed=seed, repeat_of=2) for seed, score in enumerate(best, 1)]
    return [whole(0, 0.5), whole(1, 0.4), whole(2, 0.7), *again]


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    records = [whole(number, 0.1 * number) for number in (3, 0, 12, 1)]
    records[0] = replace(records[0], state="failed", failure="NaN", scores=[], came_from=[(5, 1)])
    for record in records:
        write_trial(str(tmp_path), record)
    assert read_trials(str(tmp_path)) == sorted(records, key=lambda record: record.number)
    assert read_trials(str(tmp_path / "nothing")) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"number": 1}', '{"number": 1, "scores": [], "state": "odd"}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    write_trial(str(tmp_path), whole(1, 0.1))
    (tmp_path / "trials" / "0001.json").write_text(text)
    with pytest.raises(InputError, match=r"0001\.json: not the record of a trial"):
        read_trials(str(tmp_path))


def test_a_score_takes_the_place_of_those_that_an_attempt_lost() -> None:
    record = whole(1, 0.1).scored(80, 0.2).scored(120, 0.3)
    assert record.scored(80, 0.25).scores == [(40, 0.1), (80, 0.25)]


def test_only_whole_trials_are_ranked_and_the_first_of_equals_wins() -> None:
    trials = [whole(0, 0.9), whole(1, 0.5), whole(2, 0.7), whole(3, 0.7), replace(whole(4, 0.99), state="stopped")]
    assert [trial.number for trial in ranking(trials)] == [2, 3, 1]


def test_the_gain_is_paired_over_fresh_seeds_and_leaves_out_the_seed_that_chose() -> None:
    found = gain(repeats([0.50, 0.52, 0.48], [0.56, 0.60, 0.52]))
    assert found is not None and found.by_seed == pytest.approx({1: 0.06, 2: 0.08, 3: 0.04})
    # scipy.stats.ttest_1samp([.06, .08, .04], 0).confidence_interval(.95)
    assert (found.mean, found.low, found.high) == pytest.approx((0.06, 0.010317, 0.109683), abs=1e-6)


def test_a_pair_that_lacks_one_half_does_not_count() -> None:
    found = gain(repeats([0.5, 0.5], [0.6]))
    assert found is not None and list(found.by_seed) == [1] and found.low is None


@pytest.mark.parametrize(
    ("baseline", "best", "said"),
    [
        ([0.50, 0.52, 0.48], [0.56, 0.60, 0.52], "It exceeds the noise between seeds."),
        ([0.50, 0.52, 0.48], [0.56, 0.50, 0.52], "It does not exceed the noise between seeds."),
        ([0.50, 0.52, 0.48], [0.44, 0.47, 0.42], "It is a loss, and exceeds the noise between seeds."),
        ([0.50], [0.90], "one pair says nothing of the noise"),
        ([], [], "(+0.200 on the seed that chose it)"),
    ],
)
def test_the_verdict_says_whether_the_gain_exceeds_the_noise(
    baseline: list[float], best: list[float], said: str
) -> None:
    assert said in verdict(repeats(baseline, best))


def test_without_a_whole_trial_there_is_no_winner() -> None:
    assert "no winner" in verdict([whole(0, 0.5), replace(whole(1, 0.4), state="stopped")])
    assert "no winner" in verdict([])
