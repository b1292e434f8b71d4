"""What a run says while it goes on and when it ends."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaleaudio.launch import progress as shown
from scaleaudio.launch.account import Account, next_commands
from scaleaudio.launch.progress import Progress
from scaleaudio.launch.provenance import git_state, provenance

STARTED = {"kind": "started", "step": 0, "workers": 2, "seconds": 41.23}
RECOVERY = {"kind": "recovery", "step": 20, "what": "goes on with 2 workers", "lost_steps": 10, "seconds": 25.0}


def metrics(step: int, **more: float) -> dict[str, Any]:
    alike = {"similarity/positive": 0.9, "similarity/others": 0.05, "similarity/negative": 0.5}
    pace = {"embedding/rank": 40.2, "clips_per_second": 160.0, "step_seconds": 0.5, "data_wait_seconds": 0.001}
    return {"kind": "metrics", "step": step, "loss": 4.0 - step / 100} | alike | pace | more


def said(events: list[dict[str, Any]], *, terminal: bool = False, width: int = 100) -> str:
    out = io.StringIO()
    with Progress(400, Console(file=out, force_terminal=terminal, width=width)) as progress:
        for event in events:
            progress.on_event(event)
    return out.getvalue()


def test_a_job_s_log_has_the_figures_with_the_time_that_is_left() -> None:
    lines = said([STARTED, metrics(10), metrics(20)]).splitlines()
    assert lines == [
        "2 worker(s) ready after 41.2 s; the run starts",
        "step 10/400  loss 3.900  positive 0.90  negative 0.50  others 0.05  rank 40  160 clips/s  3 min left",
    ]


def test_before_the_first_step_it_is_told_what_is_waited_for() -> None:
    phase = {"kind": "phase", "text": "starting 2 worker(s)"}
    assert said([phase]) == "starting 2 worker(s)\n"
    assert "starting 2 worker(s)" in said([phase], terminal=True)


def test_the_last_step_is_always_told_and_has_nothing_left() -> None:
    last = said([STARTED, metrics(10), metrics(400)]).splitlines()[-1]
    assert last.startswith("step 400/400") and "left" not in last


def test_lines_in_a_job_s_log_become_rarer_as_the_weeks_go_by(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(shown.time, "monotonic", lambda: now)
    out = io.StringIO()
    times = []
    with Progress(10**9, Console(file=out)) as progress:
        progress.on_event(STARTED)
        for step in range(1, 20_000):
            now += 10
            before = out.tell()
            progress.on_event(metrics(step))
            times += [now] if out.tell() > before else []
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] == 30 and gaps[-1] == 310 and gaps == sorted(gaps)


def test_waiting_for_data_is_told_where_it_matters() -> None:
    assert "waiting" not in said([STARTED, metrics(10)])
    assert "30 % waiting for data" in said([STARTED, metrics(10, data_wait_seconds=0.15)])


def test_faults_recoveries_probes_and_hostile_warnings_are_lines_of_their_own() -> None:
    events = [
        STARTED,
        {"kind": "fault", "fault": "worker", "step": 30, "what": "worker 1 on host b died: signal 9"},
        RECOVERY,
        {"kind": "resized", "step": 30, "workers_before": 2, "workers": 1, "what": "goes on with 1 worker"},
        {"kind": "probe", "step": 50, "score": 0.75},
        {"kind": "warning", "text": "[bold]odd[/nothing] text"},
        {"kind": "unheard of"},
    ]
    assert said(events).splitlines()[1:] == [
        "fault: a worker's process died: worker 1 on host b died: signal 9",
        "recovered: goes on with 2 workers after 25 s; 10 steps taken again",
        "resized: goes on with 1 worker",
        "step 50: held-out probe 0.750",
        "warning: [bold]odd[/nothing] text",
    ]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_terminal_of_any_width_has_a_bar_and_one_line_below_it(width: int) -> None:
    text = said(
        [STARTED, metrics(10), {"kind": "checkpoint", "step": 10, "url": "u"}, metrics(20)], terminal=True, width=width
    )
    assert "20/400" in text and "loss 3.800" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    below = [line for line in re.split(r"[\r\n]+", plain) if line.startswith("loss")]
    assert below and max(map(len, below)) <= width


def test_the_account_of_a_run_tells_how_it_went() -> None:
    now = iter([100.0, 700.0])
    account = Account(lambda: next(now))
    checkpoint = {"kind": "checkpoint", "step": 390, "url": "runs/a/checkpoints/step-390"}
    probes = [{"kind": "probe", "step": step, "score": score} for step, score in ((100, 0.8), (390, 0.7))]
    for event in [STARTED, metrics(10), {"kind": "fault"}, STARTED, RECOVERY, *probes, checkpoint, metrics(390)]:
        account.on_event(event)
    assert list(account.went()) == [
        "loss 3.900 -> 0.100  positive 0.90  negative 0.50  others 0.05  rank 40  160 clips/s in 10 min",
        "held-out probe 0.700, the best 0.800 at step 100",
        "1 fault(s), 10 steps taken again",
        "newest checkpoint: runs/a/checkpoints/step-390",
    ]


def test_a_run_that_never_reported_has_nothing_to_tell() -> None:
    assert list(Account().went()) == []


def test_the_next_commands_can_be_pasted() -> None:
    assert list(next_commands("runs/a b", finished=True)) == [
        "scaleaudio show run 'runs/a b'",
        "scaleaudio evaluate 'runs/a b' LABELLED_FOLDER --baselines --out 'runs/a b'/evaluation",
        "scaleaudio export 'runs/a b' encoder/",
    ]
    assert list(next_commands("runs/a", finished=False)) == ["scaleaudio show run runs/a"]


def test_a_run_remembers_its_commit_and_how_many_files_were_changed(tmp_path: Path) -> None:
    assert git_state(str(tmp_path)) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    (tmp_path / "own.py").write_text("a = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = git_state(str(tmp_path))
    assert clean is not None and len(clean["commit"]) == 40 and clean["changed_files"] == 0
    (tmp_path / "own.py").write_text("a = 2\n")
    changed = git_state(str(tmp_path))
    assert changed == {"commit": clean["commit"], "changed_files": 1}
    assert {"command", "folder", "host", "git"} == provenance().keys()


def test_a_folder_that_is_gone_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the unpacked working directory of a job may be, once Ray has cleared it away."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert provenance()["folder"] is None and provenance()["git"] is None


def test_a_terminal_that_is_gone_ends_no_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    progress = Progress(400, Console(file=Gone(), force_terminal=False))
    for event in [STARTED, metrics(10), RECOVERY]:
        progress.on_event(event)
