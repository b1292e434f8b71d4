"""Whole runs through Ray Train and DeepSpeed: what they leave, and that a stop does not show in the losses."""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import scaleaudio
from scaleaudio import checkpoint
from scaleaudio.cli import main
from scaleaudio.config import Config, load
from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.launch.monitor import Event
from scaleaudio.launch.pretrain import Outcome, pretrain
from scaleaudio.report.runlog import read_events, read_metrics

pytestmark = pytest.mark.usefixtures("ray_here")

STEPS, EVERY, REPORT, PROBE = 60, 5, 2, 25
# What compares clips with each other is taken over the clips of each worker, so it depends on their number.
OF_ALL_CLIPS = ("loss", "grad_norm", "learning_rate", "similarity/positive", "similarity/negative", "negatives/valid")


@dataclass
class Ran:
    """A run folder, and what was seen of it from outside."""

    url: str
    outcomes: list[Outcome] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    printed: str = ""

    def of_kind(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["kind"] == kind]


def learned(run_url: str) -> dict[int, dict[str, float]]:
    """By step, the metrics that depend on nothing but what was learned."""
    steps = [record for record in read_metrics(run_url) if "loss" in record]
    return {record["step"]: {name: record[name] for name in OF_ALL_CLIPS} for record in steps}


@pytest.fixture(scope="module")
def undisturbed(tiny_tree: dict[str, Any], clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The tiny run by the command line, probed now and then, from its first step to its last."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_tree))
    url = str(folder / "run")
    keys = ("checkpoint.keep_last=100", f"probe.tasks=['{clips}:pitch']", f"probe.every_steps={PROBE}")
    code, printed, said = command("pretrain", str(folder / "tiny.yaml"), *keys, "--out", url)
    assert code == 0, said
    return Ran(url, printed=printed)


def command(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("PYTHONWARNINGS", "ignore")
        patch.setattr(sys, "argv", ["scaleaudio", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def test_a_run_ends_by_saying_where_it_is(undisturbed: Ran) -> None:
    assert undisturbed.printed.splitlines()[-1] == f"finished at step {STEPS}: {undisturbed.url}"
    assert "2 worker(s) ready after" in undisturbed.printed


def test_the_run_folder_holds_the_resolved_config_with_measured_constants(undisturbed: Ran) -> None:
    config = load(Path(undisturbed.url) / "config.yaml")
    assert config.frontend.mean is not None and config.frontend.std is not None
    assert config.data.window_samples == 16 and config.optimizer.beta2 == 0.999


def test_every_report_step_is_logged_once_and_is_finite(undisturbed: Ran) -> None:
    records = [record for record in read_metrics(undisturbed.url) if "loss" in record]
    assert [record["step"] for record in records] == list(range(REPORT - 1, STEPS, REPORT))
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert all(record["clips_per_second"] > 0 for record in records)
    assert {"loss", "grad_norm", "learning_rate", "embedding/std", "embedding/rank"} <= records[0].keys()
    assert {f"similarity/{name}" for name in ("positive", "negative", "others")} <= records[0].keys()
    assert records[-1]["loss"] < records[0]["loss"]


def test_events_tell_the_run_from_start_to_end(undisturbed: Ran) -> None:
    events = [event for event in read_events(undisturbed.url) if event["kind"] not in ("warning", "probe")]
    steps = [("checkpoint", step) for step in range(EVERY, STEPS + 1, EVERY)]
    assert [(event["kind"], event["step"]) for event in events] == [("started", 0), *steps, ("ended", STEPS)]
    assert events[0]["workers"] == 2 and events[-1]["failure"] is None


def test_tensorboard_shows_what_metrics_jsonl_says(undisturbed: Ran) -> None:
    board = EventAccumulator(str(Path(undisturbed.url) / "tensorboard"))
    board.Reload()
    seen = {scalar.step: scalar.value for scalar in board.Scalars("loss")}
    logged = [record for record in read_metrics(undisturbed.url) if "loss" in record]
    assert seen == pytest.approx({record["step"]: record["loss"] for record in logged})


def test_the_probe_is_taken_at_its_steps_and_the_last_and_told_everywhere(undisturbed: Ran) -> None:
    steps = [*range(PROBE, STEPS, PROBE), STEPS]
    scores = {
        record["step"] + 1: record["probe/score"] for record in read_metrics(undisturbed.url) if "probe/score" in record
    }
    assert list(scores) == steps and scores[STEPS] == 1.0  # low and high tones: a task that nobody fails
    told = [(event["step"], event["score"]) for event in read_events(undisturbed.url) if event["kind"] == "probe"]
    assert dict(told) == scores and "probe 1.000" in undisturbed.printed
    board = EventAccumulator(str(Path(undisturbed.url) / "tensorboard"))
    board.Reload()
    assert [scalar.step + 1 for scalar in board.Scalars("probe/score")] == steps
    kept = {meta.step: meta.score for meta in map(checkpoint.read_meta, checkpoint.list_checkpoints(undisturbed.url))}
    assert kept[PROBE] == scores[PROBE] and kept[STEPS] == scores[STEPS] and kept[EVERY] is None


def test_checkpoints_come_in_parts_by_both_workers_and_load_as_an_encoder(undisturbed: Ran) -> None:
    urls = checkpoint.list_checkpoints(undisturbed.url)
    assert [checkpoint.step_of(url) for url in urls] == list(range(EVERY, STEPS + 1, EVERY))
    meta = checkpoint.read_meta(urls[-1])
    assert [part.name for part in meta.parts] == [f"part-0000{rank}-of-00002.safetensors" for rank in (0, 1)]
    names = set(checkpoint.read_tensors(urls[-1], meta))
    trained = {name.partition(".")[2] for name in names if name.startswith("exp_avg.")}
    assert trained and {f"{kind}.{name}" for name in trained for kind in ("parameter", "exp_avg_sq")} <= names
    assert scaleaudio.load(undisturbed.url).step == STEPS


def test_a_finished_run_is_finished_at_once(undisturbed: Ran, tiny: Callable[..., Config]) -> None:
    before = storage.list_entries(undisturbed.url)
    again = pretrain(tiny(), undisturbed.url, on_event=pytest.fail)
    assert again == Outcome(undisturbed.url, STEPS, finished=True)
    assert storage.list_entries(undisturbed.url) == before


def test_another_config_is_refused_by_its_keys(undisturbed: Ran, tiny: Callable[..., Config]) -> None:
    other = tiny({"schedule.learning_rate": 0.5, "negatives.num_candidates": 2, "launch.workers": 1})
    with pytest.raises(InputError) as refused:
        pretrain(other, undisturbed.url)
    text = str(refused.value)
    assert "schedule.learning_rate: 0.0001, 0.5" in text and "negatives.num_candidates: 1, 2" in text
    assert "launch" not in text and "frontend" not in text and "--fresh" in text


def test_launch_and_checkpoint_keys_may_change(undisturbed: Ran, tiny: Callable[..., Config]) -> None:
    changes = {"launch.workers": 1, "launch.zero_stage": 2, "checkpoint.every_steps": 7, "data.num_threads": 1}
    assert pretrain(tiny(changes), undisturbed.url).finished


@pytest.fixture(scope="module")
def stopped(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The same run by two workers until Ctrl-C, by one until its hours are over, and by one to the end."""
    ran = Ran(str(tmp_path_factory.mktemp("stopped") / "run"))

    def interrupt(event: Event) -> None:
        ran.events.append(event)
        if event["kind"] == "metrics" and not ran.of_kind("warning"):
            os.kill(os.getpid(), signal.SIGINT)

    ran.outcomes.append(pretrain(tiny(), ran.url, on_event=interrupt))
    one = tiny({"launch.workers": 1})
    ran.outcomes.append(pretrain(one, ran.url, max_hours=1e-6, on_event=ran.events.append))
    ran.outcomes.append(pretrain(one, ran.url, on_event=ran.events.append))
    return ran


def test_interrupted_runs_end_in_good_order_with_a_checkpoint(stopped: Ran) -> None:
    first, second, third = stopped.outcomes
    assert 0 < first.step < STEPS and not first.finished
    assert first.step < second.step < STEPS and not second.finished
    assert third == Outcome(stopped.url, STEPS, finished=True)
    assert [event["step"] for event in stopped.of_kind("started")] == [0, first.step, second.step]
    assert [event["workers"] for event in stopped.of_kind("started")] == [2, 1, 1]
    assert {first.step, second.step} <= {event["step"] for event in stopped.of_kind("checkpoint")}


def test_max_hours_are_over_at_the_next_report(stopped: Ran) -> None:
    first, second, _ = stopped.outcomes
    assert second.step - first.step <= REPORT


def test_neither_stops_nor_fewer_workers_show_in_the_losses(stopped: Ran, undisturbed: Ran) -> None:
    ours, theirs = learned(stopped.url), learned(undisturbed.url)
    assert list(ours) == list(theirs)
    for step, metrics in theirs.items():
        assert ours[step] == pytest.approx(metrics, rel=1e-4), f"step {step}"


def test_old_checkpoints_are_deleted(stopped: Ran) -> None:
    steps = [checkpoint.step_of(url) for url in checkpoint.list_checkpoints(stopped.url)]
    assert steps == [STEPS - EVERY, STEPS]


def test_fresh_deletes_the_run_and_nothing_but_a_run(tiny: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("debug: true\n")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not what --fresh may delete"):
        pretrain(tiny(), str(tmp_path), fresh=True)
    with pytest.raises(InputError, match="not a run folder"):
        pretrain(tiny(), str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
