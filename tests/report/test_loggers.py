"""Loggers beside metrics.jsonl: their settings, real stores, and servers that fail."""

from __future__ import annotations

import importlib.util
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from scaleaudio.config import dump, validate
from scaleaudio.errors import InputError
from scaleaudio.report import forward, loggers, runlog
from scaleaudio.report.forward import Forwarder
from scaleaudio.report.loggers import MlflowLogger, Record, RunFacts, TensorBoardLogger, WandbLogger, check_installed
from scaleaudio.report.runlog import RunLog, read_metrics

TREE: dict[str, Any] = {"name": "small", "data": {"url": "shards", "global_batch": 16, "lanes": 4}}
CONFIG = {"name": "small", "schedule": {"steps": 8, "learning_rate": 0.1}}


def refusal(value: Any) -> str:
    with pytest.raises(InputError) as refused:
        validate(TREE | {"loggers": value}, "small.yaml")
    return str(refused.value)


def test_tensorboard_is_the_only_logger_by_default() -> None:
    assert validate(TREE, "small.yaml").loggers == (TensorBoardLogger(),)


def test_a_kind_stands_for_its_defaults_and_is_dumped_whole() -> None:
    config = validate(TREE | {"loggers": ["tensorboard", {"kind": "wandb", "project": "mine"}]}, "small.yaml")
    assert config.loggers == (TensorBoardLogger(), WandbLogger(project="mine"))
    assert "- kind: tensorboard" in dump(config) and "  project: mine" in dump(config)


def test_loggers_that_cannot_be_are_refused_by_name() -> None:
    assert "loggers: 'wandb' comes 2 times" in refusal(["wandb", {"kind": "wandb", "project": "b"}])
    assert "unknown key 'loggers.0.projekt'" in refusal([{"kind": "wandb", "projekt": "b"}])
    assert "'tensorboard', 'wandb', 'mlflow'" in refusal(["comet"])
    assert "loggers" in refusal("wandb")
    assert "user:secret" not in (text := refusal([{"kind": "mlflow", "tracking_uri": "https://user:secret@host"}]))
    assert "credential" in text or "password" in text


def test_a_logger_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    check_installed([TensorBoardLogger(), MlflowLogger()])
    with pytest.raises(InputError, match=r"pip install 'scaleaudio\[wandb\]'"):
        check_installed([TensorBoardLogger(), WandbLogger()])


def test_no_logger_leaves_metrics_jsonl_alone(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), 0, loggers=())
    log.write(0, {"loss": 1.0})
    log.close()
    assert [(record["step"], record["loss"]) for record in read_metrics(str(tmp_path))] == [(0, 1.0)]
    assert not (tmp_path / "tensorboard").exists()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, a log that is closed waits for its loggers."""
    monkeypatch.setattr(runlog, "_CLOSE_SECONDS", 240.0)


def two_attempts(url: str, logger: Any) -> None:
    """A run of eight steps: six are logged, it is killed, and goes on from the checkpoint of step 4."""
    first = RunLog(url, 0, (logger,), CONFIG)
    for step in range(6):
        first.write(step, {"loss": 8.0 - step, "similarity/positive": 0.5})
    first.event({"kind": "ended", "step": 6, "failure": None})
    first.close()
    second = RunLog(url, 4, (logger,), CONFIG)
    for step in range(4, 8):
        second.write(step, {"loss": 8.0 - step, "similarity/positive": 0.5})
    second.event({"kind": "ended", "step": 8, "failure": None})
    second.close()
    assert first.new_warnings() == second.new_warnings() == []


@pytest.mark.usefixtures("patient")
def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    two_attempts(str(tmp_path / "run"), MlflowLogger(tracking_uri=str(tmp_path / "mlruns"), experiment="ours"))
    check_mlflow(str(tmp_path / "mlruns"), str(tmp_path / "run"))


@pytest.mark.usefixtures("patient")
@pytest.mark.slow  # its tables alone take 15 s
@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")  # SQLAlchemy 2.1 of MLflow 3.17
def test_a_resumed_run_goes_on_in_the_same_mlflow_run_of_a_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    two_attempts(str(tmp_path / "run"), MlflowLogger(tracking_uri=uri, experiment="ours"))
    check_mlflow(uri, str(tmp_path / "run"))


def check_mlflow(uri: str, run_url: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("ours")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "small" and run.info.status == "FINISHED"
    assert run.data.tags["scaleaudio.run_url"] == run_url and run.data.params["schedule.learning_rate"] == "0.1"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {point.step: point.value for point in history} == {step: 8.0 - step for step in range(8)}
    assert client.get_metric_history(run.info.run_id, "similarity/positive")


@pytest.mark.usefixtures("patient")
def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path) -> None:
    two_attempts(str(tmp_path), WandbLogger(mode="offline", project="ours", tags=("a",)))
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    run_id = (tmp_path / "run_id").read_text().strip()
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{run_id}"}
    seen: dict[float, float] = {}
    for file in files:
        run, history = wandb_file(file)
        assert (run.run_id, run.project, run.display_name) == (run_id, "ours", "small")
        seen |= {float(row["step"]): float(row["loss"]) for row in history}
    assert seen == {float(step): 8.0 - step for step in range(8)}


def wandb_file(path: Path) -> tuple[Any, list[dict[str, str]]]:
    """The run and the rows of its history in a file of wandb."""
    from wandb.proto import wandb_internal_pb2

    run, history = None, []
    for data in framed(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            run = record.run
        elif record.WhichOneof("record_type") == "history":
            rows = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            history.append(rows)
    return run, history


def framed(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, behind wandb's header of 7 bytes: blocks of 32 KiB."""
    assert data.startswith(b":W&B")
    at, record = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.fixture
