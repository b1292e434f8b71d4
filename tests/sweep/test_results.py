"""What a sweep leaves in its folder, and what `show sweep` makes of it. No Ray."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleaudio.cli import main
from scaleaudio.config import load
from scaleaudio.launch import sweep as launched
from scaleaudio.report.trials import TrialRecord, write_trial
from scaleaudio.sweep import Plan, load_sweep
from scaleaudio.sweep.plan import BASELINE
from scaleaudio.sweep.results import PICTURE, TABLE, TEXT, WINNER, winner_yaml, write_results

FREQUENCY, TIME = "negatives.frequency_strength", "negatives.time_strength"


@pytest.fixture
def plan(tiny_tree: dict[str, Any], tmp_path: Path) -> Plan:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    return load_sweep(path, {"probe.tasks": ["clips:pitch"], "data.url": "relative/shards"})


@pytest.fixture
def trials() -> list[TrialRecord]:
    changes = {FREQUENCY: 0.4, TIME: 0.0, "objective.alpha": 1.5}
    return [
        TrialRecord(0, "baseline", dict(BASELINE), 0, "finished", [(60, 0.5)], 60),
        TrialRecord(1, "search", changes, 0, "finished", [(60, 0.75)], 60),
        TrialRecord(2, "search", {**changes, TIME: 0.4}, 0, "stopped", [(20, 0.9)], 60),
    ]


def test_the_winner_is_a_config_of_the_experiment_with_its_changes_and_the_paths_as_given(
    plan: Plan, trials: list[TrialRecord], tmp_path: Path
) -> None:
    text = winner_yaml(plan, trials)
    (tmp_path / "winner.yaml").write_text(text)
    config = load(tmp_path / "winner.yaml")
    assert (config.negatives.frequency_strength, config.negatives.time_strength) == (0.4, 0.0)
    assert (config.name, config.seed, config.data.url) == ("tiny-winner", plan.base.seed, "relative/shards")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert "trial 1 scored 0.750, the baseline 0.500 after 60 steps" in head[0]
    assert "noise between seeds" in head[1] and any(f"{FREQUENCY}: 0.4" in line for line in head)


def test_without_a_whole_trial_there_is_everything_but_a_winner(
    plan: Plan, trials: list[TrialRecord], tmp_path: Path
) -> None:
    write_results(plan, str(tmp_path / "sweep"), [trials[0], trials[2]])
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {TABLE, TEXT, PICTURE}
    write_results(plan, str(tmp_path / "sweep"), trials)
    assert (tmp_path / "sweep" / WINNER).exists()


def command(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("PYTHONWARNINGS", "ignore")
        patch.setattr(sys, "argv", ["scaleaudio", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def test_show_sweep_draws_what_is_there_also_while_it_runs(
    plan: Plan, trials: list[TrialRecord], tmp_path: Path
) -> None:
    url = tmp_path / "sweep"
    for trial in trials:
        write_trial(str(url), trial)
    (url / "sweep.yaml").write_text(plan.dump())
    code, printed, said = command("show", "sweep", str(url))
    assert code == 0, said
    assert "baseline" in printed and ".750" in printed and str(url / PICTURE) in printed
    assert (url / PICTURE).exists() and (url / TEXT).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "sweep", "nowhere"), "nowhere: no sweep.yaml here"),
        (("sweep", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (("sweep", "CONFIG"), "probe.tasks is empty"),
        (("sweep", "CONFIG", "probe.tasks=['nowhere:pitch']"), "nowhere/labels.csv: No such file"),
        (("sweep", "CONFIG", "sweep.searhcer=grid"), "nearest known key: 'sweep.searcher'"),
        (("pretrain", "CONFIG", "sweep.repeats=3"), "unknown key 'sweep'"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(tiny_file: Path, words: tuple[str, ...], said: str) -> None:
    code, _, error = command(*(str(tiny_file) if word == "CONFIG" else word for word in words))
    assert code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["", "a: [b", "name: a", "sweep: {}\nviews: {nonsense: 1}\nfrontend: {}\n"])
def test_a_damaged_description_of_a_sweep_is_named_in_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    code, _, said = command("show", "sweep", str(tmp_path))
    assert code == 2 and said.startswith(f"scaleaudio: {tmp_path}/sweep.yaml: ") and said.count("\n") == 1, said


@pytest.mark.parametrize(("reason", "code"), [("SIGTERM", 143), ("SIGINT", 0), (None, 0)])
def test_a_sweep_that_was_told_to_go_does_not_count_as_done(
    reason: str | None,
    code: int,
    plan: Plan,
    trials: list[TrialRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(*given: Any, on_event: Callable[[dict[str, Any]], None], **more: Any) -> list[TrialRecord]:
        on_event({"kind": "ended", "trial": 1, "reason": "asked"})  # a trial's own
        on_event({"kind": "ended", "reason": reason})
        return trials

    monkeypatch.setattr(launched, "sweep", told)
    ended, printed, said = command("sweep", str(tmp_path / "tiny.yaml"), "probe.tasks=[clips:pitch]")
    assert ended == code, said
    assert ("the same command goes on" in printed) == (reason is not None)
