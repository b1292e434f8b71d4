"""What a run's log keeps and drops when the run is resumed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from servers import s3_server
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaleaudio.data import storage
from scaleaudio.errors import InputError
from scaleaudio.report import loggers, pieces, runlog
from scaleaudio.report.events import EVENTS, FAULTS, append_events, fault, recovery
from scaleaudio.report.history import read_series
from scaleaudio.report.runlog import (
    METRICS,
    REJECTS,
    RunLog,
    leave_rejects,
    newest_step,
    read_events,
    read_metrics,
    read_rejects,
)
from scaleaudio.types import Reject


@pytest.fixture
def run_url(tmp_path: Path) -> str:
    """A run that logged ten steps and two replaced clips, and was then cut off in the middle of a line."""
    log = RunLog(str(tmp_path), 0)
    log.event({"kind": "started", "step": 0})
    for step in range(10):
        log.write(step, {"loss": 10.0 - step})
    log.add_rejects([(2, Reject("a.tar", "x", "truncated")), (8, Reject("b.tar", "y", "empty"))])
    log.close()
    for name in (METRICS, EVENTS):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 10, "lo')
    return str(tmp_path)


def test_a_line_cut_off_by_a_crash_is_left_out(run_url: str) -> None:
    assert [record["step"] for record in read_metrics(run_url)] == list(range(10))
    assert [event["kind"] for event in read_events(run_url)] == ["started"]


def test_a_resumed_log_drops_the_steps_that_are_taken_again(run_url: str) -> None:
    log = RunLog(run_url, 6)
    log.write(6, {"loss": 0.5})
    log.close()
    records = read_metrics(run_url)
    assert [record["step"] for record in records] == list(range(7))
    assert records[5]["loss"] == 5.0 and records[6]["loss"] == 0.5
    assert read_rejects(run_url) == [{"step": 2, "shard": "a.tar", "key": "x", "reason": "truncated"}]


def test_tensorboard_shows_a_resumed_run_as_one_curve(run_url: str) -> None:
    log = RunLog(run_url, 6)
    log.write(6, {"loss": 0.5})
    log.close()
    board = EventAccumulator(str(Path(run_url) / "tensorboard"))
    board.Reload()
    assert {scalar.step: scalar.value for scalar in board.Scalars("loss")} == {
        **{step: 10.0 - step for step in range(6)},
        6: 0.5,
    }


def test_events_of_all_attempts_stay_with_their_times(run_url: str) -> None:
    log = RunLog(run_url, 6)
    log.event({"kind": "started", "step": 6})
    log.close()
    events = read_events(run_url)
    assert [event["step"] for event in events] == [0, 6]
    assert 0 < events[0]["time"] <= events[1]["time"]


def test_faults_and_recoveries_are_events_with_time_step_and_what_happened(run_url: str) -> None:
    """Written while no worker lives; the line that its death cut off does not count as damage."""
    died = fault("worker", 9, "worker 1 on host b (pid 17) died: killed by signal 9", rank=1)
    breakdown = {"noticed": 1.5, "workers started": 10.25, "first step": 0.25}
    back = recovery("worker", 6, "goes on with 2 workers", lost_steps=3, breakdown=breakdown)
    append_events(run_url, [died, back])
    log = RunLog(run_url, 6)
    log.event({"kind": "started", "step": 6})
    log.close()
    assert log.warnings == []
    first, struck, went_on, second = read_events(run_url)
    assert (first["kind"], second["kind"]) == ("started", "started")
    assert struck == died and struck["fault"] in FAULTS and struck["step"] == 9
    assert (went_on["seconds"], went_on["lost_steps"], went_on["breakdown"]) == (12.0, 3, breakdown)


def test_a_run_that_has_not_begun_has_logged_nothing(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert read_metrics(nowhere) == [] and read_events(nowhere) == [] and read_rejects(nowhere) == []


def test_a_damaged_line_costs_that_line_alone_and_the_file_is_kept(run_url: str) -> None:
    path = Path(run_url) / METRICS
    lines = path.read_bytes().split(b"\n")
    lines[3], lines[5], lines[6] = b'{"step": 3, "los', b"\xff\xfe\x00", b"[1, 2]"
    path.write_bytes(b"\n".join(lines))
    damaged = path.read_bytes()
    assert [record["step"] for record in read_metrics(run_url)] == [0, 1, 2, 4, 7, 8, 9]
    log = RunLog(run_url, 9)
    log.close()
    assert [record["step"] for record in read_metrics(run_url)] == [0, 1, 2, 4, 7, 8]
    (warning,) = log.warnings
    assert "metrics.jsonl: 3 of its lines are damaged" in warning
    assert (Path(run_url) / "metrics.damaged-before-step-9.jsonl").read_bytes() == damaged


@pytest.mark.parametrize("damage", [b"", b"PAR1 no table", b"\0" * 500])
def test_a_damaged_table_of_rejects_is_set_aside_and_the_run_goes_on(run_url: str, damage: bytes) -> None:
    (Path(run_url) / REJECTS).write_bytes(damage)
    with pytest.raises(InputError, match=r"rejects\.parquet: not a table"):
        read_rejects(run_url)
    log = RunLog(run_url, 6)
    log.add_rejects([(7, Reject("c.tar", "z", "empty"))])
    log.close()
    assert [row["key"] for row in read_rejects(run_url)] == ["z"]
    (warning,) = log.warnings
    assert "begun anew" in warning and "rejects.damaged-before-step-6.parquet" in warning
    assert (Path(run_url) / "rejects.damaged-before-step-6.parquet").read_bytes() == damage


def test_a_whole_log_has_nothing_to_warn_of(run_url: str) -> None:
    log = RunLog(run_url, 6)
    log.close()
    assert log.warnings == []


def test_what_workers_left_when_they_stopped_is_read_and_taken_over(run_url: str) -> None:
    leave_rejects(run_url, 3, [(12, Reject("d.tar", "late", "empty")), (4, Reject("d.tar", "early", "empty"))])
    leave_rejects(run_url, 1, [(11, Reject("c.tar", "z", "empty"))])
    assert [row["key"] for row in read_rejects(run_url)] == ["x", "y", "early", "z", "late"]
    log = RunLog(run_url, 9)
    log.close()
    assert [row["key"] for row in read_rejects(run_url)] == ["x", "y", "early"]
    assert not list(Path(run_url).glob("rejects-of-worker-*"))


def test_rejects_past_the_limit_are_counted_by_reason_in_an_event(
    run_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlog, "MAX_REJECT_ROWS", 3)
    log = RunLog(run_url, 10)
    late = [(step, Reject("c.tar", f"k{step}", f"ends at byte {step}")) for step in range(11, 15)]
    log.add_rejects(late)
    log.flush()
    log.add_rejects([(15, Reject("c.tar", "k15", "empty"))])
    log.close()
    assert [row["key"] for row in read_rejects(run_url)] == ["x", "y", "k11"]
    counted = [(event["step"], event["by_reason"]) for event in read_events(run_url)[1:]]
    assert counted == [(14, {"ends at byte #": 3}), (15, {"empty": 1})]


def test_in_an_object_store_a_checkpoint_copies_only_the_newest_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long metrics become pieces: all readers put them together again, and a resumed run cuts them where it begins."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    monkeypatch.setattr(loggers._TensorBoard, "_MAX_BYTES", 2000)
    with s3_server(monkeypatch, "bucket"):
        url = "s3://bucket/run"
        log = RunLog(url, 0)
        for step in range(200):
            log.write(step, {"loss": 10.0 - step})
            if step % 20 == 19:
                log.flush()
        log.close()
        names = [piece.rpartition("/")[2] for piece in pieces.piece_urls(url)]
        assert len(names) > 4 and names[0] == pieces.piece_name(39) and names[-1] == METRICS
        assert len(storage.list_files(f"{url}/tensorboard")) > 2
        assert [record["step"] for record in read_metrics(url)] == list(range(200))
        resumed = RunLog(url, 90)
        resumed.write(90, {"loss": 0.5})
        resumed.close()
        assert [record["step"] for record in read_metrics(url)] == list(range(91))
        assert read_series(url)["loss"].value_N[-2:].tolist() == [-79.0, 0.5]
        again = RunLog(url, 20)
        again.close()
        assert [record["step"] for record in read_metrics(url)] == list(range(20))


def test_tensorboard_reads_files_that_follow_one_another_as_one_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers._TensorBoard, "_MAX_BYTES", 500)
    log = RunLog(str(tmp_path), 0)
    for step in range(40):
        log.write(step, {"loss": 10.0 - step})
        if step % 10 == 9:
            log.flush()
    log.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) > 1
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert {scalar.step: scalar.value for scalar in board.Scalars("loss")} == {step: 10.0 - step for step in range(40)}


def test_the_newest_step_is_found_at_the_end_of_logs_of_any_length(run_url: str) -> None:
    """A quarter of a gigabyte of it, which is not read."""
    assert newest_step(run_url) == 9
    with Path(run_url, METRICS).open("r+b") as file:
        file.seek(1 << 28)
        file.write(b'\n{"step": 70000, "loss": 1.0}\n{"step": 70001, "lo')
    tracemalloc.start()
    assert newest_step(run_url) == 70_000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    append_events(run_url, [fault("worker", 70_003, "it died")])
    assert newest_step(run_url) == 70_003
    assert newest_step(f"{run_url}/nothing") == 0


def test_the_newest_step_of_a_piece_that_was_just_closed_is_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch, "bucket"):
        storage.write_atomic(f"s3://bucket/run/{pieces.piece_name(41)}", b'{"step": 41}\n')
        storage.write_atomic(f"s3://bucket/run/{METRICS}", b"")
        assert newest_step("s3://bucket/run") == 41