def mute_server() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_costs_the_run_nothing_and_is_told_of_once(
    mute_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(forward, "_FIRST_PAUSE_SECONDS", 0.1)
    log = RunLog(str(tmp_path), 0, (MlflowLogger(tracking_uri=mute_server),), CONFIG)
    began = time.perf_counter()
    for step in range(100):
        log.write(step, {"loss": 1.0})
    log.flush()
    assert time.perf_counter() - began < 0.5
    told = []
    while not told and time.perf_counter() - began < 60:
        told += log.new_warnings()
        time.sleep(0.05)
    log.close()
    told += log.new_warnings()
    assert len(told) == 2
    assert "mlflow: MlflowException" in told[0] and "metrics.jsonl has everything" in told[0]
    assert "100 records have not arrived at mlflow" in told[1]
    assert len(read_metrics(str(tmp_path))) == 100


class Flaky:
    """A logger whose sink fails as often as it is told, and keeps what it gets."""

    kind = module = "flaky"
    local: ClassVar[bool] = True

    def __init__(self, num_failures: int) -> None:
        self.num_failures = num_failures
        self.opened: list[int] = []
        self.steps: list[int] = []
        self.closed: list[str] = []

    def open(self, run: RunFacts) -> Flaky:
        self.opened.append(run.start_step)
        return self

    def write(self, records: Sequence[Record]) -> None:
        if records and self.num_failures:
            self.num_failures -= 1
            raise OSError("the line is dead")
        self.steps += [step for step, _, _ in records]

    def flush(self) -> None:
        pass

    def close(self, state: str) -> None:
        self.closed.append(state)


def forwarder(logger: Flaky, tmp_path: Path) -> Forwarder:
    return Forwarder(logger, RunFacts("id", "url", tmp_path, 0, {}))  # type: ignore[arg-type]


def test_what_failed_arrives_once_the_logger_works_again_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_FIRST_PAUSE_SECONDS", 0.01)
    logger = Flaky(num_failures=0)
    to = forwarder(logger, tmp_path)
    to.write(0, 0.0, {})
    to.flush(5)
    logger.num_failures = 3
    for step in range(1, 500):
        to.write(step, 0.0, {})
    while logger.num_failures:
        time.sleep(0.01)
    to.close("finished", 5)
    assert logger.steps == list(range(500)) and logger.closed == ["finished"]
    assert logger.opened == [0, 1, 1, 1]  # TensorBoard hides what it has of the step that it is opened for, and later
    (warning,) = to.warnings()
    assert "flaky: OSError: the line is dead" in warning


def test_the_oldest_records_give_way_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_WAITING", 50)
    logger = Flaky(num_failures=10**9)
    to = forwarder(logger, tmp_path)
    for step in range(80):
        to.write(step, 0.0, {})
    to.close("failed", 5)
    assert "80 records have not arrived" in to.warnings()[-1]


def test_a_flush_of_a_failing_logger_does_not_wait(tmp_path: Path) -> None:
    to = forwarder(Flaky(num_failures=10**9), tmp_path)
    to.write(0, 0.0, {})
    while not to.warnings():
        time.sleep(0.01)
    began = time.perf_counter()
    to.flush(30)
    assert time.perf_counter() - began < 5
    to.close("stopped", 5)


def test_importing_the_loggers_imports_none_of_them() -> None:
    code = "import sys, scaleaudio.config; print([m for m in ('wandb', 'mlflow', 'tensorboard') if m in sys.modules])"
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
